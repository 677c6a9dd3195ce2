"""An answer whose pieces are made of a sandbox's events as they come, and which ends when its client leaves.

Starlette's StreamingResponse runs the pieces in one task and waits for the client's leaving in another, a third of what
a command of a millisecond costs the gateway. Here nothing runs beside an answer that is over within 0.1 s.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.core.background import cancel

_WATCH_AFTER_S = 0.1  # from when on a client's leaving is waited for; it is noticed however early it was

Piece = tuple[bytes, bool]  # bytes of the body, and whether others follow


class EventAnswer(Response):
    """Sends the pieces, and `keepalive` whenever none came for `interval` seconds. Closes `pieces` however it ends.

    The head goes out with the first of them: only what asked the sandbox for it knows whether that one was lost, which
    the head is to say.
    """

    def __init__(
        self, pieces: AsyncGenerator[Piece, None], *, media_type: str, keepalive: bytes, interval: float
    ) -> None:
        super().__init__(media_type=media_type)
        del self.headers["content-length"]  # of the empty body that Response has made
        self._pieces = pieces
        self._keepalive = keepalive
        self._interval = interval
        self._sent_at = 0.0
        self._began = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send to the last piece, or until the client leaves."""
        loop = asyncio.get_running_loop()
        self._sent_at = loop.time()
        watching: list[asyncio.Task[None]] = []
        # Its end is brought forward to now when the client leaves: what waits inside is cancelled then, and only that.
        limit = asyncio.timeout(None)

        def watch() -> None:
            watching.append(loop.create_task(self._watch(receive, send, limit), name="watch a client"))

        timer = loop.call_later(_WATCH_AFTER_S, watch)
        try:
            async with limit, aclosing(self._pieces):
                await self._send_all(send)
        except TimeoutError:
            if not limit.expired():
                raise
        finally:
            timer.cancel()
            for task in watching:
                await cancel(task)

    async def _send_all(self, send: Send) -> None:
        async for data, more in self._pieces:
            await self._send_body(send, data, more=more)
            if not more:
                return
        await self._send_body(send, b"", more=False)

    async def _send_body(self, send: Send, data: bytes, *, more: bool) -> None:
        if not self._began:
            self._began = True
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": data, "more_body": more})
        self._sent_at = asyncio.get_running_loop().time()

    async def _watch(self, receive: Receive, send: Send, limit: asyncio.Timeout) -> None:
        loop = asyncio.get_running_loop()
        left = loop.create_task(_client_left(receive))
        try:
            while not left.done():
                due = self._sent_at + self._interval
                if loop.time() >= due:
                    await self._send_body(send, self._keepalive, more=True)
                else:
                    await asyncio.wait((left,), timeout=due - loop.time())
            limit.reschedule(loop.time())
        finally:
            await cancel(left)


async def _client_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
