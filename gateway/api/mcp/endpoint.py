"""The tools as an MCP server at /mcp (Model Context Protocol, streamable HTTP), by the official SDK.

A call runs in the session of the `x-session-id` header, if the client sends one; else in the MCP session, whose id *is*
a session's id. So it hibernates and wakes like any other session, and any replica can serve it, also after a restart;
the SDK runs stateless. `initialize` gives out a signed id, the first call of a tool makes the session (sessions.py),
and the client's DELETE ends it.

Clients of the protocol's 2026-07-28 revision send no handshake and have no MCP session: each request says its version
and capabilities. Each tool takes a handle, `session`; a call without one makes a session, and its result names it.

Importing the SDK takes most of a second and 30 MB, so that is done when the first client comes (server.py).
"""

from __future__ import annotations

import asyncio
import importlib
import logging
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from gateway.api.errors import Handler, ParamError
from gateway.api.http import read_bytes, session_headers
from gateway.api.loss_report import LossReport
from gateway.api.mcp.protocol import HANDLE, HANDSHAKE_VERSIONS, MAX_BODY_BYTES, SESSION_HEADER, VERSION_HEADER
from gateway.api.mcp.sessions import MCPSessions
from gateway.api.sessions import choose_runtime, is_session_id, named_session
from gateway.api.tools.service import ToolService
from gateway.core.interfaces import RuntimeCatalog
from gateway.core.model import SessionId

if TYPE_CHECKING:
    from gateway.api.mcp.server import ToolServer

logger = logging.getLogger(__name__)

_SERVER_MODULE = "gateway.api.mcp.server"


class MCPEndpoint:
    """The handlers of /mcp: POST sends a message, DELETE ends an MCP session.

    There is no GET, which would open a stream for messages that a server sends unasked: this one sends none. Clients
    understand the 405 that `api/control_app.py` answers.
    """

    def __init__(
        self,
        service: ToolService,
        sessions: MCPSessions,
        catalog: RuntimeCatalog,
        acknowledge: Callable[[SessionId, str], None],
    ) -> None:
        """`acknowledge(session, restored)` is called once a result that reports a loss has been delivered."""
        self._acknowledge = acknowledge
        self._service = service
        self._sessions = sessions
        self._catalog = catalog
        self._loading = asyncio.Lock()
        self._server: ToolServer | None = None
        self._importing: asyncio.Task[Any] | None = None
        self._stack = AsyncExitStack()

    def handlers(self) -> dict[str, Handler]:
        """The handler of each operation of openapi/table.py, by its name."""
        return {"post_mcp_message": self._post, "end_mcp_session": self._end}

    async def aclose(self) -> None:
        """Stop the SDK's server, if one was started."""
        if self._importing is not None:
            # A thread cannot be cancelled; leaving it behind would end the process in the middle of an import.
            await asyncio.wait({self._importing})
        await self._stack.aclose()

    async def _post(self, request: Request) -> Response:
        body = await read_bytes(request, MAX_BODY_BYTES)
        message = _peek(body)
        # x-session-id wins: a client that names a session in its configuration wants that one, whatever `initialize`
        # made.
        session_id = named_session(request) or _mcp_session(request)
        version = request.headers.get(VERSION_HEADER)
        if version is not None and version not in HANDSHAKE_VERSIONS and named_session(request) is None:
            self._find_handle(request, message)
            server = await self._loaded()
            plain = await server.answer_plainly(request, message)
            return _SDKResponse(server, body, {}, self._acknowledge) if plain is None else plain
        headers: Mapping[str, str] = {}
        method = message.get("method")
        if method == "initialize":
            # The client of a first `initialize` waits for the import anyway; here it runs while a named session is
            # looked up.
            self._import_in_background()
            if session_id is None:
                session_id = request.state.session_id = self._reserve(request)
                headers = {SESSION_HEADER: session_id}
            else:
                headers = {SESSION_HEADER: session_id, **session_headers(session_id)}
        if session_id is not None:
            # Raises for a session that has ended: the answer is 404, upon which clients send `initialize` again.
            if method == "tools/call":
                await self._sessions.ensure(session_id)
            else:
                await self._sessions.tools(session_id)
        server = await self._loaded()
        # The SDK is stateless, so for it the cancellation and the call are requests that have nothing to do with each
        # other.
        if message.get("method") == "notifications/cancelled":
            server.cancel(session_id, message.get("params"))
        return _SDKResponse(server, body, headers, self._acknowledge)

    def _find_handle(self, request: Request, message: Mapping[str, Any]) -> None:
        """Put the session that a call's `session` names into the request's state, or a new id, for the server.

        An id costs nothing: the server makes its session once the SDK has found the message well-formed.
        """
        if message.get("method") != "tools/call":
            return
        params = message.get("params")
        arguments = params.get("arguments") if isinstance(params, dict) else None
        handle = arguments.get(HANDLE) if isinstance(arguments, dict) else None
        request.state.has_handle = handle is not None
        if handle is None:
            request.state.session_id = self._reserve(request)
        elif isinstance(handle, str) and is_session_id(handle):
            request.state.session_id = SessionId(handle)

    def _reserve(self, request: Request) -> SessionId:
        """The id of a new client's session, of which nothing is stored yet; `/mcp?runtime=` chooses its runtime."""
        return self._sessions.reserve(choose_runtime(self._catalog, request, request.query_params.get("runtime")))

    async def _end(self, request: Request) -> Response:
        """End the session that `initialize` began; one that the client only named is left alone."""
        session_id = _mcp_session(request)
        if session_id is None:
            raise ParamError(SESSION_HEADER, "missing; it names the session to end")
        await self._sessions.end(session_id)
        return Response(status_code=204)

    def _import_in_background(self) -> None:
        """Import the SDK in a thread while the rest of the first client's `initialize` is done."""
        if self._server is None and self._importing is None:
            self._importing = asyncio.create_task(asyncio.to_thread(importlib.import_module, _SERVER_MODULE))

    async def _loaded(self) -> ToolServer:
        # However many first clients come at once, one server is made.
        async with self._loading:
            server = self._server
            if server is None:
                module = await asyncio.to_thread(importlib.import_module, _SERVER_MODULE)
                made: ToolServer = await self._stack.enter_async_context(
                    module.serving(self._service, self._sessions, self._catalog)
                )
                server = self._server = made
        return server


