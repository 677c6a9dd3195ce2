"""Freezes the session's processes while their files are read, and thaws them afterwards.

SIGSTOP can be neither caught nor ignored, and picod, the subreaper of its sandbox, finds every process that a command
started (processes.py). The freezer of control groups would be one write, but a sandbox cannot reach its own group.
Processes that the user has stopped stay stopped. Parents are stopped before their children and continued after them:
otherwise a shell with job control would notice that its child is stopped, and print it.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Collection, Sequence
from types import TracebackType
from typing import Self

from picod.commands.processes import descendants

_TIMEOUT_S = 0.5  # a process that has not stopped by then is stuck in the kernel and writes nothing
_STOPPED_STATES = b"TtZX"  # in /proc/PID/stat: stopped, traced, zombie, dead
_STUCK_STATES = b"D"  # in a system call that no signal ends
_STUCK_TIMEOUT_S = 0.02  # for a process in such a state, most of which are left within a millisecond


class Frozen:
    """A context in which no process below picod runs. Blocking, for some hundred microseconds per process.

    `spared` keep running: helpers that touch no file of the session (a stopped one would block new commands).
    """

    def __init__(self, spared: Collection[int] = ()) -> None:
        self._spared = spared
        self._stopped: dict[int, int] = {}  # pid -> pidfd, in the order of stopping

    def __enter__(self) -> Self:
        deadline = time.monotonic() + _TIMEOUT_S
        try:
            # A pass may miss what was forked meanwhile; a pass that finds everything stopped has missed nothing.
            while True:
                running = [pid for pid in descendants() if pid not in self._spared and not _is_stopped(pid)]
                if not running or time.monotonic() > deadline:
                    return self
                self._stop(running, deadline)
                time.sleep(0.0002)
        except BaseException:
            self._continue()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._continue()

    def _stop(self, pids: Sequence[int], deadline: float) -> None:
        for pid in pids:
            if pid not in self._stopped:
                try:
                    self._stopped[pid] = os.pidfd_open(pid)
                except ProcessLookupError:
                    continue
                except OSError:  # no pidfds here: the pid may have been reused, but there is nothing better
                    self._stopped[pid] = -1
            _signal(pid, self._stopped[pid], signal.SIGSTOP)
            # kill() returns before its target has stopped: it has to run for that, which takes 20 ms and more where
            # many want to. A shell that still runs when its child stops reports that.
            patience = time.monotonic() + _STUCK_TIMEOUT_S
            while (now := time.monotonic()) < deadline and not _is_stopped(pid):
                if now > patience and _is_stopped(pid, or_in=_STUCK_STATES):
                    break
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


def _is_stopped(pid: int, *, or_in: bytes = b"") -> bool:
    """Whether all threads of a process are stopped, or in one of those states, or it has ended."""
    try:
        return all(_state(pid, thread) in _STOPPED_STATES + or_in for thread in os.listdir(f"/proc/{pid}/task"))
    except OSError:
        return True  # gone


def _state(pid: int, thread: str) -> bytes:
    with open(f"/proc/{pid}/task/{thread}/stat", "rb", buffering=0) as file:
        return file.read(4096).rpartition(b")")[2].split()[0]
