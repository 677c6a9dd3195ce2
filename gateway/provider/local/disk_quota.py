"""Workspaces and the disk below them: a limit for each sandbox, and a reserve that none of them may take.

An ordinary user has no quota to give to a folder, and most file systems are mounted without project quotas. So the
disk's free space and inodes, which cost one call to read, are polled, and the workspaces are measured only when much
was taken. A sandbox over its runtime's limit ends; with less than the reserve left so does the one that grew most since
it was claimed or woken, else one session's files would stop the records of all. Its session keeps its files.

Between two polls a sandbox can write more than it may: this bounds the damage, it is not a quota.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gateway.core.clock import Clock
from gateway.core.model import SandboxId, SessionId
from gateway.provider.local import disk_usage
from gateway.provider.local.disk_usage import Size
from gateway.provider.local.registry import SandboxRegistry

logger = logging.getLogger(__name__)

POLL_INTERVAL_S = 0.5
GRACE_S = 60.0  # a session that wakes over its limit has this long to delete some, and ends at once if it grows
# A file that is deleted when the disk is full: room for records and for deletions, which write too, until sandboxes
# that were ended have given back theirs.
BALLAST_BYTES = 16 << 20
_FULL_INTERVAL_S = 60.0  # free space may not fall while others delete what a sandbox writes
# What must have been taken of the disk to make a measurement (du over all workspaces) worth its cost. Less, down to
# _MIN_STEP_BYTES, where the smallest limit is small: an eighth of it. A limit of 64 MiB is measured every 8 MiB.
_STEP_BYTES = 128 << 20
_STEP_FILES = 20_000
_MIN_STEP_BYTES = 1 << 20
_MIN_GROWTH_BYTES = 64 << 20  # a sandbox that grew by less is not ended for a full disk
_MIN_GROWTH_FILES = 5_000
_FILES_RESERVE = 0.02  # of the disk's inodes


@dataclass(frozen=True, slots=True)
class Ending:
    """Why a sandbox is to end. `shrink`: its files are deleted down to its limit, for the disk has no room for more."""

    reason: str
    shrink: bool = False


@dataclass(frozen=True, slots=True)
class Held:
    """One sandbox's workspace now and at its baseline. `grace`: it was woken a moment ago."""

    baseline: Size
    now: Size
    limit: int | None
    files_limit: int | None
    grace: bool = False


@dataclass(frozen=True, slots=True)
class Disk:
    """What is left of the disk. `filling`: less than at the last measurement. `files`: None where not limited."""

    free: int
    reserve: int
    files: int | None = None
    files_reserve: int = 0
    filling: bool = True


def offenders(held: Mapping[SandboxId, Held], disk: Disk) -> dict[SandboxId, Ending]:
    """The sandboxes to end, and why (pure)."""
    ending: dict[SandboxId, Ending] = {}
    short = disk.free < disk.reserve
    for name, each in held.items():
        if _is_over(each.now.bytes, each.baseline.bytes, each.limit, grace=each.grace):
            cut = "; the disk is nearly full, so its largest files are deleted until the rest fits" if short else ""
            ending[name] = Ending(
                f"its workspace holds {_mb(each.now.bytes)} MB; the runtime allows {_mb(each.limit)} MB "
                f"(limits.workspaceSize){cut}",
                shrink=short,
            )
        elif _is_over(each.now.files, each.baseline.files, each.files_limit, grace=each.grace):
            ending[name] = Ending(f"its workspace holds {each.now.files} files; a sandbox may have {each.files_limit}")
    if ending:
        return ending  # their end may suffice
    if short:
        grown = {name: each.now.bytes - each.baseline.bytes for name, each in held.items()}
        total = {name: each.now.bytes for name, each in held.items()}
        who, what = _largest(grown, total, _MIN_GROWTH_BYTES, filling=disk.filling)
        if who is not None:
            size = _mb(grown[who] if what == "grew by" else total[who])
            left = f"{_mb(disk.free)} MB left, reserve {_mb(disk.reserve)} MB"
            ending[who] = Ending(f"its workspace {what} {size} MB, most of all, and the disk is nearly full ({left})")
    elif disk.files is not None and disk.files < disk.files_reserve:
        grown = {name: each.now.files - each.baseline.files for name, each in held.items()}
        total = {name: each.now.files for name, each in held.items()}
        who, what = _largest(grown, total, _MIN_GROWTH_FILES, filling=disk.filling)
        if who is not None:
            count = grown[who] if what == "grew by" else total[who]
            left = f"{disk.files} inodes left, reserve {disk.files_reserve}"
            ending[who] = Ending(
                f"its workspace {what} {count} files, most of all, and the disk is nearly full ({left})"
            )
    return ending


