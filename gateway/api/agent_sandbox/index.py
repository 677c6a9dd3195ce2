"""Finds the sessions that claims have made by the claims' names, without reading every session.

A client asks for its claim by name before each use, and a watch asks every second; of 10,000 sessions one such look
took 0.5 s of CPU. Records tell what their claim was, so nothing but they is stored: the index is in memory, is made
from all records when first used, and reads after that only those that were created since.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass

from gateway.api.agent_sandbox.records import claim_of
from gateway.core.clock import Clock
from gateway.core.identity import current
from gateway.core.interfaces import SessionStore
from gateway.core.model import Session, SessionId, SessionState

# Records of another gateway may be written this much later than their time of creation says, its clock included.
_SLACK_S = 3.0
_PRUNE_INTERVAL_S = 60.0
_PAGE = 200
_VERSIONS_PAGE = 1000


@dataclass(frozen=True, slots=True)
class _Entry:
    created_at: float
    namespace: str
    name: str


class ClaimIndex:
    """The claims of all tenants; what a caller may see is asked of the record itself."""

    def __init__(self, store: SessionStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._entries: dict[SessionId, _Entry] = {}
        self._names: dict[tuple[str, str], set[SessionId]] = {}
        self._read_to = float("-inf")  # records created before it are in the index
        self._pruned_at = clock.monotonic()
        self._reading = asyncio.Lock()

    async def find(self, namespace: str, name: str) -> Session | None:
        """The caller's session of a claim; the newest where there are several. Raises StoreUnavailableError."""
        found = await self._look(namespace, name)
        if found is None:
            await self.refresh()
            found = await self._look(namespace, name)
        return found

    def ids(self, namespace: str, name: str | None = None) -> Collection[SessionId]:
        """The sessions of a namespace's claims, or of those of a name, as of the last refresh."""
        if name is not None:
            return tuple(self._names.get((namespace, name), ()))
        return [session_id for session_id, entry in self._entries.items() if entry.namespace == namespace]

    def add(self, session: Session) -> None:
        """A session that has just been made, or was read."""
        claim = claim_of(session)
        if claim is not None and session.state is not SessionState.TERMINATED:
            self._entries[session.id] = _Entry(session.created_at, claim.namespace, claim.name)
            self._names.setdefault((claim.namespace, claim.name), set()).add(session.id)

    def discard(self, session_id: SessionId) -> None:
        """A session that is no more."""
        entry = self._entries.pop(session_id, None)
        if entry is not None:
            named = self._names[entry.namespace, entry.name]
            named.discard(session_id)
            if not named:
                del self._names[entry.namespace, entry.name]

    async def refresh(self) -> None:
        """Read the records that were created since the last time. Raises StoreUnavailableError."""
        async with self._reading:
            # A clock that is ahead must not hide what others create until theirs are there too.
            began = self._clock.now()
            after = (min(self._read_to, began) - _SLACK_S, SessionId(""))
            while True:
                page = [
                    each async for each in self._store.by_age(ended=False, newest_first=False, after=after, limit=_PAGE)
                ]
                for session in page:
                    if session.id not in self._entries:
                        self.add(session)
                if len(page) < _PAGE:
                    break
                after = (page[-1].created_at, page[-1].id)
            self._read_to = began
            if self._clock.monotonic() - self._pruned_at > _PRUNE_INTERVAL_S:
                self._pruned_at = self._clock.monotonic()
                await self._prune()

    async def _look(self, namespace: str, name: str) -> Session | None:
        newest = None
        for session_id in self.ids(namespace, name):
            session = await self._store.get(session_id)
            if session is None or session.state is SessionState.TERMINATED:
                self.discard(session_id)
            elif current().sees(session) and (newest is None or session.created_at > newest.created_at):
                newest = session
        return newest

    async def _prune(self) -> None:
        ids = list(self._entries)
        for start in range(0, len(ids), _VERSIONS_PAGE):
            page = ids[start : start + _VERSIONS_PAGE]
            there = await self._store.versions(page)
            for session_id in page:
                if session_id not in there:
                    self.discard(session_id)
