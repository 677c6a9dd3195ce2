"""Freezes the session's processes while their files are read, and thaws them afterwards.

SIGSTOP can be neither caught nor ignored, and picod, the subreaper of its sandbox, knows every process that came of a
command (processes.py). What a user stopped already stays stopped. Parents are stopped before their children and go on
after them, so that no shell with job control sees a child of its stopped and prints about it.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Collection, Sequence
from types import TracebackType
from typing import Self

from picod.commands.processes import descendants

_TIMEOUT_S = 0.5  # what does not stop by then is stuck in the kernel and writes nothing
_STOP_WAIT_S = 0.02  # for one process before the next is stopped
_STILL = b"TtZX"  # states of /proc/PID/stat: stopped, traced, dead


class Frozen:
    """A context in which no process below picod runs. Blocking (some hundred microseconds a process).

    `spared` go on: helpers that touch no file of the session (a stopped one would keep commands from starting).
    """

    def __init__(self, spared: Collection[int] = ()) -> None:
        self._spared = spared
        self._stopped: dict[int, int] = {}  # pid -> pidfd, in the order of stopping

    def __enter__(self) -> Self:
        deadline = time.monotonic() + _TIMEOUT_S
        try:
            # A pass may miss what was forked meanwhile; a pass that finds all still has missed nothing.
            while True:
                moving = [pid for pid in descendants() if pid not in self._spared and not _is_still(pid)]
                if not moving or time.monotonic() > deadline:
                    return self
                self._stop(moving)
                time.sleep(0.0002)
        except BaseException:
            self._continue()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._continue()

    def _stop(self, pids: Sequence[int]) -> None:
        for pid in pids:
            if pid not in self._stopped:
                try:
                    self._stopped[pid] = os.pidfd_open(pid)
                except ProcessLookupError:
                    continue
                except OSError:  # no pidfds here: the number must do
                    self._stopped[pid] = -1
            _signal(pid, self._stopped[pid], signal.SIGSTOP)
            # kill() returns before its target stands. A shell that still runs when its child stops sees it and says so.
            deadline = time.monotonic() + _STOP_WAIT_S
            while not _is_still(pid) and time.monotonic() < deadline:
                time.sleep(0.0001)

    def _continue(self) -> None:
        for pid, pidfd in reversed(self._stopped.items()):
            _signal(pid, pidfd, signal.SIGCONT)
            if pidfd >= 0:
                os.close(pidfd)
        self._stopped.clear()


def _signal(pid: int, pidfd: int, number: signal.Signals) -> None:
    try:
        if pidfd >= 0:
            signal.pidfd_send_signal(pidfd, number)
        else:
            os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        pass  # it ended meanwhile


def _is_still(pid: int) -> bool:
    """Whether all threads of a process stand."""
    try:
        return all(_state(pid, thread) in _STILL for thread in os.listdir(f"/proc/{pid}/task"))
    except OSError:
        return True  # gone


def _state(pid: int, thread: str) -> bytes:
    with open(f"/proc/{pid}/task/{thread}/stat", "rb", buffering=0) as file:
        return file.read(4096).rpartition(b")")[2].split()[0]
