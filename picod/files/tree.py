"""Everything below a directory, in an order that allows for pages. Blocking; manage.py runs it in a thread.

Depth first, a directory before its contents, names in the order of their bytes. So the position of a path among all
others follows from the path alone, and a page can begin after a path that has been deleted.
"""

from __future__ import annotations

import os
import stat
from typing import NamedTuple

from picod.filesystem.safe_walk import SafeWalk


class Entry(NamedTuple):
    """One file of any kind. `error` says why the inside of a directory could not be read."""

    path: bytes
    status: os.stat_result
    error: str


def walk(root_fd: int, after: list[bytes], *, limit: int, depth: int) -> list[Entry]:
    """At most `limit` entries after the path `after` (its names; none: from the beginning), `depth` levels deep.

    Symlinks are listed and never followed. What is deleted meanwhile is left out. Raises OSError, ESTALE if a
    directory is moved during the walk.
    """
    found: list[Entry] = []
    with SafeWalk(root_fd, 0) as position:
        pending = [_names(position.fd, after[:1])]
        along = [True]  # for each level, whether its directory lies on the path to `after`
        while len(found) < limit:
            if not pending[-1]:
                pending.pop()
                along.pop()
                if not pending:
                    break
                position.leave()
                continue
            # A name on the path to `after` was on an earlier page: it is entered, but not listed again.
            name, level = pending[-1].pop(), position.depth
            on_way = along[-1] and level < len(after) and name == after[level]
            path = b"/".join([*position.names, name])
            try:
                status = os.stat(name, dir_fd=position.fd, follow_symlinks=False)
                error, inside = "", None
                if stat.S_ISDIR(status.st_mode) and level + 1 < depth:
                    # Asked first: the walk adds no rights here, as listing must not change modes even for a moment.
                    if os.access(name, os.R_OK | os.X_OK, dir_fd=position.fd, effective_ids=True):
                        position.enter(name)
                        inside = _names(position.fd, after[level + 1 : level + 2] if on_way else [])
                    else:
                        error = "permission denied"
            except (FileNotFoundError, NotADirectoryError):
                continue
            if not on_way:
                found.append(Entry(path, status, error))
            if inside is not None:
                pending.append(inside)
                along.append(on_way)
    return found


def _names(fd: int, first: list[bytes]) -> list[bytes]:
    """The names in a directory from `first` on, in reverse order: the walk pops them from the end."""
    names = (os.fsencode(name) for name in os.listdir(fd))
    return sorted((name for name in names if not first or name >= first[0]), reverse=True)
