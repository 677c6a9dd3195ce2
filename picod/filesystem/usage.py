"""The disk space below a folder, and the files in it that grew lately. Blocking; one stat for each file."""

from __future__ import annotations

import heapq
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field

from picod.filesystem.safe_walk import READ, SafeWalk

_MAX_GROWN = 256  # files that are remembered; the largest ones
_MAX_LINKED = 100_000  # files with several names that are told apart; further ones count once for each name
_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass
class Usage:
    """Allocated bytes, and the largest files that changed since a given moment, the largest first, with their sizes."""

    size: int = 0
    grown: list[tuple[int, tuple[bytes, ...]]] = field(default_factory=list)


def measure(root_fd: int, since_ns: int) -> Usage:
    """Measure a folder and all below it on the same mount. `since_ns`: epoch nanoseconds. Raises OSError."""
    usage = Usage()
    seen: set[tuple[int, int]] = set()
    with SafeWalk(root_fd, READ) as walk:
        pending = [os.listdir(walk.fd)]
        while pending:
            if not pending[-1]:
                pending.pop()
                if pending:
                    walk.leave()
                continue
            name = os.fsencode(pending[-1].pop())
            try:
                status = os.stat(name, dir_fd=walk.fd, follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    walk.enter(name)
                    mounted = walk.is_mount()
                    pending.append([] if mounted else os.listdir(walk.fd))
                    if mounted:
                        continue
            except FileNotFoundError:
                continue  # deleted since its directory was read
            if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode) and len(seen) < _MAX_LINKED:
                if (status.st_dev, status.st_ino) in seen:
                    continue
                seen.add((status.st_dev, status.st_ino))
            size = status.st_blocks * 512
            usage.size += size
            if stat.S_ISREG(status.st_mode) and status.st_ctime_ns > since_ns:
                heapq.heappush(usage.grown, (size, (*walk.names, name)))
                if len(usage.grown) > _MAX_GROWN:
                    heapq.heappop(usage.grown)
    usage.grown.sort(reverse=True)
    return usage


def remove_file(root_fd: int, names: Sequence[bytes]) -> None:
    """Remove the file at these names below a folder; no name on the way may be a symlink. Raises OSError."""
    fd = os.dup(root_fd)
    try:
        for name in names[:-1]:
            below = os.open(name, _FOLDER, dir_fd=fd)
            os.close(fd)
            fd = below
        os.unlink(names[-1], dir_fd=fd)
    finally:
        os.close(fd)
