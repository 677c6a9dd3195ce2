"""One fork where two were: a child of our parent's. Loaded by forkserver.py, in the python3 of user code.

A script must be picod's child. That takes either two forks, of which the one between ends at once, or one
clone(CLONE_PARENT). With pandas each fork copies, and each end takes down, the page tables of 11 000 pages: the second
fork costs as much as the script. os.fork has no such flag, so here the system call is made as the C library makes it,
and the interpreter told of it as os.fork tells it. What is left out is what libraries registered with pthread_atfork:
they take their locks before a fork and give them back after it. It is left out only while this process has no threads
but the two of forkserver.py, so that no other thread holds a lock; a pool of threads (OpenBLAS) ends with the first
fork, which is an ordinary one.
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
_ROBUST_HEAD_BYTES = 24  # bytes
_OUR_THREADS = 2


class _Int(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "i"


class Forks:
    """To be made and used in the thread that forks. `fork` gives None where it is not possible: fork twice then."""

    def __init__(self) -> None:
        self._system_call, prctl = native("syscall"), native("prctl")
        self._before, self._after = native("PyOS_BeforeFork"), native("PyOS_AfterFork_Parent")
        self._begin = native("PyOS_AfterFork_Child")
        tid, robust, size = Long(), Long(), Long()
        self._possible = (
            os.uname().machine == "x86_64"
            and sys.maxsize > 1 << 32
            and prctl(_PR_GET_TID_ADDRESS, _ctypes.byref(tid)) == 0
            # glibc keeps the thread's number there, which the kernel writes anew in the child; musl a lock.
            and _Int.from_address(tid.value).value == _thread.get_native_id()
            and self._system_call(_GET_ROBUST_LIST, 0, _ctypes.byref(robust), _ctypes.byref(size)) == 0
            and size.value == _ROBUST_HEAD_BYTES
        )
        self._tid, self._robust = tid, robust

    def fork(self) -> int | None:
        """As os.fork, but our parent is the child's; None, and nothing happened, if that is not possible now."""
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
            self._possible = False  # a filter of system calls, or too many processes: the ordinary way will tell
            return None
        return pid
