"""GET /v1/sessions/{id}/metrics: of a sandbox, of a session that sleeps, and for Prometheus."""

from __future__ import annotations

import httpx
from prometheus_client.parser import text_string_to_metric_families

from gateway.api.session_metrics import render
from gateway.core.usage import Quantity, UsageKey
from gateway.observability import counters
from gateway.observability.counters import SessionTotals
from tests.support.scripted import OpenScripted
from tests.support.waiting import LIMIT_S

DOCUMENT = {
    "session": "s1", "state": "active", "since": "2026-01-01T00:00:00Z", "requests": 7, "egressBytes": 10,
    "sandboxSeconds": 2.5, "hibernatedSeconds": 0.0, "cpuSeconds": 0.25,
    "sandbox": {"cpuSeconds": 0.5, "cores": None, "memoryBytes": 4096.0, "memoryLimit": None, "processes": 3},
    "starts": {"warm": 1, "cold": 0, "wake": 2, "wake-cold": 0},
}  # fmt: skip


def test_prometheus_reads_what_is_known() -> None:
    """Each sample with the session's label; a start kind is a label; what is not known has none."""
    text = "".join(render(DOCUMENT))
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    found = {(each.name, each.labels.get("start")): each.value for each in samples}
    assert found["wakegate_session_memory_bytes", None] == 4096
    assert found["wakegate_session_requests_total", None] == 7
    assert found["wakegate_session_starts_total", "wake"] == 2
    assert ("wakegate_session_cores", None) not in found
    assert ("wakegate_session_disk_bytes", None) not in found
    assert {each.labels["session"] for each in samples} == {"s1"}
    assert "wakegate_session_memory_bytes" not in "".join(render({**DOCUMENT, "sandbox": None}))


def test_totals_are_of_a_bounded_number_of_sessions() -> None:
    """The one that was not used for longest is forgotten; rows of tenants are not counted."""
    totals = SessionTotals()
    for number in range(counters.MAX_SESSIONS + 2):
        key = UsageKey(0, "acme", "r", "", f"s{number}")
        totals.count({key: {Quantity.REQUESTS: 1.0}, UsageKey(0, "acme", "r"): {Quantity.REQUESTS: 1.0}})
        totals.count({UsageKey(0, "acme", "r", "", "s0"): {Quantity.REQUESTS: 1.0}})
    assert totals.of("s0")[Quantity.REQUESTS] == counters.MAX_SESSIONS + 3
    assert (totals.of("s1"), totals.of("s2")) == ({}, {})
    assert totals.of("s3") == {Quantity.REQUESTS: 1.0}
    assert totals.of("") == {}


async def test_requests_and_starts_of_a_session_are_counted(open_gateway: OpenScripted) -> None:
    """As the meter has written them; in both forms; parameters are refused."""
    gateway, _ = await open_gateway()
    session = await gateway.session()
    async with httpx.AsyncClient(base_url=gateway.url, trust_env=False, timeout=LIMIT_S) as client:
        for _ in range(3):
            await client.get("/", headers={"x-session-id": session})
        await gateway.gateway.usage.flush()
        path = f"/v1/sessions/{session}/metrics"
        found = (await client.get(path)).json()
        assert (found["session"], found["state"], found["requests"]) == (session, "active", 3)
        assert sum(found["starts"].values()) == 1
        text = await client.get(path, headers={"accept": "text/plain;version=0.0.4"})
        assert text.headers["content-type"].startswith("text/plain; version=0.0.4")
        assert f'wakegate_session_requests_total{{session="{session}"}} 3' in text.text
        assert (await client.get(path + "?x=1")).status_code == 400
        assert (await client.get("/v1/sessions/nobody/metrics")).status_code == 404
