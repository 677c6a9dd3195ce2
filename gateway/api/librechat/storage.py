"""LibreChat's storage sessions: sessions whose workspace holds files, each of which has an id made of its path.

LibreChat takes only ids of 21 characters, of a session's as of a file's. A storage session is `shared` if it belongs to
an agent or a skill: many users read its files, so no program is run in it.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import secrets
import string
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from starlette.requests import Request

from gateway.api.sessions import choose_runtime, live_session
from gateway.api.workspace_files import Entry, WorkspaceFiles
from gateway.core.errors import NotFoundError, SessionNotFoundError
from gateway.core.interfaces import RuntimeCatalog, SandboxCaller
from gateway.core.model import PRIVATE_METADATA, Session, SessionId
from gateway.sessions.lifecycle import Lifecycle

_KEY = PRIVATE_METADATA + "librechat"
_ID_CHARS = 21
# 108 random bits. Small letters and digits alone, since an id may become a label of a host name.
_ALPHABET = string.ascii_lowercase + string.digits
_HIDDEN = ".wakegate"  # a folder of the workspace that holds the gateway's own files
_MAX_DEPTH = 64


@dataclass(frozen=True, slots=True)
class Stored:
    """A file of a storage session; `path` is relative to its workspace."""

    session_id: SessionId
    entry: Entry

    @property
    def path(self) -> str:
        """Where it is, which is its name as LibreChat knows it."""
        return self.entry.path

    @property
    def id(self) -> str:
        """What requests name it by: see `file_id`."""
        return file_id(self.path)


def file_id(path: str) -> str:
    """The id of a file: 126 bits of its path's hash, so that nothing has to be kept of it."""
    return base64.urlsafe_b64encode(hashlib.sha256(path.encode("utf-8", "replace")).digest())[:_ID_CHARS].decode()


class Storage:
    """Makes and finds storage sessions, and finds files in them."""

    def __init__(self, lifecycle: Lifecycle, catalog: RuntimeCatalog, caller: SandboxCaller) -> None:
        self._lifecycle = lifecycle
        self._catalog = catalog
        self._caller = caller

    async def make(self, request: Request, *, shared: bool = False) -> Session:
        """A new one, whose sandbox is claimed when it is first used. Raises ParamError, LimitError, ..."""
        runtime = choose_runtime(self._catalog, request)
        name = "".join(secrets.choice(_ALPHABET) for _ in range(_ID_CHARS))
        session = await self._lifecycle.register(
            runtime.key,
            metadata={"name": "LibreChat", _KEY: "shared" if shared else "own"},
            session_id=SessionId(name),
        )
        request.state.session_id, request.state.created = session.id, session
        return session

    @asynccontextmanager
    async def made(self, request: Request, *, shared: bool = False) -> AsyncIterator[Session]:
        """As `make`, for work upon which the answer tells its id: where that fails or is cancelled, it ends again."""
        session = await self.make(request, shared=shared)
        try:
            yield session
        except BaseException:
            await asyncio.shield(self._lifecycle.end_unclaimed(session.id))
            raise

    async def require(self, request: Request, name: str) -> Session:
        """The storage session of that id. Raises SessionNotFoundError, also for another API's session."""

        def absent(_: str) -> str:
            return f"there is no storage session {name[:64]!r}"

        session = await live_session(self._lifecycle, request, name, absent)
        if _KEY not in session.metadata:
            raise SessionNotFoundError(absent(""))
        return session

    def files(self, session: Session) -> WorkspaceFiles:
        """Access to the files of a session's workspace."""
        return WorkspaceFiles(self._caller, session.id)

    async def list(self, session: Session) -> Sequence[Stored]:
        """All files of a storage session."""
        entries = await self.files(session).list("", depth=_MAX_DEPTH)
        return [
            Stored(session.id, each)
            for each in entries
            if each.type == "file" and each.path.partition("/")[0] != _HIDDEN
        ]

    async def find(self, session: Session, wanted: str) -> Stored:
        """The file of that id. Raises NotFoundError."""
        for each in await self.list(session):
            if each.id == wanted:
                return each
        raise NotFoundError(f"storage session {session.id} has no file {wanted[:64]!r}")


def is_shared(session: Session) -> bool:
    """Whether several users read its files."""
    return session.metadata.get(_KEY) == "shared"
