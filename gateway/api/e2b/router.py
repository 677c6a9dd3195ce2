"""Which requests are for a sandbox in E2B's way, and which handler takes each.

Such a request names its sandbox and a port in two header fields; envd (49983) and the code interpreter (49999) are
answered here, out of picod's API. Without these fields the same paths are the gateway's own.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, MutableMapping
from typing import Any
from urllib.parse import unquote

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from gateway.api.e2b import filesystem, interpreter, processes
from gateway.api.e2b.access_tokens import AccessTokens
from gateway.api.e2b.answers import error_answer, sandbox_gone, wakegate_error
from gateway.api.e2b.connect import (
    Batch,
    ConnectError,
    from_error,
    read_one,
    read_stream,
    read_unary,
    stream_answer,
    timeout_of,
    unary_answer,
)
from gateway.api.e2b.connect import error_answer as connect_error
from gateway.api.e2b.files import Download, path_in_query, upload
from gateway.api.e2b.records import record_of
from gateway.api.e2b.sandbox import SandboxClient
from gateway.api.e2b.watching import Watchers, watch
from gateway.api.http import JSON
from gateway.core.clock import Clock
from gateway.core.errors import BadRequestError, SessionNotFoundError, UnauthorizedError, WakegateError
from gateway.core.identity import SYSTEM, Identity, Role, SessionScope, act_as, acting_as, current
from gateway.core.interfaces import SandboxCaller
from gateway.core.model import Session, SessionId, SessionState
from gateway.identity.scope import require_use
from gateway.sessions.lifecycle import Lifecycle

SANDBOX_HEADER, PORT_HEADER = b"e2b-sandbox-id", b"e2b-sandbox-port"
ENVD_PORT, INTERPRETER_PORT = 49983, 49999
_MAX_ID_CHARS = 128
_SERVICES = ("/process.Process/", "/filesystem.Filesystem/")

Message = Mapping[str, Any]
Unary = Callable[[SandboxClient, Message], Awaitable[Message]]


class E2BRouter:
    """The sandbox side of E2B's API, as an ASGI app for the requests that `takes`."""

    def __init__(self, lifecycle: Lifecycle, caller: SandboxCaller, tokens: AccessTokens, clock: Clock) -> None:
        self._lifecycle = lifecycle
        self._caller = caller
        self._tokens = tokens
        self._clock = clock
        self._watchers = Watchers()
        self._unary: Mapping[str, Unary] = {
            "/process.Process/List": processes.list_running,
            "/process.Process/SendInput": processes.send_input,
            "/process.Process/CloseStdin": processes.close_stdin,
            "/process.Process/SendSignal": processes.send_signal,
            "/process.Process/Update": processes.update,
            "/filesystem.Filesystem/Stat": filesystem.get_entry,
            "/filesystem.Filesystem/ListDir": filesystem.list_directory,
            "/filesystem.Filesystem/MakeDir": filesystem.make_directory,
            "/filesystem.Filesystem/Move": filesystem.move,
            "/filesystem.Filesystem/Remove": filesystem.remove,
            "/filesystem.Filesystem/CreateWatcher": self._watchers.create,
            "/filesystem.Filesystem/GetWatcherEvents": self._watchers.events,
            "/filesystem.Filesystem/RemoveWatcher": self._watchers.remove,
        }

    @staticmethod
    def takes(scope: Scope) -> bool:
        """Whether a request is for a sandbox in E2B's way; also a signed URL that lost its sandbox."""
        if any(name in (SANDBOX_HEADER, PORT_HEADER) for name, _ in scope["headers"]):
            return True
        return scope["path"] == "/files" and b"signature=" in scope["query_string"]

    async def aclose(self) -> None:
        """End what outlives requests."""
        await self._watchers.aclose()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; errors have the shape of the route."""
        request = Request(scope, receive)
        response = await self._answer(request)
        started = False

        async def noting(message: MutableMapping[str, Any]) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            # Some answers ask the sandbox only now, so that what they open is closed however sending ends.
            await response(scope, receive, noting)
        except WakegateError as error:
            if started:
                raise  # half an answer must not look whole: the connection is closed
            await _failure(request, error)(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        path = request.url.path
        is_rpc = path.startswith(_SERVICES)
        try:
            session_id, port = _named(request)
            session = await self._authorize(request, session_id)
            sandbox = SandboxClient(session.id, record_of(session), self._caller)
            if is_rpc:
                return await self._call(sandbox, request, path)
            return await self._plain(sandbox, request, port, path)
        except ConnectError as error:
            return connect_error(error, stream=_is_stream(request)) if is_rpc else error_answer(500, str(error))
        except WakegateError as error:
            return _failure(request, error)

    async def _authorize(self, request: Request, session_id: SessionId) -> Session:
        """The session of a request whose sender may use it, for whom the rest of the request then acts.

        Raises UnauthorizedError, SessionNotFoundError, PermissionDeniedError.
        """
        if self._has_token(request, session_id):
            # The token names no tenant, so the gateway itself looks the session up. From then on only this session is
            # in reach.
            with acting_as(SYSTEM):
                session = await self._lifecycle.get_cached(session_id)
            _act_for(session)
        else:
            # A request without a key comes this far because it may have a token of E2B's, which it has not.
            if (error := request.scope.get("state", {}).get("unauthenticated")) is not None:
                raise error
            require_use(current(), request.scope.get("raw_path") or request.url.path.encode())
            session = await self._lifecycle.get_cached(session_id)
        if session.state is SessionState.TERMINATED:
            raise SessionNotFoundError(f"sandbox {session_id} has ended")
        return session

    def _has_token(self, request: Request, session_id: SessionId) -> bool:
        """Whether a request has the sandbox's token, or a URL that was signed with it. Raises UnauthorizedError."""
        signature = request.query_params.get("signature")
        if signature is not None and request.url.path == "/files":
            query = request.query_params
            operation = "read" if request.method in ("GET", "HEAD") else "write"
            fault = self._tokens.verify_url(
                session_id,
                signature,
                query.get("path", ""),
                operation,
                query.get("username", ""),
                query.get("signature_expiration", ""),
                self._clock.now(),
            )
            if fault:
                raise UnauthorizedError(fault)
            return True
        for name in ("x-access-token", "e2b-traffic-access-token"):
            if (token := request.headers.get(name)) is not None:
                # Refused, although a valid key may be there too: a client with a wrong token is to learn of it.
                if not self._tokens.verify(session_id, token):
                    raise UnauthorizedError(f"{name}: not the token of sandbox {session_id}")
                return True
        return False

    async def _call(self, sandbox: SandboxClient, request: Request, path: str) -> Response:
        if request.method != "POST":
            raise ConnectError("unimplemented", "calls are POST requests")
        _check_user(request)
        if (handler := self._unary.get(path)) is not None:
            return unary_answer(await handler(sandbox, await read_unary(request)))
        interval = processes.read_keepalive(request.headers.get("keepalive-ping-interval"))
        if path == "/process.Process/StreamInput":
            messages = read_stream(request)
            answer = await processes.stream_input(sandbox, messages)
            return stream_answer(_only(answer))
        if path == "/process.Process/Start":
            timeout = timeout_of(request)
            batches = processes.start(sandbox, await read_one(request), timeout)
            return stream_answer(batches, processes.KEEPALIVE, interval)
        if path == "/process.Process/Connect":
            return stream_answer(processes.join(sandbox, await read_one(request)), processes.KEEPALIVE, interval)
        if path == "/filesystem.Filesystem/WatchDir":
            return stream_answer(watch(sandbox, await read_one(request)), {"keepalive": {}}, interval)
        raise ConnectError("unimplemented", f"there is no {path[:128]} here")

    async def _plain(self, sandbox: SandboxClient, request: Request, port: int, path: str) -> Response:
        if path == "/health":  # asked by the SDKs in `is_running`; a sandbox that sleeps is not woken for it
            return Response(status_code=204) if port == ENVD_PORT else JSON("OK")
        if path == "/files" and request.method in ("GET", "HEAD"):
            return Download(sandbox, path_in_query(request), request)
        if path == "/files" and request.method == "POST":
            return await upload(sandbox, request)
        if path == "/envs":
            return JSON(dict(sandbox.record.envs))
        if path == "/metrics":
            return JSON({})  # what a sandbox uses is in /v1/usage
        if path == "/execute" and request.method == "POST":
            return await interpreter.execute(sandbox, request, self._clock)
        if path == "/contexts" and request.method == "POST":
            return await interpreter.create_context(sandbox, request)
        if path == "/contexts":
            return await interpreter.list_contexts(sandbox, request)
        if path.startswith("/contexts/"):
            return await self._context(sandbox, request, path.removeprefix("/contexts/"))
        return error_answer(404, f"there is no {request.method} {path[:128]} here")

    async def _context(self, sandbox: SandboxClient, request: Request, rest: str) -> Response:
        name, _, verb = unquote(rest).partition("/")
        # It becomes a part of a path of picod's.
        if not name.replace("-", "").replace("_", "").isalnum() or len(name) > 64:
            return PlainTextResponse(f"Context {name[:64]} not found", 404)
        if request.method == "DELETE" and not verb:
            return await interpreter.delete_context(sandbox, name)
        if request.method == "POST" and verb == "restart":
            return await interpreter.restart_context(sandbox, name)
        return error_answer(404, f"there is no {request.method} /contexts/ID/{verb[:64]}")


