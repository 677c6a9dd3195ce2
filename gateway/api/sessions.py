"""Finds the session that a request of the tool surfaces names, or creates one on the runtime that it chooses."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from starlette.requests import Request

from gateway.api.errors import ParamError
from gateway.api.http import read_runtime
from gateway.core.errors import BadRequestError, SessionNotFoundError, WakegateError
from gateway.core.interfaces import RuntimeCatalog
from gateway.core.model import Kind, Runtime, RuntimeKey, Session, SessionId, SessionState
from gateway.core.request_headers import note_headers
from gateway.egress.rule_entries import Entry
from gateway.sessions.activation import Opened
from gateway.sessions.lifecycle import Lifecycle

SESSION_HEADERS = ("x-session-id", "x-agentcube-session-id")
_RAW_HEADERS = frozenset(name.encode() for name in SESSION_HEADERS)
RUNTIME_HEADER = "x-wakegate-runtime"
DEFAULT_NAME = "my-interpreter"
DELETED_BY_USER = "deleted by its user"  # `reason` of a session that a client ended
_SESSION_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_T = TypeVar("_T")


def named_session(request: Request, in_body: str | None = None) -> SessionId | None:
    """The session named by headers or body. Raises ParamError if they differ or the id is malformed."""
    # The fields as they are: to decode all of them for each of the names costs every small request 10 us.
    named = {value.decode("latin-1") for name, value in request.scope["headers"] if name in _RAW_HEADERS}
    named |= {in_body} if in_body is not None else set()
    if len(named) > 1:
        raise ParamError("session_id", "headers and body name different sessions; send one")
    for value in named:
        if not _SESSION_ID.fullmatch(value):
            raise ParamError("session_id", "malformed; expected 1 to 128 of A-Z, a-z, 0-9, '.', '_' and '-'")
        return SessionId(value)
    return None


def is_session_id(text: str) -> bool:
    """Whether a text has the form of a session's id."""
    return _SESSION_ID.fullmatch(text) is not None


def choose_runtime(catalog: RuntimeCatalog, request: Request, in_body: Any = None) -> Runtime:
    """The code interpreter for a new session: the named one, else my-interpreter, else the only one.

    Raises ParamError.
    """
    named = in_body if in_body is not None else request.headers.get(RUNTIME_HEADER)
    if named is not None:
        try:
            key = read_runtime(named)
        except BadRequestError as error:
            raise ParamError("runtime", str(error).partition(": ")[2]) from None
        runtime = catalog.get(key)
        if runtime is None or key.kind is not Kind.CODE_INTERPRETER:
            text = f"no code interpreter {key.namespace}/{key.name} is served; there are {_names(catalog)}"
            raise ParamError("runtime", text)
        return runtime
    # As AgentCube's SDK does, whose default name this is.
    usual = catalog.get(RuntimeKey("default", DEFAULT_NAME))
    served = _with_tools(catalog)
    if usual is None and len(served) != 1:
        raise ParamError("runtime", f"missing; name one of {_names(catalog)}")
    return usual or served[0]


async def live_session(lifecycle: Lifecycle, request: Request, name: str, absent: Callable[[str], str]) -> Session:
    """The session of that id, which another product's request names.

    Raises SessionNotFoundError where there is none or it has ended. `absent` words it as the surface's clients know it,
    given the reason of an end, or nothing.
    """
    request.state.session_id = SessionId(name)
    try:
        session = await lifecycle.get(SessionId(name))
    except SessionNotFoundError:
        raise SessionNotFoundError(absent("")) from None
    if session.state is SessionState.TERMINATED:
        raise SessionNotFoundError(absent(session.reason))
    return session


class ClientLeftError(WakegateError):
    """The client disconnected before its answer. 499 as in nginx: only logs and metrics see it."""

    status = 499
    code = "CLIENT_GONE"


async def create_session(
    request: Request,
    lifecycle: Lifecycle,
    runtime: RuntimeKey,
    *,
    ttl: float | None = None,
    idle_timeout: float | None = None,
    metadata: Mapping[str, str] | None = None,
    egress: Sequence[Entry] | None = None,
    public_ports: Sequence[int] = (),
) -> Opened:
    """Create a session for the client of this request, and end it again if the client disconnects meanwhile.

    The request's body must have been read: after it, the next message that ASGI delivers is the disconnect. Raises
    ClientLeftError, and what Lifecycle.create raises.
    """
    note_headers(request.scope["headers"])
    creating = asyncio.create_task(
        lifecycle.create(
            runtime,
            ttl=ttl,
            idle_timeout=idle_timeout,
            metadata=metadata,
            egress=egress,
            public_ports=public_ports,
        ),
        name="create a session",
    )
    # ASGI tells of a disconnect only to who waits for the next message. Without this, a client that gives up during a
    # cold start of 30 s leaves a session behind that nobody knows.
    leaving = asyncio.create_task(_until_left(request), name="watch for a client that leaves")
    try:
        await asyncio.wait((creating, leaving), return_when=asyncio.FIRST_COMPLETED)
        if leaving.done():
            # Both at once: the session exists, but its id has no reader any more.
            if creating.done() and creating.exception() is None:
                await lifecycle.end_unclaimed(creating.result().session.id)
            raise ClientLeftError("the client left while its session was created")
        opened = creating.result()
        request.state.created = opened.session
        request.state.quota_fields = await lifecycle.quota_fields()
        return opened
    finally:
        for task in (creating, leaving):
            task.cancel()
        # A cancelled creation still releases its sandbox, which has to be over before the request is.
        await asyncio.gather(creating, leaving, return_exceptions=True)


async def while_connected(request: Request, work: Coroutine[Any, Any, _T], what: str) -> _T:
    """Do the work for the client of this request, whose body has been read, and cancel it when the client leaves.

    `what` it is, for logs. Cancelled, a call to a sandbox closes its connection, upon which picod ends what it runs.
    Raises ClientLeftError, and what the work raises.
    """
    running = asyncio.create_task(work, name=what)
    leaving = asyncio.create_task(_until_left(request), name="watch for a client that leaves")
    try:
        await asyncio.wait((running, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            raise ClientLeftError(f"the client left before {what} was over")
        return running.result()
    finally:
        for task in (running, leaving):
            task.cancel()
        await asyncio.gather(running, leaving, return_exceptions=True)


async def _until_left(request: Request) -> None:
    """Return once the client has disconnected; the request's body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _names(catalog: RuntimeCatalog) -> str:
    return ", ".join(f"{each.key.namespace}/{each.key.name}" for each in _with_tools(catalog)) or "none"


def _with_tools(catalog: RuntimeCatalog) -> list[Runtime]:
    return [runtime for runtime in catalog.all() if runtime.key.kind is Kind.CODE_INTERPRETER]
