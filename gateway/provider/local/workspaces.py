"""Workspaces without a sandbox: parked under their session's name, or orphaned by a sandbox that ended.

Nothing is copied: a workspace moves by renaming (StateDir.park, StateDir.restore), so a restore consumes what was
parked. interfaces.WorkspaceKeeper and docs/adr/0003-snapshots-and-parking.md give the order of the steps.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from gateway.core.clock import Clock
from gateway.core.errors import (
    SandboxGoneError,
    SandboxStartError,
    SnapshotError,
    SnapshotNotFoundError,
    SnapshotStoreFullError,
    SnapshotStoreUnavailableError,
)
from gateway.core.model import SandboxId, SessionId, SnapshotRef, is_snapshot
from gateway.provider.local.disk_quota import DiskWatch
from gateway.provider.local.registry import SandboxRegistry
from gateway.provider.local.safe_delete import TrashCollector
from gateway.provider.local.sandbox import LocalSandbox
from gateway.provider.local.state_dir import StateDir

logger = logging.getLogger(__name__)

# After these the workspace is where it was, and a later call may succeed: it is not given up for an older snapshot.
_PASSING = {
    errno.ENOSPC: SnapshotStoreFullError,
    errno.EDQUOT: SnapshotStoreFullError,
    errno.EMFILE: SnapshotStoreUnavailableError,
    errno.ENFILE: SnapshotStoreUnavailableError,
    errno.ENOMEM: SnapshotStoreUnavailableError,
}


class Workspaces:
    """The WorkspaceKeeper half of LocalProvider. Before `open` it holds nothing."""

    def __init__(self, registry: SandboxRegistry, disk: DiskWatch, trash: TrashCollector, clock: Clock) -> None:
        self._registry, self._disk, self._trash, self._clock = registry, disk, trash, clock
        self._state_dir: StateDir | None = None
        self._orphans: dict[SandboxId, Path] = {}  # workspaces of claimed sandboxes that ended, until kept or deleted
        self._keeping: dict[SandboxId, asyncio.Task[str | None]] = {}

    def open(self, state_dir: StateDir) -> None:
        """Begin with the workspaces of `state_dir`; those of an earlier run are orphans."""
        self._state_dir = state_dir
        self._orphans = state_dir.orphans()

    async def settle(self) -> None:
        """Wait for every `keep` under way."""
        await asyncio.gather(*self._keeping.values(), return_exceptions=True)

    def adopt(self, sandbox: LocalSandbox) -> None:
        """Take over the workspace of a sandbox that is gone, if it keeps one."""
        if sandbox.keeps_workspace:
            self._orphans[sandbox.id] = sandbox.workspace

    async def keep(self, sandbox_id: SandboxId, session_id: SessionId) -> str | None:
        """Park: end the sandbox, if it still runs, and move its workspace aside. See WorkspaceKeeper.

        Cancelling the caller does not stop it; a second call waits for the first, or finds it done.
        """
        # A task of its own, shielded: with the rename half done, a caller that gives up must not leave a sandbox that
        # has ended and a workspace that nobody parked.
        task = self._keeping.get(sandbox_id)
        if task is None:
            task = self._keeping[sandbox_id] = asyncio.create_task(self._park(sandbox_id, session_id))
            task.add_done_callback(lambda done: self._parked(sandbox_id, done))
        return await asyncio.shield(task)

    async def _park(self, sandbox_id: SandboxId, session_id: SessionId) -> str | None:
        sandbox = self._registry.get(sandbox_id)
        if sandbox is not None:
            sandbox.keeps_workspace = True
            await self._registry.end(sandbox)
        assert self._state_dir is not None
        try:
            kept = await asyncio.to_thread(self._state_dir.park, self._orphans.get(sandbox_id), session_id)
        except OSError as error:
            text = f"the workspace of session {session_id} cannot be parked: {error}"
            raise _PASSING.get(error.errno or 0, SnapshotError)(text) from error
        self._orphans.pop(sandbox_id, None)  # only now: after a failure a second call finds the workspace here
        if kept:
            await asyncio.to_thread(self._disk.measure_parked, session_id, self._state_dir.parked / session_id)
        return session_id if kept else None

    def _parked(self, sandbox_id: SandboxId, done: asyncio.Task[str | None]) -> None:
        del self._keeping[sandbox_id]
        if not done.cancelled():
            done.exception()  # retrieved, in case the caller was cancelled

    async def restore(self, reference: str, sandbox_id: SandboxId) -> None:
        """Move a parked workspace into a sandbox's; what was parked is consumed.

        Raises SandboxGoneError, SandboxStartError, SnapshotNotFoundError.
        """
        sandbox = self._registry.get(sandbox_id)
        if sandbox is None or not sandbox.is_alive or self._state_dir is None:
            raise SandboxGoneError(f"sandbox {sandbox_id} ended before its workspace was restored")
        await self.check(reference)
        try:
            session = SessionId(reference)
            if not self._disk.is_known(session):  # parked in an earlier run
                await asyncio.to_thread(self._disk.measure_parked, session, self._state_dir.parked / session)
            self._disk.woken(sandbox_id, session)  # before the move, which would pass for growth
            await asyncio.to_thread(self._state_dir.restore, session, sandbox.workspace)
        except OSError as error:
            raise SandboxStartError(f"the workspace of session {reference} cannot be moved: {error}") from error

    async def check(self, reference: str) -> None:
        """Raise SnapshotNotFoundError unless that workspace is parked here."""
        assert self._state_dir is not None
        if is_snapshot(reference):
            raise SnapshotNotFoundError(
                f"this workspace was kept as snapshot {SnapshotRef(reference).key}, and this gateway runs without a"
                " snapshot store; start it with the --snapshots (WAKEGATE_SNAPSHOTS) that it was kept with"
            )
        if not await asyncio.to_thread((self._state_dir.parked / reference).exists):
            raise SnapshotNotFoundError(
                f"no workspace is parked as {reference} in {self._state_dir.parked}; start the gateway with the"
                " --state-dir (WAKEGATE_STATE_DIR) in which it was parked, or delete the session"
            )

    async def rollback(self, reference: str, sandbox_id: SandboxId, session_id: SessionId) -> str | None:
        """Join what `restore` moved and what it did not, under the session's name again.

        A reference of which nothing is here, a snapshot or a workspace of another state directory, stays what it was.
        To park the sandbox's own workspace in its place would make an empty one the session's.
        """
        assert self._state_dir is not None
        if is_snapshot(reference):
            return reference
        if not await asyncio.to_thread(self._state_dir.has_part_of, SessionId(reference), sandbox_id):
            return reference
        return await self.keep(sandbox_id, session_id)

    def delete(self, reference: str) -> None:
        """Delete a parked workspace; absent, or a snapshot elsewhere, is success."""
        if self._state_dir is not None and not is_snapshot(reference):
            self._disk.forget_parked(SessionId(reference))
            self._discard(self._state_dir, self._state_dir.parked / reference)

    async def parked_bytes(self, session: SessionId) -> int:
        """The size of a parked workspace; 0 if it is not here."""
        if self._state_dir is None:
            return 0
        if not self._disk.is_known(session):
            await asyncio.to_thread(self._disk.measure_parked, session, self._state_dir.parked / session)
        return self._disk.parked_bytes(session)

    def delete_orphan(self, sandbox_id: SandboxId) -> None:
        """Delete the workspace of an ended sandbox that was not kept; absent is success."""
        workspace = self._orphans.pop(sandbox_id, None)
        if workspace is not None and self._state_dir is not None:
            self._discard(self._state_dir, workspace)

    async def retain_abandoned(self) -> None:
        """Set aside the workspaces of ended sandboxes that were not parked. See WorkspaceKeeper."""
        assert self._state_dir is not None
        held = {}
        for sandbox_id, workspace in list(self._orphans.items()):
            if self._registry.get(sandbox_id) is not None or sandbox_id in self._keeping:
                continue
            try:
                kept = await asyncio.to_thread(self._state_dir.abandon, workspace)
            except OSError as error:
                logger.error("workspace %s cannot be set aside: %s; it stays where it is", workspace, error)
                continue
            if kept is None:
                self._orphans.pop(sandbox_id, None)
            else:
                self._orphans[sandbox_id] = held[sandbox_id] = kept
        if held:
            logger.warning(
                "%d workspaces in %s belong to no session that has a record; they are kept as long as those of"
                " hibernated sessions",
                len(held),
                self._state_dir.abandoned,
            )

    async def delete_orphans(self, known: Callable[[], AsyncIterator[str]], older_than: float) -> int:
        """Delete parked and abandoned workspaces that no record names. See WorkspaceKeeper."""
        if self._state_dir is None:
            return 0
        limit = self._clock.now() - older_than
        unknown = await asyncio.to_thread(self._state_dir.parked_before, limit)
        if unknown:
            async for reference in known():
                unknown.discard(reference)
        for name in unknown:
            self.delete(name)
        abandoned = await asyncio.to_thread(self._state_dir.abandoned_before, limit)
        for sandbox_id in abandoned:
            self.delete_orphan(sandbox_id)
        return len(unknown) + len(abandoned)

    def _discard(self, state_dir: StateDir, workspace: Path) -> None:
        state_dir.discard(workspace)
        self._trash.request()
