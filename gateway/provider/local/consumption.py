"""What a sandbox has used, for usage metering: CPU time of its control group or else its processes, and memory.

Sources: the kernel's admin-guide/cgroup-v2.rst (cpu.stat, memory.current), cgroup-v1/{cpuacct,memory}.rst, and
proc_pid_stat(5), whose cutime and cstime hold the time of children that have ended and were waited for.
"""

from __future__ import annotations

import os
from pathlib import Path

from gateway.provider.local import process_tree
from gateway.provider.local.cgroups import Cgroup

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def cpu_s(group: Cgroup, pid: int) -> float:
    """Seconds of CPU since the sandbox started; 0 if it has ended and had no group. `pid`: its outermost process."""
    folder = group.folders.get("cpu")
    if folder is not None:
        # Version 1 has a cpu.stat too, without usage_usec: there the time is in cpuacct, which is mounted with cpu.
        used = _number(folder / "cpu.stat", "usage_usec")
        if used is not None:
            return used / 1e6
        used = _number(folder / "cpuacct.usage")
        if used is not None:
            return used / 1e9
    return sum(map(_process_cpu_s, process_tree.descendants(pid)))


def memory_bytes(group: Cgroup) -> float | None:
    """Bytes in use now, as its group has them; None without one.

    Less the file pages that the kernel would drop first, as Kubernetes counts it.
    """
    folder = group.folders.get("memory")
    if folder is not None:
        for name, inactive in (("memory.current", "inactive_file"), ("memory.usage_in_bytes", "total_inactive_file")):
            used = _number(folder / name)
            if used is not None:
                return max(0.0, used - (_number(folder / "memory.stat", inactive) or 0.0))
    return None


def processes(pid: int) -> int:
    """How many processes the sandbox has, picod among them. `pid`: its outermost process, which is not counted."""
    return max(0, len(process_tree.descendants(pid)) - 1)  # bubblewrap, outside of the pid namespace


def _number(path: Path, key: str = "") -> float | None:
    """The number in a file of the kernel, or that behind `key` in one with a key per line."""
    try:
        for line in path.read_text().splitlines():
            name, _, value = line.rpartition(" ")
            if name == key:
                return float(value)
    except (OSError, ValueError):
        pass  # another version's, or it ended meanwhile
    return None


def _process_cpu_s(pid: int) -> float:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0.0  # it ended meanwhile
    fields = stat.rpartition(")")[2].split()  # from the third on: the second is a name, with any characters
    return sum(map(int, fields[11:15])) / _TICKS_PER_S  # utime, stime, cutime, cstime: the 14th to the 17th