def _failure(request: Request, error: WakegateError) -> Response:
    """One of the gateway's errors, in the shape of the route that was asked."""
    if isinstance(error, SessionNotFoundError):
        # Also for a sandbox of somebody else's: who asks does not learn that there is one.
        return sandbox_gone(request.headers.get(SANDBOX_HEADER.decode(), "")[:_MAX_ID_CHARS])
    if request.url.path.startswith(_SERVICES):
        return connect_error(from_error(error), stream=_is_stream(request))
    return wakegate_error(error)


def _named(request: Request) -> tuple[SessionId, int]:
    """The sandbox and the port that the header fields name. Raises BadRequestError in E2B's words."""
    session_id, port = _only_value(request, SANDBOX_HEADER), _only_value(request, PORT_HEADER)
    if session_id is None and port is None:
        raise BadRequestError(
            "a signed URL needs the sandbox's host name: set --domain and E2B_DOMAIN, or send E2b-Sandbox-Id with it"
        )
    if not session_id or not port:
        raise BadRequestError("missing header: E2b-Sandbox-Id and E2b-Sandbox-Port go together")
    if port not in (str(ENVD_PORT), str(INTERPRETER_PORT)):
        raise BadRequestError(
            f"Invalid sandbox port {port[:16]!r}: {ENVD_PORT} and {INTERPRETER_PORT} are served here, other ports"
            " at /v1/sessions/ID/ports/PORT/"
        )
    if len(session_id) > _MAX_ID_CHARS:
        raise BadRequestError("E2b-Sandbox-Id: malformed")
    return SessionId(session_id), int(port)


