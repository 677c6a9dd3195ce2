"""Server-sent events as one answer (WHATWG HTML, "Server-sent events").

Used wherever a client follows something: logs, runs, changes of files. Comments in idle periods keep proxies from
closing the stream as idle; a client that leaves is noticed at once, not with the next event.

Events are written together when there is nothing more to send at once: each write wakes the gateway and then its
client. A command that prints nothing takes two writes so (head and start; exit and end), where one each were five.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable
from types import TracebackType
from typing import Any, Self

from picod.http.request import ClientGoneError, Request, to_json

HEARTBEAT_S = 15.0  # without an event, after which a comment is sent
_HELD_BYTES = 64 << 10  # of events at most that wait to be written with those after them
HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx would otherwise collect events in its buffer
)


class EventStream:
    """The answer to `request`, as events. A context: entering sends the head, leaving in order ends the answer."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._gone: asyncio.Task[None] | None = None
        self._held = bytearray()

    async def send(self, event: str, data: object, number: int | None = None) -> None:
        """Send one event, `data` as JSON on one line, with `number` as its id, if any. Raises ClientGoneError."""
        name = b"event: %b\n" % event.encode() + (b"id: %d\n" % number if number is not None else b"")
        await self.raw(b"%bdata: %b\n\n" % (name, to_json(data)))

    async def raw(self, events: bytes) -> None:
        """Send events that are already encoded, at the latest with `until`. Raises ClientGoneError."""
        if len(self._held) + len(events) > _HELD_BYTES:
            await self._flush()
            await self._request.write(events, more=True)
        else:
            self._held += events

    async def until(self, news: Awaitable[Any], *, timeout: float | None = None) -> bool:
        """Wait for `news`, with heartbeats. False when `timeout` seconds passed first. Raises ClientGoneError."""
        assert self._gone is not None, "the stream is entered first"
        await self._flush()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout if timeout is not None else float("inf")
        # Not cancelled when this returns: a Notifier's future is shared by all that follow.
        waited = asyncio.ensure_future(news)
        while True:
            timeout_s = min(HEARTBEAT_S, deadline - loop.time())
            done, _ = await asyncio.wait(
                (waited, self._gone), timeout=max(0.0, timeout_s), return_when=asyncio.FIRST_COMPLETED
            )
            if self._gone in done:
                raise ClientGoneError
            if waited in done or loop.time() >= deadline:
                return waited in done
            await self._request.write(b": still here\n\n", more=True)

    async def __aenter__(self) -> Self:
        await self._request.start(200, HEADERS, body_follows=True)
        self._held += b": hello\n\n"  # with it the head goes out, also where no event follows soon
        self._gone = asyncio.create_task(self._request.gone())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Waited for as well: it still receives from the client until the cancellation has reached it.
        if self._gone is not None:
            self._gone.cancel()
            await asyncio.wait((self._gone,))
        if error is None:
            await self._request.write(bytes(self._held), more=False)
        elif isinstance(error, Exception) and not isinstance(error, ClientGoneError):
            with contextlib.suppress(ClientGoneError):
                await self._flush()  # what came before the error happened all the same

    async def _flush(self) -> None:
        if self._held:
            held, self._held = bytes(self._held), bytearray()
            await self._request.write(held, more=True)


class Notifier:
    """A condition without a lock: wakes every waiter at each `notify_all`. On the loop's thread only."""

    def __init__(self) -> None:
        self._next: asyncio.Future[None] | None = None

    def notify_all(self) -> None:
        """Wake every stream that waits for an event."""
        if self._next is not None and not self._next.done():
            self._next.set_result(None)
        self._next = None

    def wait(self) -> asyncio.Future[None]:
        """A future that is done at the next `notify_all`. All waiters share it, so none may cancel it."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
        return self._next
