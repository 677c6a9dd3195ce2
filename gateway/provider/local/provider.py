"""SandboxProvider on this machine: pools of bubblewrap sandboxes.

The way in: it opens the state directory and joins the parts. Which sandboxes there are is registry.py's, which of them
are warm and for whom pools.py's, what becomes of workspaces workspaces.py's; who fills the disk, eviction.py ends.
"""

from __future__ import annotations

import asyncio
import compileall
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from pathlib import Path

from gateway.core.clock import Clock
from gateway.core.errors import SettingsError
from gateway.core.model import PoolStatus, Runtime, RuntimeKey, Sandbox, SandboxEvent, SandboxId, SessionId
from gateway.provider.local import interpreters, trash
from gateway.provider.local.cgroups import CgroupTree
from gateway.provider.local.disk_quota import DiskWatch
from gateway.provider.local.eviction import watch_disk
from gateway.provider.local.isolation import Isolation, IsolationReport, probe_isolation
from gateway.provider.local.pools import Pools
from gateway.provider.local.registry import Fleet
from gateway.provider.local.sandbox import Boxes
from gateway.provider.local.startup_cleanup import clear_earlier_life
from gateway.provider.local.state_dir import Folders
from gateway.provider.local.trash import Trash
from gateway.provider.local.workspaces import Parking
from gateway.provider.tasks import Tasks


