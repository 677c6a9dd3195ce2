"""One output pipe of a process that outlives single runs: read for whoever listens, held back when they are slow.

Where output.py keeps a command's whole stream, this hands on what comes. While nobody listens (between two runs a
thread or a daemon may print) a little is kept for the next listener and the rest is dropped slowly, so that what
prints is neither killed nor blocked.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Callable

_READ = 128 << 10  # bytes at once; larger buffers would be mapped and unmapped each time (syscalls.keep_heap_small)
_PIPE = 1 << 20
_LEFT = 64 << 10  # bytes kept for the next listener
_DROP_PAUSE = 0.02  # seconds between reads that drop: 3 MB/s at most

Take = Callable[[bytes], None]


class PipeReader:
    """Reads `fd` (owned from now on) until `close` or its end. On the loop's thread only."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._loop = asyncio.get_running_loop()
        self._take: Take | None = None
        self._left = b""
        self._paused = False
        self._reading = False
        self._timer: asyncio.TimerHandle | None = None
        self._watch()

    def attach(self, take: Take) -> None:
        """Hand everything to `take` from now on; first what came while nobody listened."""
        self._take = take
        self._paused = False
        left, self._left = self._left, b""
        if left:
            take(left)
        self._watch()

    def detach(self) -> None:
        """Nobody listens any more."""
        self._take = None
        self._paused = False
        self._watch()

    def pause(self) -> None:
        """Read no more for now: the pipe fills, and its writer waits."""
        self._paused = True
        self._unwatch()

    def resume(self) -> None:
        """Read again."""
        self._paused = False
        self._watch()

    def grow(self) -> None:
        """Ask for a bigger pipe: fewer turns of the loop in a flood."""
        try:
            fcntl.fcntl(self._fd, fcntl.F_SETPIPE_SZ, _PIPE)
        except OSError:
            pass  # closed, or the user's share of pipe memory is used up; the small one does

    def drain(self) -> None:
        """Take what is in the pipe now, at most what fits in."""
        if self._fd < 0:
            return
        room = fcntl.fcntl(self._fd, fcntl.F_GETPIPE_SZ)
        while room > 0 and (taken := self._read()) > 0:
            room -= taken

    def close(self) -> None:
        """Let go of the pipe. A second call does nothing."""
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
            data = os.read(self._fd, _READ)
        except BlockingIOError:
            return 0
        if not data:
            self.close()
            return 0
        if self._take is not None:
            self._take(data)
        elif len(self._left) < _LEFT:
            self._left += data[: _LEFT - len(self._left)]
        else:
            self._unwatch()
            self._timer = self._loop.call_later(_DROP_PAUSE, self._watch)
        return len(data)
