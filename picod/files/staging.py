"""Files that are written whole or not at all: to a temporary file first, which is then renamed into place.

The temporary file is in the directory of the target, if that is known, so that the rename stays on one file system. A
reader never sees half a file, and a client that leaves or a full disk leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import os
import re
import stat
from types import TracebackType
from typing import Self

from picod.compat.go_format import format_mode, format_time
from picod.filesystem.paths import PathError, Place, Workspace
from picod.filesystem.room import room
from picod.http.request import Request, RequestError, os_failure, reason_of

_BATCH_BYTES = 1 << 20  # that are collected before a thread writes them
INLINE_BYTES = 256 << 10  # that the loop writes itself: into the page cache, which takes less time than a thread switch


class Staged:
    """A temporary file in an open directory. Leaving the context without `commit` removes it."""

    def __init__(self, dir_fd: int) -> None:
        # A descriptor of its own: the caller may close the place before this file is written or removed.
        self._dir_fd = os.dup(dir_fd)
        self._name = f".wakegate-{os.urandom(8).hex()}.part"
        try:
            self._fd = os.open(
                self._name,
                os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC,
                0o600,
                dir_fd=self._dir_fd,
            )
        except OSError:
            os.close(self._dir_fd)
            raise
        self._committed = False
        self._pending = bytearray()

    def add(self, data: bytes | memoryview) -> bool:
        """Collect a piece. Returns whether it is time to `flush`."""
        self._pending += data
        return len(self._pending) >= _BATCH_BYTES

    async def flush(self) -> None:
        """Write what was collected. Raises OSError, EDQUOT while a volume is over its limit."""
        room.require()
        data, self._pending = self._pending, bytearray()
        if len(data) <= INLINE_BYTES:
            self._write(data)
        else:
            await asyncio.to_thread(self._write, data)

    def _write(self, data: bytearray) -> None:
        with memoryview(data) as view:
            done = 0
            while done < len(view):
                done += os.write(self._fd, view[done:])

    def is_near(self, place: Place) -> bool:
        """Whether `place` is on the same file system, so that a rename is enough."""
        return os.fstat(self._dir_fd).st_dev == os.fstat(place.dir_fd).st_dev

    def commit(self, place: Place, mode: int) -> os.stat_result:
        """Move the file to `place`; the mode of a file that it replaces is kept. Raises OSError."""
        # Before the rename: a reader must not find the new content under the temporary file's mode 0600.
        kept = mode_at(place)
        os.fchmod(self._fd, kept if kept is not None else mode & ~_umask())
        try:
            os.rename(self._name, place.name, src_dir_fd=self._dir_fd, dst_dir_fd=place.dir_fd)
            self._committed = True
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            return self._copy_to(place, mode)
        return os.fstat(self._fd)

    # shutil.copy is not used: it opens by name, which code in the sandbox could have replaced with a symlink.
    def _copy_to(self, place: Place, mode: int) -> os.stat_result:
        """Copy to a place on another file system (a mounted volume), where it is staged again."""
        with Staged(place.dir_fd) as nearer:
            os.lseek(self._fd, 0, os.SEEK_SET)
            while os.sendfile(nearer._fd, self._fd, None, 1 << 24):
                pass
            return nearer.commit(place, mode)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if not self._committed:
                os.unlink(self._name, dir_fd=self._dir_fd)
        except FileNotFoundError:
            pass  # the session's own code has deleted it
        finally:
            os.close(self._fd)
            os.close(self._dir_fd)


@functools.cache
def _umask() -> int:
    """The process's umask, which can only be read by setting it."""
    # Not atomic: another thread could create a file with the umask 022 in between, which is the usual one anyway.
    umask = os.umask(0o022)
    os.umask(umask)
    return umask


def mode_at(place: Place) -> int | None:
    """The mode of the file at a place, None if there is none. Raises IsADirectoryError."""
    try:
        status = place.stat()
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    return stat.S_IMODE(status.st_mode) & 0o777 if stat.S_ISREG(status.st_mode) else None


def parse_mode(text: str | None) -> int:
    """Octal permissions such as `0644` or `755`; anything else, or above 0777, is 0644 as with AgentCube."""
    if not text or not re.fullmatch(r"[0-7]{1,8}", text) or int(text, 8) > 0o777:
        return 0o644
    return int(text, 8)


def open_place(tree: Workspace, path: str) -> Place:
    """Resolve the target of an upload, creating missing parents. Raises RequestError."""
    try:
        place = tree.resolve(path, make_parents=True)
    except PathError as error:
        raise RequestError(400, str(error)) from error
    except OSError as error:
        parent = os.path.dirname(path) or "."
        raise os_failure(error, f"Failed to create directory: mkdir {parent}") from error
    try:
        mode_at(place)
    except OSError as error:
        place.close()
        raise os_failure(error, f"Failed to write file: open {path}") from error
    return place


def stage(dir_fd: int, path: str) -> Staged:
    """Create the temporary file of an upload to `path`. Raises RequestError."""
    try:
        return Staged(dir_fd)
    except OSError as error:
        raise os_failure(error, f"Failed to create destination file: open {path}") from error


async def flush(staged: Staged, path: str) -> None:
    """Write what was collected. Raises RequestError, 507 if the disk or the quota is full."""
    try:
        await staged.flush()
    except OSError as error:
        raise os_failure(error, f"Failed to save file content: write {path}") from error


async def finish(request: Request, staged: Staged, place: Place, mode: int) -> None:
    """Write the rest, move the file into place and answer. Raises RequestError."""
    await flush(staged, place.path)
    try:
        if staged.is_near(place):
            status = staged.commit(place, mode)
        else:
            status = await asyncio.to_thread(staged.commit, place, mode)
    except OSError as error:
        raise RequestError(
            os_failure(error, "").status, f"Failed to write file: open {place.path}: {reason_of(error)}"
        ) from error
    await request.answer_json(
        200,
        {
            "path": place.path,
            "size": status.st_size,
            "mode": format_mode(status.st_mode),
            "modified": format_time(status.st_mtime_ns),
        },
    )