class LocalProvider:
    """Sandboxes on this machine, and the parking of their workspaces: SandboxProvider and WorkspaceKeeper.

    All methods run on one event loop's thread, which must outlive the sandboxes.
    """

    leaves_running = False

    def __init__(
        self,
        state_dir: Path,
        keys_dir: Path,
        clock: Clock,
        isolation: Isolation = "bubblewrap",
        sandbox_python: Path | None = None,
        *,
        start_timeout: float = 20.0,
        code_context: str = "lazy",
        disk_reserve: int = 0,
    ) -> None:
        """`keys_dir` holds jwks.json; `sandbox_python` is the folder of the environment that user code gets.

        `disk_reserve` in bytes, see disk_quota.py.
        """
        self._state_dir, self._keys_dir, self._clock = state_dir, keys_dir, clock
        self._isolation: Isolation = isolation
        self._sandbox_python = sandbox_python
        self._start_timeout = start_timeout
        self._code_context = code_context
        self._disk = DiskWatch(state_dir, disk_reserve)
        self._tasks = Tasks()
        self._trash = Trash()
        self._fleet = Fleet(self._trash)
        self._pools = Pools(self._fleet, self._tasks, clock)
        self._parking = Parking(self._fleet, self._disk, self._trash, clock)
        self._fleet.on_death(self._pools.died)
        self._fleet.on_ending(self._pools.forget)
        self._fleet.on_gone(self._parking.inherit)
        self._fleet.on_gone(self._pools.refill)
        self._running = False
        self._folders: Folders | None = None
        self._groups: CgroupTree | None = None
        self.report = IsolationReport(isolation)  # what holds on this machine; true after start()

    async def start(self) -> None:
        """Own the state directory, clear what an earlier life left, and fill pools.

        Raises SettingsError when the directory has an owner, or when this machine cannot isolate as asked.
        """
        self._folders = folders = await asyncio.to_thread(Folders.open, self._state_dir)
        try:
            self._keys_dir.mkdir(parents=True, exist_ok=True)
            self._groups = await asyncio.to_thread(_prepare, folders)
            self.report = await asyncio.to_thread(probe_isolation, self._isolation, self._groups.in_force)
            if not self.report.ok:
                raise SettingsError([self.report.error])
        except BaseException:
            folders.close()
            self._folders = None
            raise
        boxes = Boxes(
            folders,
            self._groups,
            self.report,
            self._keys_dir,
            self._clock,
            self._sandbox_python,
            self._start_timeout,
            self._code_context,
        )
        self._fleet.open(boxes)
        self._parking.open(folders)
        self._running = True
        self._tasks.spawn(self._trash.run(folders))
        self._tasks.spawn(watch_disk(self._fleet, self._disk, self._clock))
        self._trash.want_emptied()
        self._pools.open()

    async def aclose(self) -> None:
        """End every sandbox and give the state directory up. Claims that wait are refused."""
        if not self._running:
            return
        self._running = False
        self._pools.close()
        await self._tasks.aclose()
        await self._parking.settle()
        await self._fleet.aclose()
        assert self._folders is not None
        assert self._groups is not None
        await asyncio.to_thread(trash.empty, self._folders)
        self._groups.close()
        self._folders.close()

    # SandboxProvider.

    async def apply(self, runtimes: Iterable[Runtime]) -> None:
        """Serve these from now on. Warm sandboxes of a changed runtime are replaced; claimed ones are left alone."""
        self._pools.apply(runtimes)

    async def claim(self, runtime: RuntimeKey, session_id: SessionId) -> Sandbox:
        """A warm sandbox at once, else the next that is ready. Raises RuntimeNotFoundError, SandboxStartError."""
        return await self._pools.claim(runtime, session_id)

    async def release(self, sandbox_id: SandboxId) -> None:
        """End it; its processes are gone when this returns, its files a moment later. Absent is success."""
        box = self._fleet.get(sandbox_id)
        if box is not None:
            await self._fleet.end(box)
        self._parking.drop_orphan(sandbox_id)

    async def resize(self, runtime: RuntimeKey, warm: int) -> None:
        """Set the number of warm sandboxes. Raises RuntimeNotFoundError."""
        self._pools.resize(runtime, warm)

    async def status(self, runtime: RuntimeKey) -> PoolStatus:
        """The pool now. Raises RuntimeNotFoundError."""
        return self._pools.status(runtime)

    async def find(self, sandbox_id: SandboxId) -> Sandbox | None:
        """The sandbox while it runs."""
        box = self._fleet.get(sandbox_id)
        return box.sandbox() if box is not None and box.is_alive else None

    async def list(self) -> Sequence[Sandbox]:
        """All that run, warm ones included."""
        return [box.sandbox() for box in self._fleet.alive()]

    def watch(self) -> AsyncIterator[SandboxEvent]:
        """Claimed sandboxes that end by themselves, from this call on. Ends with aclose()."""
        return self._fleet.watch()

    # WorkspaceKeeper.

    async def keep(self, sandbox_id: SandboxId, session_id: SessionId) -> str | None:
        """Park: end the sandbox, if it still runs, and move its workspace aside. See WorkspaceKeeper.

        A caller that is cancelled does not stop it; one that calls again waits for the same, or finds it done.
        """
        return await self._parking.keep(sandbox_id, session_id)

    async def checkpoint(self, sandbox_id: SandboxId, session_id: SessionId) -> str | None:
        """Renaming does not copy: there is nothing to give."""
        return None

    async def restore(self, reference: str, sandbox_id: SandboxId, session_id: SessionId) -> None:
        """Move a parked workspace into a sandbox's, and so use it up. See WorkspaceKeeper."""
        await self._parking.restore(reference, sandbox_id)

    async def rollback(self, reference: str, sandbox_id: SandboxId, session_id: SessionId) -> str | None:
        """Join what was moved and what was not, under the session's name again."""
        return await self._parking.keep(sandbox_id, session_id)

    async def delete(self, reference: str) -> None:
        """Delete a parked workspace; absent is success."""
        self._parking.delete(reference)

    async def delete_abandoned(self) -> None:
        """Delete the workspaces of ended sandboxes that nobody parked."""
        self._parking.drop_orphans()

    async def delete_orphans(self, known: Callable[[], AsyncIterator[str]], older_than: float) -> int:
        """Delete parked workspaces that no record names. See WorkspaceKeeper."""
        return await self._parking.drop_unknown(known, older_than)

    # For tools and tests.

    def workspace(self, sandbox_id: SandboxId) -> Path | None:
        """The folder that the sandbox has at /workspace, while it exists."""
        box = self._fleet.get(sandbox_id)
        return box.workspace if box is not None else None

    def pid(self, sandbox_id: SandboxId) -> int:
        """Its outermost process, for tools that measure. Raises KeyError."""
        box = self._fleet.get(sandbox_id)
        if box is None:
            raise KeyError(sandbox_id)
        return box.process.pid


def _prepare(folders: Folders) -> CgroupTree:
    """What must be so before the first start; the earlier life is cleared away first. Blocks."""
    clear_earlier_life(folders)
    # Once and here: in sandboxes the code is read-only, and without bytecode each of them would compile it anew.
    compileall.compile_dir(interpreters.picod_folder(), quiet=2)
    groups = CgroupTree.open(folders.owner)
    folders.note_groups(groups.bases)
    return groups
