"""SandboxProvider on this machine: pools of bubblewrap sandboxes.

The decisions are the books' (book.py), the order of starts the gate's (gate.py), the work on one sandbox boxes.py's;
here they are joined to the event loop. A claim from a warm pool awaits nothing.
"""

from __future__ import annotations

import asyncio
import compileall
import logging
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gateway.clock import Clock
from gateway.errors import (
    RuntimeNotFoundError,
    SandboxStartError,
    SettingsError,
    SnapshotError,
    SnapshotNotFoundError,
)
from gateway.model import PoolStatus, Runtime, RuntimeKey, Sandbox, SandboxEvent, SandboxId, SessionId, StartKind
from gateway.provider.local import cgroups, marks, pythons
from gateway.provider.local.book import Book
from gateway.provider.local.boxes import Box, Boxes, BoxState
from gateway.provider.local.cgroups import CgroupTree
from gateway.provider.local.disk import LOOK_S, DiskWatch, Tenant
from gateway.provider.local.folders import Folders
from gateway.provider.local.gate import StartGate
from gateway.provider.local.isolation import Isolation, IsolationReport, probe_isolation
from gateway.provider.local.process import StartFailedError, wait_gone

log = logging.getLogger(__name__)

_LEFTOVER_TIMEOUT = 10.0  # seconds for killed processes of an earlier life to vanish

# A spawn holds the event loop's thread for 2 to 15 ms (fork, control groups). The claim that makes a refill necessary
# should be answered before that: a create took 5 ms with the refill begun at once and takes 2.7 ms with this pause
# (loadtest/session_bench.py).
_ANSWER_FIRST_S = 0.01


