"""Files in the workspace with the whole output of a run, of which the answer has room for a part only."""

from __future__ import annotations

import os

from picod.filesystem.paths import Workspace

OUTPUT_FOLDER = ".wakegate/output"
_MAX_FILES = 16  # the oldest is deleted when one more is made


def open_output_file(workspace: Workspace, path: str, max_kept: int) -> int:
    """Create the file for one stream, after deleting the oldest such files. Raises OSError, PathError."""
    # Listed and deleted by descriptor: code may put a link in the folder's place, and picod must not follow it.
    with workspace.resolve(path, make_parents=True) as place:
        folder = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=place.dir_fd)
        try:
            with os.scandir(folder) as entries:
                found = [(entry.stat(follow_symlinks=False), entry.name) for entry in entries]
            for name in _outdated([(status.st_mtime_ns, status.st_size, name) for status, name in found], max_kept):
                os.unlink(name, dir_fd=folder)
        finally:
            os.close(folder)
        return place.open(os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)


def _outdated(files: list[tuple[int, int, str]], max_kept: int) -> list[str]:
    """Which (mtime, size, name) must go before one more comes: the newest few stay, `max_kept` bytes at most."""
    kept = 0
    for index, (_, size, _) in enumerate(sorted(files, reverse=True)):
        kept += size
        if kept > max_kept or index >= _MAX_FILES - 1:
            return [name for _, _, name in sorted(files, reverse=True)[index:]]
    return []
