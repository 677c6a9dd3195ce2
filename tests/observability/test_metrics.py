"""`/metrics`: every family moves when what it counts happens, and none grows with sessions."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from websockets.asyncio.client import connect
from websockets.asyncio.server import serve

from gateway.core.errors import SandboxStartError, StoreUnavailableError
from gateway.core.model import Endpoint, SnapshotRef
from gateway.observability.counters import Calls, Histogram, status_label
from gateway.observability.instrument import metered
from gateway.testing import ScriptedProvider
from tests.support.scripted import KEY, Call, OpenScripted, Served, served
from tests.support.waiting import eventually

ON_UVLOOP = True
RUNTIME = str(KEY)


class Scrape:
    """One answer of /metrics, parsed."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.families = {family.name for family in text_string_to_metric_families(text)}
        self._values = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def __call__(self, name: str, **labels: str) -> float:
        """One sample's value; 0 while it is not there."""
        return self._values.get((name, frozenset(labels.items())), 0.0)


async def empty_pool(gateway: Served) -> None:
    """Have new sessions start cold from now on. The autoscaler stops: its next pass would fill the pool again."""
    await gateway.gateway.autoscaler.aclose()
    await gateway.provider.resize(KEY, 0)


async def scrape(gateway: Served) -> Scrape:
    answer = await gateway.ask("GET /metrics HTTP/1.1\nhost: a")
    assert (answer.status, answer.get("content-type")) == (200, "text/plain; version=0.0.4; charset=utf-8")
    return Scrape(answer.body.decode())


async def test_requests_are_counted_by_runtime_start_kind_and_status(open_gateway: OpenScripted) -> None:
    """A first request on a new session is warm or cold, those after it live, on the fast path and off it."""

    async def script(call: Call) -> None:
        await call.body()
        await call.reply(status="404 Not Found" if call.request.path == "/gone" else "200 OK")

    gateway, _ = await open_gateway(script)
    client = await gateway.connect()
    new = f"GET /a HTTP/1.1\nhost: a\nx-wakegate-runtime: {KEY.name}"
    session = (await client.ask(new)).get("x-session-id")
    await empty_pool(gateway)
    await client.ask(new)
    for path in ("/a", "/a", "/gone"):
        await client.ask(f"GET {path} HTTP/1.1\nhost: a\nx-session-id: {session}")
    seen = await scrape(gateway)
    requests = [
        seen("wakegate_requests_total", runtime=RUNTIME, start=start, status=status)
        for start, status in (("warm", "200"), ("cold", "200"), ("live", "200"), ("live", "404"))
    ]
    assert requests == [1, 1, 2, 1]
    counts = {
        start: seen("wakegate_request_duration_seconds_count", runtime=RUNTIME, start=start)
        for start in ("warm", "cold", "live")
    }
    assert counts == {"warm": 1, "cold": 1, "live": 3}
    for stage in ("queue", "claim", "connect", "first_byte"):
        assert seen("wakegate_stage_duration_seconds_count", stage=stage, start="warm") == 1, stage
    assert seen("wakegate_stage_duration_seconds_count", stage="first_byte", start="live") == 3
    assert seen("wakegate_pool_misses_total", runtime=RUNTIME) == 1
    assert seen("wakegate_claims_total", runtime=RUNTIME, start="warm") == 1
    assert seen("wakegate_token_signings_total") == 2
    assert seen("wakegate_store_duration_seconds_count", operation="put") >= 2


async def test_answers_that_stream_are_counted_once_at_their_end(open_gateway: OpenScripted) -> None:
    """A response in pieces moves to the slow path and counts as one live request, in flight until its last byte."""
    go_on = asyncio.Event()

    async def script(call: Call) -> None:
        await call.body()
        if call.request.path == "/slow":
            await call.send("HTTP/1.1 200 OK\ntransfer-encoding: chunked\n\n1\na\n")
            await go_on.wait()
            await call.send("0\n\n")
        else:
            await call.reply()

    gateway, _ = await open_gateway(script)
    session = await gateway.session()
    client = await gateway.connect()
    await client.ask(f"GET / HTTP/1.1\nhost: a\nx-session-id: {session}")
    await client.send(f"GET /slow HTTP/1.1\nhost: a\nx-session-id: {session}\n\n")
    await client.head()
    during = await scrape(gateway)
    go_on.set()
    while await client.chunk():
        pass
    await eventually(lambda: not gateway.gateway.activator.routes[session].in_flight, "the slot is given back")
    after = await scrape(gateway)
    assert [each("wakegate_requests_in_flight", runtime=RUNTIME) for each in (during, after)] == [1, 0]
    assert [
        each("wakegate_requests_total", runtime=RUNTIME, start="live", status="200") for each in (during, after)
    ] == [1, 2]


