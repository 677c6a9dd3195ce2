"""A terminal's WebSocket: /open-terminal/api/terminals/ID. The shell in it lives as long as the connection.

    client: text   {"type": "auth", "token": KEY} first, within 10 s; then {"type": "resize", "cols", "rows"}
            binary what is typed
    here:   binary what is printed; the connection closes when the shell ends

Who asks may have put the key into the handshake's header as well; then the first message's token is not looked at.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs

import orjson
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from gateway.api.open_terminal.chats import Chat, chat_of, record_of
from gateway.api.open_terminal.files import cwd_of
from gateway.api.open_terminal.processes import TERMINAL_ENV, read_error
from gateway.api.open_terminal.query import located
from gateway.api.open_terminal.shells import parts_of, process_name
from gateway.api.sandbox_json import MAX_ANSWER_BYTES, BadAnswerError, text_of
from gateway.api.sessions import is_session_id
from gateway.api.tools.run_events import read_events
from gateway.api.workspace_files import checked
from gateway.core.background import cancel
from gateway.core.errors import BadRequestError, SessionNotFoundError, UnauthorizedError, WakegateError, public_message
from gateway.core.identity import current
from gateway.core.interfaces import SandboxCaller
from gateway.core.model import Session, SessionId, SessionState
from gateway.identity.scope import require_use
from gateway.sessions.lifecycle import Lifecycle

PREFIX = "/open-terminal/api/terminals/"
_AUTH_S = 10.0
MAX_STRANGERS = 32
_MAX_AUTH_CHARS = 16 << 10  # a token of OpenID Connect may have some thousand
_MAX_TYPED_BYTES = 1 << 20  # of one message
_SIZE = {"cols": 80, "rows": 24}  # until the client tells
_MAX_SIDE = 4096
_MAX_IDLE_S = 86400.0
# Open Terminal's codes.
_NORMAL, _UNAUTHORIZED, _NOT_FOUND, _IDLE, _FAILED = 1000, 4001, 4004, 4008, 1011
Authenticate = Callable[[str], Awaitable[None]]


class TerminalSocket:
    """ASGI app for these WebSockets, whose handshake is not answered yet."""

    def __init__(self, lifecycle: Lifecycle, caller: SandboxCaller) -> None:
        self._lifecycle = lifecycle
        self._caller = caller
        self._strangers = 0  # connections that have not said yet who they are

    @staticmethod
    def takes(scope: Scope) -> bool:
        """Whether a WebSocket is one of these."""
        return str(scope["path"]).startswith(PREFIX)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a connection to its end."""
        # Only those whose handshake had no key. Their first message is held whole, and may have 16 MiB.
        is_stranger = "authenticate" in scope.get("state", {})
        if is_stranger and self._strangers >= MAX_STRANGERS:
            await _refuse(send)
            return
        await send({"type": "websocket.accept"})
        try:
            self._strangers += is_stranger
            try:
                if not await _authenticated(scope, receive):
                    return
            finally:
                self._strangers -= is_stranger
            session, ticket = await self._named(scope)
            code, reason = await _Shell(self._caller, session, ticket, receive, send).run()
        except UnauthorizedError:
            code, reason = _UNAUTHORIZED, "Invalid API key"
        except SessionNotFoundError:
            code, reason = _NOT_FOUND, "Session not found"
        except WakegateError as error:
            code, reason = _FAILED, public_message(error)
        if code:
            reason = reason.encode()[:120].decode("utf-8", "ignore")  # a close frame has 125 bytes
            await send({"type": "websocket.close", "code": code, "reason": reason})

    async def _named(self, scope: Scope) -> tuple[Session, str]:
        """The session and the ticket of a terminal of the chat that asks. Raises SessionNotFoundError."""
        require_use(current(), scope.get("raw_path") or scope["path"].encode())
        name, ticket = parts_of(str(scope["path"]).removeprefix(PREFIX))
        absent = SessionNotFoundError("there is no such terminal")
        if not is_session_id(name):
            raise absent
        session = await self._lifecycle.get(SessionId(name))
        chat = record_of(session)
        if chat is None or session.state is SessionState.TERMINATED or not _is_of(chat, scope):
            raise absent
        return session, ticket


async def _refuse(send: Send) -> None:
    """Answer a handshake while too many others are under way."""
    text = "too many terminals are being opened by who has not sent a key yet; try again"
    fields = [(b"content-type", b"application/json"), (b"retry-after", b"1")]
    await send({"type": "websocket.http.response.start", "status": 503, "headers": fields})
    await send({"type": "websocket.http.response.body", "body": orjson.dumps({"detail": text, "error": text})})


def _is_of(chat: Chat, scope: Scope) -> bool:
    """Whether a handshake is of the user, and of the chat if it names one. Open WebUI sets both; old ones a query."""
    headers = Headers(scope=scope)
    asked = chat_of(headers)
    user = asked.user or parse_qs(scope["query_string"].decode("latin-1")).get("user_id", [""])[0]
    return user == chat.user and ("x-session-id" not in headers or asked.name == chat.name)


