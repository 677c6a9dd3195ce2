"""Workspaces and the disk below them: who fills it, and when that ends.

The file size is limited per file, and an ordinary user has no quota to give to a folder. So the provider looks at the
disk's free space, which costs nothing, and asks who took it only when much was taken. A sandbox that grows beyond its
runtime's limit ends, and so does, when the disk is nearly full, the one that grew most: else one session's files would
stop the records of all. Its session goes on in a fresh sandbox with its files, and may delete some.

Between two looks a sandbox can write more than it may (a second of writing): this bounds the damage, it is no quota.
"""

from __future__ import annotations

import asyncio
import logging
import os
import stat
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gateway.core.clock import Clock
from gateway.core.model import SandboxId
from gateway.provider.local.registry import SandboxRegistry
from gateway.provider.local.sandbox import SandboxState

logger = logging.getLogger(__name__)

POLL_INTERVAL_S = 1.0
_STEP = 128 << 20  # bytes taken of the disk that make it worth to ask by whom
_SLOW_LOOK_S = 60.0  # others may free what a sandbox takes, so that the disk does not show it
_MUCH = 64 << 20  # bytes; who grew by less is not ended for a full disk
_DU_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Held:
    """What one sandbox has on the disk. `first`: bytes when it was first looked at, `last`: at the look before."""

    first: int
    last: int
    now: int
    limit: int | None


def offenders(held: Mapping[SandboxId, Held], free: int, reserve: int) -> dict[SandboxId, str]:
    """Who is to end, and why (pure). Sizes in bytes; who does not grow any more is left alone."""
    growing = {name: each for name, each in held.items() if each.now > each.last}
    ending = {
        name: f"its workspace holds {_mb(each.now)} MB; the runtime allows {_mb(each.limit)} MB (limits.workspaceSize)"
        for name, each in growing.items()
        if each.limit is not None and each.now > each.limit
    }
    if not ending and free < reserve and growing:
        name, most = max(growing.items(), key=lambda pair: pair[1].now - pair[1].first)
        if most.now - most.first >= _MUCH:
            ending[name] = (
                f"its workspace grew by {_mb(most.now - most.first)} MB, most of all, and the disk is nearly full "
                f"({_mb(free)} MB left, reserve {_mb(reserve)} MB)"
            )
    return ending


@dataclass(frozen=True, slots=True)
class Tenant:
    """A sandbox to be looked at: its workspace, and the outermost of its processes."""

    id: SandboxId
    workspace: Path
    pid: int
    limit: int | None


class DiskWatch:
    """Remembers what was held at the looks before. Not thread-safe; `look` blocks, and may run in any thread."""

    def __init__(self, folder: Path, reserve: int) -> None:
        self.folder, self._reserve = folder, reserve
        self._used: int | None = None
        self._looked_at = float("-inf")
        self._first: dict[SandboxId, int] = {}
        self._last: dict[SandboxId, int] = {}

    def forget(self, sandbox_id: SandboxId) -> None:
        """It was given a workspace that another had: that is not growth."""
        self._first.pop(sandbox_id, None)
        self._last.pop(sandbox_id, None)

    def due(self, tenants: Sequence[Tenant], now: float) -> bool:
        """Whether so much was taken since the last look that it is worth another. `now`: monotonic seconds."""
        disk = os.statvfs(self.folder)
        used = (disk.f_blocks - disk.f_bfree) * disk.f_frsize
        least = min((each.limit for each in tenants if each.limit is not None), default=_STEP)
        step = max(1 << 20, min(_STEP, least // 8))
        if self._used is not None:
            self._used = min(self._used, used)
        return bool(tenants) and (
            self._used is None or used - self._used >= step or now - self._looked_at >= _SLOW_LOOK_S
        )

    def look(self, tenants: Sequence[Tenant], now: float) -> dict[SandboxId, str]:
        """Measure all tenants and say who is to end, and why. Raises OSError when the disk cannot be looked at."""
        self._looked_at = now
        sizes = _sizes([each.workspace for each in tenants])
        disk = os.statvfs(self.folder)
        self._used = (disk.f_blocks - disk.f_bfree) * disk.f_frsize
        held: dict[SandboxId, Held] = {}
        for each in tenants:
            if each.workspace in sizes:
                size = sizes[each.workspace] + _unlinked(each)
                first = self._first.get(each.id, size)
                held[each.id] = Held(first, self._last.get(each.id, size), size, each.limit)
        self._first = {name: each.first for name, each in held.items()}
        self._last = {name: each.now for name, each in held.items()}
        return offenders(held, disk.f_bavail * disk.f_frsize, self._reserve)


def _sizes(folders: Sequence[Path]) -> dict[Path, int]:
    """Bytes on the disk below each folder. By du(1), which is at home in trees of any depth that hostile code makes."""
    if not folders:
        return {}
    command = ["nice", "-n", "10", "du", "-skx", "--", *map(str, folders)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_DU_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise OSError(f"du took longer than {_DU_TIMEOUT_S:g} s") from error
    sizes = {}
    for line in done.stdout.decode(errors="surrogateescape").splitlines():
        size, _, folder = line.partition("\t")
        sizes[Path(folder)] = int(size) << 10
    return sizes


def _unlinked(tenant: Tenant) -> int:
    """Bytes of files that were deleted and are still open: du does not see them."""
    try:
        device = os.stat(tenant.workspace).st_dev
    except FileNotFoundError:
        return 0  # it ended meanwhile
    found: dict[int, int] = {}
    for pid in _descendants(tenant.pid):
        try:
            names = os.listdir(f"/proc/{pid}/fd")
        except OSError:
            continue
        for name in names:
            try:
                status = os.stat(f"/proc/{pid}/fd/{name}")
            except OSError:
                continue
            if status.st_dev == device and not status.st_nlink and stat.S_ISREG(status.st_mode):
                found[status.st_ino] = status.st_blocks * 512
    return sum(found.values())


def _descendants(pid: int) -> list[int]:
    found, waiting = [], [pid]
    while waiting:
        each = waiting.pop()
        found.append(each)
        try:
            for task in os.listdir(f"/proc/{each}/task"):
                with open(f"/proc/{each}/task/{task}/children") as file:
                    waiting += map(int, file.read().split())
        except OSError:
            continue  # it ended meanwhile
    return found


def _mb(size: int | None) -> int:
    return (size or 0) // 1_000_000


async def enforce(registry: SandboxRegistry, disk: DiskWatch, clock: Clock) -> None:
    """End who fills the disk, as though it had ended by itself: its session keeps its files and is told why."""
    while True:
        await asyncio.sleep(POLL_INTERVAL_S)
        tenants = [
            Tenant(sandbox.id, sandbox.workspace, sandbox.process.pid, sandbox.runtime.limits.workspace_size)
            for sandbox in registry.bound()
        ]
        try:
            now = clock.monotonic()
            if not disk.due(tenants, now):
                continue
            for name, reason in (await asyncio.to_thread(disk.look, tenants, now)).items():
                sandbox = registry.get(name)
                if sandbox is not None and sandbox.state is SandboxState.CLAIMED:
                    sandbox.end_cause = f"was ended: {reason}"
                    await sandbox.process.end()
        except (OSError, TimeoutError) as error:
            logger.warning("the disk below %s cannot be watched: %s", disk.folder, error)
