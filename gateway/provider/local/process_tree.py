"""The processes below a sandbox's outermost one, and the files that they hold open, as /proc shows them.

Walks from parent to child: a process whose parent died is adopted by the first process of its pid namespace, so it
stays below the outermost one.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator

MAX_PROCESSES = 10_000  # looked at per sandbox; limits.processes is far below


def descendants(pid: int) -> list[int]:
    """`pid` and all processes below it, parents and elder siblings first; those that end meanwhile may be missing."""
    found, waiting = list[int](), deque([pid])
    while waiting and len(found) < MAX_PROCESSES:
        each = waiting.popleft()
        found.append(each)
        try:
            for task in os.listdir(f"/proc/{each}/task"):  # a child is listed at the thread that forked it
                with open(f"/proc/{each}/task/{task}/children") as file:
                    waiting += map(int, file.read().split())
        except OSError:
            continue  # it ended meanwhile
    return found


def open_files(pid: int) -> Iterator[os.stat_result]:
    """The status of everything that a process has open. Nothing for one that this user may not look into."""
    try:
        names = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return
    for name in names:
        try:
            yield os.stat(f"/proc/{pid}/fd/{name}")
        except OSError:
            continue  # it was closed meanwhile
