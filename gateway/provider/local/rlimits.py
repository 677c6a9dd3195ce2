"""Resource limits of one process and its children, set from outside while it is held before its first instruction.

prlimit(2) on a held process rather than a preexec_fn: the latter makes subprocess fork with all of the gateway's
page tables and runs Python between fork and exec, which is unsafe beside threads. A process of another user is started
by prlimit(1) instead: to limit it from outside takes CAP_SYS_RESOURCE, which root does not have in most containers.
"""

from __future__ import annotations

import os
import resource

from gateway.core.model import Limits
from gateway.provider.local.cgroups import OVERHEAD_TASKS

OPEN_FILES = 4096  # above what servers and bundlers open (1024 is too few for them), far below the host's total
# The kernel grants these to a user, not to a process, and all sandboxes have one user outside: without bounds of their
# own, one could queue so many signals (timers among them) that no other may queue any.
PENDING_SIGNALS, MESSAGE_QUEUE_BYTES, LOCKED_BYTES = 2048, 256 << 10, 8 << 20

_OPTIONS = {
    resource.RLIMIT_CORE: "core",
    resource.RLIMIT_DATA: "data",
    resource.RLIMIT_FSIZE: "fsize",
    resource.RLIMIT_MEMLOCK: "memlock",
    resource.RLIMIT_MSGQUEUE: "msgqueue",
    resource.RLIMIT_NOFILE: "nofile",
    resource.RLIMIT_NPROC: "nproc",
    resource.RLIMIT_SIGPENDING: "sigpending",
}  # of prlimit(1)


def may_limit_processes(kernel_release: str, *, uid: int) -> bool:
    """Whether RLIMIT_NPROC bounds a sandbox alone (pure).

    From Linux 5.14 it counts per user namespace; before, it counted all processes of the user, so a desktop with 300
    threads could not start a sandbox allowed 256. The kernel does not hold uid 0 to it at all.
    """
    major, minor = (
        int("".join(c for c in part if c.isdigit()) or 0) for part in (kernel_release + ".0").split(".")[:2]
    )
    return uid != 0 and (major, minor) >= (5, 14)


def plan(
    limits: Limits, largest: Limits, *, memory_cgroup: bool, own_user_namespace: bool, own_user: bool = False
) -> dict[int, int]:
    """Resource -> limit (soft and hard alike) for a sandbox with these limits (pure but for the kernel's version).

    `largest`: those that it may grow to while it runs. A limit of a process cannot be raised then, without a right that
    root does not have in most containers, so it leaves room for that from the start.
    `own_user`: no other process outside has its user, and that is not root.
    """
    wanted = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: limits.file_size,
        resource.RLIMIT_NOFILE: OPEN_FILES,
        resource.RLIMIT_SIGPENDING: PENDING_SIGNALS,
        resource.RLIMIT_MSGQUEUE: MESSAGE_QUEUE_BYTES,
        resource.RLIMIT_MEMLOCK: LOCKED_BYTES,
    }
    if limits.memory is not None:
        # RLIMIT_DATA, not RLIMIT_AS: runtimes such as Go, V8 and the JVM reserve address space they never touch. It
        # counts private writable mappings, thread stacks among them (64 threads of 8 MiB: 512 MiB hardly used); so
        # beside a memory group, which counts what is really used, it is four times higher and only stops absurd
        # requests early. Without one it stops a process that allocates faster than memory_watch.py polls.
        wanted[resource.RLIMIT_DATA] = max(
            limits.memory * (4 if memory_cgroup else 1), 2 * (largest.memory or 0) if memory_cgroup else 0
        )
    processes = max(limits.processes, largest.processes)
    if own_user:
        # All processes of that user count, on every kernel: bwrap's outer one too.
        wanted[resource.RLIMIT_NPROC] = processes + OVERHEAD_TASKS + 1
    elif own_user_namespace and may_limit_processes(os.uname().release, uid=os.geteuid()):
        wanted[resource.RLIMIT_NPROC] = processes + OVERHEAD_TASKS
    return wanted


def command(limits: dict[int, int]) -> tuple[str, ...]:
    """What starts the program named behind it with these limits, soft and hard, and none above our own."""
    words = ["prlimit"]
    for which, wanted in limits.items():
        value = _within_hard(wanted, resource.getrlimit(which)[1])
        words.append(f"--{_OPTIONS[which]}={value}:{value}")
    return tuple(words)


def apply(pid: int, limits: dict[int, int]) -> None:
    """Set soft and hard limit of each resource, never above the present hard limit. Raises OSError."""
    for which, wanted in limits.items():
        _, hard = resource.prlimit(pid, which)
        value = _within_hard(wanted, hard)
        resource.prlimit(pid, which, (value, value))


def _within_hard(wanted: int, hard: int) -> int:
    return wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
