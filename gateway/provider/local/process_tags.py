"""Finding processes that an earlier life left behind: each of ours carries a mark in its environment.

A process is pinned by a pidfd first and its mark read after, so a pid that was given to somebody else in between is
never hit.
"""

from __future__ import annotations

import os
import signal

NAME = "WAKEGATE_SANDBOX"


def mark(owner: str, sandbox: str) -> str:
    """The value of the variable NAME for one sandbox of the state directory `owner` (Folders.owner)."""
    return f"{owner}/{sandbox}"


def kill_marked(prefix: str) -> list[int]:
    """SIGKILL to all processes whose mark begins with `prefix`; returns their pidfds, which the caller closes.

    Only processes that we may look into are found, so those of other users are safe.
    """
    needle = f"{NAME}={prefix}".encode()
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
                marked = any(variable.startswith(needle) for variable in file.read().split(b"\0"))
            if marked:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                found.append(pidfd)
                continue
        except OSError:
            pass  # not ours to read, or it has ended
        os.close(pidfd)
    return found
