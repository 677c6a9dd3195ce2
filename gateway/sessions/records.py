"""Session records: read, write, and serialise operations on one session over all gateways that share a store.

Within one gateway a lock serialises them. Where gateways share a store, an operation also holds and renews the lease
`session:<id>`; every record written under it carries the lease's fence, which the store compares in the script that
writes. So a gateway that is suspended in the middle of an operation and resumes after its lease has expired cannot
overwrite what another gateway has written meanwhile.

The last record of each session that is awake or parked on this gateway stays in memory, and is written again if the
store lost it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace

from gateway.core.errors import SessionNotFoundError, StaleWriteError, StoreUnavailableError
from gateway.core.identity import current
from gateway.core.interfaces import SessionStore
from gateway.core.model import Lease, Session, SessionId, SessionState, is_snapshot
from gateway.sessions.completeness import Completeness
from gateway.sessions.quotas import Quotas

logger = logging.getLogger(__name__)

# Renewed every third of it, so one renewal may fail. After a crash, other gateways wait this long for the session.
LEASE_TTL_S = 10.0
# Records of about 2 KB, so 40 MB at most; the one written longest ago is dropped first.
MAX_REMEMBERED = 20_000
MAX_UNFINISHED = 10_000  # of those beyond it the next request, or the next start, finds the record as it is
_BETWEEN_STEPS = (SessionState.HIBERNATING, SessionState.WAKING)
_POLL_INTERVAL_S = 0.02  # while another gateway holds the session; a wake takes about as long
_WRITABLE_S = 1.0


def unknown_session(session_id: SessionId) -> SessionNotFoundError:
    """There is no such session, as far as the caller is concerned. In the words of AgentCube's API."""
    return SessionNotFoundError(f'sessions.agentcube.volcano.sh "{session_id}" not found')


def _visible(session: Session | None) -> Session | None:
    return session if session is not None and current().sees(session) else None


LifeListener = Callable[[str, Session, Mapping[str, str]], None]


