"""Memory of whole sandboxes where no control group limits it: measured from /proc, with a killer for those over it.

An ordinary user without a delegated control group has resource limits only, which count one process at a time and know
nothing of shared memory. So the machine's available memory, which costs one small read, is polled often, and the
sandboxes are measured when enough of it was taken. A sandbox's memory is the sum of

- the proportional set size (PSS) of its processes: anonymous, shared and file pages, each page shared by n counted 1/n;
- files on its /tmp and /dev/shm, which are kept in memory;
- MAX_SOCKET_BYTES for each socket beyond FREE_SOCKETS: the kernel buffers as much for one whose peer does not read.

Memory that belongs to no process and no mount is not measured but refused by the filter of system calls (seccomp.py):
memfd_create, and System V segments of more than a few pages.
Of a sandbox over its limit the largest processes of user code are killed, as the kernel's OOM killer does. It ends only
where they do not hold as much as must be freed, or where killing them did not help.
Between two polls a sandbox can take more than its limit; rlimits.py bounds what one process can.

Sources: proc_pid_smaps_rollup(5), the kernel's filesystems/proc.rst (MemAvailable), socket(7) (wmem_default).
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from gateway.core.clock import Clock
from gateway.core.model import SandboxId
from gateway.provider.local import process_tree
from gateway.provider.local.registry import SandboxRegistry

logger = logging.getLogger(__name__)

POLL_INTERVAL_S = 0.2
FULL_INTERVAL_S = 5.0  # memory that others free hides what a sandbox takes
FREE_SOCKETS = 64  # the connections of an ordinary program, most of whose buffers are empty
OWN_PROCESSES = 2  # of a sandbox: bwrap, and picod, the first process of its pid namespace
MAX_SOCKET_BYTES = 208 << 10  # net.core.wmem_default
_MAX_STEP_BYTES = 64 << 20
_MIN_STEP_BYTES = 4 << 20
# What is taken anew faster than it is measured would be over the limit for as long as there are processes.
_MAX_ROUNDS = 3
_TMPFS = ("tmp", "dev/shm")


@dataclass(frozen=True, slots=True)
class Usage:
    """Bytes of one sandbox, by what holds them."""

    processes: Mapping[int, int]  # pid -> PSS, the processes of user code
    files: int  # on its tmpfs mounts
    sockets: int  # how many
    own: int = 0  # PSS of bwrap and picod
    anonymous: Mapping[int, int] = field(default_factory=dict)  # pid -> of its PSS, what its end frees

    @property
    def total(self) -> int:
        """All bytes that count towards the limit."""
        sockets = max(0, self.sockets - FREE_SOCKETS) * MAX_SOCKET_BYTES
        return sum(self.processes.values()) + self.own + self.files + sockets


@dataclass(frozen=True, slots=True)
class Watched:
    """A sandbox to measure: its outermost process and its limit in bytes."""

    id: SandboxId
    pid: int
    limit: int


@dataclass(frozen=True, slots=True)
class Excess:
    """A sandbox over its limit. `victims`: the processes whose end suffices, the largest first; none: it ends."""

    reason: str
    victims: Sequence[int]


def over_limit(usages: Mapping[SandboxId, Usage], limits: Mapping[SandboxId, int]) -> dict[SandboxId, Excess]:
    """The sandboxes over their limits and what to kill (pure)."""
    found = {}
    for name, usage in usages.items():
        excess = usage.total - limits[name]
        if excess > 0:
            reason = f"out of memory: it uses {usage.total >> 20} MiB, its limit is {limits[name] >> 20} MiB"
            found[name] = Excess(reason, _victims(usage, excess))
    return found


def _victims(usage: Usage, excess: int) -> Sequence[int]:
    """The largest process if it holds `excess` bytes, else the fewest that together do; none: it is not up to them."""
    largest, size = max(usage.processes.items(), key=lambda pair: pair[1], default=(0, 0))
    if size >= excess:
        return [largest]
    victims = []
    # Of several only anonymous memory is sure to be freed. Pages of a mapping that they share stay for as long as one
    # process has it, and those that only ended ones have touched are in nobody's PSS.
    for pid, held in sorted(usage.anonymous.items(), key=lambda pair: pair[1], reverse=True):
        victims.append(pid)
        excess -= held
        if excess <= 0:
            return victims
    return ()


class MemoryWatch:
    """Decides when to measure. Not thread-safe; `measure` blocks and may run in any thread."""

    def __init__(self) -> None:
        self._available: int | None = None
        self._measured_at = float("-inf")
        # How many measurements in a row have killed several processes of a sandbox.
        self._rounds: dict[SandboxId, int] = {}

    def due(self, watched: Sequence[Watched], available: int, now: float) -> bool:
        """Whether enough memory was taken since the last measurement. `available`: bytes; `now`: monotonic seconds."""
        if not watched:
            return False
        if self._rounds:
            return True  # to see whether that has helped
        # An eighth of the smallest limit: a sandbox is noticed before it is far over.
        step = max(_MIN_STEP_BYTES, min(_MAX_STEP_BYTES, min(each.limit for each in watched) // 8))
        if self._available is not None:
            # From the highest point since the last measurement, so that what others free does not hide growth.
            self._available = max(self._available, available)
        return (
            self._available is None or self._available - available >= step or now - self._measured_at >= FULL_INTERVAL_S
        )

    def measure(self, watched: Sequence[Watched], now: float) -> dict[SandboxId, str]:
        """Measure all; kill what suffices, and return which sandboxes to end and why. Raises OSError without /proc."""
        self._measured_at = now
        self._available = available_memory()
        usages = {each.id: measure(each.pid) for each in watched}
        over = over_limit(usages, {each.id: each.limit for each in watched})
        ending: dict[SandboxId, str] = {}
        rounds: dict[SandboxId, int] = {}
        for each in watched:
            if (excess := over.get(each.id)) is None:
                continue
            several = len(excess.victims) > 1
            if not excess.victims or (several and self._rounds.get(each.id, 0) >= _MAX_ROUNDS):
                ending[each.id] = excess.reason
                continue
            logger.info("sandbox %s is %s; %d of its processes are killed", each.id, excess.reason, len(excess.victims))
            _kill(excess.victims, each.pid)
            if several:
                rounds[each.id] = self._rounds.get(each.id, 0) + 1
        self._rounds = rounds
        return ending


async def enforce(registry: SandboxRegistry, clock: Clock) -> None:
    """Hold all sandboxes to their memory limits, until cancelled. The workspace of one that ends is kept."""
    watch = MemoryWatch()
    while True:
        await asyncio.sleep(POLL_INTERVAL_S)
        watched = [
            Watched(sandbox.id, sandbox.process.pid, sandbox.runtime.limits.memory)
            for sandbox in registry.bound()
            if sandbox.runtime.limits.memory is not None
        ]
        try:
            now = clock.monotonic()
            if not watch.due(watched, available_memory(), now):
                continue
            for name, reason in (await asyncio.to_thread(watch.measure, watched, now)).items():
                await registry.end_for(name, f"was ended: {reason}")
        except (OSError, TimeoutError) as error:
            logger.warning("the memory of sandboxes cannot be watched: %s", error)


def available_memory() -> int:
    """Bytes that can be taken before this machine swaps or kills (MemAvailable). Raises OSError."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) << 10
    raise OSError("/proc/meminfo has no MemAvailable")


