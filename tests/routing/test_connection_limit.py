"""A bound on client connections: idle ones make place, requests under way are never closed, the rest is told so."""

from __future__ import annotations

import asyncio

import pytest

from gateway.routing.connection_limit import ConnectionLimit, Reclaimable, TooManyConnectionsError, connection_limit
from tests.support.scripted import Call, OpenScripted
from tests.support.waiting import eventually

ON_UVLOOP = True


@pytest.mark.parametrize(
    ("configured", "descriptors", "limit"),
    [(0, 1024, 768), (0, 20_000, 15_000), (0, 512, 256), (0, 64, 16), (100, 1024, 100), (2000, 1024, 768)],
)
def test_limit_leaves_descriptors_for_sandboxes(configured: int, descriptors: int, limit: int) -> None:
    """A quarter, at least 256; a setting above what is left is cut to it."""
    assert connection_limit(configured, descriptors) == limit


class Connection(Reclaimable):
    def __init__(self, since: float | None) -> None:
        self.since = since
        self.closed = False

    def idle_since(self) -> float | None:
        return None if self.closed else self.since

    def reclaim(self) -> None:
        self.closed = True


def test_longest_idle_connections_are_closed_first() -> None:
    """A sixteenth of them at a time; neither busy ones nor the one that asks."""
    connections = [Connection(float(32 - n) if n % 2 else None) for n in range(32)]
    ConnectionLimit(32).admit([*connections, Connection(99.0)], 33, 0.0)
    assert [n for n, each in enumerate(connections) if each.closed] == [29, 31]


def test_new_connection_is_refused_when_all_are_busy() -> None:
    """With when to come back; below the limit nothing is closed or refused."""
    busy = [Connection(None) for _ in range(16)]
    limit = ConnectionLimit(16)
    limit.admit(busy, 16, 0.0)
    with pytest.raises(TooManyConnectionsError, match="16 client connections") as refused:
        limit.admit([*busy, Connection(0.0)], 17, 0.0)
    assert refused.value.retry_after


async def test_flood_of_idle_sockets_leaves_live_sessions_alone(open_gateway: OpenScripted) -> None:
    """Far more sockets than the limit, silent or with half a head: a request under way ends well, new ones are served,
    a WebSocket's or a request's connection is never the one that is closed."""
    release = asyncio.Event()

    async def script(call: Call) -> None:
        if call.request.path == "/slow":
            await release.wait()
        await call.reply(call.request.path.encode())

    gateway, sandbox = await open_gateway(script, max_connections=16)
    session = await gateway.session()
    slow = await gateway.connect()
    await slow.send(f"GET /slow HTTP/1.1\nhost: h\nx-session-id: {session}\n\n")
    await eventually(lambda: sandbox.requests, "the request is at the sandbox")
    for number in range(50):
        stranger = await gateway.connect()
        if number % 2:
            await stranger.send("GET / HTTP/1.1\nx: ")
        if number % 10 == 0:
            answer = await gateway.ask(f"GET /new HTTP/1.1\nhost: h\nx-session-id: {session}")
            assert answer.body == b"/new"
    release.set()
    assert (await slow.answer()).body == b"/slow"


async def test_client_beyond_busy_connections_is_answered_503(open_gateway: OpenScripted) -> None:
    """When each connection carries a request, a further one is told to come back, and gets in once one has ended."""
    release = asyncio.Event()

    async def script(call: Call) -> None:
        await release.wait()
        await call.reply()

    gateway, sandbox = await open_gateway(script, max_connections=16)
    session = await gateway.session()
    clients = [await gateway.connect() for _ in range(16)]
    for client in clients:
        await client.send(f"GET / HTTP/1.1\nhost: h\nx-session-id: {session}\n\n")
    await eventually(lambda: len(sandbox.requests) == 16, "all are under way")
    late = await gateway.connect()
    answer = await late.answer()
    assert (answer.status, answer.json["code"], answer.get("retry-after")) == (503, "TOO_MANY_CONNECTIONS", "1")
    assert await late.closed() == b""
    release.set()
    for client in clients:
        assert (await client.answer()).status == 200
    assert (await gateway.ask("GET /healthz HTTP/1.1\nhost: h")).status == 200
