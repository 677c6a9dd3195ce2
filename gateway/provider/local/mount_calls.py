"""Calls into the C library for mounts and namespaces that Python 3.11 has no function for. Linux only.

Sources: open_tree(2), move_mount(2), mount_setattr(2), setns(2), unshare(2), mount(2), umount(2).
"""

from __future__ import annotations

import ctypes
import os

# The same numbers on every architecture that has the calls (Linux 5.2 and 5.12).
_SYS_OPEN_TREE, _SYS_MOVE_MOUNT, _SYS_MOUNT_SETATTR = 428, 429, 442
_AT_FDCWD, _AT_EMPTY_PATH, _AT_RECURSIVE = -100, 0x1000, 0x8000
_OPEN_TREE_CLONE, _OPEN_TREE_CLOEXEC, _MOVE_MOUNT_F_EMPTY_PATH = 1, os.O_CLOEXEC, 4
_MOUNT_ATTR_RDONLY, _MOUNT_ATTR_NOSUID, _MOUNT_ATTR_NODEV, _MOUNT_ATTR_IDMAP = 0x1, 0x2, 0x4, 0x100000
_CLONE_NEWNS, _CLONE_FS = 0x20000, 0x200
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REMOUNT, _MS_REC, _MS_SLAVE = 0x2, 0x4, 0x8, 0x20, 0x4000, 0x80000
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class _MountAttributes(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd"))


def own_mounts() -> None:
    """Give the calling thread a mount namespace of its own, into which later mounts of the machine still come.

    For a thread that does nothing else: it gets a root and working directory of its own, too. Raises OSError.
    """
    _check(_libc.unshare(_CLONE_NEWNS))
    _check(_libc.mount(None, b"/", None, ctypes.c_ulong(_MS_REC | _MS_SLAVE), None))


def mount_tmpfs(folder: str, *, mode: int, size: int) -> None:
    """An empty file system in memory, of `size` bytes, at `folder`. Raises OSError."""
    options = f"mode={mode:o},size={size}".encode()
    flags = ctypes.c_ulong(_MS_NOSUID | _MS_NODEV)
    _check(_libc.mount(b"tmpfs", folder.encode(), b"tmpfs", flags, options))


def clone_mount(source: str, target: str, *, users: int | None, writable: bool) -> None:
    """Show the file or folder `source` at `target` as well; nothing there is setuid or a device.

    With `users`, a descriptor of a user namespace, owners on the disk are ids inside of it. What is mounted below comes
    along, unless it is to be `writable`. Raises OSError, EINVAL where a file system cannot show other owners.
    """
    deep = 0 if writable else _AT_RECURSIVE
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | deep
    tree = _call(_SYS_OPEN_TREE, ctypes.c_int(_AT_FDCWD), ctypes.c_char_p(os.fsencode(source)), ctypes.c_uint(flags))
    try:
        wanted = _MOUNT_ATTR_NOSUID | _MOUNT_ATTR_NODEV | (0 if writable else _MOUNT_ATTR_RDONLY)
        wanted |= 0 if users is None else _MOUNT_ATTR_IDMAP
        attributes = _MountAttributes(wanted, 0, 0, 0 if users is None else users)
        _call(
            _SYS_MOUNT_SETATTR,
            ctypes.c_int(tree),
            ctypes.c_char_p(b""),
            ctypes.c_uint(_AT_EMPTY_PATH | deep),
            ctypes.byref(attributes),
            ctypes.c_size_t(ctypes.sizeof(attributes)),
        )
        _call(
            _SYS_MOVE_MOUNT,
            ctypes.c_int(tree),
            ctypes.c_char_p(b""),
            ctypes.c_int(_AT_FDCWD),
            ctypes.c_char_p(os.fsencode(target)),
            ctypes.c_uint(_MOVE_MOUNT_F_EMPTY_PATH),
        )
    finally:
        os.close(tree)


def limit_terminals(pidfd: int, most: int) -> None:
    """Let the devpts that a process has at /dev/pts make `most` pseudo-terminals, of the 4,096 that all share.

    Takes the right to act in that process's mount namespace, so root's; for a thread that does nothing else and ends.
    Raises OSError.
    """
    _check(_libc.unshare(_CLONE_FS))  # threads that share a root may not change their namespace
    _check(_libc.setns(pidfd, _CLONE_NEWNS))  # by a pidfd: Linux 5.8
    flags = ctypes.c_ulong(_MS_REMOUNT | _MS_NOSUID | _MS_NOEXEC)
    # What is not named is as if it had not been: bwrap's own options once more.
    options = f"max={most},mode=620,ptmxmode=666".encode()
    _check(_libc.mount(b"devpts", b"/dev/pts", b"devpts", flags, options))


def unmount(target: str) -> None:
    """Take a mount away from here; where else it is shown it stays. Raises OSError."""
    _check(_libc.umount2(os.fsencode(target), _MNT_DETACH | _UMOUNT_NOFOLLOW))


def _call(number: int, *arguments: object) -> int:
    return _check(_libc.syscall(ctypes.c_long(number), *arguments))


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
