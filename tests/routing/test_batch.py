"""Writes of one loop turn, done together."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest

from gateway.routing.batch import WriteBatch
from tests.support.waiting import eventually

ON_UVLOOP = True


@pytest.fixture
async def pair() -> AsyncIterator[tuple[asyncio.WriteTransport, asyncio.StreamReader]]:
    """A transport to write to, and where it arrives."""
    ours, theirs = socket.socketpair()
    transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=ours)
    reader, writer = await asyncio.open_connection(sock=theirs)
    yield transport, reader
    transport.abort()
    writer.transport.abort()
    await asyncio.sleep(0)


async def test_writes_arrive_in_their_order(pair: tuple[asyncio.WriteTransport, asyncio.StreamReader]) -> None:
    """All writes of a turn of the loop are sent in one write."""
    transport, reader = pair
    batch = WriteBatch()
    for piece in (b"one ", b"two ", b"three"):
        batch.write(transport, piece)
    assert await reader.readexactly(13) == b"one two three"


async def test_closed_connection_takes_no_other_write_with_it(
    pair: tuple[asyncio.WriteTransport, asyncio.StreamReader],
) -> None:
    """A client that left within the turn must not cost the next one its answer."""
    transport, reader = pair
    ours, theirs = socket.socketpair()
    lost = asyncio.Event()

    class Leaves(asyncio.Protocol):
        def connection_lost(self, exc: Exception | None) -> None:
            lost.set()

    closed, _ = await asyncio.get_running_loop().create_connection(Leaves, sock=ours)
    theirs.close()
    closed.abort()
    await eventually(lost.is_set, "the connection is closed")
    batch = WriteBatch()
    batch.write(closed, b"for nobody")
    batch.write(transport, b"for somebody")
    assert await asyncio.wait_for(reader.readexactly(12), 5) == b"for somebody"
