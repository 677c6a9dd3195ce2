"""The files that hold a context's state while it has no process, in the session's own workspace.

The code of the session can write there what it likes: nothing that is read here is believed, and nothing is executed.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any

FOLDER = ".wakegate/state"
_MAX_REPORT_BYTES = 1 << 20  # bytes
_MAX_UNSAVED = 500  # names in a report


@dataclass(frozen=True, slots=True)
class StateFiles:
    """Where the state of one context lies. `base` and the suffixes are userside/state.py's; bash has one file."""

    folder: str
    context_id: str

    @property
    def base(self) -> str:
        """BASE.json and BASE.pickle are a Python context's."""
        return os.path.join(self.folder, self.context_id)

    @property
    def bash(self) -> str:
        """A bash context's."""
        return f"{self.base}.bash"

    def make_folder(self) -> None:
        """So that they can be written. Raises OSError."""
        os.makedirs(self.folder, exist_ok=True)

    def drop(self) -> None:
        """Remove them; absent is success. The last one takes the folders along, when they are empty."""
        remove(f"{self.base}.json", f"{self.base}.pickle", self.bash)
        for folder in (self.folder, os.path.dirname(self.folder)):
            try:
                os.rmdir(folder)
            except OSError:
                return

    def set_aside(self) -> None:
        """Keep them under names that nothing reads back by itself; those of an earlier time are replaced."""
        for path in (f"{self.base}.json", f"{self.base}.pickle", self.bash):
            try:
                os.replace(path, f"{path}.failed")
            except OSError:
                pass

    def count(self) -> int:
        """How many variables they say that they hold; 1 for bash."""
        try:
            with open(f"{self.base}.json", "rb") as file:
                document = json.loads(file.read(_MAX_REPORT_BYTES))
            return len(document["names"]) + len(document["modules"])
        except (OSError, ValueError, RecursionError, KeyError, TypeError):
            return 1


def find(folder: str) -> dict[str, str]:
    """Context id -> language, of the states that lie there, as the names of files tell."""
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return {}
    languages = {".json": "python", ".bash": "bash"}
    parts = [os.path.splitext(name) for name in names]
    return {stem: languages[suffix] for stem, suffix in parts if suffix in languages}


def read_report(path: str, count: str) -> dict[str, Any] | None:
    """{`count`: n, "unsaved": [{"name", "reason"}]} as a context's process wrote it; None when it is none of that.

    With "stale": true where it reports that only a new process can take the state up.
    """
    try:
        with open(path, "rb") as file:
            document = json.loads(file.read(_MAX_REPORT_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(document, dict) or not isinstance(document.get(count), int):
        return None
    entries = document.get("unsaved")
    unsaved = [
        {"name": str(entry.get("name"))[:200], "reason": str(entry.get("reason"))[:300]}
        for entry in (entries if isinstance(entries, list) else [])[:_MAX_UNSAVED]
        if isinstance(entry, dict)
    ]
    report = {count: document[count], "unsaved": unsaved}
    return report | {"stale": True} if document.get("stale") else report


def remove(*paths: str) -> None:
    """Unlink files; what cannot be is left."""
    for path in paths:
        try:
            os.unlink(path)
        except OSError:
            pass
