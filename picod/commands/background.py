"""Processes that outlive the request that started them: they run until they exit, are killed, or the sandbox ends.

Each has a ring of its latest output and, if asked for, a pipe to its stdin. process_api.py is their HTTP surface. What
a session runs here counts as activity (activity.py), so that the session is not hibernated in the middle of it.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable

from picod.commands.command_spec import CommandSpec
from picod.commands.exit_status import exit_fields
from picod.commands.processes import Child, Children
from picod.commands.pump import Pump
from picod.commands.ring_buffer import Ring
from picod.commands.stdio import Stdio, set_size
from picod.compat.go_format import format_time
from picod.http.request import RequestError
from picod.http.sse import Notifier

MAX_PROCESSES = 256  # that run; a sandbox may have no more tasks by default
_MAX_ENDED = 32  # that are kept to be asked about
LOG_BYTES = 1 << 20  # of output kept of each, while there are few
# Of each beyond _MAX_ENDED processes: 32 MiB for the first 32 and 28 MiB for all others is what picod can afford.
_SMALL_LOG_BYTES = 128 << 10
_MAX_BEHIND_SHARE = 4  # a follower that must miss nothing may lag by a quarter of the log, then the process waits
_STDIN_TIMEOUT_S = 300.0  # for how long a process may read nothing while a client writes to it


class Process:
    """A background process, running or ended, with its latest output."""

    def __init__(
        self,
        name: str,
        spec: CommandSpec,
        child: Child,
        pipes: dict[str, int],
        *,
        keeps_awake: bool,
        log_bytes: int = LOG_BYTES,
        terminal: int | None = None,
    ) -> None:
        self.id = os.urandom(4).hex()
        self.name = name
        self.spec = spec
        self.child = child
        self.keeps_awake = keeps_awake
        self.log = Ring(log_bytes)
        self.timed_out = False
        self.changed = Notifier()
        self.has_stdin = "stdin" in pipes
        self.stdin_fd = pipes.pop("stdin", -1)
        self.stdin_room: asyncio.Future[None] | None = None  # a writer waits for it while the pipe is full
        self.writing = asyncio.Lock()
        self.started_ns = time.time_ns()
        self.ended_ns: int | None = None
        self._terminal = terminal  # the master side of its pseudo-terminal, which is its stdin as well
        self._log_bytes = log_bytes
        self._paces: dict[object, int] = {}  # followers that must miss nothing -> offset up to which they have the log
        self._is_paused = False
        self._pumps = [Pump(fd, lambda data, stream=stream: self._took(stream, data)) for stream, fd in pipes.items()]  # type: ignore[misc]
        child.exited.add_done_callback(lambda _: self._exited())

    @property
    def streams(self) -> tuple[str, ...]:
        """The names of its streams of output."""
        return ("stdout", "stderr") if self._terminal is None else ("pty",)

    @property
    def running(self) -> bool:
        """Whether it has not exited, as far as picod has noticed."""
        return self.ended_ns is None

    def describe(self) -> dict[str, object]:
        """The process as the API shows it."""
        code = None if self.running else self.child.exited.result()
        return {
            "id": self.id,
            "name": self.name,
            "pid": self.child.pid,
            "command": [item.decode("utf-8", "replace") for item in self.spec.command],
            "working_dir": self.spec.working_dir,
            "state": "running" if self.running else "exited",
            **exit_fields(code),
            "started_at": format_time(self.started_ns),
            "ended_at": None if self.ended_ns is None else format_time(self.ended_ns),
            "keeps_awake": self.keeps_awake,
            "stdin": self.stdin_fd >= 0,
            "log": {"start": self.log.start, "end": self.log.end},
        }

    def close_stdin(self) -> None:
        """Close its stdin: it reads end of file from now on."""
        if self.stdin_fd >= 0:
            asyncio.get_running_loop().remove_writer(self.stdin_fd)
            os.close(self.stdin_fd)
            self.stdin_fd = -1
            self._has_room()

    async def write_stdin(self, data: bytes) -> None:
        """Write all of it, waiting while the pipe is full.

        Raises BrokenPipeError when the pipe has no reader, TimeoutError when nothing is read for five minutes.
        """
        view = memoryview(data)
        while view:
            if self.stdin_fd < 0:
                raise BrokenPipeError
            try:
                view = view[os.write(self.stdin_fd, view) :]
            except BlockingIOError:
                loop = asyncio.get_running_loop()
                self.stdin_room = loop.create_future()
                loop.add_writer(self.stdin_fd, self._has_room)
                async with asyncio.timeout(_STDIN_TIMEOUT_S):
                    await self.stdin_room

    def _has_room(self) -> None:
        if self.stdin_fd >= 0:
            asyncio.get_running_loop().remove_writer(self.stdin_fd)
        if self.stdin_room is not None and not self.stdin_room.done():
            self.stdin_room.set_result(None)
        self.stdin_room = None

    def keep_pace(self, follower: object, offset: int | None) -> None:
        """Note how much of the log a follower has that must miss nothing; None: it has left. Output waits for it."""
        if offset is None:
            self._paces.pop(follower, None)
        else:
            self._paces[follower] = offset
        self._balance()

    def _balance(self) -> None:
        behind = self.log.end - min(self._paces.values(), default=self.log.end)
        is_late = behind > self._log_bytes // _MAX_BEHIND_SHARE
        if is_late != self._is_paused:
            self._is_paused = is_late
            for pump in self._pumps:
                if is_late:
                    pump.pause()
                else:
                    pump.resume()

    def resize(self, cols: int, rows: int) -> None:
        """Set the size of its terminal. Raises RequestError 409 for a process without one."""
        if self._terminal is None or self.stdin_fd < 0:
            raise RequestError(409, "the process has no terminal, or has exited", code="NO_TERMINAL")
        set_size(self.stdin_fd, cols, rows)

    def close(self) -> None:
        """Close the ends of the process's pipes that picod holds."""
        self.close_stdin()
        for pump in self._pumps:
            pump.close()

    def _took(self, stream: str, data: bytes) -> None:
        self.log.append(stream, data)
        if self._paces:
            self._balance()
        self.changed.notify_all()

    def _exited(self) -> None:
        # All that it wrote itself is in the pipes by now; what its children still write is read as it comes.
        for pump in self._pumps:
            pump.drain()
            if self._terminal is not None:
                pump.close()  # what still uses the terminal gets SIGHUP, as when a terminal window is closed
        self.ended_ns = time.time_ns()
        if not self.writing.locked():  # otherwise the request that writes to it closes it when it notices
            self.close_stdin()
        self.changed.notify_all()


