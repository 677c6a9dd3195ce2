"""A client's connection with flow control towards it: what exchanges and tunnels write to."""

from __future__ import annotations

import asyncio

_WRITE_IDLE_S = 300.0  # that a client may take nothing before it counts as gone


class FlowControl(asyncio.Protocol):
    """Knows whether the client is there and takes what was written. `transport` is set once it is connected."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.closed = False
        self._writable: asyncio.Future[None] | None = None  # set while the client does not take what was written
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_slow(self) -> bool:
        """Whether more is written than the client has taken, so that `drain` would wait."""
        return self._writable is not None

    def pause_writing(self) -> None:
        """The transport's buffer is full."""
        if self._writable is None:
            self._writable = self.loop.create_future()

    def resume_writing(self) -> None:
        """The transport's buffer has room again, or the client has left."""
        if self._writable is not None:
            if not self._writable.done():
                self._writable.set_result(None)
            self._writable = None

    async def drain(self) -> None:
        """Wait until the client takes what was written. One that takes nothing for five minutes is
        disconnected.
        """
        if self._writable is not None:
            try:
                async with asyncio.timeout(_WRITE_IDLE_S):
                    await asyncio.shield(self._writable)
            except TimeoutError:
                self.transport.abort()

    def arm(self, seconds: float | None) -> None:
        """Close the connection after so many seconds; None: not at all."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else self.loop.call_later(seconds, self.transport.abort)