class _SDKResponse(Response):
    """The SDK's answer to a message whose body has already been read."""

    def __init__(
        self,
        server: ToolServer,
        body: bytes,
        more_headers: Mapping[str, str],
        acknowledge: Callable[[SessionId, str], None],
    ) -> None:
        super().__init__()
        self._acknowledge = acknowledge
        self._server = server
        self._request_body = body
        self._more_headers = more_headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state = scope.setdefault("state", {})
        sending = _with_headers(send, self._more_headers)

        async def delivering(message: Message) -> None:
            await sending(message)
            report: LossReport | None = state.get("loss_report")
            if message["type"] != "http.response.body" or message.get("more_body", False) or report is None:
                return
            cycle = scope.get("extensions", {}).get("wakegate.cycle")
            if report.session_id is not None and report.restored is not None and not (cycle and cycle.disconnected):
                self._acknowledge(report.session_id, report.restored)

        await self._server.handle(scope, _replay(self._request_body, receive), delivering)


def _peek(body: bytes) -> Mapping[str, Any]:
    """Parse the message for routing; empty if it is malformed, which the SDK answers."""
    try:
        message = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    return message if isinstance(message, dict) else {}


def _mcp_session(request: Request) -> SessionId | None:
    value = request.headers.get(SESSION_HEADER)
    return SessionId(value) if value else None


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that yields the body once more, then whatever the client sends next."""
    # The SDK reads the body itself, and this one has been read to find the session.
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return first.pop() if first else await receive()

    return again


def _with_headers(send: Send, more: Mapping[str, str]) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] < 400 and more:
            fields = [(name.encode(), value.encode()) for name, value in more.items()]
            # Not on errors: there is no session then whose id a client could use.
            message = {**message, "headers": [*message.get("headers", ()), *fields]}
        await send(message)

    return sending
