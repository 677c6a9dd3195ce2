"""Workspaces without a sandbox: parked under their session's name, or orphaned by a sandbox that ended.

Nothing is copied: a workspace moves by renaming (StateDir.park, StateDir.restore), so a restore consumes what was
parked. interfaces.WorkspaceKeeper and docs/adr/0003-snapshots-and-parking.md give the order of the steps.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from gateway.core.clock import Clock
from gateway.core.errors import SandboxStartError, SnapshotError, SnapshotNotFoundError
from gateway.core.model import SandboxId, SessionId
from gateway.provider.local.disk_quota import DiskWatch
from gateway.provider.local.registry import SandboxRegistry
from gateway.provider.local.safe_delete import TrashCollector
from gateway.provider.local.sandbox import LocalSandbox
from gateway.provider.local.state_dir import StateDir


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
            raise SnapshotError(f"the workspace of session {session_id} cannot be parked: {error}") from error
        self._orphans.pop(sandbox_id, None)
        return session_id if kept else None

    def _parked(self, sandbox_id: SandboxId, done: asyncio.Task[str | None]) -> None:
        del self._keeping[sandbox_id]
        if not done.cancelled():
            done.exception()  # retrieved, in case the caller was cancelled

    async def restore(self, reference: str, sandbox_id: SandboxId) -> None:
        """Move a parked workspace into a sandbox's; what was parked is consumed.

        Raises SandboxStartError, SnapshotNotFoundError.
        """
        sandbox = self._registry.get(sandbox_id)
        if sandbox is None or self._state_dir is None:
            raise SandboxStartError(f"sandbox {sandbox_id} ended before its workspace was there")
        try:
            await asyncio.to_thread(self._state_dir.restore, SessionId(reference), sandbox.workspace)
            self._disk.forget(sandbox_id)
        except FileNotFoundError as error:
            raise SnapshotNotFoundError(
                f"no workspace is parked as {reference} in {self._state_dir.parked}; if it was kept as a snapshot, "
                "start with the --snapshots of then"
            ) from error
        except OSError as error:
            raise SandboxStartError(f"the workspace of session {reference} cannot be moved: {error}") from error

    def delete(self, reference: str) -> None:
        """Delete a parked workspace; absent is success."""
        if self._state_dir is not None:
            self._discard(self._state_dir, self._state_dir.parked / reference)

    def delete_orphan(self, sandbox_id: SandboxId) -> None:
        """Delete the workspace of an ended sandbox that was not kept; absent is success."""
        workspace = self._orphans.pop(sandbox_id, None)
        if workspace is not None and self._state_dir is not None:
            self._discard(self._state_dir, workspace)

    def delete_orphans(self) -> None:
        """Delete the workspaces of all ended sandboxes that were not kept."""
        for sandbox_id in list(self._orphans):
            self.delete_orphan(sandbox_id)

    async def delete_unknown(self, known: Callable[[], AsyncIterator[str]], older_than: float) -> int:
        """Delete parked workspaces that no record names. See WorkspaceKeeper.delete_orphans."""
        if self._state_dir is None:
            return 0
        unknown = await asyncio.to_thread(self._state_dir.parked_before, self._clock.now() - older_than)
        if unknown:
            async for reference in known():
                unknown.discard(reference)
        for name in unknown:
            self.delete(name)
        return len(unknown)

    def _discard(self, state_dir: StateDir, workspace: Path) -> None:
        state_dir.discard(workspace)
        self._trash.request()
