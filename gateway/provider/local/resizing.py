"""Other limits for a sandbox that runs: those that a control group holds. Limits of a process are fixed at its start.

Source: the kernel's admin-guide/cgroup-v2.rst: a memory.max below what is in use has the group's processes killed, so a
sandbox is not made smaller than what it uses.
"""

from __future__ import annotations

from dataclasses import fields, replace

from gateway.core.errors import ResizeError, ResizeUnsupportedError
from gateway.core.model import Limits, Resources, Runtime
from gateway.core.units import readable_size
from gateway.provider.local import consumption
from gateway.provider.local.cgroups import Cgroup, CgroupTree
from gateway.provider.local.sandbox import LocalSandbox

_CONTROLLERS = {"cpus": "cpu", "memory": "memory", "processes": "pids"}
# Of a new limit: what a sandbox may have in use. The rest is for what it takes between the look and the write.
_ROOM = 0.9


def largest(runtime: Runtime, group: Cgroup) -> Limits:
    """The limits that a sandbox of a runtime may grow to, where its group holds them."""
    most = runtime.max_resources
    held = {field.name: _CONTROLLERS[field.name] in group.folders for field in fields(Resources)}
    return runtime.limits.resized(replace(most, **{name: None for name, is_held in held.items() if not is_held}))


def resize(sandbox: LocalSandbox, limits: Limits, groups: CgroupTree) -> None:
    """Change the limits of its control group. Raises ResizeError, and then nothing has changed."""
    before = sandbox.limits
    changed = [field.name for field in fields(Resources) if getattr(before, field.name) != getattr(limits, field.name)]
    if missing := [name for name in changed if _CONTROLLERS[name] not in sandbox.group.folders]:
        raise ResizeUnsupportedError(
            f"{', '.join(missing)}: this gateway may write no control group of that, so a sandbox keeps the size that "
            "it starts with; use a runtime of that size, or have the gateway started where control groups can be "
            "written (systemd-run --user --scope -p Delegate=yes ...)"
        )
    if "memory" in changed and limits.memory is not None:
        used = consumption.memory_bytes(sandbox.group) or 0.0
        if used > limits.memory * _ROOM:
            raise ResizeError(
                f"memory: the sandbox uses {readable_size(int(used))}, too much for {readable_size(limits.memory)}; "
                "end programs in it or delete files in /tmp, or hibernate it: it wakes with nothing in use"
            )
    try:
        groups.resize(sandbox.group, before, limits)
    except OSError as error:
        raise ResizeError(f"the control group of the sandbox does not take that: {error.strerror}") from error
    sandbox.resized = limits
