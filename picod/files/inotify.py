"""inotify(7) through ctypes. Directories are named by descriptor: a path could be redirected meanwhile."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

MODIFY, ATTRIB, CLOSE_WRITE = 0x2, 0x4, 0x8
MOVED_FROM, MOVED_TO, CREATE, DELETE = 0x40, 0x80, 0x100, 0x200
OVERFLOW, IGNORED, IS_DIR = 0x4000, 0x8000, 0x40000000
# ONLYDIR: what was a directory may be a file by now. EXCL_UNLINK: programs go on writing to files that they have
# deleted, which no client can see.
_ONLY_DIR, _EXCLUDE_UNLINKED = 0x01000000, 0x04000000

_HEAD = struct.Struct("iIII")
_libc = ctypes.CDLL(None, use_errno=True)


class Happened(NamedTuple):
    """One event in the directory `watch`, about `name` (empty: itself). `cookie` links the two events of a move."""

    watch: int
    mask: int
    cookie: int
    name: bytes


class Inotify:
    """A queue of events. Raises OSError, EMFILE if the user has too many queues."""

    def __init__(self) -> None:
        self.fd = _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))

    def add(self, directory_fd: int, mask: int) -> int:
        """Watch a directory and return its number, the same one each time. Raises OSError, ENOSPC beyond the limit."""
        # inotify_add_watch takes a path only. Through /proc it leads to the open directory, wherever that is by now.
        path = b"/proc/self/fd/%d" % directory_fd
        return _checked(_libc.inotify_add_watch(self.fd, ctypes.c_char_p(path), mask | _ONLY_DIR | _EXCLUDE_UNLINKED))

    def remove(self, watch: int) -> None:
        """Stop watching a directory. Does nothing if it is not watched."""
        _libc.inotify_rm_watch(self.fd, watch)

    def read(self, size: int) -> Iterator[Happened]:
        """The events that are waiting, at most about `size` bytes of them."""
        try:
            data = os.read(self.fd, size)
        except BlockingIOError:
            return
        start = 0
        while start < len(data):
            watch, mask, cookie, length = _HEAD.unpack_from(data, start)
            start += _HEAD.size
            # The kernel pads names with NULs to the alignment of the next event.
            yield Happened(watch, mask, cookie, data[start : start + length].split(b"\0", 1)[0])
            start += length

    def close(self) -> None:
        """Close the queue with all its watches. A second call does nothing."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
