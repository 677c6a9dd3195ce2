"""Sandboxes that no session's record names, and records that are missing.

A sandbox whose session's record names another one, or says that the session ended, is a stray: what a dead gateway
claimed, or what another gateway took over. It is released. A record that is missing proves nothing: Redis may have come
back empty, evicted it, or be another database by mistake, and its session may be in use. So a gateway writes records
that it remembers again (gateway/sessions/records.py), and where none does, the workspace is kept for as long as that of
a sleeping session before its sandbox ends.
"""

from __future__ import annotations

import logging
from functools import partial

from gateway.core.clock import Clock
from gateway.core.errors import SnapshotError, WakegateError
from gateway.core.interfaces import SandboxProvider, WorkspaceKeeper
from gateway.core.model import Sandbox, SandboxId, Session, SessionId, SessionState
from gateway.sessions.bindings import Bindings
from gateway.sessions.bounded_tasks import BoundedTasks
from gateway.sessions.records import Records

logger = logging.getLogger(__name__)

MISSING_GRACE_S = 60.0  # for the gateway that remembers a missing record to write it again: it looks at each sweep
CONCURRENCY = 4
RETRY_S = 300.0  # until a workspace that could not be kept is tried again


class StrayCollector:
    """Looks at all sandboxes again and again, and says which missing records may be written again."""

    def __init__(
        self,
        *,
        records: Records,
        bindings: Bindings,
        provider: SandboxProvider,
        keeper: WorkspaceKeeper,
        clock: Clock,
        me: str,
        interval: float,
        retention: float,
    ) -> None:
        """`interval`: seconds between looks. `retention`: seconds after which a workspace that cannot be kept is given
        up with its sandbox. `me` as in gateway.sessions.membership.
        """
        self._records = records
        self._bindings = bindings
        self._provider = provider
        self._keeper = keeper
        self._clock = clock
        self._me = me
        self._interval = interval
        self._retention = retention
        self._strays: set[SandboxId] = set()  # at the last look
        self._missing: dict[SandboxId, float] = {}  # whose session has no record, and since when
        self._not_before: dict[SandboxId, float] = {}  # whose workspace could not be kept
        self._keeping = BoundedTasks(CONCURRENCY)
        records.rebuild_if(self._is_here)

    async def rebuild_missing(self) -> None:
        """Write records of this gateway's live sessions again that the store has lost."""
        for session_id in self._bindings.sessions:
            await self._read(session_id)

    async def collect(self) -> None:
        """Release strays; keep and release sandboxes whose record has been missing for MISSING_GRACE_S."""
        strays: set[SandboxId] = set()
        missing: dict[SandboxId, Sandbox] = {}
        for sandbox in await self._provider.list():
            if sandbox.session_id is None:
                continue
            session = await self._read(sandbox.session_id)
            if session is None:
                missing[sandbox.id] = sandbox
            elif session.sandbox is None or session.sandbox.id != sandbox.id or _ended(session):
                strays.add(sandbox.id)
        # Twice in a row: a claim comes a moment before the record that names its sandbox.
        for sandbox_id in strays & self._strays:
            logger.warning("sandbox %s belongs to no session; it is deleted", sandbox_id)
            await self._release(sandbox_id)
        self._strays = strays - self._strays
        await self._keep_missing(missing)

    async def aclose(self) -> None:
        """Cancel what is being kept."""
        await self._keeping.aclose()

    async def _keep_missing(self, missing: dict[SandboxId, Sandbox]) -> None:
        now = self._clock.now()
        self._missing = {sandbox_id: self._missing.get(sandbox_id, now) for sandbox_id in missing}
        self._not_before = {each: at for each, at in self._not_before.items() if each in missing}
        for sandbox_id, sandbox in missing.items():
            session_id = sandbox.session_id
            due = max(self._missing[sandbox_id] + MISSING_GRACE_S, self._not_before.get(sandbox_id, 0.0))
            if session_id is None or due > now or session_id in self._keeping:
                continue
            keep = partial(self._keep_and_release, sandbox_id, session_id, since=self._missing[sandbox_id])
            await self._keeping.start(session_id, keep, self._interval)
        await self._keeping.settle(self._interval)

    async def _keep_and_release(self, sandbox_id: SandboxId, session_id: SessionId, *, since: float) -> bool:
        async with self._records.holding(session_id):
            if await self._records.get(session_id) is not None:
                return False
            try:
                reference = await self._keeper.keep(sandbox_id, session_id)
            except WakegateError as error:
                if self._clock.now() < since + self._retention:
                    logger.warning("session %s has no record, and its workspace cannot be kept: %s", session_id, error)
                    self._not_before[sandbox_id] = self._clock.now() + RETRY_S
                    return False
                reference = None
            logger.error(
                "session %s has no record in the session store, so its sandbox %s ends; its workspace is %s",
                session_id,
                sandbox_id,
                f"kept as {reference}" if reference else "gone",
            )
            await self._release(sandbox_id)
            return True

    async def _read(self, session_id: SessionId) -> Session | None:
        """The record as it was a moment ago; a missing one is read past the cache, and rebuilt if it may be."""
        session = await self._records.peek(session_id)
        return session if session is not None else await self._records.get(session_id)

    async def _release(self, sandbox_id: SandboxId) -> None:
        session_id = self._bindings.remove(sandbox_id)
        if session_id is not None:
            self._bindings.notify_unbound(session_id, sandbox_id)
        await self._provider.release(sandbox_id)

    async def _is_here(self, remembered: Session) -> bool:
        """Whether what a remembered record says still holds: its sandbox lives, or its workspace is parked here.

        Without that it may be a session that another gateway ended, whose record was deleted in order.
        """
        if remembered.expires_at <= self._clock.now():
            return False
        if remembered.sandbox is not None:
            found = await self._provider.find(remembered.sandbox.id)
            return found is not None and found.session_id == remembered.id
        if remembered.snapshot is None or remembered.owner != self._me:
            return False
        try:
            await self._keeper.check(remembered.snapshot)
        except SnapshotError:
            return False
        return True


def _ended(session: Session) -> bool:
    return session.state is SessionState.TERMINATED