async def test_gateway_errors_are_counted_by_code(open_gateway: OpenScripted) -> None:
    """An unknown session, a bad request, a full gateway and a sandbox that breaks off, each under its code."""

    async def script(call: Call) -> None:
        await call.body()
        call.abort()

    gateway, _ = await open_gateway(script, max_sandboxes=1)
    session = await gateway.session()
    await gateway.ask("GET /a HTTP/1.1\nhost: a\nx-session-id: nobody")
    await gateway.ask("GET /a HTTP/1.1\nhost: a\nx-session-id: -bad-")
    await gateway.ask(f"GET /a HTTP/1.1\nhost: a\nx-wakegate-runtime: {KEY.name}")
    await gateway.ask("POST /v1/sessions HTTP/1.1\nhost: a\ncontent-length: 28", b'{"runtime":"my-interpreter"}')
    await gateway.ask(f"GET /a HTTP/1.1\nhost: a\nx-session-id: {session}")
    seen = await scrape(gateway)
    codes = ("SESSION_NOT_FOUND", "BAD_REQUEST", "OVERLOADED", "SANDBOX_LOST")
    assert [seen("wakegate_errors_total", code=code) for code in codes] == [1, 1, 1, 1]
    assert seen("wakegate_queue_rejections_total") == 2
    assert seen("wakegate_requests_total", runtime=RUNTIME, start="none", status="429") == 1
    assert seen("wakegate_control_requests_total", method="POST", route="/v1/sessions", status="429") == 1


async def test_held_requests_and_pools_show_while_they_last(open_gateway: OpenScripted) -> None:
    """A request that waits for its sandbox is held; a pool shows what the provider says."""
    gateway, _ = await open_gateway()
    gateway.provider.hold = asyncio.Event()
    client = await gateway.connect()
    await client.send(f"GET /a HTTP/1.1\nhost: a\nx-wakegate-runtime: {KEY.name}\n\n")
    await eventually(lambda: gateway.gateway.activator.held == 1, "the request is held")
    await gateway.provider.resize(KEY, 2)
    held = await scrape(gateway)
    gateway.provider.hold.set()
    await client.answer()
    after = await scrape(gateway)
    assert [each("wakegate_requests_held") for each in (held, after)] == [1, 0]
    assert [each("wakegate_sandboxes_bound") for each in (held, after)] == [0, 1]
    assert [held(f"wakegate_pool_{name}", runtime=RUNTIME) for name in ("target", "ready", "claimed")] == [2, 2, 0]
    assert after("wakegate_pool_claimed", runtime=RUNTIME) == 1
    assert after("wakegate_autoscaler_leads") == 1


async def test_hibernations_and_wakes_are_timed(open_gateway: OpenScripted) -> None:
    """Keeping a workspace and giving it back each count, and the woken request has its own kind."""
    gateway, _ = await open_gateway()
    session = await gateway.session()
    await gateway.gateway.sessions.hibernator.hibernate(session)
    await gateway.ask(f"GET /a HTTP/1.1\nhost: a\nx-session-id: {session}")
    seen = await scrape(gateway)
    for verb in ("keep", "unpark"):
        assert seen("wakegate_keeper_duration_seconds_count", operation=verb) == 1
    assert seen("wakegate_requests_total", runtime=RUNTIME, start="wake", status="200") == 1
    assert seen("wakegate_stage_duration_seconds_count", stage="restore", start="wake") == 1


async def test_websockets_are_counted_and_shown_while_open(tmp_path: Path) -> None:
    """An open socket shows; its handshake counts as an answer with 101."""

    async def echo(connection: object) -> None:
        async for message in connection:  # type: ignore[attr-defined]
            await connection.send(message)  # type: ignore[attr-defined]

    async with serve(echo, "127.0.0.1", 0) as server:
        endpoint = Endpoint(host="127.0.0.1", port=next(iter(server.sockets)).getsockname()[1])
        async with served(tmp_path, ScriptedProvider(endpoint)) as gateway:
            session = await gateway.session()
            url = gateway.url.replace("http", "ws") + "/"
            async with connect(url, additional_headers={"x-session-id": session}, proxy=None) as client:
                await client.send("hello")
                await client.recv()
                during = await scrape(gateway)
            await eventually(lambda: not gateway.gateway.counters.of(KEY).websockets, "the socket is closed")
            after = await scrape(gateway)
    assert [each("wakegate_websockets_open", runtime=RUNTIME) for each in (during, after)] == [1, 0]
    assert after("wakegate_requests_total", runtime=RUNTIME, start="live", status="101") == 1


async def test_draining_gateway_has_a_metric(open_gateway: OpenScripted) -> None:
    """From the signal to its end, so that no alert fires for a roll-out."""
    gateway, _ = await open_gateway()
    before = await scrape(gateway)
    gateway.gateway.shutdown.drain()
    after = await scrape(gateway)
    assert [each("wakegate_draining") for each in (before, after)] == [0, 1]


