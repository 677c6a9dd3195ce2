"""The tools as an MCP server at /mcp (Model Context Protocol, streamable HTTP), by the official SDK.

Which session a call means: the `x-session-id` header where a client can send one; else the MCP session, whose id *is* a
session's id. So it sleeps and wakes like any other, and every replica and the next life of this gateway know it; the
SDK runs without a memory of its own. An MCP session is made by `initialize` and ends with the client's DELETE. Its
sandbox is claimed by the first call: many a client connects to all servers that it knows and then calls none.

Clients of the protocol's newest kind (2026-07-28) send no handshake and have no MCP session. With `x-session-id` they
are served so; without, they are told that only the handshake is spoken here, which they fall back to.

The SDK takes most of a second and 30 MB to import, so that is done when the first client comes (server.py).
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
from gateway.api.http import JSON, read_bytes, session_headers
from gateway.api.mcp.protocol import (
    HANDSHAKE_VERSIONS,
    MAX_BODY_BYTES,
    SESSION_HEADER,
    UNSUPPORTED_VERSION,
    VERSION_HEADER,
)
from gateway.api.restored import LossNote
from gateway.api.sessions import DELETED_BY_USER, choose_runtime, named_session
from gateway.api.tools.service import ToolService
from gateway.core.errors import SessionNotFoundError
from gateway.core.interfaces import RuntimeCatalog
from gateway.core.model import SessionId, SessionState
from gateway.sessions.lifecycle import Lifecycle

if TYPE_CHECKING:
    from gateway.api.mcp.server import ToolServer

logger = logging.getLogger(__name__)

_MARK = "mcp"  # in the metadata of sessions that an MCP client made, and may end
_SERVER_MODULE = "gateway.api.mcp.server"


class MCPEndpoint:
    """The handlers of /mcp: POST sends a message, DELETE ends an MCP session.

    There is no GET: it would open a stream for messages that a server sends on its own account, and this one never
    does. Clients take the 405 that app.py answers as that.
    """

    def __init__(
        self,
        service: ToolService,
        lifecycle: Lifecycle,
        catalog: RuntimeCatalog,
        acknowledge: Callable[[SessionId, str], None],
    ) -> None:
        """`acknowledge(session, restored)` is called when a result that tells of a loss was delivered."""
        self._acknowledge = acknowledge
        self._service = service
        self._lifecycle = lifecycle
        self._catalog = catalog
        self._loading = asyncio.Lock()
        self._server: ToolServer | None = None
        self._importing: asyncio.Task[Any] | None = None
        self._stack = AsyncExitStack()

    def handlers(self) -> dict[str, Handler]:
        """The handler of each operation of openapi/table.py, by its name."""
        return {"post_mcp_message": self._post, "end_mcp_session": self._end}

    async def aclose(self) -> None:
        """End the server, if one was started."""
        if self._importing is not None:
            await asyncio.wait({self._importing})
        await self._stack.aclose()

    async def _post(self, request: Request) -> Response:
        body = await read_bytes(request, MAX_BODY_BYTES)
        message = _peek(body)
        session_id = named_session(request) or _mcp_session(request)
        version = request.headers.get(VERSION_HEADER)
        if version is not None and version not in HANDSHAKE_VERSIONS and named_session(request) is None:
            return _handshake_only(message, version)
        headers: Mapping[str, str] = {}
        if message.get("method") == "initialize":
            self._import_early()
            session_id = session_id or await self._make(request)
            headers = {SESSION_HEADER: session_id, **session_headers(session_id)}
        if session_id is not None:
            await self._service.tools(session_id)  # gone: 404, and the client begins anew
        server = await self._loaded()
        if message.get("method") == "notifications/cancelled":
            server.cancel(session_id, message.get("params"))
        return _Handled(server, body, headers, self._acknowledge)

    async def _make(self, request: Request) -> SessionId:
        """A session for a client that has just come; `/mcp?runtime=` says which kind."""
        runtime = choose_runtime(self._catalog, request, request.query_params.get("runtime"))
        session = await self._lifecycle.register(runtime.key, metadata={_MARK: "1", "name": "MCP client"})
        return session.id

    async def _end(self, request: Request) -> Response:
        """End the session that `initialize` made; one that the client only named stays."""
        session_id = _mcp_session(request)
        if session_id is None:
            raise ParamError(SESSION_HEADER, "missing; it says which session is to end")
        session = await self._lifecycle.get(session_id)
        if session.state is SessionState.TERMINATED:
            raise SessionNotFoundError(f"session {session_id} has ended")
        if _MARK in session.metadata:
            await self._lifecycle.terminate(session_id, DELETED_BY_USER)
        return Response(status_code=204)

    def _import_early(self) -> None:
        """Import the SDK in a thread while the first client's session is written."""
        if self._server is None and self._importing is None:
            self._importing = asyncio.create_task(asyncio.to_thread(importlib.import_module, _SERVER_MODULE))

    async def _loaded(self) -> ToolServer:
        async with self._loading:
            server = self._server
            if server is None:
                module = await asyncio.to_thread(importlib.import_module, _SERVER_MODULE)
                made: ToolServer = await self._stack.enter_async_context(module.serving(self._service, self._catalog))
                server = self._server = made
        return server


class _Handled(Response):
    """The SDK's answer to a message whose body was read already."""

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
            note: LossNote | None = state.get("loss_note")
            if message["type"] != "http.response.body" or message.get("more_body", False) or note is None:
                return
            cycle = scope.get("extensions", {}).get("wakegate.cycle")
            if note.session_id is not None and note.restored is not None and not (cycle and cycle.disconnected):
                self._acknowledge(note.session_id, note.restored)

        await self._server.handle(scope, _replay(self._request_body, receive), delivering)


def _peek(body: bytes) -> Mapping[str, Any]:
    """The message as far as we need it; the SDK says what is wrong with a wrong one."""
    try:
        message = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    return message if isinstance(message, dict) else {}


def _mcp_session(request: Request) -> SessionId | None:
    value = request.headers.get(SESSION_HEADER)
    return SessionId(value) if value else None


def _handshake_only(message: Mapping[str, Any], version: str) -> Response:
    error = {
        "code": UNSUPPORTED_VERSION,
        "message": "sessions are by handshake here: send initialize, or name a session with x-session-id",
        "data": {"supported": list(HANDSHAKE_VERSIONS), "requested": version[:64]},
    }
    return JSON({"jsonrpc": "2.0", "id": _id_of(message), "error": error}, 400)


def _id_of(message: Mapping[str, Any]) -> str | int | None:
    value = message.get("id")
    return value if isinstance(value, str | int) and not isinstance(value, bool) else None


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body that was read already, then what comes after it."""
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return first.pop() if first else await receive()

    return again


def _with_headers(send: Send, more: Mapping[str, str]) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] < 400 and more:
            fields = [(name.encode(), value.encode()) for name, value in more.items()]
            message = {**message, "headers": [*message.get("headers", ()), *fields]}
        await send(message)

    return sending
