"""SandboxProvider on this machine: warm pools of bubblewrap sandboxes.

Opens the state directory and joins the parts: registry.py lists the running sandboxes, pools.py keeps warm ones,
workspaces.py keeps the files of ended ones, disk_quota.py limits what they write.
"""

from __future__ import annotations

import asyncio
import compileall
import os
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from gateway.core.background import Tasks
from gateway.core.clock import Clock
from gateway.core.errors import SandboxGoneError, SettingsError
from gateway.core.model import Limits, PoolStatus, Runtime, RuntimeKey, Sandbox, SandboxEvent, SandboxId, SessionId
from gateway.core.usage import SandboxLoad, SandboxUsage
from gateway.provider.local import (
    consumption,
    disk_quota,
    disk_usage,
    interpreters,
    machine,
    memory_watch,
    safe_delete,
    sandbox_users,
)
from gateway.provider.local.booking import Capacity, Ledger
from gateway.provider.local.cgroups import CgroupTree
from gateway.provider.local.disk_quota import DiskWatch
from gateway.provider.local.egress import BUNDLE_FILE, EgressServer
from gateway.provider.local.gpus import NO_GPUS, Gpus
from gateway.provider.local.isolation import Isolation, IsolationReport, probe_isolation
from gateway.provider.local.pools import Pools
from gateway.provider.local.registry import SandboxRegistry
from gateway.provider.local.resizing import resize
from gateway.provider.local.safe_delete import TrashCollector
from gateway.provider.local.sandbox import LocalSandbox
from gateway.provider.local.sandbox_factory import SandboxFactory
from gateway.provider.local.sandbox_users import SandboxUsers
from gateway.provider.local.startup_cleanup import end_orphans
from gateway.provider.local.state_dir import StateDir
from gateway.provider.local.workspaces import Workspaces

_MAX_GONE = 4096  # ended sandboxes whose last CPU time is known; it is asked for within an interval or two