def _is_over(now: int, baseline: int, limit: int | None, *, grace: bool) -> bool:
    return limit is not None and now > limit and (now > baseline or not grace)


def _largest(
    grown: Mapping[SandboxId, int], total: Mapping[SandboxId, int], least: int, *, filling: bool
) -> tuple[SandboxId | None, str]:
    """The sandbox that grew most, quiet now or not; if none grew much, the largest, but only while the disk fills:
    a disk that others filled long ago must not end one sandbox after another."""
    for sizes, what in ((grown, "grew by"), (total, "holds")):
        if what == "holds" and not filling:
            break
        name = max(sizes, key=lambda each: sizes[each], default=None)
        if name is not None and sizes[name] >= least:
            return name, what
    return None, ""


@dataclass(frozen=True, slots=True)
class Watched:
    """A sandbox to be measured: its workspace, and the outermost of its processes."""

    id: SandboxId
    workspace: Path
    pid: int
    limit: int | None
    files_limit: int | None = None


class DiskWatch:
    """Remembers baselines and what was left at the last measurement. `measure` blocks and may run in any thread."""

    def __init__(self, folder: Path, reserve: int) -> None:
        self.folder, self._reserve = folder, reserve
        self.reader: tuple[str, ...] = ()  # of disk_usage
        self._used: Size | None = None
        self._measured_at = float("-inf")
        self._parked: dict[SessionId, Size] = {}
        # What a workspace held when its sandbox was claimed (nothing) or woken (measured when it was parked), and when
        # it woke; None: since the last measurement. Not what it held last time: code that writes much at once and then
        # stops would pass as having held it always.
        self._baselines: dict[SandboxId, tuple[Size, float | None]] = {}
        self._held: dict[SandboxId, int] = {}  # bytes of each workspace at the last measurement
        self._filling: set[SandboxId] = set()  # a snapshot is being unpacked into them

    def measure_parked(self, session: SessionId, workspace: Path) -> None:
        """Note what a parked workspace holds: the baseline of the sandbox that gets it. Blocks."""
        try:
            self._parked[session] = disk_usage.sizes([workspace], self.reader).get(workspace, Size())
        except OSError as error:
            logger.warning("the workspace of session %s cannot be measured: %s", session, error)

    def woken(self, sandbox: SandboxId, session: SessionId) -> None:
        """The sandbox was given that session's parked workspace."""
        self._baselines[sandbox] = self._parked.pop(session, Size()), None

    def begin_restore(self, sandbox: SandboxId) -> None:
        """From now on a snapshot fills the sandbox's workspace: nothing of that is growth."""
        self._filling.add(sandbox)

    def end_restore(self, sandbox: SandboxId, workspace: Path) -> None:
        """What the workspace holds now is the baseline. Blocks."""
        try:
            self._baselines[sandbox] = disk_usage.sizes([workspace], self.reader).get(workspace, Size()), None
        except OSError as error:
            logger.warning("the workspace of sandbox %s cannot be measured: %s", sandbox, error)
        self._filling.discard(sandbox)

    def forget_parked(self, session: SessionId) -> None:
        """That parked workspace was deleted; absent is success."""
        self._parked.pop(session, None)

    def parked_bytes(self, session: SessionId) -> int:
        """What that session's parked workspace holds, as last measured."""
        return self._parked.get(session, Size()).bytes

    def held_bytes(self, sandbox: SandboxId) -> int | None:
        """What that sandbox's workspace held at the last measurement; None: it was not there yet."""
        return self._held.get(sandbox)

    def is_known(self, session: SessionId) -> bool:
        """Whether `measure_parked` was called for that session's parked workspace, in this run."""
        return session in self._parked

    def due(self, watched: Sequence[Watched], now: float) -> bool:
        """Whether so much was taken since the last measurement that another is worth it. `now`: monotonic seconds."""
        if not watched:
            return False
        disk = os.statvfs(self.folder)
        used = _used(disk)
        if self._used is None or now - self._measured_at >= _FULL_INTERVAL_S:
            return True
        # From the lowest point since the last measurement: what others delete does not hide what a sandbox then writes.
        self._used = Size(min(self._used.bytes, used.bytes), min(self._used.files, used.files))
        least = min((each.limit for each in watched if each.limit is not None), default=_STEP_BYTES)
        files = min((each.files_limit for each in watched if each.files_limit is not None), default=_STEP_FILES)
        step = max(_MIN_STEP_BYTES, min(_STEP_BYTES, least // 8))
        if disk.f_bavail * disk.f_frsize < self._reserve:
            step = _MIN_STEP_BYTES  # 128 MiB more may be all that is left
        files_step = max(1, min(_STEP_FILES, files // 8))
        return used.bytes - self._used.bytes >= step or used.files - self._used.files >= files_step

    def measure(self, watched: Sequence[Watched], now: float) -> dict[SandboxId, Ending]:
        """Measure all; return which sandboxes to end and why. Raises OSError when the disk cannot be read."""
        before, self._measured_at = self._used, now
        sizes = disk_usage.sizes([each.workspace for each in watched], self.reader)
        disk = os.statvfs(self.folder)
        self._used = _used(disk)
        held: dict[SandboxId, Held] = {}
        for each in watched:
            if each.workspace in sizes:
                size, unlinked = sizes[each.workspace], disk_usage.unlinked(each.workspace, each.pid)
                baseline, woken_at = self._baselines.get(each.id, (Size(), float("-inf")))
                woken_at = now if woken_at is None else woken_at
                self._baselines[each.id] = baseline, woken_at
                size = Size(size.bytes + unlinked.bytes, size.files + unlinked.files)
                grace = now - woken_at < GRACE_S
                if each.id in self._filling:
                    baseline, grace = size, True
                held[each.id] = Held(baseline, size, each.limit, each.files_limit, grace=grace)
        self._held = {name: each.now.bytes for name, each in held.items()}
        # A sandbox woken since `watched` was listed is not in it yet, and its baseline must outlive this measurement.
        present = {each.id for each in watched}
        self._baselines = {name: each for name, each in self._baselines.items() if name in present or each[1] is None}
        return offenders(
            held,
            Disk(
                free=disk.f_bavail * disk.f_frsize,
                reserve=self._reserve,
                files=disk.f_favail if disk.f_files else None,
                files_reserve=int(disk.f_files * _FILES_RESERVE),
                filling=before is None or self._used.bytes > before.bytes or self._used.files > before.files,
            ),
        )

    def keep_ballast(self) -> None:
        """Hold BALLAST_BYTES of the disk while it has room, and give them up when it is full. Blocks for a moment."""
        path = self.folder / "ballast"
        disk = os.statvfs(self.folder)
        free = disk.f_bavail * disk.f_frsize
        try:
            # Given up at 4 MiB free and taken again at 64 MiB or more: nearer bounds would make it come and go.
            if free < BALLAST_BYTES // 4:
                path.unlink(missing_ok=True)
            elif free > max(4 * BALLAST_BYTES, self._reserve) and not path.exists():
                # Allocated, not only sized: a sparse file takes no room, and its deletion would free none.
                with path.open("wb") as file:
                    os.posix_fallocate(file.fileno(), 0, BALLAST_BYTES)
        except OSError as error:
            logger.warning("the ballast %s cannot be kept: %s", path, error)


async def enforce(registry: SandboxRegistry, disk: DiskWatch, clock: Clock) -> None:
    """End sandboxes that fill the disk, until cancelled. Their sessions keep their files and report the reason."""
    while True:
        await asyncio.sleep(POLL_INTERVAL_S)
        watched = [
            Watched(
                sandbox.id,
                sandbox.workspace,
                sandbox.process.pid,
                sandbox.runtime.limits.workspace_size,
                sandbox.runtime.limits.workspace_files,
            )
            for sandbox in registry.bound()
        ]
        try:
            now = clock.monotonic()
            if disk.due(watched, now):
                for name, ending in (await asyncio.to_thread(disk.measure, watched, now)).items():
                    offender = next(each for each in watched if each.id == name)
                    await _end(registry, offender, ending)
            disk.keep_ballast()
        except (OSError, TimeoutError) as error:
            logger.warning("the disk below %s cannot be watched: %s", disk.folder, error)


async def _end(registry: SandboxRegistry, offender: Watched, ending: Ending) -> None:
    # Open now: once the sandbox has ended its workspace may be moved, to be parked or woken.
    workspace = os.open(offender.workspace, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        await registry.end_for(offender.id, f"was ended: {ending.reason}")
        if ending.shrink and offender.limit is not None:
            await asyncio.to_thread(disk_usage.shrink, workspace, offender.limit)
    finally:
        os.close(workspace)


def _used(disk: os.statvfs_result) -> Size:
    return Size((disk.f_blocks - disk.f_bfree) * disk.f_frsize, disk.f_files - disk.f_ffree)


def _mb(size: int | None) -> int:
    return (size or 0) // 1_000_000
