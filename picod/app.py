"""The ASGI app: finds a request's route, checks its token, calls the handler, and turns errors into answers."""

from __future__ import annotations

import asyncio
import sys
import traceback
from collections.abc import Awaitable
from urllib.parse import unquote_to_bytes

from picod.config import PicodConfig
from picod.http.auth import Guard
from picod.http.request import ClientGoneError, Receive, Request, RequestError, Scope, Send
from picod.routes import agent_route, find_route
from picod.services import Services


class Picod:
    """picod as an ASGI app. Raises OSError if the workspace cannot be opened."""

    def __init__(self, config: PicodConfig) -> None:
        self.services = Services(config)
        self._guard = Guard(config.keys_file, config.audience) if config.auth == "jwt" else None
        self._warming: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin what the first request should not wait for. Call it on the loop, once the server listens."""
        if self._guard is not None:
            self._warming = asyncio.ensure_future(asyncio.to_thread(self._guard.warm))
        self.services.start()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. Raises ClientGoneError, and any error after the answer has begun."""
        path = unquote_to_bytes(scope["raw_path"])
        services = self.services
        route = find_route(scope["method"], path) if services.agent is None else agent_route(scope, path)
        request = Request(scope, receive, send, path[len(route.path) :] if route else b"")
        if route is None:
            await request.answer(404, b"404 page not found", ((b"content-type", b"text/plain"),))
            return
        try:
            if self._guard is not None and not route.open:
                if self._warming is not None:
                    await asyncio.shield(self._warming)  # a request that leaves must not cancel it for the others
                self._guard.check(request)
            key = request.header(b"idempotency-key") if route.idempotent else ""
            if key:
                handler = route.handler

                def handle(inner: Request) -> Awaitable[None]:
                    return handler(services, inner)

                await services.idempotency.run(request, handle, key)
            else:
                await route.handler(services, request)
        except RequestError as error:
            await _refuse(request, error)
        except ClientGoneError:
            raise
        except Exception:
            if request.started:
                raise
            traceback.print_exc(file=sys.stderr)
            await _refuse(request, RequestError(500, "internal error; the sandbox's log has the details"))


async def _refuse(request: Request, error: RequestError) -> None:
    if request.started:
        raise error
    await request.answer_json(error.status, error.body, error.headers)
