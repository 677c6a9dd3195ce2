"""Limits that the kernel counts per user namespace, set in a sandbox's own before its code runs.

The sandboxes of a gateway have one user outside. What the kernel grants to a user (128 inotify instances, most often)
one sandbox could take, and file watchers would fail in all others. Each level of user namespaces has limits of its
own, counted beside those above: written into the sandbox's namespace, they are a bound for it alone.

They are written by a second bwrap that enters the namespace: the right to (CAP_SYS_RESOURCE there) does not survive an
exec after setns(2), which rules out nsenter(1). About 15 ms, while the sandbox is held.
Source: the kernel's admin-guide/sysctl/user.rst; user_namespaces(7).
"""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from gateway.provider.local.descriptors import Descriptors, read_to_end
from gateway.provider.local.mount_stage import AsUser

# An editor's or a bundler's watcher takes one instance, and a watch for each folder of its tree.
INOTIFY_INSTANCES, INOTIFY_WATCHES = 16, 16_384
LIMITS: Mapping[str, int] = {
    "max_inotify_instances": INOTIFY_INSTANCES,
    "max_inotify_watches": INOTIFY_WATCHES,
}
# Where bwrap cannot turn them off (two users, sandbox_users.py): no user namespaces inside.
_NO_NESTED = {"max_user_namespaces": 0}
_TIMEOUT_S = 10.0
_POLL_S = 0.001  # bwrap takes less from making a namespace to mapping its users


def may_be_set(bwrap: Path) -> bool:
    """Whether this kernel and bwrap can do it: tried in a namespace made for that. Blocks for some 15 ms."""
    command = _command(bwrap, ["--unshare-user"])
    try:
        done = subprocess.run(command, capture_output=True, env={}, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


async def apply(bwrap: Path, pid: int, as_user: AsUser | None = None) -> None:
    """Set LIMITS in the user namespace of process `pid`, with the rights of the user who made it. Raises OSError."""
    namespace = await _enterable(pid)
    words, inherited = ((), ()) if as_user is None else (as_user.words, (as_user.namespace,))
    limits = {**LIMITS, **(_NO_NESTED if as_user is not None and as_user.maps else {})}
    with Descriptors() as fds:
        fds.add(namespace)
        errors, errors_write = fds.pipe()
        # Not asyncio's: it forks, and copying the page tables of a gateway holds the loop for 20 ms. This one is vfork.
        writer = subprocess.Popen(  # noqa: ASYNC220
            [*words, *_command(bwrap, ["--userns", str(namespace)], limits)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors_write,
            env={},
            pass_fds=(namespace, *inherited),
        )
        fds.close(errors_write)
        try:
            errors_text = await read_to_end(errors)
        except BaseException:
            writer.kill()
            raise
        finally:
            status = writer.wait()  # no time: its end of the pipe is closed, or it was killed
    if status:
        detail = errors_text.decode(errors="replace").strip()
        raise OSError(f"the limits of its user namespace cannot be set: {detail or f'status {status}'}")


def _is_mapped(pid: int) -> bool:
    return all(Path(f"/proc/{pid}/{name}").read_bytes() for name in ("uid_map", "gid_map"))


async def _enterable(pid: int) -> int:
    """A descriptor of its user namespace, or of the one above. Raises OSError after _TIMEOUT_S."""
    for _ in range(round(_TIMEOUT_S / _POLL_S)):
        # bwrap makes a second namespace inside the first while this one is looked at. Until a namespace has a map of
        # users its files have no owner, and nothing can be mounted in it. The map is read after the namespace was
        # opened, so it is that of this namespace or of one inside it; in the other order it could be an older one's.
        namespace = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        try:
            if _is_mapped(pid):
                return namespace
        except OSError:
            os.close(namespace)
            raise
        os.close(namespace)
        await asyncio.sleep(_POLL_S)
    raise OSError("its user namespace got no map of users")


def _command(bwrap: Path, namespace: Sequence[str], limits: Mapping[str, int] = LIMITS) -> list[str]:
    # /proc/sys/user shows each reader the limits of its own user namespace: the host's /proc serves, once inside.
    writes = " && ".join(f"echo {value} > /proc/sys/user/{name}" for name, value in limits.items())
    flags = ["--die-with-parent", "--dev-bind", "/", "/", "--cap-add", "CAP_SYS_RESOURCE"]
    return [str(bwrap), *namespace, *flags, "--", "/bin/sh", "-c", writes]