class Records:
    """Reads and writes session records. `shared`: other gateways use the same store.

    `cached` is a cache in front of `store`, for reads that no decision depends on. `completeness`: of a shared store.
    """

    def __init__(
        self,
        store: SessionStore,
        holder: str,
        quotas: Quotas,
        *,
        shared: bool = False,
        cached: SessionStore | None = None,
        completeness: Completeness | None = None,
    ) -> None:
        self.store = store
        self.shared = shared
        self.holder = holder
        # Sessions whose record may say that a step is under way while none is: the sweeper finishes them.
        self.unfinished: set[SessionId] = set()
        self._quotas = quotas
        self._cached = cached or store
        self._completeness = completeness
        self._locks: dict[SessionId, tuple[asyncio.Lock, int]] = {}  # with the number that hold it or wait for it
        self._leases: dict[SessionId, Lease] = {}
        self._remembered: OrderedDict[SessionId, Session] = OrderedDict()  # as written here last, oldest first
        self._written_at = float("-inf")  # loop time of the last write that the store took
        self._is_here: Callable[[Session], Awaitable[bool]] | None = None
        self._listeners: list[LifeListener] = []

    def on_life_event(self, listener: LifeListener) -> None:
        """Call `listener(event, record, details)` on each `tell`."""
        self._listeners.append(listener)

    def tell(self, event: str, session: Session, **details: str) -> None:
        """A session was started, hibernated, woken, lost or ended, and its record says so: for the audit trail."""
        for listener in self._listeners:
            listener(event, session, {name: value for name, value in details.items() if value})

    def rebuild_if(self, is_here: Callable[[Session], Awaitable[bool]]) -> None:
        """Write a missing record again if `is_here(record)` finds its sandbox or workspace on this gateway."""
        self._is_here = is_here

    async def get(self, session_id: SessionId) -> Session | None:
        """The current record. One that the store lost is written again, if its sandbox or workspace is still here.

        A record that the current caller may not see counts as absent, so callers need not check.
        """
        session = await self.store.get(session_id)
        return _visible(session if session is not None else await self._rebuild(session_id))

    async def require_complete(self) -> None:
        """Raise StoreUnavailableError while a missing record, or announcement, says nothing."""
        if self._completeness is not None:
            await self._completeness.require()

    async def peek(self, session_id: SessionId) -> Session | None:
        """The record from the cache, which may be a few seconds old, if the current caller may see it."""
        # Where nobody else writes to the store, what was written here last is what is there; reading the file costs a
        # turn of the store's thread, 0.2 ms for each request of a dialect.
        if not self.shared and (remembered := self._remembered.get(session_id)) is not None:
            return _visible(remembered)
        return _visible(await self._cached.get(session_id))

    async def put(self, session: Session) -> Session:
        """Write the record, with the fence of this gateway's lease if it holds one.

        Raises StaleWriteError, FencedOutError.
        """
        # Through the cache, so that the next cached read of this gateway sees it.
        try:
            written = await self._cached.put(session, lease=self._leases.get(session.id))
        except StoreUnavailableError:
            self._written_at = float("-inf")
            self.note_unfinished(session.id)  # it may have been written all the same
            raise
        self._written_at = asyncio.get_running_loop().time()
        self._remember(written)
        await self._quotas.settled(written)
        return written

    async def require_writable(self) -> None:
        """Raise StoreUnavailableError if the store takes no write: before something is done that a record must name.

        A file of this gateway's own that took a record within the last second takes the next one; asked for each of 200
        wakes at once, it would write three times where it writes twice now. A server that all gateways share can be
        gone from one moment to the next, and is always asked.
        """
        loop = asyncio.get_running_loop()
        if self.shared or loop.time() - self._written_at >= _WRITABLE_S:
            await self.store.ping()
            self._written_at = loop.time()

    def _remember(self, session: Session) -> None:
        """Keep in memory what nobody else could restore: a session with a sandbox, or a workspace parked here."""
        self._remembered.pop(session.id, None)
        parked = session.snapshot is not None and not is_snapshot(session.snapshot)
        if session.state is not SessionState.TERMINATED and (session.sandbox is not None or parked):
            self._remembered[session.id] = session
            if len(self._remembered) > MAX_REMEMBERED:
                self._remembered.popitem(last=False)

    async def _rebuild(self, session_id: SessionId) -> Session | None:
        remembered = self._remembered.get(session_id)
        if remembered is None or self._is_here is None:
            return None
        if not await self._is_here(remembered):
            self._remembered.pop(session_id, None)
            return None
        # Version 0: written only if there is still none. A record that came meanwhile wins.
        try:
            written = await self.put(replace(remembered, version=0))
        except StaleWriteError:
            return await self.store.get(session_id)  # another operation has already written it again
        logger.warning("session %s had no record in the session store; rewrote it from memory", session_id)
        return written

    def note_unfinished(self, session_id: SessionId) -> None:
        """An operation on the session was broken off, e.g. by a store that went away, and perhaps between two steps."""
        if len(self.unfinished) < MAX_UNFINISHED:
            self.unfinished.add(session_id)

    def is_held(self, session_id: SessionId) -> bool:
        """Whether an operation of this gateway runs on the session, or waits for it."""
        return session_id in self._locks

    @asynccontextmanager
    async def holding(self, session_id: SessionId) -> AsyncIterator[None]:
        """Hold the session for one operation. Raises StoreUnavailableError."""
        # A lock exists only while somebody holds it or waits for it, so sessions that ended leave nothing in memory.
        lock, users = self._locks.get(session_id, (None, 0))
        lock = lock or asyncio.Lock()
        self._locks[session_id] = (lock, users + 1)
        try:
            async with lock:
                if not self.shared:
                    yield
                    return
                async with self._leased(session_id):
                    yield
        finally:
            last = self._remembered.get(session_id)
            if last is not None and last.state in _BETWEEN_STEPS:
                self.note_unfinished(session_id)
            users = self._locks[session_id][1] - 1
            if users:
                self._locks[session_id] = (lock, users)
            else:
                del self._locks[session_id]

    @asynccontextmanager
    async def _leased(self, session_id: SessionId) -> AsyncIterator[None]:
        name = f"session:{session_id}"
        while (lease := await self.store.acquire_lease(name, self.holder, LEASE_TTL_S)) is None:  # noqa: ASYNC110
            await asyncio.sleep(_POLL_INTERVAL_S)  # polled: another process holds it, so no event here can signal it
        self._leases[session_id] = lease
        renewal = asyncio.create_task(self._renew(session_id))
        try:
            yield
        finally:
            renewal.cancel()
            await asyncio.gather(renewal, return_exceptions=True)
            try:
                await self.store.release_lease(self._leases.pop(session_id))
            except StoreUnavailableError as error:
                logger.debug("lease %s was not released and expires by itself: %s", name, error)

    async def _renew(self, session_id: SessionId) -> None:
        while True:
            await asyncio.sleep(LEASE_TTL_S / 3)
            try:
                renewed = await self.store.renew_lease(self._leases[session_id], LEASE_TTL_S)
            except StoreUnavailableError as error:
                logger.debug("lease on session %s not renewed: %s", session_id, error)
                continue
            if renewed is None:
                # Expired, and perhaps another gateway's by now. The operation need not be stopped: the next record that
                # it writes carries the old fence, and the store refuses it.
                return
            self._leases[session_id] = renewed
