"""How many pseudo-terminals one sandbox may have: the kernel grants some number (kernel.pty.max) to all together.

A single process takes them all in a second, and then neither a terminal nor a `docker exec` opens on the whole machine.
Each sandbox has a devpts of its own, which takes a limit when it is mounted; bwrap has no option for it, so it is
mounted anew from outside once the sandbox is up. That takes root: an ordinary user's gateway would need another process
for each sandbox (30 ms), which enters both of its namespaces. Source: the kernel's filesystems/devpts.rst.
"""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor

from gateway.provider.local import mount_calls

MOST = 256  # of 4,096 on most machines; expect, tmux and test runners take a few dozen


def may_be_set() -> bool:
    """Whether this gateway has a right to act in its sandboxes' namespaces."""
    return os.geteuid() == 0


async def apply(pidfd: int) -> None:
    """Set the limit for the devpts at /dev/pts of the process. Raises OSError."""
    # A thread for this alone: it stays in the sandbox's mount namespace until it ends.
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="terminals") as thread:
        await asyncio.get_running_loop().run_in_executor(thread, mount_calls.limit_terminals, pidfd, MOST)
