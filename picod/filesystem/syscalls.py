"""Calls into the C library that Python has no function for: openat2(2), renameat2(2), prctl(2), mallopt(3)."""

from __future__ import annotations

import ctypes
import errno
import os
import sys

# How openat2 resolves a path, from linux/openat2.h.
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_BENEATH = 0x08

_SYS_OPENAT2 = 437  # the same number on every architecture that has the call
_RENAME_NOREPLACE = 1
_PR_SET_DUMPABLE = 4
_PR_SET_CHILD_SUBREAPER = 36
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def openat2(dir_fd: int, path: bytes, flags: int, resolve: int) -> int:
    """Open `path` below `dir_fd` under the given RESOLVE_* rules; the descriptor is closed on exec.

    Raises OSError, ENOSYS if the kernel (before 5.6, or gVisor) does not have the call.
    """
    if sys.platform != "linux":
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    how = _OpenHow(flags | os.O_CLOEXEC, 0, resolve)
    fd: int = _libc.syscall(
        ctypes.c_long(_SYS_OPENAT2),
        ctypes.c_int(dir_fd),
        ctypes.c_char_p(path),
        ctypes.byref(how),
        ctypes.c_size_t(ctypes.sizeof(how)),
    )
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return fd


def rename_new(old: bytes, old_dir: int, new: bytes, new_dir: int) -> None:
    """Rename without replacing anything, atomically: renameat2(2) with RENAME_NOREPLACE.

    If the kernel or the file system does not have that, stat and rename instead, which a file created in between can
    defeat. Raises FileExistsError, OSError.
    """
    renameat2 = getattr(_libc, "renameat2", None)
    number = errno.ENOSYS
    if renameat2 is not None:
        if renameat2(old_dir, ctypes.c_char_p(old), new_dir, ctypes.c_char_p(new), _RENAME_NOREPLACE) == 0:
            return
        number = ctypes.get_errno()
    if number not in (errno.ENOSYS, errno.EINVAL):
        raise OSError(number, os.strerror(number))
    try:
        os.stat(new, dir_fd=new_dir, follow_symlinks=False)
    except FileNotFoundError:
        os.rename(old, new, src_dir_fd=old_dir, dst_dir_fd=new_dir)
    else:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))


def become_subreaper() -> None:
    """Make orphaned descendants children of this process: picod finds and reaps daemons. Does nothing off Linux."""
    if sys.platform == "linux":
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def deny_inspection() -> None:
    """Make this process undumpable, so that others of its user cannot trace it or read its memory and descriptors.

    User code runs as the same user; without this it could take the listener with pidfd_getfd(2) and read a token from
    /proc/PID/mem. Programs that picod executes are dumpable again. Does nothing off Linux.
    """
    if sys.platform == "linux":
        _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def keep_heap_small() -> None:
    """Return large buffers to the system when they are freed.

    glibc raises its mmap threshold to the size of each large block that is freed (up to 32 MiB) and then keeps such
    blocks: after one answer of 10 MB a sandbox would keep that memory. Setting the threshold disables this. Two arenas
    are enough for one loop and a few file threads.
    """
    mallopt = getattr(_libc, "mallopt", None)
    if mallopt is not None:  # musl has none, nor a threshold that grows
        mallopt(_M_MMAP_THRESHOLD, 256 << 10)
        mallopt(_M_TRIM_THRESHOLD, 512 << 10)
        mallopt(_M_ARENA_MAX, 2)
