"""Reading the output of a process as it comes, no faster than picod can afford."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

_READ_BYTES = 64 << 10
_FULL_READ_DELAY_S = 0.002  # 32 MB/s at most, so that a forgotten `yes` costs little


class Pump:
    """Reads a pipe or a terminal until its end, as long as it is not paused; owns the descriptor."""

    def __init__(self, fd: int, take: Callable[[bytes], None], ended: Callable[[], None] = lambda: None) -> None:
        os.set_blocking(fd, False)  # ours only: a pipe's two ends are two open files, and programs expect to block
        self._fd = fd
        self._take = take
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._paused = False
        self._loop.add_reader(fd, self._turn)

    def pause(self) -> None:
        """Stop reading: once the pipe is full, its writer blocks."""
        self._paused = True
        self._halt()

    def resume(self) -> None:
        """Continue reading after `pause`, if it is paused."""
        if self._paused and self._fd >= 0:
            self._paused = False
            self._loop.add_reader(self._fd, self._turn)

    def drain(self) -> None:
        """Read what is there now, at most as much as a pipe holds."""
        room = 1 << 20  # the most that an ordinary user can enlarge a pipe to (fs.pipe-max-size); children may go on
        while room > 0 and self._fd >= 0 and (taken := self._read()):
            room -= taken

    def close(self) -> None:
        """Close the descriptor. A second call does nothing."""
        if self._fd >= 0:
            self._halt()
            os.close(self._fd)
            self._fd = -1

    def _halt(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)

    def _turn(self) -> None:
        # A full read means that more is waiting: the delay leaves the loop to other requests meanwhile.
        if self._read() == _READ_BYTES and not self._paused and self._fd >= 0:
            self._loop.remove_reader(self._fd)
            self._timer = self._loop.call_later(_FULL_READ_DELAY_S, self._again)

    def _again(self) -> None:
        self._timer = None
        self._loop.add_reader(self._fd, self._turn)

    def _read(self) -> int:
        try:
            data = os.read(self._fd, _READ_BYTES)
        except BlockingIOError:
            return 0
        except OSError:  # EIO: the last process of a terminal is gone
            data = b""
        if data:
            self._take(data)
            return len(data)
        self.close()
        self._ended()
        return 0
