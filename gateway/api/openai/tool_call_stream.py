"""Streams the progress of a run as server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html).

Each event's data is an object with a `type`, as in OpenAI's streams, and the stream ends with `[DONE]`. When the client
disconnects the run continues, and sending the request again returns the results of that run.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import orjson

from gateway.api.errors import ErrorShape, error_document
from gateway.api.tools.service import Event, Observer
from gateway.core.errors import WakegateError

logger = logging.getLogger(__name__)

HEARTBEAT_S = 15.0  # below the idle timeouts of proxies, of which 60 s is common
_MAX_QUEUED = 256  # events for a slow client; beyond that the run waits for it

_running: set[asyncio.Task[None]] = set()  # the event loop has only weak references to tasks


class EventStream:
    """An async iterator of encoded events. Iterating starts the run; abandoning the iterator does not stop it."""

    def __init__(
        self,
        first_event: dict[str, Any],
        work: Callable[[Observer], Awaitable[dict[str, Any]]],
        show: Callable[[Event], dict[str, Any]],
        delivering: Callable[[], Awaitable[None]],
    ) -> None:
        """`delivering` is called after the last event was sent to a client that is still connected."""
        self._first_event = first_event
        self._work = work
        self._show = show
        self._delivering = delivering
        self._queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue(_MAX_QUEUED)
        self._disconnected = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._events()

    async def _events(self) -> AsyncIterator[bytes]:
        task = asyncio.create_task(self._run())
        _running.add(task)
        task.add_done_callback(_running.discard)
        try:
            yield encode(self._first_event)
            while True:
                try:
                    async with asyncio.timeout(HEARTBEAT_S):
                        event = await self._queue.get()
                except TimeoutError:
                    yield b": still running\n\n"
                    continue
                if event is None:
                    break
                yield encode(event)
                if event["type"] == "tool_calls.completed":
                    # Not earlier: it starts a new epoch (tools/turns.py), in which a client that was cut off before it
                    # received the answer would run its calls a second time.
                    await self._delivering()
            yield b"data: [DONE]\n\n"
        finally:
            self._disconnected = True
            while not self._queue.empty():  # the run may be waiting for space in the queue
                self._queue.get_nowait()

    async def _run(self) -> None:
        try:
            last = await self._work(self._observe)
        except WakegateError as error:
            last = {"type": "error", **error_document(error, ErrorShape.OPENAI)}
        except Exception:
            logger.exception("a run of tool calls failed")
            last = {"type": "error", "error": {"message": "internal error", "type": "server_error", "param": None,
                                               "code": "internal"}}  # fmt: skip
        await self._put(last)
        await self._put(None)

    async def _observe(self, event: Event) -> None:
        await self._put(self._show(event))

    async def _put(self, event: dict[str, Any] | None) -> None:
        if not self._disconnected:
            await self._queue.put(event)


def encode(event: dict[str, Any]) -> bytes:
    """Encode one event, named by its `type`."""
    return b"event: %b\ndata: %b\n\n" % (str(event["type"]).encode(), orjson.dumps(event))
