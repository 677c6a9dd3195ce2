"""A connection after an upgrade (RFC 9110, 7.8): bytes in both directions, each with flow control."""

from __future__ import annotations

import asyncio

from picod.http.flow import FlowControl
from picod.http.request import ClientGoneError

_HIGH_WATER_BYTES = 256 << 10  # that have arrived and were not read, above which the socket is not read


class Tunnel:
    """The Tunnel that handlers get from Request.upgrade. `feed` and `wake` are for the connection."""

    __slots__ = ("_buffer", "_connection", "_waiter")

    def __init__(self, connection: FlowControl) -> None:
        self._connection = connection
        self._buffer = bytearray()
        self._waiter: asyncio.Future[None] | None = None

    def feed(self, data: bytes) -> None:
        """Add bytes that came from the client."""
        self._buffer += data
        if len(self._buffer) > _HIGH_WATER_BYTES:
            self._connection.transport.pause_reading()
        self.wake()

    def wake(self) -> None:
        """Wake a waiting `read`, which then checks the state again."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def read(self) -> bytes:
        """The bytes that have arrived since the last call, at least one; empty once the client has left."""
        connection = self._connection
        while not self._buffer and not connection.closed:
            self._waiter = connection.loop.create_future()
            await self._waiter
            self._waiter = None
        # All at once: a read for each chunk that came would be as many turns of the loop.
        data, self._buffer = bytes(self._buffer), bytearray()
        if not connection.closed:
            connection.transport.resume_reading()
        return data

    async def write(self, data: bytes) -> None:
        """Send, and wait while the write buffer is full. Raises ClientGoneError."""
        connection = self._connection
        if not connection.closed:
            connection.transport.write(data)
            await connection.drain()
        if connection.closed:
            raise ClientGoneError

    def close(self) -> None:
        """Close the connection once what was written is sent."""
        self._connection.transport.close()
