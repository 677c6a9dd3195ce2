"""Frames that no WebSocket has: each ends its own conversation with the code for it, and leaves nothing in the log."""

from __future__ import annotations

import contextlib
import logging
import struct
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from gateway.core.model import Endpoint
from gateway.testing import ScriptedProvider
from tests.support.scripted import Client, Served, get, served
from tests.support.waiting import eventually

ON_UVLOOP = True
ASKED = "connection: upgrade\nupgrade: websocket\nsec-websocket-version: 13\n"
ASKED += "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\nsec-websocket-extensions: permessage-deflate\n"
CONTINUED, TEXT, BINARY, CLOSE, PING = 0, 1, 2, 8, 9
PROTOCOL_ERROR, INVALID_DATA, TOO_BIG = 1002, 1007, 1009


def frame(
    opcode: int, data: bytes = b"", *, fin: bool = True, mask: bool = True, rsv: int = 0, length: int | None = None
) -> bytes:
    """As a client writes it; `length`: what it says in place of the truth."""
    size, masked = len(data) if length is None else length, 0x80 if mask else 0
    head = bytes([(0x80 if fin else 0) | rsv << 4 | opcode])
    if size < 126:
        head += bytes([masked | size])
    else:
        head += (
            bytes([masked | 126]) + struct.pack(">H", size)
            if size < 65536
            else bytes([masked | 127]) + struct.pack(">Q", size)
        )
    return head + (b"\0\0\0\0" if mask else b"") + data


def bomb(mebibytes: int) -> bytes:
    """A message of so many zeros, compressed a thousandfold."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = b"".join(packer.compress(bytes(1 << 20)) for _ in range(mebibytes))
    return (packed + packer.flush(zlib.Z_SYNC_FLUSH))[:-4]


BOMB = bomb(64)
REFUSED: dict[str, tuple[bytes, int]] = {
    "ping-in-fragments": (frame(PING, b"a", fin=False), PROTOCOL_ERROR),
    "close-in-fragments": (frame(CLOSE, fin=False), PROTOCOL_ERROR),
    "long-ping": (frame(PING, b"a" * 126), PROTOCOL_ERROR),
    "not-masked": (frame(TEXT, b"hi", mask=False), PROTOCOL_ERROR),
    "reserved-bit": (frame(TEXT, b"hi", rsv=2), PROTOCOL_ERROR),
    "compressed-ping": (frame(PING, b"hi", rsv=4), PROTOCOL_ERROR),
    "not-compressed": (frame(TEXT, b"\xff" * 20, rsv=4), PROTOCOL_ERROR),
    "unknown-data": (frame(3), PROTOCOL_ERROR),
    "unknown-control": (frame(11), PROTOCOL_ERROR),
    "continuation-first": (frame(CONTINUED, b"x"), PROTOCOL_ERROR),
    "text-within-text": (frame(TEXT, b"a", fin=False) + frame(TEXT, b"b"), PROTOCOL_ERROR),
    "text-not-utf-8": (frame(TEXT, b"\xff\xfe"), INVALID_DATA),
    "text-not-utf-8-over-fragments": (frame(TEXT, b"\xe2\x82", fin=False) + frame(CONTINUED, b"\x28"), INVALID_DATA),
    "close-code-1005": (frame(CLOSE, struct.pack(">H", 1005)), PROTOCOL_ERROR),
    "close-code-999": (frame(CLOSE, struct.pack(">H", 999)), PROTOCOL_ERROR),
    "half-a-close-code": (frame(CLOSE, b"\x03"), PROTOCOL_ERROR),
    "close-reason-not-utf-8": (frame(CLOSE, struct.pack(">H", 1000) + b"\xff"), INVALID_DATA),
    "length-of-63-bits": (frame(BINARY, length=(1 << 63) - 1), TOO_BIG),
    "length-of-64-bits": (frame(BINARY, length=(1 << 63) + 5), TOO_BIG),
    "17-mebibytes": (frame(BINARY, length=17 << 20), TOO_BIG),
    "bomb": (frame(BINARY, BOMB, rsv=4), TOO_BIG),
    "bomb-in-fragments": (frame(BINARY, BOMB[:40_000], fin=False, rsv=4) + frame(CONTINUED, BOMB[40_000:]), TOO_BIG),
    "request": (b"GET / HTTP/1.1\r\nhost: h\r\n\r\n", PROTOCOL_ERROR),
}  # fmt: skip


@asynccontextmanager
async def _echoing(folder: Path, seen: list[str | bytes]) -> AsyncIterator[Served]:
    async def handler(socket: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            async for message in socket:
                seen.append(message)
                await socket.send("echo")

    async with serve(handler, "127.0.0.1", 0, compression=None, close_timeout=1) as server:
        endpoint = Endpoint(host="127.0.0.1", port=next(iter(server.sockets)).getsockname()[1])
        async with served(folder, ScriptedProvider(endpoint)) as gateway:
            yield gateway


async def _opened(gateway: Served, session: str) -> Client:
    client = await gateway.connect()
    await client.send(get(session, "/ws", ASKED) + "\n")
    assert (await client.head()).status == 101
    return client


async def test_frames_that_break_the_protocol_end_the_conversation(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With the code of RFC 6455 7.4.1; the sandbox is sent nothing of them, and the next socket works."""
    seen: list[str | bytes] = []
    async with _echoing(tmp_path, seen) as gateway:
        session = await gateway.session()
        caplog.clear()
        for name, (raw, code) in REFUSED.items():
            client = await _opened(gateway, session)
            client.writer.write(raw)
            rest = await client.closed()
            assert (rest[:1], int.from_bytes(rest[2:4])) == (b"\x88", code), name
            await client.close()
        assert seen == []
        client = await _opened(gateway, session)
        await client.send(frame(TEXT, b"\xe2\x82", fin=False) + frame(PING, b"p") + frame(CONTINUED, b"\xac"))
        await eventually(lambda: seen == ["\u20ac"], "a message with a ping inside arrives whole")
        assert [each for each in caplog.records if each.levelno > logging.INFO] == []
