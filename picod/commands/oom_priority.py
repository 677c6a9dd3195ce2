"""Which processes the kernel kills first when a sandbox runs out of memory: what user code started, before picod.

A child inherits its parent's /proc/PID/oom_score_adj. So picod has the highest value while it starts one, and its own
for the rest of the time: no process of user code ever runs with picod's, however fast it forks. Rejected: writing the
child's file once it has started, which what it forks in its first microseconds escapes, and which a read-only /proc, as
in local sandboxes, does not allow. There the gateway opens picod's file and hands it in.

A value adds thousandths of the limit to the size by which the kernel chooses (proc_pid_oom_score_adj(5)): with half of
the limit between the two, picod is killed first only where it uses more than that half by itself.

What remains: for the millisecond of a start picod has the highest value too, and then size decides. Where processes
that are all smaller than picod (20 MB) fill the memory and go on living, the next start may still cost the sandbox.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

_FIRST = b"1000"  # the highest that there is
_ANSWER_TIMEOUT_S = 5.0
_MAX_VALUE_BYTES = 16


class OomPriority:
    """picod's own value, and the one that what it starts inherits. Without a file it does nothing."""

    def __init__(self) -> None:
        self._fd: int | None = None
        self._own = b""

    def open(self) -> bool:
        """Take this process's own file, if this /proc lets it. To be called before it becomes undumpable."""
        try:
            fd = os.open("/proc/self/oom_score_adj", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False
        self._use(fd)
        return True

    def receive(self, fd: int) -> None:
        """Get the file from the gateway over the unix socket `fd`, before any code of a user runs. Never fails."""
        with socket.socket(fileno=fd) as gateway:
            gateway.settimeout(_ANSWER_TIMEOUT_S)
            try:
                gateway.send(b"x")  # the kernel adds the pid that this process has outside
                _, fds, _, _ = socket.recv_fds(gateway, 1, 1)
            except OSError:
                return
        for each in fds:
            os.set_inheritable(each, False)
            self._use(each)

    @contextmanager
    def first_to_go(self) -> Iterator[None]:
        """What is started within is killed before this process. For the thread that starts processes only."""
        self._write(_FIRST)
        try:
            yield
        finally:
            self._write(self._own)

    def _use(self, fd: int) -> None:
        try:
            self._own = os.pread(fd, _MAX_VALUE_BYTES, 0).strip()
        except OSError:
            os.close(fd)
            return
        self._fd = fd

    def _write(self, value: bytes) -> None:
        if self._fd is not None:
            try:
                os.pwrite(self._fd, value, 0)
            except OSError:
                pass  # a preference, not a limit