def measure(pid: int) -> Usage:
    """The memory of the sandbox whose outermost process is `pid`. What ends meanwhile counts nothing."""
    processes = process_tree.descendants(pid)
    host_root = os.stat("/")
    files: dict[int, int] = {}  # device -> bytes used
    sockets = set[int]()
    for each in processes:
        sockets.update(status.st_ino for status in process_tree.open_files(each) if stat.S_ISSOCK(status.st_mode))
        if len(files) < len(_TMPFS):
            files |= _tmpfs(each, host_root)
    sizes = {each: _pss(each) for each in processes}
    # Parents come first, so the first two are ours. They count, but are no victims: the sandbox would end anyway.
    own = sum(sizes.pop(each, (0, 0))[0] for each in processes[:OWN_PROCESSES])
    total = {each: size for each, (size, _) in sizes.items()}
    anonymous = {each: size for each, (_, size) in sizes.items()}
    return Usage(total, sum(files.values()), len(sockets), own, anonymous)


def _kill(victims: Sequence[int], sandbox: int) -> None:
    """End processes of the sandbox whose outermost process is `sandbox`."""
    pinned: dict[int, int] = {}
    try:
        for victim in victims:
            with suppress(OSError):  # it ended meanwhile
                pinned[victim] = os.pidfd_open(victim)
        # Pinned first and looked for after, so that a pid that is reused in between is not hit.
        for each in pinned.keys() & set(process_tree.descendants(sandbox)):
            with suppress(OSError):
                signal.pidfd_send_signal(pinned[each], signal.SIGKILL)
    finally:
        for pidfd in pinned.values():
            os.close(pidfd)


def _pss(pid: int) -> tuple[int, int]:
    """Bytes of a process, and how many of them are anonymous (0 before Linux 5.4)."""
    found = {"Pss:": 0, "Pss_Anon:": 0}
    try:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            for line in file:
                name, _, rest = line.partition(" ")
                if name in found:
                    found[name] = int(rest.split()[0]) << 10
    except OSError:
        pass  # it ended meanwhile, or has no memory of its own any more
    return found["Pss:"], found["Pss_Anon:"]


def _tmpfs(pid: int, host_root: os.stat_result) -> dict[int, int]:
    """Bytes used of the sandbox's memory file systems, by device; none for a process that sees the host's root."""
    used = {}
    try:
        if os.path.samestat(os.stat(f"/proc/{pid}/root"), host_root):
            return {}
        for name in _TMPFS:
            path = f"/proc/{pid}/root/{name}"
            disk = os.statvfs(path)
            used[os.stat(path).st_dev] = (disk.f_blocks - disk.f_bfree) * disk.f_frsize
    except OSError:
        pass  # it ended meanwhile
    return used
