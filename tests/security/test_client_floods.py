"""Floods of a client: requests, connections and messages, while another session is in use."""

from __future__ import annotations

import asyncio
import os
import resource
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode

from gateway.core.model import Endpoint
from gateway.routing import websocket_relay
from gateway.testing import ScriptedProvider
from tests.support.scripted import OpenScripted, ScriptedSandbox, Served, get, served, slots_free
from tests.support.waiting import LIMIT_S, eventually

ON_UVLOOP = True


async def answered_during(gateway: Served, session: str, flood: asyncio.Task[None]) -> None:
    """Requests for another session are answered, one after the other, until the flood is over."""
    client = await gateway.connect()
    asked = 0
    while asked < 20 or not flood.done():
        assert (await client.ask(get(session, "/other"))).body == b"ok"
        asked += 1
        await asyncio.sleep(0)
    await flood


async def test_pipelined_requests_whose_answers_nobody_reads(open_gateway: OpenScripted) -> None:
    """They are taken one after the other, and no faster than their client reads: thousands never reach the sandbox."""
    gateway, sandbox = await open_gateway()
    session, other = await gateway.session(), await gateway.session()
    greedy = await gateway.connect(read_limit=1 << 10)
    flooding = get(session, "/flood").replace("\n", "\r\n").encode() + b"\r\n"

    async def flood() -> None:
        greedy.writer.write(flooding * 200_000)
        with suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(2):
                await greedy.writer.drain()

    async with asyncio.timeout(LIMIT_S):
        await answered_during(gateway, other, asyncio.create_task(flood()))
    assert sum(request.path == "/flood" for request in sandbox.requests) < 100_000
    greedy.abort()
    await eventually(lambda: slots_free(gateway), "the flood's slot is given back")


@asynccontextmanager
async def silent_server(folder: Path) -> AsyncIterator[Served]:
    """A gateway whose first sandbox takes WebSockets and reads nothing, and whose later ones answer requests."""
    over = asyncio.Event()

    async def ignore(_: ServerConnection) -> None:
        await over.wait()

    other = ScriptedSandbox()
    await other.start()
    async with serve(ignore, "127.0.0.1", 0, compression=None, max_queue=1) as server:
        silent = Endpoint(host="127.0.0.1", port=next(iter(server.sockets)).getsockname()[1])
        async with served(folder, ScriptedProvider(silent, other.endpoint)) as gateway:
            try:
                yield gateway
            finally:
                over.set()
    await other.aclose()


async def test_slot_of_a_client_that_left_while_the_sandbox_reads_nothing_is_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its messages wait, other sessions are answered, and nothing else would tell that it has left."""
    monkeypatch.setattr(websocket_relay, "_SEND_TIMEOUT_S", 0.5)
    async with silent_server(tmp_path) as gateway:
        session, other = await gateway.session(), await gateway.session()
        url = gateway.url.replace("http", "ws")
        client = await connect(url, additional_headers={"x-session-id": session}, proxy=None, ping_interval=None)
        message = Frame(Opcode.BINARY, b"x" * 65536, True).serialize(mask=True, extensions=[])

        async def flood() -> None:
            with suppress(TimeoutError, ConnectionError, ConnectionClosed):
                async with asyncio.timeout(0.3):
                    client.transport.writelines([message] * 256)
                    while client.transport.get_write_buffer_size():
                        await asyncio.sleep(0.01)

        async with asyncio.timeout(LIMIT_S):
            await answered_during(gateway, other, asyncio.create_task(flood()))
        client.transport.abort()
        await eventually(lambda: slots_free(gateway), "the slot is given back")


async def test_idle_connections_keep_nobody_waiting(open_gateway: OpenScripted) -> None:
    """While a thousand are opened, and stand, another client's requests on a session are answered."""
    gateway, _ = await open_gateway()
    other = await gateway.session()
    # Both ends are in this process.
    room = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - len(os.listdir("/proc/self/fd")) - 200
    count = min(1000, room // 2)
    assert count > 100
    idle: list[asyncio.StreamWriter] = []

    async def flood() -> None:
        host, port = gateway.url.removeprefix("http://").split(":")
        for _ in range(count):
            idle.append((await asyncio.open_connection(host, int(port)))[1])

    try:
        async with asyncio.timeout(LIMIT_S):
            await answered_during(gateway, other, asyncio.create_task(flood()))
            assert len(idle) == count
            await answered_during(gateway, other, asyncio.create_task(asyncio.sleep(0)))
    finally:
        for writer in idle:
            writer.transport.abort()


async def test_empty_messages_keep_nobody_waiting(tmp_path: Path) -> None:
    """Ten thousand of them in one piece, each delivered, while another client's requests are answered."""
    count, seen = 10_000, 0

    async def swallow(connection: ServerConnection) -> None:
        nonlocal seen
        async for _ in connection:
            seen += 1

    other = ScriptedSandbox()
    await other.start()
    async with serve(swallow, "127.0.0.1", 0, compression=None) as server:
        reading = Endpoint(host="127.0.0.1", port=next(iter(server.sockets)).getsockname()[1])
        async with served(tmp_path, ScriptedProvider(reading, other.endpoint)) as gateway:
            session, beside = await gateway.session(), await gateway.session()
            url = gateway.url.replace("http", "ws")
            async with connect(url, additional_headers={"x-session-id": session}, proxy=None) as client:
                empty = Frame(Opcode.BINARY, b"", True).serialize(mask=True, extensions=[])

                async def flood() -> None:
                    client.transport.write(empty * count)
                    while seen < count:
                        await asyncio.sleep(0.01)

                async with asyncio.timeout(LIMIT_S):
                    await answered_during(gateway, beside, asyncio.create_task(flood()))
    await other.aclose()
