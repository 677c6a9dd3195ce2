"""Egress through a whole gateway: what sessions and tenants narrow, what is shown, sleep, wake, and kill -9."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.internet import PUBLIC, Internet
from tests.support.serve import Server, child_that_runs, processes_of
from tests.support.waiting import wait_until

pytestmark = pytest.mark.processes

MANIFEST = """
apiVersion: runtime.agentcube.volcano.sh/v1alpha1
kind: CodeInterpreter
metadata: {name: my-interpreter}
spec:
  template: {image: none}
  warmPoolSize: 1
  wakegate: {egress: ["*.example.com", "origin.example.com:22"]}
"""


@pytest.fixture
def server(world: Internet, tmp_path: Path) -> Iterator[Server]:
    """A gateway in the world's edge, with an audit trail and an account of usage each second."""
    manifest = tmp_path / "runtime.yaml"
    manifest.write_text(MANIFEST)
    flags = ["--runtime", str(manifest), "--audit-log", str(tmp_path / "audit.jsonl"), "--usage-interval", "1s"]
    with world.serve(tmp_path, *flags) as made:
        yield made


def create(server: Server, **fields: Any) -> str:
    reply = server.client.post("/v1/sessions", json=fields)
    assert reply.status_code == 201, reply.text
    return str(reply.json()["id"])


def status_of(server: Server, session: str, host: str) -> str:
    """What curl gets from a host."""
    reply = server.run(session, f"curl -sS -o /dev/null -w '%{{http_code}}' http://{host}/")
    assert reply.status_code == 200, reply.text
    return str(reply.json()["stdout"])


def log_of(server: Server, session: str) -> dict[str, Any]:
    reply = server.client.get(f"/v1/sessions/{session}/egress")
    assert reply.status_code == 200, reply.text
    document: dict[str, Any] = reply.json()
    return document


def test_session_narrows_its_runtime_and_everything_is_seen(server: Server, tmp_path: Path) -> None:
    """Wider is 400; narrower holds; the session's list, the audit trail, usage and metrics have what was reached."""
    for wider in (["pypi"], ["any"], ["origin.example.com:8443"], ["10.0.0.0/8"], ["nonsense"], "pypi"):
        reply = server.client.post("/v1/sessions", json={"egress": wider})
        assert reply.status_code == 400, wider
        assert reply.json()["error"].startswith("egress"), reply.text
    usual, narrow, nothing = create(server), create(server, egress=["origin.example.com"]), create(server, egress=[])
    hosts = ("origin.example.com", "other.example.com", "third.example.net")
    assert [status_of(server, usual, host) for host in hosts] == ["200", "200", "403"]
    assert [status_of(server, narrow, host) for host in hosts] == ["200", "403", "403"]
    assert [status_of(server, nothing, host) for host in hosts] == ["403", "403", "403"]
    assert server.state(narrow)["egress"] == ["origin.example.com"]

    wait_until(lambda: len(log_of(server, narrow)["log"]) == 3, "the session's list has all")
    seen = log_of(server, narrow)
    assert seen["allowed"]["session"] == ["origin.example.com"]
    refused, _, reached = seen["log"]
    assert (reached["host"], reached["address"], reached["rule"]) == ("origin.example.com", PUBLIC, "*.example.com")
    assert reached["bytesReceived"] > 100
    assert (refused["host"], refused["outcome"]) == ("third.example.net", "refused")
    assert "to allow it, add third.example.net to spec.wakegate.egress of" in refused["setting"]
    assert seen["connections"] == {"closed": 1, "refused": 2, "failed": 0, "cut": 0, "open": 0}

    def refused_hosts() -> list[str]:
        trail = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
        found = [line for line in trail if line.get("action") == "egress.refused" and line["session"] == narrow]
        return [line["detail"]["host"] for line in found]

    wait_until(lambda: refused_hosts() == ["other.example.com", "third.example.net"], "the trail has both refusals")

    def used() -> int:
        rows = server.client.get("/v1/usage?group_by=session").json()["usage"]
        return sum(row["networkReceivedBytes"] for row in rows if row["session"] == narrow)

    wait_until(lambda: used() > 100, "usage has the bytes")
    counted = 'wakegate_egress_connections_total{outcome="refused"} 6.0'
    wait_until(lambda: counted in server.client.get("/metrics").text.splitlines(), "metrics count each refusal once")


def test_tenant_bounds_its_sessions_at_once(server: Server) -> None:
    """A limit that is set while a session runs counts for its next connections; so does its end."""
    session = create(server)
    assert status_of(server, session, "other.example.com") == "200"
    limits = {"limits": {"egress": ["origin.example.com"]}}
    assert server.client.put("/v1/tenants/default", json=limits).status_code in (200, 201)
    wait_until(lambda: status_of(server, session, "other.example.com") == "403", "the limit is in force")
    assert status_of(server, session, "origin.example.com") == "200"
    named = "the limit `egress` of tenant default"
    wait_until(lambda: any(named in line["setting"] for line in log_of(server, session)["log"]), "the list says why")
    assert log_of(server, session)["allowed"]["tenant"] == ["origin.example.com"]
    wrong = server.client.put("/v1/tenants/default", json={"limits": {"egress": ["pypy"]}})
    assert wrong.status_code == 400
    assert server.client.put("/v1/tenants/default", json={"limits": {}}).status_code == 200
    wait_until(lambda: status_of(server, session, "other.example.com") == "200", "it is lifted")


def test_sleep_closes_connections_and_wake_keeps_the_policy(server: Server) -> None:
    """A connection that is open at hibernation ends with it; the new sandbox has the session's policy."""
    session = create(server, egress=["origin.example.com:22", "origin.example.com"])
    held = "curl -sS -N telnet://origin.example.com:22 -x http://127.0.0.1:3128 -p </dev/zero >/dev/null 2>&1 &"
    server.run(session, held)
    wait_until(lambda: log_of(server, session)["connections"]["open"] == 1, "it is open")
    assert server.client.post(f"/v1/sessions/{session}/hibernate").status_code == 200
    wait_until(lambda: log_of(server, session)["connections"]["open"] == 0, "it is closed")
    assert status_of(server, session, "origin.example.com") == "200"
    assert status_of(server, session, "other.example.com") == "403"
    wait_until(lambda: log_of(server, session)["log"][0]["host"] == "other.example.com", "it is the session's")


def test_gateway_killed_under_load_leaves_nothing(server: Server, tmp_path: Path) -> None:
    """kill -9 while sandboxes download: sandboxes and the egress service end with it."""
    session = create(server)
    server.run(session, "curl -sS http://origin.example.com/bytes/99999999999 >/dev/null 2>&1 &")
    wait_until(lambda: log_of(server, session)["bytesReceived"] > 1_000_000, "it runs at full rate")
    assert child_that_runs(server, "gateway.egress").is_running()
    children = psutil.Process(server.process.pid).children(recursive=True)
    server.kill()
    wait_until(lambda: not any(_lives(child) for child in children), "all of them have ended")
    assert processes_of(tmp_path / "state") == []


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
