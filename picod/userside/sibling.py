"""Fork a sibling: a child of this process's parent, with one system call. Loaded by forkserver.py, as user code.

A script must be picod's child. That takes either two forks, where the process between them ends at once, or one
clone(CLONE_PARENT). With pandas each fork copies, and each end takes down, the page tables of 11 000 pages: the second
fork costs as much as the script. os.fork has no such flag, so the system call is made here as the C library makes it,
between the calls that os.fork makes of the interpreter. Handlers of pthread_atfork, with which libraries take their
locks before a fork and release them after it, do not run. That is safe while this process has no threads but the two of
forkserver.py, as no other thread then holds a lock. A thread pool (OpenBLAS) ends at the first fork, an ordinary one.
"""

from __future__ import annotations

import _ctypes
import _thread
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from picod.userside.native import Long, native
else:
    from native import Long, native

_CLONE, _SET_ROBUST_LIST, _GET_ROBUST_LIST = 56, 273, 274  # of x86_64
_CLONE_PARENT, _CLONE_CHILD_CLEARTID, _CLONE_CHILD_SETTID = 0x8000, 0x200000, 0x1000000
_SIGCHLD = 17
_PR_GET_TID_ADDRESS = 40
_ROBUST_HEAD_BYTES = 24  # sizeof(struct robust_list_head); another size is another libc or kernel
_OUR_THREADS = 2


class _Int(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "i"


class Forks:
    """Forks siblings. Made and used in the thread that forks, whose thread id and robust list the child takes over."""

    def __init__(self) -> None:
        self._system_call, prctl = native("syscall"), native("prctl")
        self._before, self._after = native("PyOS_BeforeFork"), native("PyOS_AfterFork_Parent")
        self._begin = native("PyOS_AfterFork_Child")
        tid, robust, size = Long(), Long(), Long()
        self._possible = (
            os.uname().machine == "x86_64"
            and sys.maxsize > 1 << 32
            and prctl(_PR_GET_TID_ADDRESS, _ctypes.byref(tid)) == 0
            # glibc keeps the thread id there, which the kernel updates in the child (CHILD_SETTID); musl has a lock
            # there.
            and _Int.from_address(tid.value).value == _thread.get_native_id()
            and self._system_call(_GET_ROBUST_LIST, 0, _ctypes.byref(robust), _ctypes.byref(size)) == 0
            and size.value == _ROBUST_HEAD_BYTES
        )
        self._tid, self._robust = tid, robust

    def fork(self) -> int | None:
        """Like os.fork, but the child's parent is this process's parent. None when that is impossible: fork twice."""
        if not self._possible or len(os.listdir("/proc/self/task")) > _OUR_THREADS:
            return None
        flags = _CLONE_PARENT | _CLONE_CHILD_CLEARTID | _CLONE_CHILD_SETTID | _SIGCHLD
        self._before()
        pid: int = self._system_call(_CLONE, Long(flags), None, None, self._tid, None)
        if pid == 0:
            self._system_call(_SET_ROBUST_LIST, self._robust, Long(_ROBUST_HEAD_BYTES))
            self._begin()
            return 0
        self._after()
        if pid < 0:
            self._possible = False  # seccomp, or too many processes: os.fork reports which
            return None
        return pid
