"""Workspaces without a sandbox: parked under their session's name, or left behind by a sandbox that ended.

Nothing is copied: a workspace moves by renaming (Folders.park, Folders.restore), so a parked one is used up when it is
given back. Which step follows which is told in WorkspaceKeeper and in docs/adr/0003-snapshots-and-parking.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from gateway.core.clock import Clock
from gateway.core.errors import SandboxStartError, SnapshotError, SnapshotNotFoundError
from gateway.core.model import SandboxId, SessionId
from gateway.provider.local.disk_quota import DiskWatch
from gateway.provider.local.registry import Fleet
from gateway.provider.local.sandbox import Box
from gateway.provider.local.state_dir import Folders
from gateway.provider.local.trash import Trash


class Parking:
    """What LocalProvider does as a WorkspaceKeeper. Before `open` nothing is parked."""

    def __init__(self, fleet: Fleet, disk: DiskWatch, trash: Trash, clock: Clock) -> None:
        self._fleet, self._disk, self._trash, self._clock = fleet, disk, trash, clock
        self._folders: Folders | None = None
        self._orphans: dict[SandboxId, Path] = {}  # workspaces of bound sandboxes that ended, until somebody decides
        self._parkings: dict[SandboxId, asyncio.Task[str | None]] = {}

    def open(self, folders: Folders) -> None:
        """Workspaces are there from now on; those that an earlier life left are orphans."""
        self._folders = folders
        self._orphans = folders.delete_orphans()

    async def settle(self) -> None:
        """Wait until what is being parked is parked."""
        await asyncio.gather(*self._parkings.values(), return_exceptions=True)

    def inherit(self, box: Box) -> None:
        """A box is gone; its workspace may have been kept."""
        if box.keeps_workspace:
            self._orphans[box.id] = box.workspace

    async def keep(self, sandbox_id: SandboxId, session_id: SessionId) -> str | None:
        """Park: end the sandbox, if it still runs, and move its workspace aside. See WorkspaceKeeper.

        A caller that is cancelled does not stop it; one that calls again waits for the same, or finds it done.
        """
        task = self._parkings.get(sandbox_id)
        if task is None:
            task = self._parkings[sandbox_id] = asyncio.create_task(self._park(sandbox_id, session_id))
            task.add_done_callback(lambda done: self._parked(sandbox_id, done))
        return await asyncio.shield(task)

    async def _park(self, sandbox_id: SandboxId, session_id: SessionId) -> str | None:
        box = self._fleet.get(sandbox_id)
        if box is not None:
            box.keeps_workspace = True
            await self._fleet.end(box)
        assert self._folders is not None
        try:
            kept = await asyncio.to_thread(self._folders.park, self._orphans.get(sandbox_id), session_id)
        except OSError as error:
            raise SnapshotError(f"the workspace of session {session_id} cannot be parked: {error}") from error
        self._orphans.pop(sandbox_id, None)
        return session_id if kept else None

    def _parked(self, sandbox_id: SandboxId, done: asyncio.Task[str | None]) -> None:
        del self._parkings[sandbox_id]
        if not done.cancelled():
            done.exception()  # seen, also when nobody waits any more

    async def restore(self, reference: str, sandbox_id: SandboxId) -> None:
        """Move a parked workspace into a sandbox's, and so use it up.

        Raises SandboxStartError, SnapshotNotFoundError.
        """
        box = self._fleet.get(sandbox_id)
        if box is None or self._folders is None:
            raise SandboxStartError(f"sandbox {sandbox_id} ended before its workspace was there")
        try:
            await asyncio.to_thread(self._folders.restore, SessionId(reference), box.workspace)
            self._disk.forget(sandbox_id)
        except FileNotFoundError as error:
            raise SnapshotNotFoundError(
                f"no workspace is parked as {reference} in {self._folders.parked}; if it was kept as a snapshot, start"
                " with the --snapshots of then"
            ) from error
        except OSError as error:
            raise SandboxStartError(f"the workspace of session {reference} cannot be moved: {error}") from error

    def delete(self, reference: str) -> None:
        """Delete a parked workspace; absent is success."""
        if self._folders is not None:
            self._discard(self._folders, self._folders.parked / reference)

    def drop_orphan(self, sandbox_id: SandboxId) -> None:
        """Delete what an ended sandbox left and nobody parked; absent is success."""
        workspace = self._orphans.pop(sandbox_id, None)
        if workspace is not None and self._folders is not None:
            self._discard(self._folders, workspace)

    def drop_orphans(self) -> None:
        """Delete what all ended sandboxes left and nobody parked."""
        for sandbox_id in list(self._orphans):
            self.drop_orphan(sandbox_id)

    async def drop_unknown(self, known: Callable[[], AsyncIterator[str]], older_than: float) -> int:
        """Delete parked workspaces that no record names. See WorkspaceKeeper.delete_orphans."""
        if self._folders is None:
            return 0
        unknown = await asyncio.to_thread(self._folders.parked_before, self._clock.now() - older_than)
        if unknown:
            async for reference in known():
                unknown.discard(reference)
        for name in unknown:
            self.delete(name)
        return len(unknown)

    def _discard(self, folders: Folders, workspace: Path) -> None:
        folders.discard(workspace)
        self._trash.want_emptied()
