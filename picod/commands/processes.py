"""Starts the processes of a sandbox, reaps them, and kills whole trees of them, daemons included.

picod is a child subreaper: a daemon that a command leaves behind becomes picod's child, is reaped by it and can be
found. To know whose it was, each command starts with a private value in its soft RLIMIT_RTTIME, a limit that only
real-time scheduling heeds. It is inherited over fork, exec and setsid, and programs have no reason to change it. A
variable in the environment would be visible to programs and lost with `env -i`; a control group of each command needs
rights that picod does not have. A tree is then: the process group, everything with the mark, and everything below the
command by parent.

This module is the only one that starts or reaps processes: reaping takes any child (orphans too), so a second reaper
such as asyncio's own would lose exit codes to it.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import resource
import signal
import subprocess
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from picod.commands.oom_priority import OomPriority
from picod.filesystem import syscalls
from picod.filesystem.code_user import code_user

_MARK_BASE = 1 << 56
_KILL_TIMEOUT_S = 5.0  # until what cannot be killed (stuck in the kernel) is left alone


@dataclass(eq=False)
class Child:
    """A started command. `exited` gives its exit code, negative for a signal."""

    pid: int
    mark: int | None
    exited: asyncio.Future[int]
    popen: subprocess.Popen[bytes] | None = field(repr=False, default=None)  # None: adopted


class _Process(NamedTuple):
    pid: int
    parent: int
    group: int
    mark: int


class Children:
    """The child processes of one picod, commands and adopted orphans."""

    def __init__(self) -> None:
        self.quiet: set[int] = set()
        """Pids of picod's own helpers: they run no user code and touch no file of the session, so a snapshot need not
        freeze them."""
        self.oom_priority = OomPriority()
        self._by_pid: dict[int, Child] = {}
        self._started = 0
        self._attached = False
        self._devnull = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)

    def spawn(
        self,
        executable: bytes,
        argv: Sequence[bytes],
        *,
        cwd_fd: int,
        env: Mapping[bytes, bytes],
        stdout: int,
        stderr: int,
        stdin: int | None = None,
        terminal: bool = False,
        keep: Sequence[int] = (),
    ) -> Child:
        """Start a command in its own session and process group; without `stdin` it reads end of file.

        With `terminal`, stdin is a terminal, which becomes the one that controls the new session. `keep`: further
        descriptors that it inherits, under the same numbers.
        Call it on the loop's thread only. Raises OSError if it cannot be executed.
        """
        if not self._attached:
            self._attach()
        mark = self._next_mark()
        old = resource.getrlimit(resource.RLIMIT_RTTIME)
        if mark is not None:
            resource.setrlimit(resource.RLIMIT_RTTIME, (mark, old[1]))
        try:
            with self.oom_priority.first_to_go(), code_user:
                popen = subprocess.Popen(  # vfork and exec: a millisecond or two
                    argv,
                    executable=executable,
                    stdin=self._devnull if stdin is None else stdin,
                    stdout=stdout,
                    stderr=stderr,
                    cwd=f"/proc/self/fd/{cwd_fd}",  # the very directory that was resolved, whatever its name is now
                    env=env,
                    pass_fds=keep,
                    start_new_session=True,
                    # One system call, in the child of a plain fork: there is no other way to hand a terminal over.
                    preexec_fn=_take_terminal if terminal else None,
                )
        finally:
            if mark is not None:
                resource.setrlimit(resource.RLIMIT_RTTIME, old)
        child = Child(popen.pid, mark, asyncio.get_running_loop().create_future(), popen)
        self._by_pid[child.pid] = child
        return child

    def adopt(self, pid: int) -> Child | None:
        """Wait for a process that became picod's child by being orphaned; None if it is not that, or has ended."""
        if pid <= 1 or pid in self._by_pid or pid == os.getpid():
            return None
        process = _look_at(str(pid))
        if process is None or process.parent != os.getpid():
            return None
        child = self._by_pid[pid] = Child(pid, None, asyncio.get_running_loop().create_future())
        return child

    def mark(self, child: Child) -> None:
        """Give an adopted process a mark of its own. Raises OSError when it has ended."""
        mark = self._next_mark()
        if mark is not None:
            resource.prlimit(child.pid, resource.RLIMIT_RTTIME, (mark, resource.RLIM_INFINITY))
        child.mark = mark

    async def kill(self, child: Child) -> None:
        """Kill a command that has not exited, and its whole tree; returns when all of it is dead.

        Each pass may miss what was forked meanwhile, so passes repeat until one finds nothing alive. When it returns,
        the callbacks of `exited` have run.
        """
        deadline = time.monotonic() + _KILL_TIMEOUT_S
        pause = 0.001
        while time.monotonic() < deadline:
            if not child.exited.done():  # not reaped, so the number still means it
                _kill_group(child.pid)
            found = _members(child.pid, child.mark)
            for process in found:
                _kill(process)
            if not found and child.exited.done():
                # A future's callbacks run in the turn of the loop after its result is set. They may not have: then a
                # terminal that was killed would still be called running, and closed before its last output is read.
                await asyncio.sleep(0)
                return
            await asyncio.sleep(pause)
            pause = min(pause * 2, 0.05)

    async def kill_commands(self) -> None:
        """Kill everything that commands and kernels have started, but not picod's own helpers."""
        deadline = time.monotonic() + _KILL_TIMEOUT_S
        while time.monotonic() < deadline:
            found = [each for each in _members(os.getpid(), None) if each.pid not in self.quiet]
            for process in found:
                _kill(process)
            if not found:
                return
            await asyncio.sleep(0.001)

    def kill_all(self) -> None:
        """Kill everything that picod started and that still lives, and wait for it. Blocks; for picod's end only."""
        deadline = time.monotonic() + _KILL_TIMEOUT_S
        while time.monotonic() < deadline:
            for pid in self._by_pid:
                _kill_group(pid)
            found = _members(os.getpid(), None)
            for process in found:
                _kill(process)
            self._reap()
            if not found:
                return
            time.sleep(0.001)

    def _attach(self) -> None:
        syscalls.become_subreaper()
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self._reap)
        self._attached = True

    def _next_mark(self) -> int | None:
        if resource.getrlimit(resource.RLIMIT_RTTIME)[1] != resource.RLIM_INFINITY:
            return None  # real-time scheduling is limited here: trees are found by group and parent alone
        self._started += 1
        # Bits: 56 the base, from 24 on picod's pid, below that a count that repeats after 16 million commands. In
        # microseconds, as the kernel reads it, 2,283 years: it never bounds anything.
        return _MARK_BASE | os.getpid() << 24 | self._started & 0xFFFFFF

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)  # any child: signals merge, so one SIGCHLD may stand for many
            except ChildProcessError:
                return
            if pid == 0:
                return
            child = self._by_pid.pop(pid, None)
            if child is not None:
                code = os.waitstatus_to_exitcode(status)
                if child.popen is not None:
                    child.popen.returncode = code  # otherwise Popen's __del__ would wait for the pid again
                if not child.exited.done():
                    child.exited.set_result(code)


