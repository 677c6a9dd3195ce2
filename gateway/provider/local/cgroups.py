"""Control groups: memory, process count and CPU of a whole sandbox, where this machine allows it.

Below the gateway's own group (so that an outer limit, a container's say, still holds) is one group per gateway,
`wakegate-<owner>`, and in it one per sandbox. Version 1 has a tree per controller, version 2 one for all.
Sources: the kernel's admin-guide/cgroup-v1/{memory,pids}.rst, scheduler/sched-bwc.rst and admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from gateway.core.model import Limits

logger = logging.getLogger(__name__)

CONTROLLERS = ("memory", "pids", "cpu")
CPU_PERIOD_US = 100_000  # microseconds, the kernel's default
LEAF = "wakegate-gateway"  # our own group in version 2, beside those of sandboxes
OVERHEAD_TASKS = 1  # picod itself; a runtime's `processes` is what user code may have


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """Where groups of one controller may be created."""

    version: int  # 1 or 2
    parent: Path


def survey(mountinfo: str, membership: str) -> dict[str, Hierarchy]:
    """Which controllers exist and where our own group of each is (pure).

    `mountinfo` is the text of /proc/self/mountinfo, `membership` of /proc/self/cgroup. A controller that version 1
    does not mount is looked for in version 2; whether it can be written is for `CgroupTree` to find out.
    """
    own: dict[str, str] = {}  # controller -> path; "" is version 2
    for line in membership.splitlines():
        _, names, path = line.split(":", 2)
        own.update(dict.fromkeys(names.split(","), path))
    found: dict[str, Hierarchy] = {}
    unified: Hierarchy | None = None
    for line in mountinfo.splitlines():
        # e.g. `36 35 0:31 /docker/ab /sys/fs/cgroup/memory rw master:1 - cgroup cgroup rw,memory`. The number of fields
        # before the dash varies, so the second half is split off first; version 1 names its controllers in the last
        # field.
        before, _, after = line.partition(" - ")
        fields, tail = before.split(), after.split()
        root, mountpoint, kind, options = fields[3], Path(fields[4]), tail[0], tail[-1].split(",")
        if kind == "cgroup2":
            group = _below(mountpoint, root, own.get("", "/"))
            # We stepped down there ourselves (_delegate), in an earlier run or for another gateway of this process.
            unified = Hierarchy(2, group.parent if group.name == LEAF else group)
        elif kind == "cgroup":
            for name in CONTROLLERS:
                if name in options:
                    found[name] = Hierarchy(1, _below(mountpoint, root, own.get(name, "/")))
    if unified:
        # Hybrid systems mount both. A controller is in one of them only, and where version 1 has it version 2 does not.
        for name in CONTROLLERS:
            found.setdefault(name, unified)
    return found


class CgroupTree:
    """This gateway's groups. `in_force` maps each usable controller to `cgroup v1` or `cgroup v2`."""

    def __init__(self, owner: str, hierarchies: Mapping[str, Hierarchy]) -> None:
        self._name = f"wakegate-{owner}"
        self._bases: dict[str, Path] = {}
        self.in_force: dict[str, str] = {}
        for controller, hierarchy in hierarchies.items():
            base = hierarchy.parent / self._name
            try:
                if hierarchy.version == 2:
                    _delegate(hierarchy.parent, controller)
                base.mkdir(exist_ok=True)
                if hierarchy.version == 2:
                    _write(base / "cgroup.subtree_control", f"+{controller}")
            except OSError as error:
                # Not a warning: the others may still be usable, and the isolation report names each limit's state.
                logger.debug("no %s groups below %s: %s", controller, hierarchy.parent, error)
                continue
            self._bases[controller] = base
            self.in_force[controller] = f"cgroup v{hierarchy.version}"

    @classmethod
    def open(cls, owner: str) -> CgroupTree:
        """The tree on this machine, with whatever controllers can be written."""
        try:
            mountinfo, membership = Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text()
        except OSError:
            return cls(owner, {})
        return cls(owner, survey(mountinfo, membership))

    def make(self, name: str, limits: Limits) -> Cgroup:
        """Create a group per controller and set its limits. Raises OSError."""
        group = Cgroup({controller: base / name for controller, base in self._bases.items()})
        try:
            for controller, folder in group.folders.items():
                folder.mkdir(exist_ok=True)  # in version 2 the folder of the controller before it
                _limit(controller, folder, limits, v2=self.in_force[controller].endswith("2"))
        except OSError:
            group.remove()
            raise
        return group

    def resize(self, group: Cgroup, before: Limits, after: Limits) -> None:
        """Give a group that is in use other limits. After an OSError it has those of before."""
        done: list[str] = []
        try:
            for controller, folder in group.folders.items():
                done.append(controller)
                self._change(controller, folder, before, after)
        except OSError:
            for controller in reversed(done):
                try:
                    self._change(controller, group.folders[controller], after, before)
                except OSError as error:
                    logger.warning("%s: limit of %s: %s", group.folders[controller], controller, error)
            raise

    def _change(self, controller: str, folder: Path, before: Limits, after: Limits) -> None:
        v2 = self.in_force[controller].endswith("2")
        swap = folder / "memory.memsw.limit_in_bytes"
        grows = after.memory is None or after.memory > (before.memory or 0)
        if controller == "memory" and not v2 and grows and swap.exists():
            # Version 1 refuses a limit of memory above that of memory and swap: for one that grows, that comes first.
            _write(swap, "-1" if after.memory is None else str(after.memory))
        _limit(controller, folder, after, v2=v2)
        if controller == "memory" and after.memory is None:
            _write(folder / ("memory.max" if v2 else "memory.limit_in_bytes"), "max" if v2 else "-1")
        elif controller == "cpu" and after.cpus is None:
            _write(folder / ("cpu.max" if v2 else "cpu.cfs_quota_us"), f"max {CPU_PERIOD_US}" if v2 else "-1")

    @property
    def bases(self) -> list[str]:
        """The gateway's group in each hierarchy; for `sweep` in a later run, whose own group may be elsewhere."""
        return sorted({str(base) for base in self._bases.values()})

    def close(self) -> None:
        """Remove the gateway's group, unless it still holds sandboxes."""
        Cgroup(self._bases).remove()