async def _authenticated(scope: Scope, receive: Receive) -> bool:
    """Read the first message, and become who it names. False: the client left. Raises UnauthorizedError."""
    try:
        async with asyncio.timeout(_AUTH_S):
            message = await receive()
    except TimeoutError:
        raise UnauthorizedError("no key came") from None
    if message["type"] != "websocket.receive":
        return False
    text: str = message.get("text") or ""
    try:
        first = orjson.loads(text) if len(text) <= _MAX_AUTH_CHARS else None
    except ValueError:
        first = None
    if not isinstance(first, dict) or first.get("type") != "auth" or not isinstance(first.get("token"), str):
        raise UnauthorizedError("the first message is no key")
    authenticate: Authenticate | None = scope.get("state", {}).get("authenticate")
    if authenticate is not None:
        await authenticate(first["token"])
    return True


class _Shell:
    """One shell and the client that is connected to it."""

    def __init__(self, caller: SandboxCaller, session: Session, ticket: str, receive: Receive, send: Send) -> None:
        self._caller = caller
        self._session = session
        self._ticket = ticket
        self._receive = receive
        self._send = send
        self._target = ""  # of its process, once that runs
        self._moved: Callable[[], None] = lambda: None

    async def run(self) -> tuple[int, str]:
        """Until the shell ends, the client leaves or nothing was typed or printed for the session's idle timeout.

        Returns the code to close with, 0 if the client has left. A shell that waits at its prompt would keep its
        sandbox from hibernating as long as a browser has the page open.
        """
        idle, loop = min(self._session.idle_timeout, _MAX_IDLE_S), asyncio.get_running_loop()
        try:
            async with asyncio.timeout(idle) as limit:
                self._moved = lambda: limit.reschedule(loop.time() + idle)
                return await self._both()
        except TimeoutError:
            return _IDLE, "nothing was typed or printed for too long"
        finally:
            if self._target:
                await self._end()

    async def _both(self) -> tuple[int, str]:
        body = {
            "command": ["sh", "-c", "if command -v bash >/dev/null; then exec bash; else exec sh; fi"],
            "working_dir": _directory(cwd_of(self._session)),
            "env": TERMINAL_ENV,
            "stdin": True,
            "name": process_name(self._ticket),
            "terminal": _SIZE,
        }
        stream = self._caller.stream(
            self._session.id,
            "POST",
            "/api/processes/stream",
            headers={"content-type": "application/json"},
            body=orjson.dumps(body),
        )
        async with stream as (reply, chunks):
            if reply.status != 200:
                await checked(replace(reply, body=await read_error(chunks)))
            events = read_events(chunks)
            # No tuple as the default: Python 3.11 then raises SystemError at the end.
            first = await anext(events, None)
            name, started, _ = first or ("", {}, 0)
            process = text_of(started, "id", "")
            if name != "start" or not process.isalnum():
                raise BadAnswerError("the sandbox's stream does not begin with the process")
            self._target = f"/api/processes/{process}"
            printing = asyncio.create_task(self._print(events), name="print a terminal")
            typing = asyncio.create_task(self._type(), name="type into a terminal")
            try:
                await asyncio.wait((printing, typing), return_when=asyncio.FIRST_COMPLETED)
                if not printing.done():
                    typing.result()
                    return 0, ""
                printing.result()
                return _NORMAL, "the shell has ended"
            finally:
                await cancel(printing)
                await cancel(typing)

    async def _print(self, events: AsyncIterator[tuple[str, Mapping[str, Any], int]]) -> None:
        async for name, data, _ in events:
            if name == "exit":
                self._target = ""
                return
            if name == "pty":
                try:
                    printed = base64.b64decode(text_of(data, "data"), validate=True)
                except binascii.Error:
                    raise BadAnswerError("the sandbox's answer: data is not base64") from None
                self._moved()
                await self._send({"type": "websocket.send", "bytes": printed})
        raise BadAnswerError("the sandbox's stream ended before the shell did")

    async def _type(self) -> None:
        """What the client types, and the size of its window, until it leaves."""
        while (message := await self._receive())["type"] == "websocket.receive":
            if typed := message.get("bytes"):
                if len(typed) > _MAX_TYPED_BYTES:
                    raise BadRequestError(f"a message has more than {_MAX_TYPED_BYTES} bytes")
                self._moved()
                await self._ask("stdin", typed)
            elif (size := _size(message.get("text") or "")) is not None:
                await self._ask("resize", orjson.dumps(size))

    async def _ask(self, verb: str, body: bytes) -> None:
        # An error is that of a shell that ends at this moment, which the stream is about to tell.
        if self._target:
            await self._caller.call(
                self._session.id, "POST", f"{self._target}/{verb}", body=body, limit=MAX_ANSWER_BYTES
            )

    async def _end(self) -> None:
        try:
            await self._caller.call(self._session.id, "DELETE", self._target, limit=MAX_ANSWER_BYTES)
        except WakegateError:
            pass  # the sandbox has gone, and the shell with it


def _directory(cwd: str) -> str:
    """Where a shell begins, by a path that is there in every image."""
    path = located("cwd", cwd, cwd)
    return path.inner if path.root == "workspace" else path.absolute


def _size(text: str) -> dict[str, int] | None:
    """The window of a resize; None for any other message, which is ignored, as by their server."""
    try:
        message = orjson.loads(text) if len(text) < 1024 else None
    except ValueError:
        return None
    if not isinstance(message, dict) or message.get("type") != "resize":
        return None
    sides = {"cols": message.get("cols", _SIZE["cols"]), "rows": message.get("rows", _SIZE["rows"])}
    return sides if all(type(each) is int and 1 <= each <= _MAX_SIDE for each in sides.values()) else None
