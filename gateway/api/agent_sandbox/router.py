"""The sandbox side of agent-sandbox: requests that name their sandbox in X-Sandbox-ID, answered out of picod's API.

    POST /execute              {"command": text, "timeout_seconds"?} -> {"stdout", "stderr", "exit_code", "timed_out"}
    POST /upload               a form; the filename of its part `file` is the path
    GET /download/{path}, /list/{path}, /exists/{path}    slashes in the path are percent-encoded

A command is split as a shell would and run without one, as their runtime does. Requests wake the sandbox.
Source: the clients 1.0.8, and their router and python-runtime. X-Sandbox-Pod-IP is ignored: what a client names is not
dialled.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from urllib.parse import quote, unquote_to_bytes

import orjson
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.api.agent_sandbox.command_line import split_words
from gateway.api.agent_sandbox.records import claim_of
from gateway.api.errors import ErrorShape, answering_errors
from gateway.api.http import JSON, chunks_of, read_chunks, read_object
from gateway.api.sandbox_json import MAX_ANSWER_BYTES, objects_of, parse_object, text_of
from gateway.core.agent_sandbox import session_of
from gateway.core.errors import BadRequestError, NotFoundError, SessionNotFoundError, TooLargeError
from gateway.core.identity import current
from gateway.core.interfaces import SandboxCaller
from gateway.core.model import SandboxReply, Session, SessionState
from gateway.identity.scope import require_use
from gateway.sessions.lifecycle import Lifecycle

SANDBOX_HEADER, PORT_HEADER = b"x-sandbox-id", b"x-sandbox-port"
RUNTIME_PORT = "8888"
_MAX_ID_CHARS = 130
_MAX_COMMAND_CHARS = 128 << 10  # as many as the kernel takes in one argument
_MAX_TIMEOUT_S, _TIMEOUT_S, _GRACE_S = 24 * 3600.0, 3600.0, 30.0
_MAX_UPLOAD_BYTES = 5 << 30
_MAX_RUN_BYTES = 48 << 20  # 10 MB of each stream, as JSON
_TRANSFER_TIMEOUT_S = 3600.0
_TIMED_OUT = 124  # picod's exit code for it


class AgentSandboxRouter:
    """An ASGI app for the requests that `takes`."""

    def __init__(self, lifecycle: Lifecycle, caller: SandboxCaller) -> None:
        self._lifecycle = lifecycle
        self._caller = caller

    @staticmethod
    def takes(scope: Scope) -> bool:
        """Whether a request names its sandbox in agent-sandbox's way."""
        return any(name == SANDBOX_HEADER for name, _ in scope["headers"])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; an error has both `detail` and `message`."""
        request = Request(scope, receive)
        response = await answering_errors(self._answer, ErrorShape.AGENT_SANDBOX)(request)
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        session = await self._named(request)
        verb, _, rest = _raw_path(request).lstrip("/").partition("/")
        match request.method, verb:
            case "POST", "execute":
                return await self._execute(request, session)
            case "POST", "upload":
                return await self._upload(request, session)
            case "GET", "download":
                return Download(self._caller, session, _target(rest))
            case "GET", "list":
                return await self._list(session, rest)
            case "GET", "exists":
                return await self._exists(session, rest)
            case "GET", "":
                return JSON({"status": "ok", "message": "Sandbox Runtime is active."})
        raise NotFoundError(f"there is no {request.method} /{verb[:64]} here")

    async def _named(self, request: Request) -> Session:
        """The session that the header fields name, of which its sender may make use."""
        # As on the other surfaces: without a valid key the request came this far only for the error's shape.
        if (error := request.scope.get("state", {}).get("unauthenticated")) is not None:
            raise error
        name = request.headers.get(SANDBOX_HEADER.decode(), "")
        port = request.headers.get(PORT_HEADER.decode(), RUNTIME_PORT)
        if not name or len(name) > _MAX_ID_CHARS:
            raise BadRequestError("X-Sandbox-ID header is required.")
        if port != RUNTIME_PORT:
            raise BadRequestError(
                f"X-Sandbox-Port: {RUNTIME_PORT} is served here; a server of the sandbox's own is at"
                " /v1/sessions/ID/ports/PORT/, where ID is X-Sandbox-ID without its s-"
            )
        require_use(current(), request.scope.get("raw_path") or request.url.path.encode())
        try:
            session = await self._lifecycle.get_cached(session_of(name))
        except SessionNotFoundError:
            raise SessionNotFoundError(f"sandbox {name} not found") from None
        if session.state is SessionState.TERMINATED:
            raise SessionNotFoundError(f"sandbox {name} has ended")
        request.state.session_id = session.id
        return session

    async def _execute(self, request: Request, session: Session) -> Response:
        body = await read_object(request)
        command, timeout = body.get("command"), body.get("timeout_seconds", _TIMEOUT_S)
        if not isinstance(command, str) or len(command) > _MAX_COMMAND_CHARS or "\0" in command:
            raise BadRequestError(f"command: expected text of at most {_MAX_COMMAND_CHARS} characters")
        if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout <= _MAX_TIMEOUT_S:
            raise BadRequestError(f"timeout_seconds: expected a number above 0, {_MAX_TIMEOUT_S:g} at most")
        try:
            argv = split_words(command)
        except ValueError as error:
            raise BadRequestError(f"command: {error}") from None
        if not argv:
            raise BadRequestError("command: empty")
        claim = claim_of(session)
        asked = {"command": argv, "timeout": f"{math.ceil(timeout * 1000)}ms", "env": dict(claim.env) if claim else {}}
        reply = await self._caller.call(
            session.id,
            "POST",
            "/api/execute",
            headers={"content-type": "application/json"},
            body=orjson.dumps(asked),
            timeout=timeout + _GRACE_S,
            limit=_MAX_RUN_BYTES,
        )
        answer = await _checked(reply)
        code = answer.get("exit_code")
        return JSON({
            "stdout": text_of(answer, "stdout", ""),
            "stderr": text_of(answer, "stderr", ""),
            "exit_code": code if isinstance(code, int) else -1,
            "timed_out": code == _TIMED_OUT and text_of(answer, "stderr", "").startswith("Command timed out"),
        })  # fmt: skip

    async def _upload(self, request: Request, session: Session) -> Response:
        parser = MultiPartParser(request.headers, read_chunks(request, _MAX_UPLOAD_BYTES), max_files=1, max_fields=8)
        try:
            form = await parser.parse()
        except (MultiPartException, KeyError) as error:
            raise BadRequestError(f"the form is malformed: {getattr(error, 'message', 'no boundary')}") from None
        try:
            file = form.get("file")
            if not isinstance(file, UploadFile) or not file.filename:
                raise BadRequestError("file: the form has no such part with a filename")
            reply = await self._caller.call(
                session.id,
                "PUT",
                _target(quote(file.filename, safe="")),
                body=chunks_of(file),
                timeout=_TRANSFER_TIMEOUT_S,
                limit=MAX_ANSWER_BYTES,
            )
            await _checked(reply)
            return JSON({"message": f"File '{file.filename}' uploaded successfully."})
        finally:
            await form.close()

    async def _list(self, session: Session, path: str) -> Response:
        target = f"/api/files?path={quote(_decoded(path), safe='') or '.'}"
        answer = await _checked(await self._caller.call(session.id, "GET", target, limit=MAX_ANSWER_BYTES))
        return JSON([
            {
                "name": text_of(each, "name"),
                "size": size if isinstance(size := each.get("size"), int) else 0,
                "type": "directory" if each.get("is_dir") is True else "file",
                "mod_time": _seconds(text_of(each, "modified", "")),
            }
            for each in objects_of(answer, "files")
        ])  # fmt: skip

    async def _exists(self, session: Session, path: str) -> Response:
        # A folder is a 400 of a download; what is not there a 404 of both.
        reply = await self._caller.call(
            session.id, "GET", _target(path), headers={"range": "bytes=0-0"}, limit=MAX_ANSWER_BYTES
        )
        # 416: an empty file has no first byte to send, and is there all the same.
        found = reply.status in (200, 206, 416)
        if reply.status == 400:
            listed = f"/api/files?path={quote(_decoded(path), safe='')}"
            found = (await self._caller.call(session.id, "GET", listed, limit=MAX_ANSWER_BYTES)).status == 200
        elif reply.status != 404 and not found:
            await _checked(reply)
        return JSON({"path": _decoded(path), "exists": found})


class Download(Response):
    """Streams a file out of the sandbox."""

    def __init__(self, caller: SandboxCaller, session: Session, target: str) -> None:
        super().__init__()
        self._caller, self._session, self._target = caller, session, target

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the file, or an error as long as nothing has been sent."""
        async with self._caller.stream(self._session.id, "GET", self._target) as (reply, chunks):
            if reply.status != 200:
                text = "File not found" if reply.status == 404 else "this is not a file, or no path of the workspace"
                await JSON({"message": text}, reply.status if reply.status < 500 else 502)(scope, receive, send)
                return
            headers = [
                (b"content-type", b"application/octet-stream"),
                (b"x-content-type-options", b"nosniff"),
                # A file is never shown on the gateway's own origin, where a script in it would act with the reader's
                # cookie.
                (b"content-disposition", b"attachment"),
            ]
            # What the sandbox says is hostile: a length that is no number would be a header field of its making.
            if (length := reply.headers.get("content-length", "")).isdecimal():
                headers.append((b"content-length", length.encode()))
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            async for chunk in chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _checked(reply: SandboxReply) -> Mapping[str, Any]:
    """picod's answer. Raises BadRequestError, NotFoundError, TooLargeError with its own words."""
    answer = await parse_object(reply.body) if reply.body else {}
    if reply.status < 400:
        return answer
    text = text_of(answer, "error", "")[:500] or f"the sandbox answered {reply.status}"
    if reply.status == 404:
        raise NotFoundError(text)
    raise TooLargeError(text) if reply.status in (413, 507) else BadRequestError(text)


def _raw_path(request: Request) -> str:
    """The path as it was sent: %2F in it is a part of a name's path, and not of the route."""
    raw: bytes = request.scope.get("raw_path") or quote(request.url.path).encode()
    return raw.partition(b"?")[0].decode("latin-1")


def _decoded(path: str) -> str:
    try:
        text = unquote_to_bytes(path).decode()
    except UnicodeDecodeError:
        raise BadRequestError("the path is not UTF-8") from None
    if "\0" in text:
        raise BadRequestError("the path has a null byte")
    return text


def _target(path: str) -> str:
    """picod's target for a file. An absolute path is one below the workspace, as with their runtime's root."""
    text = _decoded(path).lstrip("/")
    if not text:
        raise BadRequestError("the path is missing")
    return f"/api/files/{quote(text, safe='/')}"


def _seconds(text: str) -> float:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return 0.0
