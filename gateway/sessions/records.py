"""Session records as the lifecycle uses them: one verb at a time on a session, over all gateways that share a store.

Within one gateway a lock does it. Where gateways share a store there is a lease `session:<id>` as well, held and
renewed while the verb runs; every record written under it carries its fence, which the store compares where the write
lands. So a gateway that was stopped half-way and goes on later cannot write over what another made of the session.

The last record of each session that is awake or parked here is remembered, and written again if the store lost it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

from gateway.core.errors import StaleWriteError, StoreUnavailableError
from gateway.core.interfaces import SessionStore
from gateway.core.model import Lease, Session, SessionId, SessionState, is_snapshot

logger = logging.getLogger(__name__)

LEASE_TTL_S = 10.0  # of a verb on a session, renewed three times as often; after a crash others wait so long
REMEMBERED = 20_000  # records, of about 2 KB each; what was not written for the longest goes first
_POLL_INTERVAL_S = 0.02  # while another gateway has the session: a wake takes about as long


class Records:
    """Reads and writes session records. `shared`: other gateways use the same store.

    `seen` is a cache in front of `store`, for reads on which nothing is decided.
    """

    def __init__(
        self, store: SessionStore, holder: str, *, shared: bool = False, seen: SessionStore | None = None
    ) -> None:
        self.store = store
        self.shared = shared
        self.holder = holder
        self._seen = seen or store
        self._locks: dict[SessionId, tuple[asyncio.Lock, int]] = {}
        self._leases: dict[SessionId, Lease] = {}
        self._remembered: OrderedDict[SessionId, Session] = OrderedDict()  # as written here last, oldest first
        self._is_here: Callable[[Session], Awaitable[bool]] | None = None

    def rebuild_if(self, is_here: Callable[[Session], Awaitable[bool]]) -> None:
        """Write a missing record again if `is_here(record)` finds that its sandbox or workspace still is."""
        self._is_here = is_here

    async def get(self, session_id: SessionId) -> Session | None:
        """The record as it is; one that the store lost is written again if it still holds."""
        session = await self.store.get(session_id)
        return session if session is not None else await self._rebuild(session_id)

    async def peek(self, session_id: SessionId) -> Session | None:
        """The record as it was a moment ago."""
        return await self._seen.get(session_id)

    async def put(self, session: Session) -> Session:
        """Write it, under the lease that this gateway has on it, if any. Raises StaleWriteError, FencedOutError."""
        written = await self._seen.put(session, lease=self._leases.get(session.id))
        self._remember(written)
        return written

    def _remember(self, session: Session) -> None:
        """What another gateway could not know: a session that has a sandbox, or a workspace parked by this one."""
        self._remembered.pop(session.id, None)
        parked = session.snapshot is not None and not is_snapshot(session.snapshot)
        if session.state is not SessionState.TERMINATED and (session.sandbox is not None or parked):
            self._remembered[session.id] = session
            if len(self._remembered) > REMEMBERED:
                self._remembered.popitem(last=False)

    async def _rebuild(self, session_id: SessionId) -> Session | None:
        remembered = self._remembered.get(session_id)
        if remembered is None or self._is_here is None:
            return None
        if not await self._is_here(remembered):
            self._remembered.pop(session_id, None)
            return None
        try:
            written = await self.put(replace(remembered, version=0))
        except StaleWriteError:
            return await self.store.get(session_id)  # another verb wrote it again meanwhile
        logger.warning("session %s had no record in the session store; it is written again from memory", session_id)
        return written

    def is_held(self, session_id: SessionId) -> bool:
        """Whether a verb of this gateway is under way on the session, or waits for it."""
        return session_id in self._locks

    @asynccontextmanager
    async def holding(self, session_id: SessionId) -> AsyncIterator[None]:
        """One verb on a session. Locks exist only while they are held or awaited. Raises StoreUnavailableError."""
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
            users = self._locks[session_id][1] - 1
            if users:
                self._locks[session_id] = (lock, users)
            else:
                del self._locks[session_id]

    @asynccontextmanager
    async def _leased(self, session_id: SessionId) -> AsyncIterator[None]:
        name = f"session:{session_id}"
        while (lease := await self.store.acquire_lease(name, self.holder, LEASE_TTL_S)) is None:  # noqa: ASYNC110
            await asyncio.sleep(_POLL_INTERVAL_S)  # it is another process's: no event of this loop tells of its end
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
                logger.debug("lease %s ends by itself: %s", name, error)

    async def _renew(self, session_id: SessionId) -> None:
        while True:
            await asyncio.sleep(LEASE_TTL_S / 3)
            try:
                renewed = await self.store.renew_lease(self._leases[session_id], LEASE_TTL_S)
            except StoreUnavailableError as error:
                logger.debug("lease on session %s not renewed: %s", session_id, error)
                continue
            if renewed is None:
                return  # lost: the next write fails
            self._leases[session_id] = renewed
