"""A walk through the workspace, one directory at a time, that code running in it cannot redirect outside.

Only the present directory is held open, so any depth is possible. Going down is an open with O_NOFOLLOW. Going up opens
`..`, which must be the directory that the walk came from (device and inode), as in fts(3): a directory that was moved
meanwhile ends the walk with an error. Archives are packed and unpacked on top of it.
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
    loosened: int | None  # the mode to restore, if it was changed


class SafeWalk:
    """A walk that is in the directory `fd`, `names` below the root. Leaving the context restores every changed mode.

    `needed` are the permissions that the work in a directory needs: READ or WRITE. They are added where its owner, the
    session's user, has removed them: a folder with mode 0 must not keep a session from hibernating.
    """

    def __init__(self, root_fd: int, needed: int) -> None:
        self._needed = needed
        self.fd = os.open(".", _FLAGS, dir_fd=root_fd)
        self.mount = mount_of(self.fd)
        self._levels: list[_Level] = []

    @property
    def names(self) -> list[bytes]:
        """The names of the directories from the root to the present one."""
        return [level.name for level in self._levels]

    @property
    def depth(self) -> int:
        """The number of levels below the root."""
        return len(self._levels)

    def enter(self, name: bytes) -> None:
        """Go down; `needed` permissions that are missing are added until `leave`, where possible. Raises OSError."""
        # Remembered before going down: `leave` compares with it what `..` leads to.
        here = os.fstat(self.fd)
        fd, loosened = _open_loosened(name, self.fd, _FLAGS, self._needed)
        mode = stat.S_IMODE(os.fstat(fd).st_mode)
        if loosened is None and mode & self._needed != self._needed:
            # It can be opened, but without the x bit no name in it can, not even `..`.
            try:
                os.fchmod(fd, mode | self._needed)
                loosened = mode
            except PermissionError:
                pass  # another user's: the bits of group or others may still allow access
        self._levels.append(_Level(name, (here.st_dev, here.st_ino), loosened))
        os.close(self.fd)
        self.fd = fd

    def leave(self, finish: Callable[[int], None] | None = None) -> None:
        """Go up, after calling `finish` with the descriptor of the directory that is left. Raises OSError ESTALE."""
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
        """Whether the present directory lies on another mount than the root."""
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
    """Open a regular file for reading; if its mode forbids that, it is changed for the length of the call.

    Raises OSError, ELOOP if a symlink has taken its place.
    """
    # Non-blocking: if a FIFO has taken its place, opening it would otherwise wait for a writer.
    fd, loosened = _open_loosened(name, dir_fd, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o400)
    if loosened is not None:
        os.fchmod(fd, loosened)
    return fd


def change_mode(name: bytes, dir_fd: int, mode: int) -> None:
    """Change the mode of a file that cannot be opened, such as a FIFO. Raises OSError."""
    path_fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        os.chmod(f"/proc/self/fd/{path_fd}", mode)
    finally:
        os.close(path_fd)


def mount_of(fd: int) -> int:
    """The id of the mount that a descriptor lies on; its device if the kernel does not report mounts."""
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
    """Remove everything below a directory except mounted volumes. Raises OSError."""
    with SafeWalk(root_fd, WRITE) as walk:
        _remove_all(walk, os.listdir(walk.fd))


def remove(name: bytes, dir_fd: int) -> None:
    """Remove a file, or a directory with everything below it except mounted volumes. Raises OSError."""
    os.stat(name, dir_fd=dir_fd, follow_symlinks=False)  # raises FileNotFoundError, which _unlink ignores
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
    """Remove a file that may be gone already. Returns False, and does nothing, if it is a directory."""
    try:
        os.unlink(name, dir_fd=dir_fd)
    except IsADirectoryError:
        return False
    except FileNotFoundError:
        pass
    return True


def _open_loosened(name: bytes, dir_fd: int, flags: int, needed: int) -> tuple[int, int | None]:
    """Open a file, adding `needed` to its mode if that is refused. Returns the mode to restore, or None.

    The mode is changed through a descriptor of this very file: by name it could be that of a symlink's target.
    """
    try:
        return os.open(name, flags, dir_fd=dir_fd), None
    except PermissionError as error:
        refused = error
    path_fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        mode = stat.S_IMODE(os.fstat(path_fd).st_mode)
        if mode & needed == needed:
            raise refused  # the mode is not the reason
        os.chmod(f"/proc/self/fd/{path_fd}", mode | needed)
        return os.open(name, flags, dir_fd=dir_fd), mode
    finally:
        os.close(path_fd)
