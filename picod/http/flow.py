"""A client's connection with flow control on writes, shared by exchanges and tunnels."""

from __future__ import annotations

import asyncio

_WRITE_TIMEOUT_S = 300.0  # for how long a client may read nothing before it is disconnected


class FlowControl(asyncio.Protocol):
    """Tracks whether the client is connected and reads what was written. `transport` is set once it is connected."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.closed = False
        self._writable: asyncio.Future[None] | None = None  # set while the transport's buffer is full
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_slow(self) -> bool:
        """Whether the transport's buffer is full, so that `drain` would wait."""
        return self._writable is not None

    def pause_writing(self) -> None:
        """asyncio: the transport's buffer is full."""
        if self._writable is None:
            self._writable = self.loop.create_future()

    def resume_writing(self) -> None:
        """asyncio: the transport's buffer has room again, or the client has left."""
        if self._writable is not None:
            if not self._writable.done():
                self._writable.set_result(None)
            self._writable = None

    async def drain(self) -> None:
        """Wait until the transport's buffer has room. A client that reads nothing for five minutes is disconnected."""
        if self._writable is not None:
            try:
                async with asyncio.timeout(_WRITE_TIMEOUT_S):
                    await asyncio.shield(self._writable)
            except TimeoutError:
                self.transport.abort()

    def arm(self, seconds: float | None) -> None:
        """Close the connection after `seconds`, in place of an earlier deadline; None: no deadline."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else self.loop.call_later(seconds, self.transport.abort)
