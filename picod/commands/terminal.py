"""Terminals: a shell on a pseudo-terminal that keeps running when its client leaves, until the client comes back.

State of a terminal: its shell, its latest output, input that is not written yet, and the one client that is attached.
terminal_api.py is their HTTP and WebSocket surface.
"""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import time
from collections.abc import Iterable
from typing import Protocol

from picod.commands.command_spec import CommandSpec
from picod.commands.exit_status import exit_fields
from picod.commands.processes import Child, Children
from picod.commands.pump import Pump
from picod.commands.ring_buffer import Ring
from picod.commands.stdio import set_size
from picod.compat.go_format import format_time
from picod.http.request import RequestError
from picod.http.sse import Notifier

MAX_TERMINALS = 16
SCROLLBACK_BYTES = 256 << 10  # of output kept for a client that comes back
_MAX_BEHIND_BYTES = 64 << 10  # that a client may lag behind before the shell has to wait for it
_MAX_TYPED_BYTES = 256 << 10  # of input that is not written yet, before the client is read no more
MAX_SIDE = 4096  # columns or rows


class Client(Protocol):
    """The client that is attached to a terminal."""

    async def taken_over(self) -> None:
        """Leave: another client is attached now."""
        ...


class Terminal:
    """A pseudo-terminal with its shell or command, running or ended."""

    def __init__(self, spec: CommandSpec, child: Child, master: int, size: tuple[int, int], *, is_shell: bool) -> None:
        self.id = os.urandom(8).hex()  # long enough not to be guessed: who knows it may type
        self.spec = spec
        self.child = child
        self.output = Ring(SCROLLBACK_BYTES)
        self.changed = Notifier()
        self.size = size
        self.client: Client | None = None
        self.started_ns = time.time_ns()
        self.ended = False
        self._is_shell = is_shell
        self._taken = 0  # offset up to which the attached client has the output
        self._typed = bytearray()
        self._room = Notifier()
        self._master = master
        self._pump = Pump(os.dup(master), self._printed)  # a copy: reading ends and closes apart from writing
        os.set_blocking(master, False)
        child.exited.add_done_callback(lambda _: self._exited())

    def describe(self) -> dict[str, object]:
        """The terminal as the API shows it."""
        return {
            "id": self.id,
            "pid": self.child.pid,
            "command": [item.decode("utf-8", "replace") for item in self.spec.command],
            "state": "exited" if self.ended else "running",
            **exit_fields(self.child.exited.result() if self.ended else None),
            "attached": self.client is not None,
            "busy": self.busy,
            "cols": self.size[0],
            "rows": self.size[1],
            "started_at": format_time(self.started_ns),
            "offset": self.output.end,
        }

    @property
    def busy(self) -> bool:
        """Whether a command runs in it: anything but a shell that waits at its prompt."""
        return not self.ended and (not self._is_shell or self._foreground() != self.child.pid)

    def resize(self, cols: int, rows: int) -> None:
        """Set the size of the window; the foreground process group gets SIGWINCH."""
        if not self.ended:
            self.size = (cols, rows)
            set_size(self._master, cols, rows)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the foreground process group, as Ctrl-C does."""
        group = self._foreground()
        if group > 0:
            try:
                os.killpg(group, number)
            except (ProcessLookupError, PermissionError):
                pass

    async def type(self, data: bytes) -> None:
        """Write input as if it were typed; waits while more than _MAX_TYPED_BYTES are not written."""
        self._typed += data
        self._write()
        while len(self._typed) > _MAX_TYPED_BYTES and not self.ended:
            await self._room.wait()

    def keep_pace(self, offset: int) -> None:
        """Note that the attached client has everything before `offset`, and have the shell wait for a slow one."""
        self._taken = offset
        # Without a client the shell never waits, and old output is overwritten; a slow client must not miss any.
        if self.output.end - offset > _MAX_BEHIND_BYTES:
            self._pump.pause()
        else:
            self._pump.resume()

    def detach(self, client: Client) -> None:
        """Remove a client that has left; unless another took its place, the shell no longer waits for one."""
        if self.client is client:
            self.client = None
            self._pump.resume()

    def close(self) -> None:
        """Close the pseudo-terminal: processes that still use it get SIGHUP."""
        self._pump.close()
        if self._master >= 0:
            asyncio.get_running_loop().remove_writer(self._master)
            os.close(self._master)
            self._master = -1

    def _foreground(self) -> int:
        try:
            return os.tcgetpgrp(self._master)
        except OSError:  # closed, or no process has it as its terminal any more
            return -1

    def _printed(self, data: bytes) -> None:
        self.output.append("", data)
        if self.client is not None:
            self.keep_pace(self._taken)
        self.changed.notify_all()

    def _write(self) -> None:
        loop = asyncio.get_running_loop()
        while self._typed and self._master >= 0:
            try:
                # The line discipline's buffer has 4096 bytes: a larger slice would be copied for nothing.
                del self._typed[: os.write(self._master, self._typed[:4096])]
            except BlockingIOError:
                loop.add_writer(self._master, self._write)
                return
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                self._typed.clear()  # no process reads from it any more
        if self._master >= 0:
            loop.remove_writer(self._master)
        if len(self._typed) <= _MAX_TYPED_BYTES:
            self._room.notify_all()

    def _exited(self) -> None:
        self._pump.drain()  # first: the last output must be kept before clients learn of the end
        self.ended = True
        self.close()
        self._room.notify_all()
        self.changed.notify_all()


class Terminals:
    """The terminals of one sandbox, MAX_TERMINALS at most."""

    def __init__(self, children: Children) -> None:
        self._children = children
        self._by_id: dict[str, Terminal] = {}

    def all(self) -> Iterable[Terminal]:
        """All terminals, in the order they were opened."""
        return self._by_id.values()

    def get(self, terminal_id: str) -> Terminal:
        """A terminal by its id. Raises RequestError 404."""
        terminal = self._by_id.get(terminal_id)
        if terminal is None:
            raise RequestError(
                404, f"no terminal {terminal_id[:64]!r}; GET /api/terminals lists them", code="TERMINAL_NOT_FOUND"
            )
        return terminal

    def open(
        self, spec: CommandSpec, executable: bytes, cwd_fd: int, size: tuple[int, int], *, is_shell: bool
    ) -> Terminal:
        """Start a terminal. Raises RequestError 429 when there are too many, OSError when it cannot be started."""
        self._make_room()
        master, slave = os.openpty()
        try:
            set_size(slave, *size)  # before the start: programs ask for the size once, when they begin
            child = self._children.spawn(
                executable,
                spec.command,
                cwd_fd=cwd_fd,
                env=spec.env,
                stdin=slave,
                stdout=slave,
                stderr=slave,
                terminal=True,
            )
        except BaseException:
            os.close(master)
            raise
        finally:
            os.close(slave)
        terminal = Terminal(spec, child, master, size, is_shell=is_shell)
        self._by_id[terminal.id] = terminal
        return terminal

    async def end(self, terminal: Terminal) -> None:
        """Kill everything that runs in a terminal, and remove it."""
        self._by_id.pop(terminal.id, None)
        await self._children.kill(terminal.child)
        terminal.close()

    def _make_room(self) -> None:
        if len(self._by_id) < MAX_TERMINALS:
            return
        oldest = next((terminal for terminal in self._by_id.values() if terminal.ended), None)
        if oldest is None:
            raise RequestError(
                429, f"{MAX_TERMINALS} terminals are open; end one of GET /api/terminals", code="TOO_MANY_TERMINALS"
            )
        del self._by_id[oldest.id]