def descendants() -> list[int]:
    """The pid of every living process that a command started, parents before their children. Reads /proc; blocking."""
    return [process.pid for process in _members(os.getpid(), None)]


def _members(root: int, mark: int | None) -> list[_Process]:
    """Living processes below `root` (itself too, unless it is picod) and those that carry its mark."""
    processes = list(_all_processes())
    children: dict[int, list[_Process]] = {}
    for process in processes:
        children.setdefault(process.parent, []).append(process)
    found = {p.pid: p for p in processes if p.pid == root or (mark is not None and p.mark == mark)}
    pending = list(found)
    while pending:
        for process in children.get(pending.pop(), ()):
            if process.pid not in found:
                found[process.pid] = process
                pending.append(process.pid)
    found.pop(os.getpid(), None)
    return list(found.values())


def _all_processes() -> Iterator[_Process]:
    """Every process that /proc shows, without zombies."""
    for name in os.listdir("/proc"):
        if name.isdigit() and (process := _look_at(name)) is not None:
            yield process


def _look_at(name: str) -> _Process | None:
    """One process as /proc shows it; None if it has ended."""
    try:
        with open(f"/proc/{name}/stat", "rb", buffering=0) as file:
            # pid (command, which may hold anything) state ppid pgrp ...
            state, parent, group = file.read(4096).rpartition(b")")[2].split()[:3]
    except (OSError, ValueError):
        return None  # gone meanwhile
    if state in (b"Z", b"X"):
        return None
    return _Process(int(name), int(parent), int(group), _mark_of(int(name)))


def _mark_of(pid: int) -> int:
    try:
        return resource.prlimit(pid, resource.RLIMIT_RTTIME)[0]
    except OSError:
        return 0  # gone, or another user's


def _kill(process: _Process) -> None:
    """Kill it if the number still means the same process: parent or mark must be as they were seen."""
    try:
        handle = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    except OSError:  # no pidfds here: the pid may have been reused, but there is nothing better
        _send_kill(process.pid)
        return
    try:
        if _mark_of(process.pid) == process.mark:
            signal.pidfd_send_signal(handle, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
    finally:
        os.close(handle)


def _send_kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass


def _take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
