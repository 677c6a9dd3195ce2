"""Releases sandboxes that no session's record names, and handles records that are missing.

A sandbox is an orphan when its session's record names another sandbox, or says that the session ended: a dead gateway
claimed it, or another gateway took the session over. It is released. A missing record proves nothing: Redis may have
come back empty, have evicted it, or be the wrong database, and the session may be in use. So a gateway writes records
that it has in memory again (gateway/sessions/records.py). If none does within MISSING_GRACE_S, the workspace is kept
for as long as that of a hibernated session, and then the sandbox ends.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from gateway.core.clock import Clock
from gateway.core.errors import SnapshotError, WakegateError
from gateway.core.interfaces import SandboxProvider, WorkspaceKeeper
from gateway.core.model import Sandbox, SandboxId, Session, SessionId, SessionState, StartKind
from gateway.sessions.bindings import Bindings
from gateway.sessions.bounded_tasks import BoundedTasks
from gateway.sessions.records import Records

logger = logging.getLogger(__name__)

# The gateway that has a missing record in memory checks for it at each sweep (5 s), so it gets about twelve tries.
MISSING_GRACE_S = 60.0
CONCURRENCY = 4
_CLOCK_SLACK_S = 30.0  # between a cluster's clock, which says when a sandbox was made, and this one
RETRY_S = 300.0  # before keeping a workspace is tried again, after it failed


@dataclass(frozen=True, slots=True)
class _Needed:
    """Which sandbox a record of this version names; None: it needs none."""

    version: int
    sandbox_id: SandboxId | None


class OrphanCollector:
    """Compares all sandboxes with their records once per sweep, and decides which missing records to write again."""

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
        start_timeout: float = 0.0,
    ) -> None:
        """`interval`: seconds between passes. `retention`: seconds after which a sandbox is released although its
        workspace cannot be kept. `start_timeout`: seconds that a claim may wait for a sandbox that it made; until then
        no record need name it. `me` as in gateway.sessions.membership.
        """
        self._records = records
        self._bindings = bindings
        self._provider = provider
        self._keeper = keeper
        self._clock = clock
        self._me = me
        self._interval = interval
        self._retention = retention
        self._start_timeout = start_timeout
        self._known: dict[SessionId, _Needed] = {}  # as of the previous pass
        self._orphans: set[SandboxId] = set()  # found by the previous pass
        self._missing: dict[SandboxId, float] = {}  # sandboxes whose session has no record, and since when
        self._not_before: dict[SandboxId, float] = {}  # when to try again, for workspaces that could not be kept
        self._keeping = BoundedTasks(CONCURRENCY)
        records.rebuild_if(self._is_here)

    async def rebuild_missing(self) -> None:
        """Write again the records of this gateway's live sessions that the store has lost."""
        bound = list(self._bindings.sessions)
        stored = await self._records.store.versions(bound)
        for session_id in bound:
            if session_id not in stored:
                await self._records.get(session_id)

    async def collect(self) -> None:
        """Release orphans; keep and release sandboxes whose record has been missing for MISSING_GRACE_S."""
        orphans: set[SandboxId] = set()
        missing: dict[SandboxId, Sandbox] = {}
        needed = await self._needed(await self._provider.list())
        for sandbox, wanted in needed:
            if wanted is None:
                missing[sandbox.id] = sandbox
            elif wanted.sandbox_id != sandbox.id:
                orphans.add(sandbox.id)
        # Only what two passes in a row have found: a claim binds the sandbox a moment before its record is written.
        for sandbox_id in orphans & self._orphans:
            logger.warning("sandbox %s belongs to no session; deleting it", sandbox_id)
            await self._release(sandbox_id)
        self._orphans = orphans - self._orphans
        await self._keep_missing(missing)

    async def _needed(self, sandboxes: Sequence[Sandbox]) -> list[tuple[Sandbox, _Needed | None]]:
        """What the records of the sandboxes' sessions say; None: there is no record.

        A record is read again only when its version has changed since the last pass: with ten thousand sessions, to
        read them all every few seconds would keep the store and the event loop busy with nothing else.
        """
        bound = [each for each in sandboxes if each.session_id is not None and not self._is_starting(each)]
        stored = await self._records.store.versions([each.session_id for each in bound if each.session_id is not None])
        known, self._known = self._known, {}
        result: list[tuple[Sandbox, _Needed | None]] = []
        for sandbox in bound:
            session_id = sandbox.session_id
            assert session_id is not None
            needed = known.get(session_id)
            if needed is None or needed.version != stored.get(session_id):
                session = await self._records.get(session_id)
                needed = None if session is None else _needed_by(session)
            if needed is not None:
                self._known[session_id] = needed
            result.append((sandbox, needed))
        return result

    def _is_starting(self, sandbox: Sandbox) -> bool:
        """Whether a claim may still wait for it, here or at another gateway; its record is written once it is ready."""
        if not self._start_timeout or sandbox.start is not StartKind.COLD:
            return False
        return sandbox.created_at + self._start_timeout + _CLOCK_SLACK_S > self._clock.now()

    async def aclose(self) -> None:
        """Cancel copies of workspaces that are still running."""
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
                "session %s has no record in the session store; releasing its sandbox %s, workspace %s",
                session_id,
                sandbox_id,
                f"kept as {reference}" if reference else "lost",
            )
            await self._release(sandbox_id)
            return True

    async def _release(self, sandbox_id: SandboxId) -> None:
        session_id = self._bindings.remove(sandbox_id)
        if session_id is not None:
            self._bindings.notify_unbound(session_id, sandbox_id)
        await self._provider.release(sandbox_id)

    async def _is_here(self, remembered: Session) -> bool:
        """Whether a record in memory still holds: its sandbox lives, or its workspace is parked here.

        Otherwise another gateway may have ended the session, and its record was deleted on purpose.
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


def _needed_by(session: Session) -> _Needed:
    ended = session.sandbox is None or session.state is SessionState.TERMINATED
    return _Needed(session.version, None if ended or session.sandbox is None else session.sandbox.id)
