"""TLS over a socket: what comes is received once and whole, also where a read is given up."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.egress.authority import Authority, ensure_authority
from gateway.egress.tls_stream import TlsStream

HOST = "origin.example.com"


@pytest.fixture
async def ends(tmp_path: Path) -> AsyncIterator[tuple[TlsStream, TlsStream]]:
    """A client's end and a server's, after their handshake."""
    loop = asyncio.get_running_loop()
    authority = ensure_authority(tmp_path, time.time())
    trusting = ssl.create_default_context(cadata=authority.decode())
    with contextlib.ExitStack() as stack:
        near, far = (stack.enter_context(each) for each in socket.socketpair())
        for each in (near, far):
            each.setblocking(False)
        client = TlsStream(loop, near, trusting, server_name=HOST)
        server = TlsStream(loop, far, Authority(tmp_path).context(HOST, time.time()))
        await asyncio.gather(client.handshake(), server.handshake())
        yield client, server
        await asyncio.gather(client.close(), server.stop())


@pytest.mark.parametrize("turns", range(8))
async def test_read_that_is_cancelled_loses_nothing(ends: tuple[TlsStream, TlsStream], turns: int) -> None:
    """At whichever turn of the event loop: before the bytes are there, when they are taken, and after that."""
    client, server = ends
    sent, received = bytes(range(100)), b""
    for number in range(100):
        given_up = asyncio.create_task(server.receive())
        await asyncio.sleep(0)
        await client.send(sent[number : number + 1])
        for _ in range(turns):
            await asyncio.sleep(0)
        given_up.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            received += await given_up
    async with asyncio.timeout(20):
        while len(received) < len(sent):
            received += await server.receive()
    assert received == sent


async def test_end_is_received_again_and_again(ends: tuple[TlsStream, TlsStream]) -> None:
    """By the word of TLS, while the socket is still open: nobody waits for more."""
    client, server = ends
    await client.send(b"last")
    await client.close()
    assert await server.receive() == b"last"
    assert [await server.receive() for _ in range(3)] == [b""] * 3
