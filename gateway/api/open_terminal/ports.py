"""Servers that code has started in a chat's sandbox: /open-terminal/ports lists them, /proxy/PORT/PATH asks one.

Open WebUI shows their pages under its own origin, through its proxy. So no cookie of theirs is passed on, in either
direction, no credential, and nothing that speaks for a whole origin.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.api.errors import ErrorShape, Handler, ParamError, error_response
from gateway.api.http import JSON, read_bytes, read_chunks
from gateway.api.open_terminal.chats import Chats, is_awake, naming_session
from gateway.api.sandbox_json import MAX_ANSWER_BYTES, objects_of
from gateway.api.workspace_files import checked
from gateway.core.errors import NotFoundError, WakegateError
from gateway.core.interfaces import SandboxCaller
from gateway.core.model import SessionId
from gateway.core.origin_fields import OF_THE_ORIGIN, names_of

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
_MAX_BODY_BYTES = 1 << 30
_WHOLE_BYTES = 1 << 20
_FIRST_PORT = 1024  # below, the runtime's own rules usually forbid them
# Not passed on: what is for this gateway, or for one connection only.
_OWN = frozenset((
    "authorization", "connection", "content-length", "cookie", "expect", "host", "keep-alive", "proxy-authorization",
    "te", "trailer", "transfer-encoding", "upgrade", "x-api-key", "x-session-id", "x-user-id", "x-agentcube-session-id",
))  # fmt: skip
_NOT_BACK = OF_THE_ORIGIN | {
    "connection", "keep-alive", "set-cookie", "trailer", "transfer-encoding", "upgrade", "x-session-id",
    "x-agentcube-session-id",
}  # fmt: skip


class PortsAPI:
    """/ports and /proxy: servers that listen in the sandbox of a chat."""

    def __init__(self, chats: Chats, caller: SandboxCaller, strip_headers: str) -> None:
        """`strip_headers` as in the settings: names of request fields, comma-separated."""
        self._chats = chats
        self._caller = caller
        self._kept_back = _OWN | names_of(strip_headers)

    def handlers(self) -> dict[str, Handler]:
        """The handler of each operation of openapi/table.py, by its name."""
        asked = {f"open_terminal_proxy_{method.lower()}": self._proxy for method in METHODS}
        return {**naming_session({"open_terminal_list_ports": self._list}), **asked}

    async def _list(self, request: Request) -> Response:
        session = await self._chats.find(request)
        if session is None or not is_awake(session):
            return JSON({"ports": []})
        reply = await self._caller.call(session.id, "GET", "/api/ports", limit=MAX_ANSWER_BYTES)
        found = [each for each in objects_of(await checked(reply), "ports") if each.get("reachable") is True]
        return JSON({"ports": [{"port": each.get("port"), "pid": None, "process": None} for each in found]})

    async def _proxy(self, request: Request) -> Response:
        port = request.path_params["port"]
        if not (port.isascii() and port.isdigit() and len(port) < 6 and _FIRST_PORT <= int(port) <= 65535):
            raise ParamError("port", f"expected a number from {_FIRST_PORT} to 65535")
        session = await self._chats.find(request)
        if session is None or not is_awake(session):
            raise NotFoundError("Port not found")
        # The rest as it was sent: a server may tell %2F from a slash.
        raw: bytes = request.scope.get("raw_path") or request.url.path.encode()
        rest = raw.partition(b"/proxy/")[2].partition(b"/")[2].decode("latin-1")
        query = request.scope["query_string"].decode("latin-1")
        target = f"/api/ports/{int(port)}/{rest}" + (f"?{query}" if query else "")
        fields = {name: value for name, value in request.headers.items() if name not in self._kept_back}
        return _Answer(self._caller, session.id, target, request, fields)


class _Answer(Response):
    """Passes a request to a server in the sandbox, and its answer back as it comes."""

    def __init__(
        self, caller: SandboxCaller, session_id: SessionId, target: str, request: Request, fields: Mapping[str, str]
    ) -> None:
        super().__init__()
        self._fields = fields
        self._caller = caller
        self._session_id = session_id
        self._target = target
        self._request = request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer, or an error as long as nothing has been sent. Raises WakegateError after that."""
        request, started = self._request, False
        try:
            body = await _body(request)
            opened = self._caller.stream(
                self._session_id, request.method, self._target, headers=self._fields, body=body
            )
            async with opened as (reply, chunks):
                started = True
                head = {"type": "http.response.start", "status": reply.status, "headers": _back(reply.headers)}
                await send(head)
                async for chunk in chunks:
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except WakegateError as error:
            if started:
                raise
            await error_response(error, ErrorShape.OPEN_TERMINAL)(scope, receive, send)


async def _body(request: Request) -> bytes | AsyncIterator[bytes]:
    """A request's body: whole where it is small, as many simple servers read only what has a length."""
    length = request.headers.get("content-length", "")
    if length.isdecimal() and len(length) < 16 and int(length) <= _WHOLE_BYTES:
        return await read_bytes(request, _WHOLE_BYTES)
    return read_chunks(request, _MAX_BODY_BYTES) if length or "transfer-encoding" in request.headers else b""


def _back(fields: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [
        (name.lower().encode("latin-1"), value.encode("latin-1"))
        for name, value in fields.items()
        if name.lower() not in _NOT_BACK and not name.lower().startswith("x-wakegate-")
    ]