@dataclass(frozen=True, slots=True)
class Cgroup:
    """One sandbox's group: a folder per controller (the same folder for all in version 2)."""

    folders: Mapping[str, Path]

    def join(self, pid: int) -> None:
        """Move a process in; its later children follow. Raises OSError."""
        for folder in set(self.folders.values()):
            _write(folder / "cgroup.procs", str(pid))

    def oom_kills(self) -> int:
        """How many processes the kernel killed for going over the memory limit."""
        folder = self.folders.get("memory")
        if folder is None:
            return 0
        for name in ("memory.events", "memory.oom_control"):  # version 2, version 1
            try:
                lines = (folder / name).read_text().splitlines()
            except OSError:
                continue
            for line in lines:
                key, _, value = line.partition(" ")
                if key == "oom_kill":
                    return int(value)
        return 0

    def pids(self) -> set[int]:
        """Processes in it, as this pid namespace numbers them."""
        found: set[int] = set()
        for folder in set(self.folders.values()):
            try:
                found.update(int(pid) for pid in (folder / "cgroup.procs").read_text().split())
            except OSError:
                continue
        return found - {0}  # 0: a process of another pid namespace

    def kill(self) -> list[int]:
        """SIGKILL to every process in it; returns their pidfds, which the caller closes.

        The group is read again once a process is pinned: a pid that is still in it is a process of this sandbox.
        """
        # cgroup.kill would do all of this in one write, but version 1 and kernels before 5.14 do not have it.
        pinned: dict[int, int] = {}
        for pid in self.pids():
            try:
                pinned[pid] = os.pidfd_open(pid)
            except OSError:
                pass  # it ended meanwhile
        inside = self.pids()
        for pid, pidfd in pinned.items():
            if pid in inside:
                try:
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                except OSError:
                    pass  # it ended meanwhile
        return list(pinned.values())

    def remove(self) -> bool:
        """Delete the group. False: a process in it has not gone yet; try again later."""
        gone = True
        for folder in set(self.folders.values()):
            try:
                folder.rmdir()
            except FileNotFoundError:
                pass
            except OSError:
                gone = False
        return gone


def sweep(bases: Iterable[str]) -> list[Cgroup]:
    """The groups of sandboxes below these groups of a gateway's (CgroupTree.bases), and those themselves, last."""
    found = [Cgroup({"": child}) for base in bases for child in sorted(Path(base).glob("sb-*"))]
    return found + [Cgroup({"": Path(base)}) for base in bases]


def _below(mountpoint: Path, root: str, path: str) -> Path:
    """The folder of group `path` in a hierarchy of which the part below `root` is mounted at `mountpoint`."""
    if root != "/" and (path == root or path.startswith(root + "/")):
        path = path[len(root) :]
    folder = mountpoint / path.lstrip("/")
    return folder if folder.is_dir() else mountpoint  # in a container the path may be the outer machine's


def _delegate(parent: Path, controller: str) -> None:
    """Make `controller` available to the children of `parent` (version 2). Raises OSError.

    A version 2 group (the root excepted) cannot both hold processes and hand controllers down. When we are the only
    process of our group, as in a systemd scope with Delegate=yes, we step down into a leaf of it first.
    """
    if controller not in (parent / "cgroup.controllers").read_text().split():
        raise OSError(f"{controller} is not available in {parent}")
    if controller in (parent / "cgroup.subtree_control").read_text().split():
        return
    if (parent / "cgroup.procs").read_text().split() == [str(os.getpid())]:
        leaf = parent / LEAF
        leaf.mkdir(exist_ok=True)
        _write(leaf / "cgroup.procs", str(os.getpid()))
    _write(parent / "cgroup.subtree_control", f"+{controller}")


def _limit(controller: str, folder: Path, limits: Limits, *, v2: bool) -> None:
    if controller == "memory" and limits.memory is not None:
        _write(folder / ("memory.max" if v2 else "memory.limit_in_bytes"), str(limits.memory))
        # Without these a sandbox would swap instead of meeting its limit. Kernels without swap accounting lack them.
        # After the limit: version 1 counts memory and swap together, and refuses a sum below the limit of memory.
        swap = ("memory.swap.max", "0") if v2 else ("memory.memsw.limit_in_bytes", str(limits.memory))
        if (folder / swap[0]).exists():
            _write(folder / swap[0], swap[1])
    elif controller == "pids":
        _write(folder / "pids.max", str(limits.processes + OVERHEAD_TASKS))
    elif controller == "cpu" and limits.cpus is not None:
        quota = max(1_000, int(limits.cpus * CPU_PERIOD_US))  # the kernel refuses less than 1 ms
        if v2:
            _write(folder / "cpu.max", f"{quota} {CPU_PERIOD_US}")
        else:
            _write(folder / "cpu.cfs_period_us", str(CPU_PERIOD_US))
            _write(folder / "cpu.cfs_quota_us", str(quota))


def _write(path: Path, text: str) -> None:
    # One write without O_CREAT or O_TRUNC: what the kernel's files expect.
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
