"""Floods of small frames through a gateway: what it holds stays small, and other sessions' requests are answered."""

from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.frames import Frame, Opcode

from gateway.core.model import Endpoint
from gateway.routing.websocket_client import ClientSocket
from gateway.testing import ScriptedProvider
from tests.support.scripted import ScriptedSandbox, Served, get, served
from tests.support.waiting import LIMIT_S, eventually

ON_UVLOOP = True
PINGS = 100_000  # more than the buffers of the sockets hold of their pongs
PING = 125  # bytes, the most that one may hold


@asynccontextmanager
async def beside(folder: Path, handler: Callable[[ServerConnection], Awaitable[None]]) -> AsyncIterator[Served]:
    """A gateway whose first sandbox is a WebSocket server, and whose later ones answer requests."""
    other = ScriptedSandbox()
    await other.start()
    try:
        async with _beside(folder, handler, other) as gateway:
            yield gateway
    finally:
        await other.aclose()


@asynccontextmanager
async def _beside(
    folder: Path, handler: Callable[[ServerConnection], Awaitable[None]], other: ScriptedSandbox
) -> AsyncIterator[Served]:
    listener = small_socket()
    listener.bind(("127.0.0.1", 0))
    # Without pings: behind a million messages an answer takes longer than they wait for it.
    async with serve(handler, sock=listener, compression=None, close_timeout=1, ping_interval=None) as server:
        first = Endpoint(host="127.0.0.1", port=next(iter(server.sockets)).getsockname()[1])
        async with served(folder, ScriptedProvider(first, other.endpoint)) as gateway:
            yield gateway


def small_socket() -> socket.socket:
    """One in whose buffer of the kernel little waits to be read."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
    return made


@asynccontextmanager
async def dial(gateway: Served, session: str) -> AsyncIterator[ClientConnection]:
    """A client's WebSocket, which is cut at the end: a paused one would not answer a close."""
    host, _, port = gateway.url.removeprefix("http://").rpartition(":")
    sock = small_socket()
    await asyncio.get_running_loop().run_in_executor(None, sock.connect, (host, int(port)))
    headers = {"x-session-id": session}
    client = await connect(
        "ws://gateway", sock=sock, additional_headers=headers, proxy=None, compression=None, ping_interval=None
    )
    try:
        yield client
    finally:
        client.transport.abort()


async def answered_during(gateway: Served, session: str, flood: asyncio.Task[None]) -> None:
    """Requests for another session are answered, one after the other, until the flood is over."""
    client = await gateway.connect()
    asked = 0
    while asked < 20 or not flood.done():
        assert (await client.ask(get(session, "/other"))).body == b"ok"
        asked += 1
        await asyncio.sleep(0)
    await flood


def pings(*, mask: bool) -> bytes:
    """Each with its number."""
    return b"".join(
        Frame(Opcode.PING, str(number).zfill(PING).encode()).serialize(mask=mask) for number in range(PINGS)
    )


class Pongs(asyncio.Protocol):
    """Reads a WebSocket's connection from now on: how many bytes come, and the last of them."""

    connection: ClientConnection | ServerConnection

    def __init__(self) -> None:
        self.size = 0
        self.last = b""

    def data_received(self, data: bytes) -> None:
        self.size += len(data)
        self.last = (self.last + data)[-PING:]

    def read(self, connection: ClientConnection | ServerConnection) -> None:
        self.connection = connection
        connection.transport.set_protocol(self)
        connection.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.connection.connection_lost(exc)  # whoever closes it waits for that


async def test_pings_whose_pongs_a_client_does_not_read(tmp_path: Path) -> None:
    """Pongs wait in the buffers of the sockets, not in the gateway; the last is sent when there is room for it."""

    async def swallow(connection: ServerConnection) -> None:
        async for message in connection:
            await connection.send(message)

    async with beside(tmp_path, swallow) as gateway:
        session, other = await gateway.session(), await gateway.session()
        async with dial(gateway, session) as client:
            transport = client.transport
            transport.pause_reading()
            sent = pings(mask=True)

            async def flood() -> None:
                transport.write(sent)
                while transport.get_write_buffer_size():
                    await asyncio.sleep(0.01)

            async with asyncio.timeout(LIMIT_S):
                await answered_during(gateway, other, asyncio.create_task(flood()))
            (ours,) = [each for each in gc.get_objects() if isinstance(each, ClientSocket)]
            await eventually(lambda: ours._owed is not None, "pongs do not fit")
            assert ours.transport.get_write_buffer_size() < 1 << 20
            pongs = Pongs()
            pongs.read(client)
            await eventually(lambda: pongs.last == str(PINGS - 1).zfill(PING).encode(), "the last ping is answered")
            assert pongs.size < PINGS * (PING + 2)