def _only_value(request: Request, name: bytes) -> str | None:
    """A field that names one thing; a host name adds one to the client's. Raises BadRequestError where they differ."""
    values = set(request.headers.getlist(name.decode()))
    if len(values) > 1:
        raise BadRequestError(f"{name.decode()}: the host name and the header fields name different ones; send one")
    return next(iter(values), None)


def _act_for(session: Session) -> None:
    """Act for the rest of this request as a session token would: on this session alone."""
    act_as(
        Identity(
            Role.SESSION,
            tenant=session.tenant,
            subject=f"access token of {session.id}",
            user=session.user,
            scope=SessionScope(session.id),
        )
    )


def _check_user(request: Request) -> None:
    """Commands and files are those of one user, which E2B's `user` and `root` both stand for. Raises ConnectError."""
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return
    try:
        user = base64.b64decode(value, validate=True).decode().partition(":")[0]
    except (binascii.Error, ValueError):
        raise ConnectError("unauthenticated", "Authorization: malformed") from None
    if user not in ("user", "root", ""):
        raise ConnectError("unauthenticated", f"invalid username: {user[:64]!r}; there are user and root")


def _is_stream(request: Request) -> bool:
    return request.headers.get("content-type", "").startswith("application/connect")


async def _only(message: Message) -> AsyncGenerator[Batch, None]:
    yield Batch([message], is_last=True)
