"""Which of a sandbox's processes the kernel kills first when memory runs out: user code's, before what keeps it alive.

Everything in a sandbox has BEFORE_ALL, so that sandboxes go before the gateway; picod and the first process of its pid
namespace get SPARED. picod raises its own value while it starts a program (picod/commands/oom_priority.py). Its /proc
is read-only, so it gets that one file, open, over a pair of sockets while the sandbox starts.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Iterable

BEFORE_ALL = 1000
SPARED = 500  # half of the limit better than BEFORE_ALL, and still before the gateway
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid


class OomPriority:
    """Of one sandbox, while it starts. Where its values cannot be set, the kernel chooses by size alone."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._first: int | None = None
        self._ours, self.theirs = socket.socketpair()
        self._ours.setblocking(False)
        self._ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._loop.add_reader(self._ours, self._answer)

    def begin(self, pid: int) -> None:
        """The first process of its pid namespace is held."""
        self._first = pid
        set_value(pid, BEFORE_ALL)  # what it starts inherits that

    def close(self) -> None:
        """Close both ends."""
        self._loop.remove_reader(self._ours)
        self._ours.close()
        self.theirs.close()

    def _answer(self) -> None:
        """picod asks, before any code of a user runs, so what it says is to be trusted."""
        self._loop.remove_reader(self._ours)
        try:
            _, ancillary, _, _ = self._ours.recvmsg(1, socket.CMSG_SPACE(_CREDENTIALS.size))
            picod = _sender(ancillary)
            if picod <= 0 or self._first is None:
                raise OSError("it asked without a pid")
            file = os.open(f"/proc/{picod}/oom_score_adj", os.O_RDWR | os.O_CLOEXEC)
            try:
                os.write(file, str(SPARED).encode())
                set_value(self._first, SPARED)
                socket.send_fds(self._ours, [b"x"], [file])
            finally:
                os.close(file)
        except OSError:
            # Not this user's to write, as some kernels and containers have it: picod goes on without.
            self._ours.close()


def set_value(pid: int, value: int) -> None:
    """Set it where this user may."""
    try:
        with open(f"/proc/{pid}/oom_score_adj", "w") as file:
            file.write(str(value))
    except OSError:
        pass  # an ordinary user's held process may belong to root in /proc for a moment; a preference, not a limit


def _sender(ancillary: Iterable[tuple[int, int, bytes]]) -> int:
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS) and len(data) >= _CREDENTIALS.size:
            return int(_CREDENTIALS.unpack_from(data)[0])
    return 0
