"""Handshakes: how many there may be, who gives way, and what becomes of those that are none."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateway.core.certificates import Certificates
from gateway.core.clock import SystemClock
from gateway.serving import tls_listener
from gateway.serving.sockets import bind
from gateway.serving.tls_listener import TLSListener, handshake_limit
from tests.support.certificates import Authority
from tests.support.waiting import LIMIT_S


class Greeting(asyncio.Protocol):
    """Says hello."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(b"hello")
        transport.close()


@asynccontextmanager
async def listening(folder: Path, most: int) -> AsyncIterator[tuple[int, ssl.SSLContext]]:
    """A listener that greets; its port, and what a client needs."""
    authority = Authority(folder)
    pair = authority.issue("server")
    with bind("127.0.0.1", 0) as listener:
        server = TLSListener(listener, Greeting, Certificates(pair.cert, pair.key, None, SystemClock()), most)
        yield listener.getsockname()[1], authority.client()
        server.close()
        await server.wait_closed()


async def greeted(port: int, context: ssl.SSLContext) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    said = await reader.read()
    writer.close()
    return said


async def test_oldest_unfinished_handshake_is_closed_for_a_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever opens sockets and says nothing keeps nobody out: the one that has waited longest is closed."""
    monkeypatch.setattr(tls_listener, "HANDSHAKE_S", 3600.0)  # it is not their time that ends them
    async with listening(tmp_path, most=3) as (port, context):
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        assert await greeted(port, context) == b"hello"
        async with asyncio.timeout(LIMIT_S):
            assert await silent[0][0].read() == b""
        for _, writer in silent:
            writer.close()


async def test_slow_handshake_ends_at_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However steadily its bytes drip."""
    monkeypatch.setattr(tls_listener, "HANDSHAKE_S", 0.3)
    async with listening(tmp_path, most=3) as (port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"\x16\x03\x01\x02\x00\x01")  # the beginning of a ClientHello
        assert await reader.read() == b""
        writer.close()


@pytest.mark.parametrize("sent", [b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", b"\0" * 99, b"\x16\x03\x01\x00\x05hello", b""])
async def test_connection_without_a_handshake_is_closed_silently(
    sent: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither to the client nor, above the level debug, to the log; and the next client is served."""
    caplog.set_level(logging.INFO)
    async with listening(tmp_path, most=3) as (port, context):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        writer.write_eof()
        try:
            said = await reader.read()
        except ConnectionResetError:
            said = b""
        assert said[:1] in (b"", b"\x15")  # an alert, at most
        writer.close()
        assert await greeted(port, context) == b"hello"
    assert caplog.text == ""


async def test_old_protocol_versions_are_refused(tmp_path: Path) -> None:
    """TLS 1.2 is the least."""
    async with listening(tmp_path, most=3) as (port, context):
        assert await greeted(port, context) == b"hello"
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        assert await greeted(port, context) == b"hello"
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
        context.set_ciphers("DEFAULT:@SECLEVEL=0")
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await greeted(port, context)


async def test_lack_of_descriptors_pauses_the_listener(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Not a loop that turns at full speed, nor a listener that is dead."""

    class Exhausted(socket.socket):
        fails = 1

        def accept(self) -> tuple[socket.socket, object]:
            if Exhausted.fails:
                Exhausted.fails -= 1
                raise OSError(24, "Too many open files")
            return super().accept()

    authority = Authority(tmp_path)
    pair = authority.issue("server")
    with Exhausted() as listener:
        listener.bind(("127.0.0.1", 0))
        server = TLSListener(listener, Greeting, Certificates(pair.cert, pair.key, None, SystemClock()), 3)
        assert await greeted(listener.getsockname()[1], authority.client()) == b"hello"
        server.close()
        await server.wait_closed()
    assert "Too many open files" in caplog.text


def test_handshakes_are_an_eighth_of_the_connections() -> None:
    """Never less than 64, never more than 1,024."""
    assert [handshake_limit(n) for n in (16, 768, 15_000)] == [64, 96, 1024]
