"""Our ZMTP against the real libzmq, and against peers that break the protocol."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import zmq
import zmq.asyncio

from picod.interpreter import zmtp
from picod.interpreter.zmtp import ZmtpConnection, ZmtpError
from tests.support.waiting import eventually

READY = b"\x04\x19\x05READY\x0bSocket-Type\0\0\0\x03PUB"
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(16 + 32)


class Heard:
    """What a connection was sent."""

    def __init__(self) -> None:
        self.messages: list[tuple[list[bytes], bool]] = []

    def __call__(self, frames: list[bytes], cut: bool) -> None:
        self.messages.append((frames, cut))


@contextlib.asynccontextmanager
async def peer(folder: Path, play: Callable[[asyncio.StreamWriter], Awaitable[None]]) -> AsyncIterator[str]:
    """A server that plays to each client, then waits for it to leave."""

    served: set[Any] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.add(asyncio.current_task())
        with contextlib.suppress(ConnectionError):
            await play(writer)
            while await reader.read(65536):
                pass
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_unix_server(serve, folder / "socket")
    async with server:
        yield str(folder / "socket")
        await asyncio.wait_for(asyncio.gather(*served), 20)


async def test_messages_pass_both_ways_with_libzmq(short_path: Path) -> None:
    """What we send arrives as it was, what it sends too, small frames and large ones."""
    context = zmq.asyncio.Context()
    router, publisher = context.socket(zmq.ROUTER), context.socket(zmq.XPUB)
    router.bind(f"ipc://{short_path}/router")
    publisher.bind(f"ipc://{short_path}/publisher")
    heard, published = Heard(), Heard()
    try:
        dealer = await ZmtpConnection.connect(f"{short_path}/router", "DEALER", heard)
        subscriber = await ZmtpConnection.connect(f"{short_path}/publisher", "SUB", published)
        frames = [b"", b"a", b"b" * 255, b"c" * 256, b"d" * 1_000_000]
        dealer.send(frames)
        who, *received = await router.recv_multipart()
        assert received == frames
        await router.send_multipart([who, *frames])
        assert await publisher.recv() == b"\x01"
        await publisher.send_multipart([b"topic", b"news"])
        await eventually(lambda: heard.messages and published.messages, "both are heard")
        assert heard.messages == [(frames, False)]
        assert published.messages == [([b"topic", b"news"], False)]
        dealer.close()
        subscriber.close()
    finally:
        context.destroy(linger=0)


async def test_frames_are_read_however_they_are_cut(short_path: Path) -> None:
    """A peer may send byte by byte."""

    async def play(writer: asyncio.StreamWriter) -> None:
        for byte in GREETING + READY + b"\x01\x02hi\x00\x05there" + b"\x02" + (300).to_bytes(8, "big") + b"x" * 300:
            writer.write(bytes((byte,)))
            await writer.drain()

    heard = Heard()
    async with peer(short_path, play) as path:
        connection = await ZmtpConnection.connect(path, "SUB", heard)
        await eventually(lambda: len(heard.messages) == 2, "both messages come")
        assert heard.messages == [([b"hi", b"there"], False), ([b"x" * 300], False)]
        connection.close()


async def test_message_that_is_too_large_is_passed_over(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not held, it says that it was cut, and the next one is read as ever."""
    monkeypatch.setattr(zmtp, "MAX_MESSAGE_BYTES", 1000)
    large = b"\x01\x02ok" + b"\x03" + (5000).to_bytes(8, "big") + b"x" * 5000 + b"\x00\x03end"

    async def play(writer: asyncio.StreamWriter) -> None:
        writer.write(GREETING + READY + large + b"\x00\x04next")
        await writer.drain()

    heard = Heard()
    async with peer(short_path, play) as path:
        connection = await ZmtpConnection.connect(path, "SUB", heard)
        await eventually(lambda: len(heard.messages) == 2, "both messages come")
        assert heard.messages == [([b"ok", b"", b"end"], True), ([b"next"], False)]
        connection.close()


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 200 OK\r\n\r\n" + bytes(64),
        GREETING.replace(b"NULL", b"PLAIN")[:64],
        GREETING + b"\x06" + (1 << 40).to_bytes(8, "big"),
        GREETING + b"\x04\x06\x05ERROR",
        b"",
    ],
)
async def test_peer_that_breaks_the_protocol_is_disconnected(short_path: Path, said: bytes) -> None:
    """No greeting, another mechanism, an endless command, a refusal, silence and leaving: each is an error, at once."""

    async def play(writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        if not said:
            writer.close()

    async with peer(short_path, play) as path:
        with pytest.raises(ZmtpError):
            await asyncio.wait_for(ZmtpConnection.connect(path, "SUB", Heard()), 20)


async def test_endless_message_ends_the_connection(short_path: Path) -> None:
    """Frames that never end a message are not collected for ever."""

    async def play(writer: asyncio.StreamWriter) -> None:
        writer.write(GREETING + READY + b"\x01\x00" * 1000)

    async with peer(short_path, play) as path:
        connection = await ZmtpConnection.connect(path, "SUB", Heard())
        await asyncio.wait_for(connection.closed, 20)
        with pytest.raises(ZmtpError):
            connection.send([b"x"])


async def test_message_that_resumes_the_connection_is_delivered_whole_before_the_next(short_path: Path) -> None:
    """Whoever gets a message may pause and resume within it; the order stays."""
    order: list[str] = []
    connections: list[ZmtpConnection] = []

    def hear(frames: list[bytes], _: bool) -> None:
        order.append("begin " + frames[0].decode())
        connections[0].pause()
        connections[0].resume()
        order.append("end " + frames[0].decode())

    async def play(writer: asyncio.StreamWriter) -> None:
        writer.write(GREETING + READY)
        await asyncio.wait_for(told.wait(), 20)
        writer.write(b"\0\1a\0\1b\0\1c")

    told = asyncio.Event()
    async with peer(short_path, play) as path:
        connections.append(await ZmtpConnection.connect(path, "SUB", hear))
        told.set()
        await eventually(lambda: len(order) == 6, "all messages are there")
        connections[0].close()
    assert order == ["begin a", "end a", "begin b", "end b", "begin c", "end c"]
