"""Tags in the environment of every sandbox process, by which a later gateway finds and kills orphans.

A process is pinned by a pidfd first and its tag read after, so a pid that is reused in between is never signalled.
"""

from __future__ import annotations

import os
import signal

VARIABLE = "WAKEGATE_SANDBOX"


def tag(owner: str, sandbox: str) -> str:
    """The value of VARIABLE for one sandbox of the state directory named `owner` (StateDir.owner)."""
    return f"{owner}/{sandbox}"


def kill_tagged(prefix: str) -> list[int]:
    """Send SIGKILL to all processes whose tag begins with `prefix`; returns their pidfds, which the caller closes.

    Only processes whose environment this user may read are found, so those of other users are safe.
    """
    needle = f"{VARIABLE}={prefix}".encode()
    found: list[int] = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            pidfd = os.pidfd_open(int(entry))
        except OSError:
            continue  # it has ended
        try:
            with open(f"/proc/{entry}/environ", "rb") as file:
                tagged = any(variable.startswith(needle) for variable in file.read().split(b"\0"))
            if tagged:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                found.append(pidfd)
                continue
        except OSError:
            pass  # another user's process, or it has ended
        os.close(pidfd)
    return found
