"""The methods of AgentScope's sandbox server: POST /agentscope/METHOD with keyword arguments, answering {"data": ...}.

A sandbox is a session, and its id the session's. `METHOD_async` is METHOD (api/control_app.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gateway import __version__
from gateway.api.agentscope.named import find_sandbox
from gateway.api.agentscope.records import SandboxRecord, info_document, record_of
from gateway.api.agentscope.tools import TOOLS, call_tool
from gateway.api.errors import Handler, ParamError
from gateway.api.http import JSON, read_object, session_headers
from gateway.api.session_list import list_sessions
from gateway.api.sessions import DELETED_BY_USER, choose_runtime, create_session, while_connected
from gateway.core.errors import SessionNotFoundError
from gateway.core.interfaces import RuntimeCatalog, SandboxCaller, SessionStore
from gateway.core.model import Session, SessionState
from gateway.sessions.hibernation import Hibernator
from gateway.sessions.lifecycle import Lifecycle

_TYPE = "base"
_MAX_SANDBOXES = 1000  # of one answer
_MAX_NAME_CHARS = 128


class ManagerAPI:
    """The handlers of AgentScope Runtime's manager: a path per method, with its arguments as JSON."""

    def __init__(
        self,
        lifecycle: Lifecycle,
        hibernator: Hibernator,
        store: SessionStore,
        catalog: RuntimeCatalog,
        caller: SandboxCaller,
    ) -> None:
        self._lifecycle = lifecycle
        self._hibernator = hibernator
        self._store = store
        self._catalog = catalog
        self._caller = caller

    def handlers(self) -> dict[str, Handler]:
        """The handler of each operation of openapi/table.py, by its name."""
        return {
            "agentscope_server_health": self._server_health,
            "agentscope_create": self._create,
            "agentscope_create_from_pool": self._create,
            "agentscope_get_session_mapping": self._mapping,
            "agentscope_list_session_keys": self._keys,
            "agentscope_get_info": self._info,
            "agentscope_check_health": self._health,
            "agentscope_get_status": self._status,
            "agentscope_list_tools": self._list_tools,
            "agentscope_call_tool": self._call_tool,
            "agentscope_start": self._start,
            "agentscope_stop": self._stop,
            "agentscope_release": self._release,
            "agentscope_cleanup": self._cleanup,
        }

    async def _server_health(self, _: Request) -> Response:
        """Whether there is a server: their clients' deployments ask it, without a token."""
        return JSON({"status": "healthy", "version": __version__})

    async def _create(self, request: Request) -> Response:
        body = await read_object(request)
        meta = body.get("meta") or {}
        if not isinstance(meta, dict):
            raise ParamError("meta", "expected an object")
        # Refused and not ignored: a client that believes its folder is mounted would work on an empty one, and lose
        # what it wrote.
        for name in ("mount_dir", "storage_path", "environment"):
            if body.get(name):
                raise ParamError(name, "not supported here; leave it out")
        record = SandboxRecord(_read_type(body.get("sandbox_type")), meta)
        runtime = choose_runtime(self._catalog, request, request.query_params.get("runtime"))
        opened = await create_session(request, self._lifecycle, runtime.key, metadata=record.stored())
        return JSON({"data": opened.session.id}, headers=session_headers(opened.session.id))

    async def _mapping(self, request: Request) -> Response:
        context = _text(await read_object(request), "session_ctx_id")
        return _data([each.id for each, record in await self._all() if record.context == context])

    async def _keys(self, request: Request) -> Response:
        """The caller's own: a client that stops releases every sandbox that is listed here."""
        await read_object(request)
        # Each once, in the order of the sessions: one context may have a sandbox of each type.
        return _data(list(dict.fromkeys(record.context for _, record in await self._all() if record.context)))

    async def _info(self, request: Request) -> Response:
        return _data(info_document(*await self._require(request)))

    async def _health(self, request: Request) -> Response:
        await self._require(request)
        return _data(True)

    async def _status(self, request: Request) -> Response:
        session, _ = await self._require(request)
        # Docker's words, since their manager passes on what Docker says; a hibernated one is what they stop and start.
        return _data("exited" if session.state is SessionState.HIBERNATED else "running")

    async def _list_tools(self, request: Request) -> Response:
        body = await read_object(request)
        _, record = await self._named(request, body)
        wanted = body.get("tool_type")
        return _data({name: tools for name, tools in TOOLS[record.type].items() if wanted in (None, "", name)})

    async def _call_tool(self, request: Request) -> Response:
        body = await read_object(request)
        session, record = await self._named(request, body)
        arguments = body.get("arguments") or {}
        if not isinstance(arguments, dict):
            raise ParamError("arguments", "expected an object")
        call = call_tool(self._caller, session.id, record.type, _text(body, "tool_name"), arguments)
        # Their clients wait for 60 s and then leave; without this the tool would run on for ten minutes, unread.
        return _data(await while_connected(request, call, "a tool call"))

    async def _start(self, request: Request) -> Response:
        session, _ = await self._require(request)
        await self._lifecycle.wake(session.id)
        return _data(True)

    async def _stop(self, request: Request) -> Response:
        session, _ = await self._require(request)
        # Stopping what is stopped is no error of Docker's.
        if session.state is not SessionState.HIBERNATED:
            await self._hibernator.hibernate(session.id)
        return _data(True)

    async def _release(self, request: Request) -> Response:
        """True also for a sandbox that there is not: it is released already."""
        try:
            session, _ = await self._require(request)
            await self._lifecycle.terminate(session.id, DELETED_BY_USER)
        except SessionNotFoundError:
            pass
        return _data(True)

    async def _cleanup(self, request: Request) -> Response:
        """Release all of the caller's sandboxes that were made here."""
        await read_object(request)
        for session, _ in await self._all():
            try:
                await self._lifecycle.terminate(session.id, DELETED_BY_USER)
            except SessionNotFoundError:
                continue  # it has ended meanwhile
        return _data(None)

    async def _all(self) -> list[tuple[Session, SandboxRecord]]:
        sessions = await list_sessions(
            self._store, lambda each: record_of(each) is not None, ended=False, limit=_MAX_SANDBOXES
        )
        return [(each, record) for each in sessions if (record := record_of(each)) is not None]

    async def _require(self, request: Request) -> tuple[Session, SandboxRecord]:
        """The sandbox that the request's body names, which is not read yet. Raises as `_named`."""
        return await self._named(request, await read_object(request))

    async def _named(self, request: Request, body: Mapping[str, Any]) -> tuple[Session, SandboxRecord]:
        """The sandbox of a body. Raises SessionNotFoundError in AgentScope's words, ParamError."""
        return await find_sandbox(self._lifecycle, request, _text(body, "identity"))


def _read_type(value: Any) -> str:
    """The type of a new sandbox. Raises ParamError for what needs a screen, a browser or a phone."""
    name = value if value is not None else _TYPE
    if not isinstance(name, str):
        raise ParamError("sandbox_type", "expected text")
    # 1.1.6 names the same sandbox a second time for its asynchronous client; there is nothing different in it.
    kind = name.removesuffix("_async")
    if kind not in TOOLS:
        raise ParamError("sandbox_type", f"{name[:64]!r} is not offered here; there are {', '.join(TOOLS)}")
    return kind


def _text(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_NAME_CHARS:
        raise ParamError(name, f"expected text of 1 to {_MAX_NAME_CHARS} characters")
    return value


def _data(value: Any) -> Response:
    return JSON({"data": value})
