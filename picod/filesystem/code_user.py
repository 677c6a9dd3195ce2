"""The user of the code that a sandbox runs, where that is not picod's own.

The local engine starts picod as user code's user, with the right to change users, in a user namespace that has two.
`become_apart` makes picod the other one (root of that namespace) before any code runs. Code can then neither signal
picod nor look into it, whatever a program of picod's user could.

The kernel keeps users per thread, so two things need no second process. Files: the thread's file system user is user
code's, which all threads that are made later inherit; what picod makes belongs to user code, and picod may do with
files what user code may. Commands: the loop's thread takes user code's user for the moment in which it starts one. A
child that vforks has it from the beginning, and subprocess keeps its fast way, which it gives up for `user=` (1.5 ms).

In that moment code may signal the thread and change its priority. As the first process of its pid namespace picod is
not killed or stopped by signals from within, and it handles none that would end it.

Source: credentials(7), capabilities(7), pid_namespaces(7), prctl(2); kill_ok_by_cred and commit_creds of the kernel.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from types import TracebackType

_OURS = 0
_SYS_SETRESUID, _SYS_SETFSUID, _SYS_CAPSET = {"x86_64": (117, 122, 126), "aarch64": (147, 151, 91)}.get(
    platform.machine(), (-1, -1, -1)
)
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_CAPBSET_DROP, _PR_SET_SECUREBITS, _PR_CAP_AMBIENT = 1, 4, 24, 28, 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
# SECBIT_NOROOT, SECBIT_NO_SETUID_FIXUP and their locks: user 0 here is a user like others, whose rights are those that
# it has, and which keeps them when it changes users.
_SECUREBITS = 0b1111
# CAP_KILL; CAP_SETUID; CAP_SYS_RESOURCE, to read and to set the marks of processes (commands/processes.py).
_KEPT = (5, 7, 24)
_CAPABILITY_VERSION_3 = 0x20080522
_SIGKILL = 9

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class _CodeUser:
    """A context in which this thread is user code; it does nothing while picod is not apart. Not reentrant."""

    __slots__ = ("uid",)

    def __init__(self) -> None:
        self.uid: int | None = None

    def __enter__(self) -> None:
        if self.uid is not None:
            # Its saved user stays ours until it executes something: what else code may do to processes of its user
            # (limits, tracing) takes all three to be its own.
            _set_user(self.uid, saved=_OURS)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.uid is not None:
            _set_user(_OURS, saved=_OURS)
            _stay_hidden(self.uid)


code_user = _CodeUser()


def become_apart(uid: int) -> None:
    """Be another user than `uid`, user code's, from now on. Before threads and user code. Raises OSError."""
    # The system call and not the C library's function, which changes all threads, by signals.
    _check(_libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0))
    _check(_libc.prctl(_PR_SET_SECUREBITS, _SECUREBITS, 0, 0, 0))
    for capability in (*_KEPT, 8):  # of what picod executes; the last is CAP_SETPCAP, which allows this
        _check(_libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0))
    kept = sum(1 << capability for capability in _KEPT)
    header = struct.pack("Ii", _CAPABILITY_VERSION_3, 0)
    _check(_libc.syscall(_SYS_CAPSET, header, struct.pack("6I", kept, kept, 0, 0, 0, 0)))
    _set_user(_OURS, saved=_OURS)
    _stay_hidden(uid)
    code_user.uid = uid


def _set_user(uid: int, *, saved: int) -> None:
    _check(_libc.syscall(_SYS_SETRESUID, uid, uid, saved))


def _stay_hidden(uid: int) -> None:
    """What the kernel forgets when a process changes users: its file system user, and the signal at its parent's end.

    It also makes the process dumpable as fs.suid_dumpable says, which the engine has looked at (never 1 here).
    """
    _libc.syscall(_SYS_SETFSUID, uid)
    _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    _libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)


def _check(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
