"""The user's own terminals in a chat's sandbox: /open-terminal/api/terminals, beside their WebSocket (`socket`).

`POST` gives out an id only; the shell is started by the WebSocket that names it, and ends with it. The id has the
session's, since the WebSocket of older clients names no chat.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gateway.api.errors import Handler
from gateway.api.http import JSON, read_object
from gateway.api.open_terminal import query
from gateway.api.open_terminal.chats import Chats, is_awake, naming_session
from gateway.api.sandbox_json import MAX_ANSWER_BYTES, BadAnswerError, count_of, objects_of, text_of
from gateway.api.workspace_files import checked
from gateway.core.clock import Clock
from gateway.core.errors import NotFoundError
from gateway.core.interfaces import SandboxCaller
from gateway.core.model import Session, SessionId
from gateway.core.units import rfc3339

_NAME = "open-terminal shell "  # and the ticket: the name of a shell's process
_TICKET_CHARS = 8
_SHOWN_BYTES = 64 << 10  # of a shell's output for a model
_MAX_INPUT_CHARS = 64 << 10


class ShellsAPI:
    """The handlers of /api/terminals."""

    def __init__(self, chats: Chats, caller: SandboxCaller, clock: Clock) -> None:
        self._chats = chats
        self._caller = caller
        self._clock = clock

    def handlers(self) -> dict[str, Handler]:
        """The handler of each operation of openapi/table.py, by its name."""
        return naming_session({
            "open_terminal_create_terminal": self._create,
            "open_terminal_list_terminals": self._list,
            "open_terminal_get_terminal": self._get,
            "open_terminal_delete_terminal": self._delete,
            "open_terminal_read_user_terminal": self._read,
            "open_terminal_send_user_terminal_input": self._input,
        })  # fmt: skip

    async def _create(self, request: Request) -> Response:
        session = await self._chats.ensure(request)
        ticket = secrets.token_hex(_TICKET_CHARS // 2)
        # Without a process yet: whatever it printed before the WebSocket is there would be lost.
        return JSON({"id": terminal_id(session.id, ticket), "created_at": rfc3339(self._clock.now()), "pid": 0})

    async def _list(self, request: Request) -> Response:
        session = await self._chats.find(request)
        return JSON([] if session is None else [_describe(session, each) for each in await self._shells(session)])

    async def _get(self, request: Request) -> Response:
        return JSON(_describe(*await self._named(request)))

    async def _delete(self, request: Request) -> Response:
        session, shell = await self._named(request)
        reply = await self._caller.call(session.id, "DELETE", _target(shell), limit=MAX_ANSWER_BYTES)
        if reply.status != 404:
            await checked(reply)
        return JSON({"status": "deleted"})

    async def _read(self, request: Request) -> Response:
        """The latest output of the user's shell, for a model."""
        session, shell = await self._latest(request)
        log = shell.get("log")
        offset = max(0, count_of(log, "end") - _SHOWN_BYTES) if isinstance(log, dict) else 0
        reply = await self._caller.call(
            session.id, "GET", f"{_target(shell)}/logs?offset={offset}", limit=2 * MAX_ANSWER_BYTES
        )
        return JSON({"output": text_of(await checked(reply), "pty", "")[-_SHOWN_BYTES:]})

    async def _input(self, request: Request) -> Response:
        """A model types into the user's shell."""
        typed = query.field(await read_object(request), "input", empty=True)[:_MAX_INPUT_CHARS]
        session, shell = await self._latest(request)
        data = typed.encode("utf-8", "replace")
        await checked(
            await self._caller.call(session.id, "POST", f"{_target(shell)}/stdin", body=data, limit=MAX_ANSWER_BYTES)
        )
        return JSON({"status": "ok"})

    async def _latest(self, request: Request) -> tuple[Session, Mapping[str, Any]]:
        session = await self._chats.find(request)
        shells = [] if session is None else await self._shells(session)
        if session is None or not shells:
            raise NotFoundError("No connected user shell")
        return session, shells[-1]

    async def _named(self, request: Request) -> tuple[Session, Mapping[str, Any]]:
        """The session and the shell that the path names, if it is this chat's. Raises NotFoundError."""
        session = await self._chats.find(request)
        name, ticket = parts_of(request.path_params["terminal_id"])
        if session is not None and name == session.id:
            for each in await self._shells(session):
                if each.get("name") == process_name(ticket):
                    return session, each
        raise NotFoundError("Session not found")

    async def _shells(self, session: Session) -> list[Mapping[str, Any]]:
        """The processes of the session that are shells, and run. A session that sleeps has none, and is not woken."""
        if not is_awake(session):
            return []
        reply = await self._caller.call(session.id, "GET", "/api/processes", limit=MAX_ANSWER_BYTES)
        return [
            each
            for each in objects_of(await checked(reply), "processes")
            if text_of(each, "name", "").startswith(_NAME) and each.get("state") == "running"
        ]


def terminal_id(session_id: SessionId, ticket: str) -> str:
    """The id of a terminal: its session and picod's ticket, so that no table of terminals is kept."""
    return f"{session_id}.{ticket}"


def parts_of(name: str) -> tuple[str, str]:
    """Session and ticket of a terminal's id; both empty for what is none."""
    session, _, ticket = name.rpartition(".")
    is_ticket = len(ticket) == _TICKET_CHARS and all(each in "0123456789abcdef" for each in ticket)
    return (session, ticket) if session and is_ticket else ("", "")


def process_name(ticket: str) -> str:
    """The name of the process of a terminal."""
    return _NAME + ticket


def _describe(session: Session, shell: Mapping[str, Any]) -> dict[str, Any]:
    ticket = text_of(shell, "name").removeprefix(_NAME)
    created = text_of(shell, "started_at", "")
    return {"id": terminal_id(session.id, ticket), "created_at": created, "pid": count_of(shell, "pid")}


def _target(shell: Mapping[str, Any]) -> str:
    name = text_of(shell, "id")
    if not (name.isascii() and name.isalnum()):
        raise BadAnswerError("the sandbox's answer: malformed id of a process")
    return f"/api/processes/{name}"
