"""A walk through the workspace that code running in it cannot redirect outside, one directory at a time.

Only the present directory is held open, so any depth will do. Down is an open with O_NOFOLLOW; up is `..`, and what is
found there must be the very directory we came from (device and inode), as fts(3) does it: a directory that was moved
meanwhile ends the walk with an error. Below the packing and the unpacking of snapshots.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple, Self

READ, WRITE = 0o500, 0o700

_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class _Level(NamedTuple):
    name: bytes
    above: tuple[int, int]  # device and inode of the directory it was entered from
    loosened: int | None  # the mode to give back


class SafeWalk:
    """Stands in a directory (`fd`), `names` below the root. Leaving the context gives back every mode it changed.

    `needed` are the permissions without which nothing can be done in a directory: READ, or WRITE.
    """

    def __init__(self, root_fd: int, needed: int) -> None:
        self._needed = needed
        self.fd = os.open(".", _FLAGS, dir_fd=root_fd)
        self.mount = mount_of(self.fd)
        self._levels: list[_Level] = []

    @property
    def names(self) -> list[bytes]:
        """Names of the directories from the root to here."""
        return [level.name for level in self._levels]

    @property
    def depth(self) -> int:
        """How many levels below the root."""
        return len(self._levels)

    def enter(self, name: bytes) -> None:
        """Go down. A directory of ours whose mode is in the way gets a wider one until we leave. Raises OSError."""
        here = os.fstat(self.fd)
        fd, loosened = _open_loosened(name, self.fd, _FLAGS, self._needed)
        mode = stat.S_IMODE(os.fstat(fd).st_mode)
        if loosened is None and mode & self._needed != self._needed:
            # It opens, but without the x bit no name in it does, `..` included.
            try:
                os.fchmod(fd, mode | self._needed)
                loosened = mode
            except PermissionError:
                pass  # another user's: the bits of group or others may still let us in
        self._levels.append(_Level(name, (here.st_dev, here.st_ino), loosened))
        os.close(self.fd)
        self.fd = fd

    def leave(self, finish: Callable[[int], None] | None = None) -> None:
        """Go up. `finish` is called with the descriptor of the directory that is left, last. Raises OSError ESTALE."""
        level = self._levels[-1]
        above = os.open("..", _FLAGS, dir_fd=self.fd)
        try:
            found = os.fstat(above)
            if (found.st_dev, found.st_ino) != level.above:
                raise OSError(errno.ESTALE, "a directory was moved while it was being read or written")
            if level.loosened is not None:
                os.fchmod(self.fd, level.loosened)
            if finish is not None:
                finish(self.fd)
        except BaseException:
            os.close(above)
            raise
        os.close(self.fd)
        self.fd = above
        self._levels.pop()

    def is_mount(self) -> bool:
        """Whether something else than the root's file system is mounted here."""
        return mount_of(self.fd) != self.mount

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            while self._levels:
                self.leave()
        except OSError:
            if error is None:
                raise
        finally:
            os.close(self.fd)


def open_file(name: bytes, dir_fd: int) -> int:
    """Open a regular file for reading; one of ours that may not be read is made readable for the moment.

    Raises OSError: ELOOP for a symlink that took its place.
    """
    # Non-blocking: a pipe that took its place would else wait for a writer.
    fd, loosened = _open_loosened(name, dir_fd, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o400)
    if loosened is not None:
        os.fchmod(fd, loosened)
    return fd


def change_mode(name: bytes, dir_fd: int, mode: int) -> None:
    """Change the mode of what cannot be opened, a pipe. Raises OSError."""
    path_fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        os.chmod(f"/proc/self/fd/{path_fd}", mode)
    finally:
        os.close(path_fd)


def mount_of(fd: int) -> int:
    """Which mount a descriptor lies on; its device where the kernel does not tell mounts."""
    try:
        with open(f"/proc/self/fdinfo/{fd}", "rb", buffering=0) as file:
            for line in file.read(4096).splitlines():
                if line.startswith(b"mnt_id:"):
                    return int(line[7:])
    except OSError:
        pass
    return os.fstat(fd).st_dev


def is_empty(root_fd: int) -> bool:
    """Whether a directory holds nothing but mounted volumes. Raises OSError."""
    with SafeWalk(root_fd, READ) as walk:
        return all(_is_mounted(walk, os.fsencode(name)) for name in os.listdir(walk.fd))


def clear(root_fd: int) -> None:
    """Remove all below a directory, mounted volumes excepted. Raises OSError."""
    with SafeWalk(root_fd, WRITE) as walk:
        _remove_all(walk, os.listdir(walk.fd))


def remove(name: bytes, dir_fd: int) -> None:
    """Remove a file, or a directory with all below it, mounted volumes excepted. Raises OSError."""
    os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    with SafeWalk(dir_fd, WRITE) as walk:
        _remove_all(walk, [os.fsdecode(name)])


def _remove_all(walk: SafeWalk, names: list[str]) -> None:
    pending = [names]
    while True:
        if pending[-1]:
            name = os.fsencode(pending[-1].pop())
            if _unlink(name, walk.fd) or _is_mounted(walk, name):
                continue
            walk.enter(name)
            pending.append(os.listdir(walk.fd))
        elif walk.depth:
            name = walk.names[-1]
            walk.leave()
            pending.pop()
            os.rmdir(name, dir_fd=walk.fd)
        else:
            return


def _is_mounted(walk: SafeWalk, name: bytes) -> bool:
    try:
        fd = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=walk.fd)
    except OSError:
        return False
    try:
        return mount_of(fd) != walk.mount
    finally:
        os.close(fd)


def _unlink(name: bytes, dir_fd: int) -> bool:
    """False if it is a directory."""
    try:
        os.unlink(name, dir_fd=dir_fd)
    except IsADirectoryError:
        return False
    except FileNotFoundError:
        pass
    return True


def _open_loosened(name: bytes, dir_fd: int, flags: int, needed: int) -> tuple[int, int | None]:
    """Open; if permission is missing, add `needed` to the mode first. Returns the mode to give back, or None.

    The mode is changed through a descriptor that stands for this very file: by name it could hit a symlink's target.
    """
    try:
        return os.open(name, flags, dir_fd=dir_fd), None
    except PermissionError as error:
        refused = error
    path_fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        mode = stat.S_IMODE(os.fstat(path_fd).st_mode)
        if mode & needed == needed:
            raise refused  # it is not the mode that stands in the way
        os.chmod(f"/proc/self/fd/{path_fd}", mode | needed)
        return os.open(name, flags, dir_fd=dir_fd), mode
    finally:
        os.close(path_fd)