@dataclass(slots=True, eq=False)
class _Pool:
    runtime: Runtime
    book: Book[Box, asyncio.Future[Box]]
    retry: asyncio.TimerHandle | None = field(default=None)


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

        `disk_reserve` in bytes, see disk.py.
        """
        self._state_dir, self._keys_dir, self._clock = state_dir, keys_dir, clock
        self._isolation: Isolation = isolation
        self._sandbox_python = sandbox_python
        self._start_timeout = start_timeout
        self._code_context = code_context
        self._disk = DiskWatch(state_dir, disk_reserve)
        self._pools: dict[RuntimeKey, _Pool] = {}
        self._all: dict[SandboxId, Box] = {}
        self._endings: dict[SandboxId, asyncio.Task[None]] = {}
        self._orphans: dict[SandboxId, Path] = {}  # workspaces of bound sandboxes that ended, until somebody decides
        self._parkings: dict[SandboxId, asyncio.Task[str | None]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._watchers: set[asyncio.Queue[SandboxEvent | None]] = set()
        self._gate = StartGate(refills=2 * (os.cpu_count() or 1))
        self._trash_wanted = asyncio.Event()
        self._running = False
        self._folders: Folders | None = None
        self._groups: CgroupTree | None = None
        self._boxes: Boxes | None = None
        self.report = IsolationReport(isolation)  # what holds on this machine; true after start()

    async def start(self) -> None:
        """Own the state directory, clear what an earlier life left, and fill pools.

        Raises SettingsError when the directory has an owner, or when this machine cannot isolate as asked.
        """
        self._folders = await asyncio.to_thread(Folders.open, self._state_dir)
        try:
            self._keys_dir.mkdir(parents=True, exist_ok=True)
            self._groups = await asyncio.to_thread(self._prepare, self._folders)
            self.report = await asyncio.to_thread(probe_isolation, self._isolation, self._groups.in_force)
            if not self.report.ok:
                raise SettingsError([self.report.error])
        except BaseException:
            self._folders.close()
            self._folders = None
            raise
        self._boxes = Boxes(
            self._folders,
            self._groups,
            self.report,
            self._keys_dir,
            self._clock,
            self._sandbox_python,
            self._start_timeout,
            self._code_context,
        )
        self._orphans = self._folders.leftovers()
        self._running = True
        self._spawn(self._empty_trash(self._folders))
        self._spawn(self._watch_disk())
        self._trash_wanted.set()
        for pool in self._pools.values():
            self._fill(pool)

    async def aclose(self) -> None:
        """End every sandbox and give the state directory up. Claims that wait are refused."""
        if not self._running:
            return
        self._running = False
        for pool in self._pools.values():
            self._cancel_retry(pool)
            for waiter in pool.book.waiters:
                if not waiter.done():
                    waiter.set_exception(SandboxStartError("this gateway is shutting down"))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*self._parkings.values(), return_exceptions=True)
        for box in self._all.values():
            box.keeps_workspace = box.state is BoxState.CLAIMED  # for the next life to decide over
        await asyncio.gather(*(self._end(box) for box in list(self._all.values())), return_exceptions=True)
        for queue in self._watchers:
            queue.put_nowait(None)
        assert self._folders is not None
        assert self._groups is not None
        await asyncio.to_thread(_empty_trash_once, self._folders)
        self._groups.close()
        self._folders.close()

    async def apply(self, runtimes: Iterable[Runtime]) -> None:
        """Serve these from now on. Warm sandboxes of a changed runtime are replaced; claimed ones are left alone."""
        wanted = {runtime.key: runtime for runtime in runtimes}
        for key in [key for key in self._pools if key not in wanted]:
            pool = self._pools.pop(key)
            self._cancel_retry(pool)
            for waiter in pool.book.waiters:
                if not waiter.done():
                    waiter.set_exception(RuntimeNotFoundError(f"{key} is no longer served"))
            pool.book.waiters.clear()
            self._end_soon(pool.book.resize(0))
        for key, runtime in wanted.items():
            old = self._pools.get(key)
            if old is None:
                self._pools[key] = _Pool(runtime, Book(runtime.pool.size))
            elif old.runtime != runtime:
                resized = old.runtime.pool.size != runtime.pool.size
                target = runtime.pool.size if resized else old.book.target
                self._end_soon(old.book.resize(0))
                old.runtime = runtime
                old.book.resize(target)
            self._fill(self._pools[key])

    async def claim(self, runtime: RuntimeKey, session_id: SessionId) -> Sandbox:
        """A warm sandbox at once, else the next that is ready. Raises RuntimeNotFoundError, SandboxStartError."""
        pool = self._pool(runtime)
        now = self._clock.monotonic()
        box = pool.book.take(lambda box: box.is_alive)
        if box is not None:
            pool.book.proved(now - box.born)
            sandbox = box.claim(session_id, StartKind.WARM)
            self._fill(pool)
            return sandbox
        if not self._running:
            raise SandboxStartError("this gateway is not running sandboxes now")
        pause = pool.book.refusal(now)
        if pause is not None:
            raise _start_error(runtime, pool.book.last_error, pause)
        waiter: asyncio.Future[Box] = asyncio.get_running_loop().create_future()
        pool.book.waiters.append(waiter)
        self._fill(pool, urgent=True)
        try:
            box = await waiter
        except asyncio.CancelledError:
            if waiter in pool.book.waiters:
                pool.book.waiters.remove(waiter)
            elif not waiter.cancelled() and waiter.exception() is None:
                self._end_soon([waiter.result()])  # it was handed over as its caller left: bound to nobody else
            raise
        return box.claim(session_id, StartKind.COLD)

    async def release(self, sandbox_id: SandboxId) -> None:
        """End it; its processes are gone when this returns, its files a moment later. Absent is success."""
        box = self._all.get(sandbox_id)
        if box is not None:
            await self._end(box)
        self._discard_orphan(sandbox_id)

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
        box = self._all.get(sandbox_id)
        if box is not None:
            box.keeps_workspace = True
            await self._end(box)
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

    async def checkpoint(self, sandbox_id: SandboxId, session_id: SessionId) -> str | None:
        """Renaming does not copy: there is nothing to give."""
        return None

    async def unpark(self, reference: str, sandbox_id: SandboxId, session_id: SessionId) -> None:
        """Move a parked workspace into a sandbox's, and so use it up. See WorkspaceKeeper."""
        box = self._all.get(sandbox_id)
        if box is None or self._folders is None:
            raise SandboxStartError(f"sandbox {sandbox_id} ended before its workspace was there")
        try:
            await asyncio.to_thread(self._folders.unpark, SessionId(reference), box.workspace)
            self._disk.forget(sandbox_id)
        except FileNotFoundError as error:
            raise SnapshotNotFoundError(
                f"no workspace is parked as {reference} in {self._folders.parked}; if it was kept as a snapshot, start"
                " with the --snapshots of then"
            ) from error
        except OSError as error:
            raise SandboxStartError(f"the workspace of session {reference} cannot be moved: {error}") from error

    async def put_back(self, reference: str, sandbox_id: SandboxId, session_id: SessionId) -> str | None:
        """Join what was moved and what was not, under the session's name again."""
        return await self.keep(sandbox_id, session_id)

    async def drop_parked(self, reference: str) -> None:
        """Delete a parked workspace; absent is success."""
        if self._folders is not None:
            self._folders.discard(self._folders.parked / reference)
            self._trash_wanted.set()

    async def drop_leftovers(self) -> None:
        """Delete the workspaces of ended sandboxes that nobody parked."""
        for sandbox_id in list(self._orphans):
            self._discard_orphan(sandbox_id)

    async def leftovers(self, known: Callable[[], AsyncIterator[str]], older_than: float) -> int:
        """Delete parked workspaces that no record names. See WorkspaceKeeper."""
        if self._folders is None:
            return 0
        orphans = await asyncio.to_thread(self._folders.parked_before, self._clock.now() - older_than)
        if orphans:
            async for reference in known():
                orphans.discard(reference)
        for name in orphans:
            await self.drop_parked(name)
        return len(orphans)

    def _discard_orphan(self, sandbox_id: SandboxId) -> None:
        workspace = self._orphans.pop(sandbox_id, None)
        if workspace is not None and self._folders is not None:
            self._folders.discard(workspace)
            self._trash_wanted.set()

    async def resize(self, runtime: RuntimeKey, warm: int) -> None:
        """Set the number of warm sandboxes. Raises RuntimeNotFoundError."""
        pool = self._pool(runtime)
        self._end_soon(pool.book.resize(max(0, warm)))
        self._fill(pool)

    async def status(self, runtime: RuntimeKey) -> PoolStatus:
        """The pool now. Raises RuntimeNotFoundError."""
        book = self._pool(runtime).book
        claimed = sum(box.runtime.key == runtime and box.state is BoxState.CLAIMED for box in self._all.values())
        retry_at = None if book.retry_at is None else self._clock.now() + book.retry_at - self._clock.monotonic()
        return PoolStatus(
            runtime=runtime,
            target=book.target,
            ready=len(book.ready),
            starting=book.starting,
            claimed=claimed,
            failures=book.failures,
            last_error=book.last_error,
            retry_at=retry_at,
            lead_time_p50=book.lead_time(0.5),
            lead_time_p90=book.lead_time(0.9),
        )

    async def find(self, sandbox_id: SandboxId) -> Sandbox | None:
        """The sandbox while it runs."""
        box = self._all.get(sandbox_id)
        return box.sandbox() if box is not None and box.is_alive else None

    async def list(self) -> Sequence[Sandbox]:
        """All that run, warm ones included."""
        return [box.sandbox() for box in self._all.values() if box.is_alive]

    def watch(self) -> AsyncIterator[SandboxEvent]:
        """Claimed sandboxes that end by themselves, from this call on. Ends with aclose()."""
        queue: asyncio.Queue[SandboxEvent | None] = asyncio.Queue()
        self._watchers.add(queue)
        return self._events(queue)

    def workspace(self, sandbox_id: SandboxId) -> Path | None:
        """The folder that the sandbox has at /workspace, while it exists."""
        box = self._all.get(sandbox_id)
        return box.workspace if box is not None else None

    def pid(self, sandbox_id: SandboxId) -> int:
        """Its outermost process, for tools that measure. Raises KeyError."""
        return self._all[sandbox_id].process.pid

    # Starting.

    def _fill(self, pool: _Pool, *, urgent: bool = False) -> None:
        """Order what is missing. The first of an urgent call is for the claim that made it."""
        if not self._running:
            return
        now = self._clock.monotonic()
        count = pool.book.wanted(now)
        pool.book.ordered(count)
        for index in range(count):
            self._spawn(self._start_one(pool, pool.runtime, now, urgent=urgent and index == 0))
        self._cancel_retry(pool)
        if pool.book.retry_at is not None and pool.book.retry_at > now:
            pool.retry = asyncio.get_running_loop().call_later(pool.book.retry_at - now, self._fill, pool)

    async def _start_one(self, pool: _Pool, runtime: Runtime, ordered: float, *, urgent: bool) -> None:
        assert self._boxes is not None
        try:
            if not urgent:
                await asyncio.sleep(_ANSWER_FIRST_S)
            async with self._gate.slot(urgent=urgent):
                if pool.book.surplus() or not self._serves(pool, runtime):
                    pool.book.withdrawn()
                else:
                    self._arrived(pool, await self._boxes.start(runtime), ordered)
        except StartFailedError as error:
            self._start_failed(pool, str(error))
        except Exception as error:  # a fault of ours must reach who waits, not hang them
            log.exception("starting a sandbox of %s", runtime.key)
            self._start_failed(pool, f"{type(error).__name__}: {error}")
        finally:
            self._trash_wanted.set()
        self._fill(pool)

    def _arrived(self, pool: _Pool, box: Box, ordered: float) -> None:
        self._all[box.id] = box
        box.process.exited.add_done_callback(lambda _: self._on_exit(pool, box))
        if not self._serves(pool, box.runtime):
            pool.book.withdrawn()  # the runtime changed or went away meanwhile
            self._end_soon([box])
            return
        lead = self._clock.monotonic() - ordered
        taken = pool.book.arrived(box, lead)
        log.debug(
            "sandbox %s of %s is ready %.4f s after its order%s",
            box.id,
            box.runtime.key,
            lead,
            "; nobody wants it any more" if taken is False else "",
        )
        if taken is False:
            self._end_soon([box])
        elif taken is not True:
            taken.set_result(box)

    def _start_failed(self, pool: _Pool, reason: str) -> None:
        now = self._clock.monotonic()
        refused = pool.book.failed(now, reason)
        pause = (pool.book.retry_at or now) - now
        log.warning("%s", _start_error(pool.runtime.key, reason, pause))
        for waiter in refused:
            waiter.set_exception(_start_error(pool.runtime.key, reason, pause))

    # Ending.

    def _on_exit(self, pool: _Pool, box: Box) -> None:
        """A sandbox's processes ended: by our hand (state ended, nothing to do) or by themselves."""
        if box.state is BoxState.ENDED:
            return
        reason = box.end_reason()
        if box.state is BoxState.CLAIMED:
            box.keeps_workspace = True  # until it is parked or released
            log.info("sandbox %s of session %s %s", box.id, box.session_id, reason)
            for queue in self._watchers:
                queue.put_nowait(SandboxEvent(box.id, box.session_id, reason))
        else:
            now = self._clock.monotonic()
            said = f" ({box.process.said()})" if box.process.said() else ""
            log.warning("a warm sandbox of %s %s%s", box.runtime.key, reason, said)
            pool.book.died(box, now - box.born, now, f"a warm sandbox {reason}{said}")
            self._fill(pool)
        self._end_soon([box])

    def _end_soon(self, boxes: Iterable[Box]) -> None:
        for box in boxes:
            self._ending(box)

    async def _end(self, box: Box) -> None:
        await asyncio.shield(self._ending(box))

    def _ending(self, box: Box) -> asyncio.Task[None]:
        """The one task that ends this box; from here on nobody can claim it."""
        box.state = BoxState.ENDED
        task = self._endings.get(box.id)
        if task is None:
            pool = self._pools.get(box.runtime.key)
            if pool is not None:
                pool.book.forget(box)
            task = self._endings[box.id] = asyncio.get_running_loop().create_task(self._clear(box))
        return task

    async def _clear(self, box: Box) -> None:
        assert self._boxes is not None
        try:
            await self._boxes.clear(box)
        except (OSError, TimeoutError) as error:
            log.error("sandbox %s could not be cleared away: %s; the next start does", box.id, error)
        finally:
            if box.keeps_workspace:
                self._orphans[box.id] = box.workspace
            self._all.pop(box.id, None)
            self._endings.pop(box.id, None)
            self._trash_wanted.set()
            pool = self._pools.get(box.runtime.key)
            if pool is not None:
                self._fill(pool)

    async def _empty_trash(self, folders: Folders) -> None:
        while True:
            await self._trash_wanted.wait()
            self._trash_wanted.clear()
            await asyncio.to_thread(_empty_trash_once, folders)

    async def _watch_disk(self) -> None:
        """End who fills the disk, as though it had ended by itself: its session keeps its files and is told why."""
        while True:
            await asyncio.sleep(LOOK_S)
            bound = [box for box in self._all.values() if box.state is BoxState.CLAIMED and box.is_alive]
            tenants = [
                Tenant(box.id, box.workspace, box.process.pid, box.runtime.limits.workspace_size) for box in bound
            ]
            try:
                now = self._clock.monotonic()
                if not self._disk.due(tenants, now):
                    continue
                for name, reason in (await asyncio.to_thread(self._disk.look, tenants, now)).items():
                    box = self._all.get(name)
                    if box is not None and box.state is BoxState.CLAIMED:
                        box.verdict = f"was ended: {reason}"
                        await box.process.end()
            except (OSError, TimeoutError) as error:
                log.warning("the disk below %s cannot be watched: %s", self._state_dir, error)

    # Helpers.

    def _prepare(self, folders: Folders) -> CgroupTree:
        """Clear what an earlier life left: processes first, then their groups, sockets and workspaces. Blocks."""
        leftovers = cgroups.sweep(folders.earlier_groups())
        killed = [pidfd for group in leftovers for pidfd in group.kill()]
        killed += marks.kill_marked(marks.mark(folders.owner, ""))
        if killed:
            log.warning("ended %d processes that an earlier gateway left behind", len(killed))
        gone = wait_gone(killed, _LEFTOVER_TIMEOUT)
        for pidfd in killed:
            os.close(pidfd)
        stuck = [group for group in leftovers if not group.remove()]
        if stuck or not gone:
            log.warning("processes of an earlier gateway do not end; their control groups stay until they do")
        folders.clear_sockets()
        # Once and here: in sandboxes the code is read-only, and without bytecode each of them would compile it anew.
        compileall.compile_dir(pythons.picod_folder(), quiet=2)
        groups = CgroupTree.open(folders.owner)
        folders.note_groups(groups.bases)
        return groups

    def _pool(self, key: RuntimeKey) -> _Pool:
        try:
            return self._pools[key]
        except KeyError:
            raise RuntimeNotFoundError(f"{key} not found") from None

    def _serves(self, pool: _Pool, runtime: Runtime) -> bool:
        return self._pools.get(runtime.key) is pool and pool.runtime is runtime

    def _cancel_retry(self, pool: _Pool) -> None:
        if pool.retry is not None:
            pool.retry.cancel()
            pool.retry = None

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        forget: Callable[[asyncio.Task[None]], None] = self._tasks.discard
        task.add_done_callback(forget)

    async def _events(self, queue: asyncio.Queue[SandboxEvent | None]) -> AsyncIterator[SandboxEvent]:
        try:
            while (event := await queue.get()) is not None:
                yield event
        finally:
            self._watchers.discard(queue)


def _empty_trash_once(folders: Folders) -> None:
    try:
        folders.empty_trash()
    except OSError as error:
        log.warning("a workspace could not be deleted: %s", error)


def _start_error(runtime: RuntimeKey, reason: str, pause: float) -> SandboxStartError:
    return SandboxStartError(f"a sandbox of {runtime} could not be started: {reason}", retry_after=max(0.1, pause))
