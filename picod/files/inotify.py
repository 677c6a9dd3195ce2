"""inotify(7) by ctypes: what happens in directories that are held by a descriptor, never by a name."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

MODIFY, ATTRIB, CLOSE_WRITE = 0x2, 0x4, 0x8
MOVED_FROM, MOVED_TO, CREATE, DELETE = 0x40, 0x80, 0x100, 0x200
OVERFLOW, IGNORED, IS_DIR = 0x4000, 0x8000, 0x40000000
_ONLY_DIR, _EXCLUDE_UNLINKED = 0x01000000, 0x04000000

_HEAD = struct.Struct("iIII")
_libc = ctypes.CDLL(None, use_errno=True)


class Happened(NamedTuple):
    """One event: in the watched directory number `watch`, to `name` (empty: to itself). `cookie` joins a move's two."""

    watch: int
    mask: int
    cookie: int
    name: bytes


class Inotify:
    """A queue of events. Raises OSError: EMFILE where the user has too many queues."""

    def __init__(self) -> None:
        self.fd = _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))

    def add(self, directory_fd: int, mask: int) -> int:
        """Watch a directory; the same one has the same number. Raises OSError: ENOSPC where the user has too many."""
        path = b"/proc/self/fd/%d" % directory_fd
        return _checked(_libc.inotify_add_watch(self.fd, ctypes.c_char_p(path), mask | _ONLY_DIR | _EXCLUDE_UNLINKED))

    def remove(self, watch: int) -> None:
        """Watch it no more; one that is gone already is none the worse."""
        _libc.inotify_rm_watch(self.fd, watch)

    def read(self, size: int) -> Iterator[Happened]:
        """What has come, about `size` bytes of it at most; nothing if there is none."""
        try:
            data = os.read(self.fd, size)
        except BlockingIOError:
            return
        start = 0
        while start < len(data):
            watch, mask, cookie, length = _HEAD.unpack_from(data, start)
            start += _HEAD.size
            yield Happened(watch, mask, cookie, data[start : start + length].split(b"\0", 1)[0])
            start += length

    def close(self) -> None:
        """Give the queue back. A second call does nothing."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