async def test_blocked_event_loop_shows_in_the_lag(open_gateway: OpenScripted) -> None:
    """Whatever holds the loop's thread for 300 ms is seen in the lag."""
    gateway, _ = await open_gateway()
    lag = gateway.gateway.counters.loop_lag
    before = sum(lag.counts[lag.bounds.index(0.1) :])
    time.sleep(0.6)  # longer than the interval between two looks: one of them is late by 0.3 s or more
    await eventually(lambda: sum(lag.counts[lag.bounds.index(0.1) :]) > before, "a late look is counted")
    assert (await scrape(gateway))("wakegate_event_loop_lag_seconds_count") >= 1


def samples_of_clients(seen: Scrape) -> set[str]:
    """The samples, without values, whose labels follow from what clients send."""
    families = "wakegate_(requests|request_duration|stage|control|errors|websockets|claims|pool_misses)"
    return {line.rpartition(" ")[0] for line in seen.text.splitlines() if re.match(families, line)}


async def test_labels_do_not_grow_with_sessions_or_names_that_clients_make_up(open_gateway: OpenScripted) -> None:
    """Many sessions, unknown runtimes, odd paths and methods leave as many samples as few, and no id."""
    gateway, _ = await open_gateway(max_sandboxes=200)
    client = await gateway.connect()

    async def visit(number: int) -> str:
        new = f"GET /p{number} HTTP/1.1\nhost: a\nx-wakegate-runtime: {KEY.name}"
        session = (await client.ask(new)).get("x-session-id") or ""
        await client.ask(f"GET /p{number} HTTP/1.1\nhost: a\nx-session-id: {session}")
        await client.ask(f"GET /p HTTP/1.1\nhost: a\nx-wakegate-runtime: made-up-{number}")
        await client.ask(f"PROPFIND /v1/made/up/{number} HTTP/1.1\nhost: a")
        await client.ask(f"GET /v1/sessions/{session} HTTP/1.1\nhost: a")
        return session

    await visit(0)
    await scrape(gateway)
    await empty_pool(gateway)
    session = await visit(1)
    few = samples_of_clients(await scrape(gateway))
    for number in range(2, 40):
        session = await visit(number)
    many = await scrape(gateway)
    assert samples_of_clients(many) == few
    assert session not in many.text
    assert "made-up" not in many.text


async def test_openmetrics_is_spoken_when_asked_for(open_gateway: OpenScripted) -> None:
    """Prometheus asks for OpenMetrics first; the answer then ends as that format demands."""
    gateway, _ = await open_gateway()
    answer = await gateway.ask("GET /metrics HTTP/1.1\nhost: a\naccept: application/openmetrics-text; version=1.0.0")
    assert (answer.get("content-type") or "").startswith("application/openmetrics-text; version=1.0.0")
    assert answer.body.endswith(b"# EOF\n")


@pytest.mark.parametrize(("status", "label"), [(200, "200"), (418, "418"), (499, "499"), (299, "2xx"), (577, "5xx")])
def test_statuses_without_a_name_count_by_their_hundred(status: int, label: str) -> None:
    """A sandbox that answers with every number cannot make 500 labels."""
    assert status_label(status) == label


def test_histograms_add_up() -> None:
    """Two added histograms equal one that observed every value."""
    one, other, both = Histogram(), Histogram(), Histogram()
    for index, value in enumerate((0.0004, 0.0005, 0.3, 9.0, 1e9)):
        (one, other)[index % 2].observe(value)
        both.observe(value)
    merged = one.plus(other)
    assert (merged.counts, merged.total) == (both.counts, 5)
    assert merged.sum == pytest.approx(both.sum)


async def test_metered_part_counts_calls_failures_and_answers() -> None:
    """Calls count under their verbs, errors under their class too; answers are handed to the listener."""

    class Part:
        name = "part"

        async def keep(self, size: int) -> SnapshotRef:
            if size < 0:
                raise SandboxStartError("no")
            return SnapshotRef.of("key", size, "00")

        async def records(self, fail: bool) -> AsyncIterator[int]:
            yield 1
            if fail:
                raise StoreUnavailableError("away")

    calls, told = Calls(), []
    part = metered(Part(), calls, lambda verb, answer: told.append((verb, answer.size)))
    await part.keep(5)
    with pytest.raises(SandboxStartError):
        await part.keep(-1)
    assert [number async for number in part.records(False)] == [1]
    with pytest.raises(StoreUnavailableError):
        [number async for number in part.records(True)]
    assert part.name == "part"
    assert {verb: times.total for verb, times in calls.durations.items()} == {"keep": 2, "records": 2}
    assert calls.errors == {("keep", "SandboxStartError"): 1, ("records", "StoreUnavailableError"): 1}
    assert told == [("keep", 5)]