async def test_pings_whose_pongs_a_sandbox_does_not_read(tmp_path: Path) -> None:
    """The same towards a sandbox."""
    pongs, over, ended = Pongs(), asyncio.Event(), asyncio.Event()
    sent = pings(mask=False)

    async def flood(connection: ServerConnection) -> None:
        transport = connection.transport
        transport.pause_reading()
        transport.write(sent)
        while transport.get_write_buffer_size():
            await asyncio.sleep(0.01)
        await connection.send("sent")
        await over.wait()
        pongs.read(connection)
        await ended.wait()
        transport.abort()

    async with beside(tmp_path, flood) as gateway:
        session, other = await gateway.session(), await gateway.session()
        async with dial(gateway, session) as client:

            async def passed() -> None:
                assert await client.recv() == "sent"

            async with asyncio.timeout(LIMIT_S):
                await answered_during(gateway, other, asyncio.create_task(passed()))
            over.set()
            await eventually(lambda: pongs.size, "pongs come")
            size = -1
            while size != pongs.size:
                size = pongs.size
                await asyncio.sleep(0.2)
            ended.set()
            assert pongs.size < PINGS * (PING + 2)


async def test_fragments_without_end_are_joined_as_they_come(tmp_path: Path) -> None:
    """A message in a hundred thousand pieces, most of them empty, is one buffer in the gateway, and arrives whole."""
    got = list[str | bytes]()

    async def listen(connection: ServerConnection) -> None:
        async for message in connection:
            got.append(message)

    async with beside(tmp_path, listen) as gateway:
        session, other = await gateway.session(), await gateway.session()
        async with dial(gateway, session) as client:
            first = Frame(Opcode.TEXT, b"<", fin=False).serialize(mask=True)
            empty, one, last = (
                Frame(Opcode.CONT, data, fin=data == b">").serialize(mask=True) for data in (b"", b"x", b">")
            )

            async def flood() -> None:
                client.transport.write(first + (empty * 90 + one * 10) * 1000)
                while client.transport.get_write_buffer_size():
                    await asyncio.sleep(0.01)

            async with asyncio.timeout(LIMIT_S):
                await answered_during(gateway, other, asyncio.create_task(flood()))
                (ours,) = [each for each in gc.get_objects() if isinstance(each, ClientSocket)]
                await eventually(lambda: len(ours._joined) == 10_000, "all pieces came")
                assert len(ours.frames) == 1
                client.transport.write(last)
                await eventually(lambda: got, "the message arrives")
            assert got == ["<" + "x" * 10_000 + ">"]


@pytest.mark.parametrize("count", [10_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
async def test_small_messages_both_ways_cost_little_memory(tmp_path: Path, count: int) -> None:
    """As fast as either side can; all arrive, in order, and another session's requests are answered throughout."""
    seen = [0, 0]

    async def handler(connection: ServerConnection) -> None:
        one = Frame(Opcode.BINARY, b"x", True).serialize(mask=False)
        sending = asyncio.create_task(flood(connection, one))
        async for _ in connection:
            seen[0] += 1
        sending.cancel()

    async def flood(connection: ServerConnection | ClientConnection, frame: bytes) -> None:
        for _ in range(count // 1000):
            connection.transport.write(frame * 1000)
            while connection.transport.get_write_buffer_size() > 1 << 16:
                await asyncio.sleep(0.001)

    async with beside(tmp_path, handler) as gateway:
        session, other = await gateway.session(), await gateway.session()
        async with dial(gateway, session) as client:
            before, highest = psutil.Process().memory_info().rss, 0

            async def both() -> None:
                nonlocal highest
                masked = Frame(Opcode.BINARY, b"x", True).serialize(mask=True)
                sending = asyncio.create_task(flood(client, masked))
                while seen != [count, count]:
                    await client.recv()
                    seen[1] += 1
                    if seen[1] % 1000 == 0:
                        highest = max(highest, psutil.Process().memory_info().rss)
                    if seen[1] == count:
                        await eventually(lambda: seen[0] == count, "all messages reach the sandbox", within=500)
                await sending

            async with asyncio.timeout(LIMIT_S if count < 100_000 else 550):
                await answered_during(gateway, other, asyncio.create_task(both()))
            assert highest - before < 64 << 20