class LocalProvider:
    """Sandboxes on this machine and their workspaces: implements SandboxProvider and WorkspaceKeeper.

    All methods run on one event loop, whose thread must outlive the sandboxes (see process.py).
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
        egress: EgressServer | None = None,
        sandbox_uids: str = sandbox_users.AUTO,
        capacity: Capacity | None = None,
        gpus: Gpus = NO_GPUS,
    ) -> None:
        """`keys_dir` holds jwks.json; `sandbox_python` is the folder of the environment for user code.

        `start_timeout` in seconds; `disk_reserve` in bytes, see disk_quota.py. `egress`: the service by which sandboxes
        reach out; None: they do not.
        `sandbox_uids`: users of sandboxes outside, a range of ids, `auto` or `shared`. `capacity`: what runtimes may
        request; None: all that this machine has, and `gpus`.
        """
        self._egress = egress
        self._path, self._keys_dir, self._clock = state_dir, keys_dir, clock
        self._isolation: Isolation = isolation
        self._sandbox_python = sandbox_python
        self._start_timeout = start_timeout
        self._code_context = code_context
        self._sandbox_uids = sandbox_uids
        self._users: SandboxUsers | None = None
        self._disk = DiskWatch(state_dir, disk_reserve)
        self._tasks = Tasks()
        self._trash = TrashCollector()
        self._registry = SandboxRegistry(self._trash)
        self._gpus = gpus
        self._ledger = Ledger(capacity or machine.capacity(gpus=gpus))
        self._pools = Pools(self._registry, self._tasks, clock, self._ledger)
        self._workspaces = Workspaces(self._registry, self._disk, self._trash, clock)
        self._registry.on_death(self._pools.died)
        self._registry.on_ending(self._pools.forget)
        if egress is not None:
            self._registry.on_ending(lambda sandbox: egress.close(sandbox.id))
        self._registry.on_gone(self._workspaces.adopt)
        self._registry.on_gone(self._pools.refill)
        self._registry.on_gone(self._note_gone)
        self._gone: OrderedDict[SandboxId, SandboxUsage] = OrderedDict()  # those that ended last, the oldest first
        self._running = False
        self._state_dir: StateDir | None = None
        self._groups: CgroupTree | None = None
        self.report = IsolationReport(isolation)  # what is enforced on this machine; valid after start()

    async def start(self) -> None:
        """Open the state directory, end orphans of an earlier run, and fill the pools.

        Raises SettingsError when the directory has an owner, or when this machine cannot isolate as asked.
        """
        self._state_dir = state_dir = await asyncio.to_thread(StateDir.open, self._path)
        try:
            self._keys_dir.mkdir(parents=True, exist_ok=True)
            self._groups = await asyncio.to_thread(_prepare, state_dir)
            self.report = await asyncio.to_thread(probe_isolation, self._isolation, self._groups.in_force)
            if not self.report.ok:
                raise SettingsError([self.report.error])
            self._users = await asyncio.to_thread(self._open_users, state_dir)
            await asyncio.to_thread(self._write_bundle, state_dir)
            self._disk.reader = disk_usage.reader(self.report.bwrap, uid=os.geteuid())
        except BaseException:
            state_dir.close()
            self._state_dir = None
            raise
        factory = SandboxFactory(
            state_dir,
            self._groups,
            self.report,
            self._keys_dir,
            self._clock,
            self._sandbox_python,
            self._start_timeout,
            self._code_context,
            self._egress,
            self._users,
            self._gpus,
        )
        self._registry.open(factory)
        self._workspaces.open(state_dir)
        self._running = True
        self._tasks.spawn(self._trash.run(state_dir.trash, state_dir.discard_again))
        self._tasks.spawn(disk_quota.enforce(self._registry, self._disk, self._clock))
        if "memory" not in self._groups.in_force:  # else the kernel holds the limit, without the gap between two polls
            self._tasks.spawn(memory_watch.enforce(self._registry, self._clock))
        self._trash.request()
        self._pools.open()

    def _write_bundle(self, state_dir: StateDir) -> None:
        """The certificates that sandboxes with egress trust. Raises SettingsError."""
        file = state_dir.etc / BUNDLE_FILE
        file.unlink(missing_ok=True)
        try:
            if self._egress is not None and (bundle := self._egress.bundle(self._clock.now())):
                file.write_bytes(bundle)
        except OSError as error:
            raise SettingsError([f"certificates for egress: {error.filename}: {error.strerror}"]) from None

    def _open_users(self, state_dir: StateDir) -> SandboxUsers | None:
        """Users for sandboxes where the setting and this machine allow them; the report says which. Blocks.

        Raises SettingsError when a range was named and cannot be used.
        """
        if self._isolation == "process" or self._sandbox_uids == sandbox_users.SHARED:
            return None
        try:
            users = sandbox_users.open_users(
                self._sandbox_uids, self.report, state_dir.trash, self._keys_dir.resolve(), state_dir.owner
            )
        except (OSError, ValueError) as error:
            if self._sandbox_uids != sandbox_users.AUTO:
                raise SettingsError([f"--sandbox-uids {self._sandbox_uids}: {error}"]) from None
            self.report = self.report.with_shared_user(str(error))
            return None
        self.report = self.report.with_own_users(str(users.range), shares=users.picod_shares)
        return users

    async def aclose(self) -> None:
        """End every sandbox and release the state directory. Waiting claims are refused."""
        if not self._running:
            return
        self._running = False
        # No start is ordered any more; those under way are cancelled and undone; parking that has begun completes;
        # only then does the rest end, as an end does not wait for a workspace to be parked.
        self._pools.close()
        await self._tasks.aclose()
        await self._workspaces.settle()
        await self._registry.aclose()
        assert self._state_dir is not None
        assert self._groups is not None
        self._state_dir.discard_again()
        await asyncio.to_thread(safe_delete.empty_trash, self._state_dir.trash)
        self._groups.close()
        if self._users is not None:
            await asyncio.to_thread(self._users.close)
        self._state_dir.close()

    # SandboxProvider.

    async def apply(self, runtimes: Iterable[Runtime]) -> None:
        """Serve these from now on. Warm sandboxes of a changed runtime are replaced; claimed ones are left alone."""
        self._pools.apply(runtimes)

    async def claim(self, runtime: RuntimeKey, session_id: SessionId) -> Sandbox:
        """A warm sandbox at once, else the next that is ready. Raises RuntimeNotFoundError, SandboxStartError."""
        return await self._pools.claim(runtime, session_id)

    async def release(self, sandbox_id: SandboxId) -> None:
        """End it; its processes are gone when this returns, its files a moment later. Absent is success."""
        sandbox = self._registry.get(sandbox_id)
        if sandbox is not None:
            await self._registry.end(sandbox)
        self._workspaces.delete_orphan(sandbox_id)

    async def resize(self, runtime: RuntimeKey, warm: int) -> None:
        """Set the target of the warm pool. Raises RuntimeNotFoundError."""
        self._pools.resize(runtime, warm)

    async def resize_sandbox(self, sandbox_id: SandboxId, limits: Limits) -> None:
        """Give it other limits while it runs. See SandboxResizer."""
        sandbox = self._registry.get(sandbox_id)
        if sandbox is None or not sandbox.is_alive:
            raise SandboxGoneError(f"sandbox {sandbox_id} has ended")
        assert self._groups is not None
        resize(sandbox, limits, self._groups)

    def booked(self) -> Mapping[str, float]:
        """What sandboxes have booked. See MachineBookings."""
        return self._ledger.booked()

    def bookable(self) -> Mapping[str, float]:
        """All that sandboxes may book of this machine."""
        return self._ledger.bookable()

    async def status(self, runtime: RuntimeKey) -> PoolStatus:
        """The pool now. Raises RuntimeNotFoundError."""
        return self._pools.status(runtime)

    async def find(self, sandbox_id: SandboxId) -> Sandbox | None:
        """The sandbox while it runs."""
        sandbox = self._registry.get(sandbox_id)
        return sandbox.describe() if sandbox is not None and sandbox.is_alive else None

    async def list(self) -> Sequence[Sandbox]:
        """All that run, warm ones included."""
        return [sandbox.describe() for sandbox in self._registry.alive()]

    def watch(self) -> AsyncIterator[SandboxEvent]:
        """Claimed sandboxes that end by themselves, from this call on. Ends with aclose()."""
        return self._registry.watch()

    # EngineMeter.

    async def usage(self, sandboxes: Sequence[SandboxId]) -> Mapping[SandboxId, SandboxUsage]:
        """CPU time since each was bound, and its memory now."""
        # _gone is read after the measurement: one that ended meanwhile is there by then, with its last count.
        running = [each for name in sandboxes if (each := self._registry.get(name)) is not None and each.is_alive]
        measured = await asyncio.to_thread(lambda: {each.id: _measured(each) for each in running})
        return {name: usage for name in sandboxes if (usage := self._gone.get(name) or measured.get(name)) is not None}

    async def parked_bytes(self, reference: str) -> int:
        """The size of a parked workspace, measured now if an earlier run parked it."""
        return await self._workspaces.parked_bytes(SessionId(reference))

    async def load(self, sandbox_id: SandboxId) -> SandboxLoad | None:
        """See LoadReader. The size of the workspace is that of the disk watch's last measurement."""
        sandbox = self._registry.get(sandbox_id)
        if sandbox is None or not sandbox.is_alive:
            return None
        used, processes = await asyncio.to_thread(
            lambda: (_measured(sandbox), consumption.processes(sandbox.process.pid))
        )
        return SandboxLoad(
            cpu_s=used.cpu_s,
            memory_bytes=used.memory_bytes,
            processes=processes,
            disk_bytes=self._disk.held_bytes(sandbox_id),
        )

    def _note_gone(self, sandbox: LocalSandbox) -> None:
        if sandbox.session_id is not None:
            self._gone[sandbox.id] = SandboxUsage(sandbox.cpu_bound_s)
            while len(self._gone) > _MAX_GONE:
                self._gone.popitem(last=False)

    # WorkspaceKeeper.

    async def keep(self, sandbox_id: SandboxId, session_id: SessionId) -> str | None:
        """Park: end the sandbox, if it still runs, and move its workspace aside. See WorkspaceKeeper.

        Cancelling the caller does not stop it; a second call waits for the first, or finds it done.
        """
        return await self._workspaces.keep(sandbox_id, session_id)

    async def park(self, sandbox_id: SandboxId, session_id: SessionId) -> str | None:
        """Keep the workspace although the sandbox ends: here the same as `keep`."""
        return await self.keep(sandbox_id, session_id)

    async def checkpoint(self, sandbox_id: SandboxId, session_id: SessionId, *, last: str | None = None) -> str | None:
        """None: a running sandbox's workspace cannot be renamed away, and nothing is copied here."""
        return None

    async def restore(self, reference: str, sandbox_id: SandboxId, session_id: SessionId) -> None:
        """Move a parked workspace into a sandbox's; what was parked is consumed. See WorkspaceKeeper."""
        await self._workspaces.restore(reference, sandbox_id)

    async def check(self, reference: str) -> None:
        """Raise SnapshotNotFoundError unless that workspace is parked here. See WorkspaceKeeper."""
        await self._workspaces.check(reference)

    async def rollback(self, reference: str, sandbox_id: SandboxId, session_id: SessionId) -> str | None:
        """Undo `restore`. See WorkspaceKeeper."""
        return await self._workspaces.rollback(reference, sandbox_id, session_id)

    async def delete(self, reference: str) -> None:
        """Delete a parked workspace; absent is success."""
        self._workspaces.delete(reference)

    async def retain_abandoned(self) -> None:
        """Set aside the workspaces of ended sandboxes that were not parked. See WorkspaceKeeper."""
        await self._workspaces.retain_abandoned()

    async def delete_orphans(self, known: Callable[[], AsyncIterator[str]], older_than: float) -> int:
        """Delete parked and abandoned workspaces that no record names. See WorkspaceKeeper."""
        return await self._workspaces.delete_orphans(known, older_than)

    # For snapshots/keeper.py.

    @asynccontextmanager
    async def restoring(self, sandbox_id: SandboxId) -> AsyncIterator[None]:
        """Within, a snapshot fills the sandbox's workspace, which does not count as growth."""
        self._disk.begin_restore(sandbox_id)
        try:
            yield
        finally:
            sandbox = self._registry.get(sandbox_id)
            if sandbox is not None:
                await asyncio.to_thread(self._disk.end_restore, sandbox_id, sandbox.workspace)

    # For tools and tests.

    def workspace(self, sandbox_id: SandboxId) -> Path | None:
        """The folder that the sandbox has at /workspace, while it exists."""
        sandbox = self._registry.get(sandbox_id)
        return sandbox.workspace if sandbox is not None else None

    def pid(self, sandbox_id: SandboxId) -> int:
        """Its outermost process, for tools that measure. Raises KeyError."""
        sandbox = self._registry.get(sandbox_id)
        if sandbox is None:
            raise KeyError(sandbox_id)
        return sandbox.process.pid


def _measured(sandbox: LocalSandbox) -> SandboxUsage:
    """CPU time since it was bound, and memory: its group's, else what /proc shows. Blocks."""
    memory = consumption.memory_bytes(sandbox.group)
    if memory is None:
        memory = memory_watch.measure(sandbox.process.pid).total
    return SandboxUsage(sandbox.read_cpu(), memory)


def _prepare(state_dir: StateDir) -> CgroupTree:
    """End orphans, compile picod and open control groups, before the first sandbox starts. Blocks."""
    end_orphans(state_dir)
    # Once, here: in sandboxes the code is read-only, and without bytecode each of them would compile it again.
    compileall.compile_dir(interpreters.picod_folder(), quiet=2)
    groups = CgroupTree.open(state_dir.owner)
    state_dir.record_groups(groups.bases)
    return groups