class Background:
    """The background processes of one sandbox, MAX_PROCESSES at most."""

    def __init__(self, children: Children) -> None:
        self._children = children
        self._by_id: dict[str, Process] = {}

    def all(self) -> Iterable[Process]:
        """All processes that are kept, in the order they were started."""
        return self._by_id.values()

    def get(self, process_id: str) -> Process:
        """A process by its id or, of those that run or ended last, by its pid. Raises RequestError 404."""
        process = self._by_id.get(process_id)
        if process is None and process_id.isascii() and process_id.isdigit() and len(process_id) < len("00000000"):
            found = (each for each in reversed(self._by_id.values()) if each.child.pid == int(process_id))
            process = next(found, None)
        if process is None:
            raise RequestError(
                404, f"no process {process_id[:64]!r}; GET /api/processes lists them", code="PROCESS_NOT_FOUND"
            )
        return process

    def start(
        self,
        spec: CommandSpec,
        executable: bytes,
        cwd_fd: int,
        *,
        name: str,
        stdin: bool,
        keeps_awake: bool,
        terminal: tuple[int, int] | None = None,
    ) -> Process:
        """Start a process; `terminal`: on a pseudo-terminal of that many columns and rows, as the stream `pty`.

        Raises RequestError 429 when too many run, OSError when it cannot be executed.
        """
        self._make_room()
        stdio = Stdio()
        try:
            if terminal is not None:
                stdio.open_terminal(*terminal)
            else:
                stdio.open_pipes(stdin=stdin)
            child = self._children.spawn(
                executable,
                spec.command,
                cwd_fd=cwd_fd,
                env=spec.env,
                stdout=stdio.output("stdout"),
                stderr=stdio.output("stderr"),
                stdin=stdio.theirs.get("stdin"),
                terminal=terminal is not None,
            )
        except OSError:
            stdio.close_ours()
            raise
        finally:
            stdio.close_theirs()
        process = Process(
            name,
            spec,
            child,
            stdio.ours,
            keeps_awake=keeps_awake,
            log_bytes=LOG_BYTES if len(self._by_id) < _MAX_ENDED else _SMALL_LOG_BYTES,
            terminal=stdio.ours.get("stdin") if terminal is not None else None,
        )
        self._by_id[process.id] = process
        return process

    async def end(self, process: Process) -> None:
        """Kill a process and its whole tree; its log stays."""
        await self._children.kill(process.child)

    async def forget(self, process: Process) -> None:
        """Kill a process and its whole tree, and remove it with its log."""
        self._by_id.pop(process.id, None)
        await self.end(process)
        process.close()

    def _make_room(self) -> None:
        ended = [process for process in self._by_id.values() if not process.running]
        for oldest in ended[: max(0, len(ended) - _MAX_ENDED + 1)]:
            del self._by_id[oldest.id]
            oldest.close()
        if len(self._by_id) - min(len(ended), _MAX_ENDED - 1) >= MAX_PROCESSES:
            raise RequestError(
                429, f"{MAX_PROCESSES} processes run already; end one of GET /api/processes", code="TOO_MANY_PROCESSES"
            )
