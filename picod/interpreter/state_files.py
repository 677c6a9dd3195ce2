"""The files that hold a context's state while it has no process, in the session's own workspace.

The session's code can write anything there, so everything that is read here is checked and bounded, and nothing is
executed.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any

FOLDER = ".wakegate/state"
_MAX_REPORT_BYTES = 1 << 20
_MAX_UNSAVED = 500  # names in a report


@dataclass(frozen=True, slots=True)
class StateFiles:
    """Paths of one context's saved state: two files of userside/state.py for Python, one for bash."""

    folder: str
    context_id: str

    @property
    def base(self) -> str:
        """Path without suffix: BASE.json and BASE.pickle hold a Python context."""
        return os.path.join(self.folder, self.context_id)

    @property
    def bash(self) -> str:
        """Path of the file that holds a bash context."""
        return f"{self.base}.bash"

    def make_folder(self) -> None:
        """Create the folder of the files. Raises OSError."""
        os.makedirs(self.folder, exist_ok=True)

    def drop(self) -> None:
        """Remove the files, which may be absent, and then their folders if those are empty."""
        remove(f"{self.base}.json", f"{self.base}.pickle", self.bash)
        # rmdir fails for a folder that is not empty, which is the test: others may have their files there.
        for folder in (self.folder, os.path.dirname(self.folder)):
            try:
                os.rmdir(folder)
            except OSError:
                return

    def set_aside(self) -> None:
        """Rename the files to NAME.failed, which nothing loads by itself; replaces earlier ones."""
        for path in (f"{self.base}.json", f"{self.base}.pickle", self.bash):
            try:
                os.replace(path, f"{path}.failed")
            except OSError:
                pass

    def count(self) -> int:
        """Number of variables according to BASE.json; 1 for bash."""
        try:
            with open(f"{self.base}.json", "rb") as file:
                document = json.loads(file.read(_MAX_REPORT_BYTES))
            return len(document["names"]) + len(document["modules"])
        except (OSError, ValueError, RecursionError, KeyError, TypeError):
            return 1


def find(folder: str) -> dict[str, str]:
    """Saved states in a folder, as context id -> language, from the names of the files."""
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return {}
    languages = {".json": "python", ".bash": "bash"}
    parts = [os.path.splitext(name) for name in names]
    return {stem: languages[suffix] for stem, suffix in parts if suffix in languages}


def read_report(path: str, count: str) -> dict[str, Any] | None:
    """{`count`: n, "unsaved": [{"name", "reason"}]} as a context's process wrote it; None when it is malformed.

    Has "stale": true when the process reports that only a new process can load the state.
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
    """Unlink files, ignoring those that are absent or cannot be removed."""
    for path in paths:
        try:
            os.unlink(path)
        except OSError:
            pass
