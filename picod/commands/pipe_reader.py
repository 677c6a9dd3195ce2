"""One output pipe of a process that outlives single runs, read for the present listener at the listener's pace.

Where output.py keeps a command's whole stream, this passes it on as it comes. Without a listener (between two runs a
thread or a daemon may print) the first 64 KiB are kept for the next one and the rest is read slowly and dropped, so
that the process is neither killed by SIGPIPE nor blocked.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Callable

_READ_BYTES = 128 << 10  # at once; larger buffers would be mapped and unmapped each time (syscalls.keep_heap_small)
_PIPE_BYTES = 1 << 20
_KEPT_BYTES = 64 << 10  # for the next listener
_DROP_INTERVAL_S = 0.02  # between reads that drop: 3 MB/s at most

Take = Callable[[bytes], None]


class PipeReader:
    """Reads `fd` (owned from now on) until `close` or its end. On the loop's thread only."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._loop = asyncio.get_running_loop()
        self._take: Take | None = None
        self._kept = b""
        self._paused = False
        self._reading = False
        self._timer: asyncio.TimerHandle | None = None
        self._watch()

    def attach(self, take: Take) -> None:
        """Pass everything to `take` from now on, first what was kept while there was no listener."""
        self._take = take
        self._paused = False
        left, self._kept = self._kept, b""  # what a thread printed between two runs
        if left:
            take(left)
        self._watch()

    def detach(self) -> None:
        """Remove the listener; later output is read and dropped."""
        self._take = None
        self._paused = False
        self._watch()

    def pause(self) -> None:
        """Stop reading: once the pipe is full, its writer blocks."""
        self._paused = True
        self._unwatch()

    def resume(self) -> None:
        """Continue reading after `pause`."""
        self._paused = False
        self._watch()

    def grow(self) -> None:
        """Ask for a bigger pipe: fewer turns of the loop in a flood."""
        try:
            fcntl.fcntl(self._fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        except OSError:
            pass  # closed, or the user's share of pipe memory is used up: the pipe keeps its size

    def drain(self) -> None:
        """Read what is in the pipe now, at most its capacity: a child may go on writing for ever."""
        if self._fd < 0:
            return
        room = fcntl.fcntl(self._fd, fcntl.F_GETPIPE_SZ)
        while room > 0 and (taken := self._read()) > 0:
            room -= taken

    def close(self) -> None:
        """Close the pipe. A second call does nothing."""
        self._unwatch()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _watch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._fd >= 0 and not self._reading and not self._paused:
            self._loop.add_reader(self._fd, self._read)
            self._reading = True

    def _unwatch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._reading:
            self._loop.remove_reader(self._fd)
            self._reading = False

    def _read(self) -> int:
        try:
            data = os.read(self._fd, _READ_BYTES)
        except BlockingIOError:
            return 0
        if not data:
            self.close()
            return 0
        if self._take is not None:
            self._take(data)
        elif len(self._kept) < _KEPT_BYTES:
            self._kept += data[: _KEPT_BYTES - len(self._kept)]
        else:
            self._unwatch()
            self._timer = self._loop.call_later(_DROP_INTERVAL_S, self._watch)
        return len(data)
