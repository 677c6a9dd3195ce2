"""The session of a chat: Open WebUI names the chat in X-Session-Id, and its user in X-User-Id.

A chat gets its session with the first request that needs one; from then on a name in the store stands for it, so every
gateway finds it. Once the session has ended, the chat's next command begins a new one. Rejected: an id that is derived
from the chat's, which could stand for one session only and never for the one after it.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace

import orjson
from starlette.requests import Request
from starlette.responses import Response

from gateway.api.errors import Handler
from gateway.api.http import session_headers
from gateway.api.sessions import DELETED_BY_USER, choose_runtime
from gateway.api.workspace_files import WORKSPACE
from gateway.core.clock import Clock
from gateway.core.errors import BadRequestError, SessionNotFoundError
from gateway.core.identity import Identity, current
from gateway.core.interfaces import RuntimeCatalog, SessionStore
from gateway.core.model import PRIVATE_METADATA, Session, SessionId, SessionState
from gateway.sessions.lifecycle import Lifecycle

_KEY = PRIVATE_METADATA + "open-terminal"
_MAX_NAME_CHARS = 256
_KEPT_S = 7 * 86400.0  # after the last command: as long as a hibernated session is kept by default
_REFRESH_S = 3600.0  # how often a name that is in use is written again
_MAX_REFRESHED = 10_000  # about 2 MB


@dataclass(frozen=True, slots=True)
class Chat:
    """Who asks: the user and the chat as Open WebUI names them; either may be empty. `cwd`: where paths begin."""

    user: str
    name: str
    cwd: str = WORKSPACE

    def key(self, identity: Identity) -> str:
        """What stands for its session in the store: a tenant's own and, where credentials are of users, a user's."""
        parts = (identity.tenant, identity.user, self.user, self.name)
        # A digest, as what a stranger sends may hold what a key of Redis should not. No part has a NUL (`_header`).
        return f"open-terminal {hashlib.sha256(chr(0).join(parts).encode()).hexdigest()}"

    def stored(self) -> dict[str, str]:
        """As an entry of a session's metadata."""
        return {_KEY: orjson.dumps({"user": self.user, "name": self.name, "cwd": self.cwd}).decode()}


def chat_of(headers: Mapping[str, str]) -> Chat:
    """The chat that a request's header fields name. Raises BadRequestError."""
    return Chat(_header(headers, "x-user-id"), _header(headers, "x-session-id"))


def _header(headers: Mapping[str, str], name: str) -> str:
    value = headers.get(name, "")
    if len(value) > _MAX_NAME_CHARS or "\0" in value:
        raise BadRequestError(f"{name}: expected at most {_MAX_NAME_CHARS} characters")
    return value


def record_of(session: Session) -> Chat | None:
    """The chat of a session; None for a session that another surface made."""
    text = session.metadata.get(_KEY)
    if text is None:
        return None
    value = orjson.loads(text)
    return Chat(value["user"], value["name"], value["cwd"])


def naming_session(handlers: Mapping[str, Handler]) -> dict[str, Handler]:
    """The handlers, whose answers name the chat's session, so that a person can find it through the other APIs."""

    def naming(handler: Handler) -> Handler:
        async def named(request: Request) -> Response:
            response = await handler(request)
            response.headers.update(session_headers(getattr(request.state, "session_id", None)))
            return response

        return named

    return {name: naming(handler) for name, handler in handlers.items()}


def is_awake(session: Session) -> bool:
    """Whether processes may run in it: with its sandbox they end, so there is no need to wake it to see them."""
    return session.state is SessionState.ACTIVE


class Chats:
    """Finds the session of a request's chat, and makes it where there is none."""

    def __init__(self, lifecycle: Lifecycle, store: SessionStore, catalog: RuntimeCatalog, clock: Clock) -> None:
        self._lifecycle = lifecycle
        self._store = store
        self._catalog = catalog
        self._clock = clock
        self._refreshed: OrderedDict[str, float] = OrderedDict()

    async def find(self, request: Request) -> Session | None:
        """The chat's session; None before its first command, and after the session's end."""
        session = await self.session_of(chat_of(request.headers))
        if session is not None:
            request.state.session_id = session.id
        return session

    async def session_of(self, chat: Chat) -> Session | None:
        """As `find`, for a chat whose request is a WebSocket's."""
        found = await self._store.tasks.bound(chat.key(current()), self._clock.now())
        if not found:
            return None
        try:
            session = await self._lifecycle.get(SessionId(found))
        except SessionNotFoundError:
            return None
        return None if session.state is SessionState.TERMINATED else session

    async def ensure(self, request: Request) -> Session:
        """The chat's session, made now if there is none; its sandbox is claimed when it is first used.

        The request must be known to be well-formed. Raises BadRequestError, ParamError, LimitError, and what
        Lifecycle.register raises.
        """
        chat = chat_of(request.headers)
        session = await self.find(request)
        if session is None:
            session = await self._make(request, chat)
        else:
            await self._refresh(chat, session)
        request.state.session_id = session.id
        return session

    async def move(self, session: Session, cwd: str) -> None:
        """Let relative paths of a chat begin elsewhere."""
        chat = replace(record_of(session) or Chat("", ""), cwd=cwd)
        public = {name: value for name, value in session.metadata.items() if not name.startswith(PRIVATE_METADATA)}
        await self._lifecycle.update(session.id, metadata={**public, **chat.stored()})

    async def _make(self, request: Request, chat: Chat) -> Session:
        key, runtime = chat.key(current()), choose_runtime(self._catalog, request)
        before = await self._store.tasks.bound(key, self._clock.now())  # of one that has ended
        made = await self._lifecycle.register(runtime.key, metadata={"name": "Open WebUI chat", **chat.stored()})
        if await self._bind(key, made.id, instead_of=before) == made.id:
            request.state.created = made
            return made
        # Another request of the chat was first: a model may call several tools at once.
        await self._lifecycle.terminate(made.id, DELETED_BY_USER)
        session = await self.find(request)
        if session is None:
            raise SessionNotFoundError("the chat's sandbox ended at this moment; try again")
        return session

    async def _refresh(self, chat: Chat, session: Session) -> None:
        """Have the name stand for the session for some time more."""
        key, now = chat.key(current()), self._clock.now()
        if now - self._refreshed.get(key, -_REFRESH_S) >= _REFRESH_S:
            await self._bind(key, session.id)

    async def _bind(self, key: str, session_id: SessionId, instead_of: str = "") -> str:
        now = self._clock.now()
        self._refreshed[key] = now
        self._refreshed.move_to_end(key)
        if len(self._refreshed) > _MAX_REFRESHED:
            self._refreshed.popitem(last=False)
        return await self._store.tasks.bind(key, session_id, now + _KEPT_S, now, instead_of=instead_of)
