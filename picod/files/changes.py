"""Combines the file events of a short period into the fewest changes that bring a client up to date. Pure."""

from __future__ import annotations

from dataclasses import dataclass

CREATED, MODIFIED, DELETED, MOVED = "created", "modified", "deleted", "moved"


@dataclass
class Change:
    """What happened to a path. `source`: its path before a move. `modified`: its content changed as well.

    `over`: it was moved here, possibly over a file that existed before.
    """

    kind: str
    path: bytes
    is_dir: bool
    source: bytes | None = None
    modified: bool = False
    over: bool = False


class Changes:
    """The changes since the last `take`. Of two that concern one path, the table says what is kept:

    before \\ now   created    modified   deleted
    nothing        created    modified   deleted
    created        created    created    nothing; deleted if it came by a move
    modified       modified   modified   deleted
    deleted        modified   modified   deleted
    moved          moved      moved + modified   deleted, and its source too
    """

    def __init__(self) -> None:
        self._by_path: dict[bytes, Change] = {}

    def note(self, kind: str, path: bytes, *, is_dir: bool, over: bool = False) -> None:
        """Add a change that is CREATED, MODIFIED or DELETED. `over`: created by a move from an unwatched place."""
        # A deleted directory says all that there is to say of what was in it.
        if kind == DELETED and is_dir:
            for change in self._below(path):
                self._drop(change)
        before = self._by_path.get(path)
        if before is None:
            self._by_path[path] = Change(kind, path, is_dir, over=over)
        elif kind == DELETED:
            self._drop(before)
            if before.kind != CREATED or before.over:
                self._by_path[path] = Change(DELETED, path, is_dir)
        elif before.kind == DELETED:
            self._by_path[path] = Change(MODIFIED, path, is_dir)
        elif before.kind == MOVED and kind == MODIFIED:
            before.modified = True

    def move(self, source: bytes, path: bytes, *, is_dir: bool) -> None:
        """Add a move between two watched places. A file that was created and moved in one period is CREATED there."""
        replaced, before = self._by_path.get(path), self._by_path.pop(source, None)
        if replaced is not None:
            self._drop(replaced)
        if before is not None and before.kind == CREATED:
            change = Change(CREATED, path, is_dir, over=True)
        elif before is not None and before.kind == MOVED:
            change = Change(MOVED, path, is_dir, before.source, before.modified, over=True)
        else:
            modified = before is not None and before.kind == MODIFIED
            change = Change(MOVED, path, is_dir, source, modified, over=True)
        self._by_path[path] = change
        # What was at `source` before may have been overwritten by a move of this period; its path is free now.
        if before is not None and before.over:
            self._vacate(source, is_dir)
        # Changes inside a moved directory are reported where a client finds them now.
        for inside in self._below(source) if is_dir else ():
            del self._by_path[inside.path]
            inside.path = path + inside.path[len(source) :]
            self._by_path[inside.path] = inside

    def take(self) -> list[Change]:
        """Return all changes, in the order in which their paths first appeared, and start anew."""
        found = list(self._by_path.values())
        self._by_path.clear()
        return found

    def _below(self, path: bytes) -> list[Change]:
        return [change for key, change in self._by_path.items() if key.startswith(path + b"/")]

    def _drop(self, change: Change) -> None:
        """Drop a change that is not to be reported; the source of a move is still vacated."""
        del self._by_path[change.path]
        if change.source is not None:
            self._vacate(change.source, change.is_dir)

    def _vacate(self, path: bytes, is_dir: bool) -> None:
        """Record that whatever was at `path` is gone. A file created there since is reported as modified."""
        now = self._by_path.get(path)
        if now is None:
            self._by_path[path] = Change(DELETED, path, is_dir)
        elif now.kind == CREATED:
            now.kind = MODIFIED
