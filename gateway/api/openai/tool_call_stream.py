"""Progress of a run as server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html).

Each event's data is an object with a `type`, as in OpenAI's streams, and the stream ends with `[DONE]`. The run goes
on when its client leaves, which can ask again and gets the results of the same run.
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

HEARTBEAT_S = 15.0  # below the idle timeouts of proxies on the way
_MAX_QUEUED = 256  # events for a slow client; beyond them the run waits too

_running: set[asyncio.Task[None]] = set()  # the loop holds tasks weakly


class EventStream:
    """An async iterator of encoded events; the run begins with the first step and does not end with the last."""

    def __init__(
        self,
        began: dict[str, Any],
        work: Callable[[Observer], Awaitable[dict[str, Any]]],
        show: Callable[[Event], dict[str, Any]],
        delivering: Callable[[], Awaitable[None]],
    ) -> None:
        """`delivering` is called before the whole answer is sent to a client that is still there."""
        self._began = began
        self._work = work
        self._show = show
        self._delivering = delivering
        self._queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue(_MAX_QUEUED)
        self._left = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._events()

    async def _events(self) -> AsyncIterator[bytes]:
        task = asyncio.create_task(self._run())
        _running.add(task)
        task.add_done_callback(_running.discard)
        try:
            yield encode(self._began)
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
                    await self._delivering()  # not before: a client that is cut off meanwhile may ask again
            yield b"data: [DONE]\n\n"
        finally:
            self._left = True
            while not self._queue.empty():  # a run that waits for the full queue goes on
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
        if not self._left:
            await self._queue.put(event)


def encode(event: dict[str, Any]) -> bytes:
    """One event as bytes, named by its `type`."""
    return b"event: %b\ndata: %b\n\n" % (str(event["type"]).encode(), orjson.dumps(event))
