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
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from gateway.api.body import JSON, error_headers, read_bytes
from gateway.api.openai.containers import DELETED
from gateway.api.openai.errors import ParamError, session_headers
from gateway.api.relay import relay
from gateway.api.sessions import choose_runtime, named_session
from gateway.api.tools.service import ToolService
from gateway.core.errors import BadRequestError, SessionNotFoundError, WakegateError
from gateway.core.interfaces import RuntimeCatalog
from gateway.core.model import SessionId, SessionState
from gateway.sessions.lifecycle import Lifecycle
from gateway.sessions.membership import ElsewhereError

if TYPE_CHECKING:
    from gateway.api.mcp.server import ToolServer

logger = logging.getLogger(__name__)

MAX_BODY = 32 << 20  # bytes
SESSION_HEADER = "mcp-session-id"
VERSION_HEADER = "mcp-protocol-version"
HANDSHAKE_VERSIONS = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25")
_UNSUPPORTED_VERSION = -32022  # the code of the 2026-07-28 revision
_INVALID_REQUEST = -32600
_MARK = "mcp"  # in the metadata of sessions that an MCP client made, and may end
_SERVER_MODULE = "gateway.api.mcp.server"
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class OriginError(BadRequestError):
    """A web page that may not use /mcp: it would act as the person before the browser (DNS rebinding)."""

    status = 403
    code = "ORIGIN_NOT_ALLOWED"


class MCPEndpoint:
    """An ASGI app for one path."""

    def __init__(
        self, service: ToolService, lifecycle: Lifecycle, catalog: RuntimeCatalog, allowed_origins: str = ""
    ) -> None:
        self._service = service
        self._lifecycle = lifecycle
        self._catalog = catalog
        self._origins = frozenset(each.strip().rstrip("/") for each in allowed_origins.split(",") if each.strip())
        self._loading = asyncio.Lock()
        self._server: ToolServer | None = None
        self._early: asyncio.Task[Any] | None = None
        self._stack = AsyncExitStack()

    def routes(self) -> list[Route]:
        """The path, every method."""
        return [Route("/mcp", self)]

    async def aclose(self) -> None:
        """End the server, if it ever began."""
        if self._early is not None:
            await asyncio.wait({self._early})
        await self._stack.aclose()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One HTTP request."""
        request = Request(scope, receive)
        try:
            self._check_origin(request.headers.get("origin"))
            if request.method == "POST":
                await self._post(request, send)
            elif request.method == "DELETE":
                try:
                    ended = await self._end(request)
                except ElsewhereError as elsewhere:
                    ended = await relay(request, elsewhere)
                await ended(scope, receive, send)
            else:
                # GET would open a stream for what a server says unasked; this one never does.
                await Response("Method Not Allowed", 405, {"allow": "POST, DELETE"})(scope, receive, send)
        except WakegateError as error:
            await _refusal(error)(scope, receive, send)

    def _check_origin(self, origin: str | None) -> None:
        if origin is None or origin.rstrip("/") in self._origins:
            return
        try:
            if urlsplit(origin).hostname in _LOOPBACK:
                return
        except ValueError:  # brackets that hold no address
            pass
        raise OriginError(f"pages of {origin[:128]} may not use this; see --allowed-origins")

    async def _post(self, request: Request, send: Send) -> None:
        body = await read_bytes(request, MAX_BODY)
        asked = _peek(body)
        session_id = named_session(request) or _mcp_session(request)
        version = request.headers.get(VERSION_HEADER)
        if version is not None and version not in HANDSHAKE_VERSIONS and named_session(request) is None:
            await _handshake_only(asked, version)(request.scope, request.receive, send)
            return
        told: Mapping[str, str] = {}
        if asked.get("method") == "initialize":
            self._load_early()
            session_id = session_id or await self._make(request)
            told = {SESSION_HEADER: session_id, **session_headers(session_id)}
        if session_id is not None:
            await self._service.tools(session_id)  # gone: 404, and the client begins anew
        server = await self._loaded()
        if asked.get("method") == "notifications/cancelled":
            server.cancel(session_id, asked.get("params"))
        await server.handle(request.scope, _replay(body, request.receive), _with_headers(send, told))

    async def _make(self, request: Request) -> SessionId:
        """A session for a client that has just come; `/mcp?runtime=` says which kind."""
        runtime = choose_runtime(self._catalog, request, request.query_params.get("runtime"))
        session = await self._lifecycle.register(runtime.key, metadata={_MARK: "1", "name": "MCP client"})
        return session.id

    async def _end(self, request: Request) -> Response:
        """The client is done: what it made goes away; a session that somebody else made stays."""
        session_id = _mcp_session(request)
        if session_id is None:
            raise ParamError(SESSION_HEADER, "missing; it says which session is to end")
        session = await self._lifecycle.get(session_id)
        if session.state is SessionState.TERMINATED:
            raise SessionNotFoundError(f"session {session_id} has ended")
        if _MARK in session.metadata:
            await self._lifecycle.terminate(session_id, DELETED)
        return Response(status_code=204)

    def _load_early(self) -> None:
        """Have the SDK imported while the first client's session is written."""
        if self._server is None and self._early is None:
            self._early = asyncio.create_task(asyncio.to_thread(importlib.import_module, _SERVER_MODULE))

    async def _loaded(self) -> ToolServer:
        async with self._loading:
            server = self._server
            if server is None:
                module = await asyncio.to_thread(importlib.import_module, _SERVER_MODULE)
                made: ToolServer = await self._stack.enter_async_context(module.serving(self._service, self._catalog))
                server = self._server = made
        return server


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


def _handshake_only(asked: Mapping[str, Any], version: str) -> Response:
    error = {
        "code": _UNSUPPORTED_VERSION,
        "message": "sessions are by handshake here: send initialize, or name a session with x-session-id",
        "data": {"supported": list(HANDSHAKE_VERSIONS), "requested": version[:64]},
    }
    return JSON({"jsonrpc": "2.0", "id": _id_of(asked), "error": error}, 400)


def _id_of(asked: Mapping[str, Any]) -> str | int | None:
    value = asked.get("id")
    return value if isinstance(value, str | int) and not isinstance(value, bool) else None


def _refusal(error: WakegateError) -> Response:
    """A JSON-RPC error with the HTTP status that says it all."""
    body = {"jsonrpc": "2.0", "id": None, "error": {"code": _INVALID_REQUEST, "message": str(error)}}
    return JSON(body, error.status, error_headers(error))


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
