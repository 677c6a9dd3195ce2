"""Moves an unpacked archive into its target: all of it, or nothing if a file exists already. Blocking.

Directories that both sides have are merged; everything else is renamed, whole trees at once. Symlinks are moved and
never followed: one where the archive has a directory is a conflict.
"""

from __future__ import annotations

import errno
import os
import stat

from picod.filesystem import syscalls
from picod.filesystem.safe_walk import change_mode

_MAX_DEPTH = 200  # of directories that both sides have; each level holds two descriptors
_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class ConflictError(Exception):
    """A file exists already. The message is its path."""


def merge(staged_fd: int, target_fd: int, *, overwrite: bool) -> None:
    """Move everything in one directory into another. `overwrite` lets a file replace a file, never a directory.

    Raises ConflictError before anything is moved, and OSError.
    """
    # Two passes: the first one only looks for conflicts. A file that appears between them still is an error, because
    # the rename replaces nothing; only then is a part moved already.
    _pass(staged_fd, target_fd, b"", overwrite=overwrite, act=False, depth=0)
    _pass(staged_fd, target_fd, b"", overwrite=overwrite, act=True, depth=0)


def _pass(staged_fd: int, target_fd: int, prefix: bytes, *, overwrite: bool, act: bool, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    # Sorted, so that of several conflicts the same one is reported each time.
    for name in sorted(os.fsencode(name) for name in os.listdir(staged_fd)):
        ours = os.stat(name, dir_fd=staged_fd, follow_symlinks=False)
        theirs = _stat(name, target_fd)
        if theirs is None:
            if act:
                _move(name, staged_fd, target_fd, ours, replace=False)
        elif stat.S_ISDIR(ours.st_mode) and stat.S_ISDIR(theirs.st_mode):
            if stat.S_IMODE(ours.st_mode) & 0o700 != 0o700:
                change_mode(name, staged_fd, 0o700)  # this copy of the directory is emptied and removed
            with _Opened(name, staged_fd) as inner, _Opened(name, target_fd) as there:
                _pass(inner, there, prefix + name + b"/", overwrite=overwrite, act=act, depth=depth + 1)
        elif not overwrite or stat.S_ISDIR(ours.st_mode) or stat.S_ISDIR(theirs.st_mode):
            raise ConflictError((prefix + name).decode("utf-8", "replace"))
        elif act:
            _move(name, staged_fd, target_fd, ours, replace=True)


def _move(name: bytes, staged_fd: int, target_fd: int, status: os.stat_result, *, replace: bool) -> None:
    mode = stat.S_IMODE(status.st_mode)
    locked = stat.S_ISDIR(status.st_mode) and not mode & 0o200
    if locked:
        change_mode(name, staged_fd, mode | 0o200)  # moving a directory changes its `..`, which needs write permission
    if replace:
        os.rename(name, name, src_dir_fd=staged_fd, dst_dir_fd=target_fd)
    else:
        syscalls.rename_new(name, staged_fd, name, target_fd)  # RENAME_NOREPLACE: the check and the move are one step
    if locked:
        change_mode(name, target_fd, mode)


def _stat(name: bytes, dir_fd: int) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return None


class _Opened:
    """A context that holds a directory open."""

    def __init__(self, name: bytes, dir_fd: int) -> None:
        self._fd = os.open(name, _FLAGS, dir_fd=dir_fd)

    def __enter__(self) -> int:
        return self._fd

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)
