"""Many events of a moment as few changes: what a client needs to know to see what is there now. Pure."""

from __future__ import annotations

from dataclasses import dataclass

CREATED, MODIFIED, DELETED, MOVED = "created", "modified", "deleted", "moved"


@dataclass
class Change:
    """What became of a path. `source`: where it was before it moved. `modified`: and then its content changed too.

    `over`: it came by a move, perhaps over something that was there before.
    """

    kind: str
    path: bytes
    is_dir: bool
    source: bytes | None = None
    modified: bool = False
    over: bool = False


class Changes:
    """Collects until `take`.

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
        """CREATED, MODIFIED or DELETED. `over`: created by a move from a place that is not watched."""
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
        """From one watched place to another. What was made and moved in the same moment was made where it is now."""
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
        if before is not None and before.over:
            self._vacate(source, is_dir)
        for inside in self._below(source) if is_dir else ():
            del self._by_path[inside.path]
            inside.path = path + inside.path[len(source) :]
            self._by_path[inside.path] = inside

    def take(self) -> list[Change]:
        """All of them, in the order in which their paths were first heard of."""
        found = list(self._by_path.values())
        self._by_path.clear()
        return found

    def _below(self, path: bytes) -> list[Change]:
        return [change for key, change in self._by_path.items() if key.startswith(path + b"/")]

    def _drop(self, change: Change) -> None:
        """Nobody will hear of it, but what it moved is not where it was."""
        del self._by_path[change.path]
        if change.source is not None:
            self._vacate(change.source, change.is_dir)

    def _vacate(self, path: bytes, is_dir: bool) -> None:
        """What was there, or may have been, is not there any more; something new may be."""
        now = self._by_path.get(path)
        if now is None:
            self._by_path[path] = Change(DELETED, path, is_dir)
        elif now.kind == CREATED:
            now.kind = MODIFIED
