"""/api/terminal as a WebSocket, /api/terminals as a list.

    client: binary = input
            text   = {"type": "resize", "cols": 80, "rows": 24} or {"type": "signal", "signal": "INT"}
    picod:  binary = output
            text   = {"type": "ready", "id", "offset", ...} first, {"type": "exit", "exit_code", "signal"} last,
                     {"type": "error", "error"} for a text frame that is none of these

A client that comes back names the terminal (`?id=`) and how many bytes of output it has (`?offset=`); it gets the rest,
as far as it is kept. One client is attached at a time, the latest: after a network failure the old connection may look
alive for minutes.
"""

from __future__ import annotations

import asyncio
import json
import os
from typing import TYPE_CHECKING

from picod.commands.command_spec import CommandSpec, encode_env, find_executable, open_working_directory
from picod.commands.exit_status import exit_fields
from picod.commands.signals import read_signal
from picod.commands.terminal import MAX_SIDE, Terminal
from picod.http.request import Request, RequestError, reason_of, to_json
from picod.http.websocket import Socket, accept, check_handshake

if TYPE_CHECKING:
    from picod.commands.services import CommandServices

_SHELLS = (b"bash", b"sh")
_TAKEN_OVER = 4001  # close code: another client is attached now
_NORMAL = 1000
_CLOSE_TIMEOUT_S = 2.0


async def list_terminals(services: CommandServices, request: Request) -> None:
    """GET /api/terminals: all, in the order they were opened."""
    await request.answer_json(200, {"terminals": [terminal.describe() for terminal in services.terminals.all()]})


async def end_terminal(services: CommandServices, request: Request) -> None:
    """DELETE /api/terminals/{id}: kill everything that runs in it."""
    terminal = services.terminals.get(request.tail.decode("utf-8", "replace"))
    await services.terminals.end(terminal)
    await request.answer_json(200, terminal.describe())


async def open_terminal(services: CommandServices, request: Request) -> None:
    """GET /api/terminal: attach to the terminal `?id=`, or to a new one (`?cols=&rows=&cwd=&command=`)."""
    headers = check_handshake(request)
    offset = _number(request, "offset", 0, least=0, most=1 << 62)
    size = _number(request, "cols", 80, most=MAX_SIDE), _number(request, "rows", 24, most=MAX_SIDE)
    name = request.query("id")
    terminal = services.terminals.get(name) if name else _start(services, request, size)
    if name and (request.query("cols") or request.query("rows")):
        terminal.resize(*size)
    attachment = _Attachment(terminal, await accept(request, headers), offset)
    await attachment.run()


def _number(request: Request, name: str, default: int, *, least: int = 1, most: int) -> int:
    text = request.query(name) or str(default)
    if not (text.isascii() and text.isdigit() and len(text) < 20 and least <= int(text) <= most):
        raise RequestError(400, f"{name}: expected a number from {least} to {most}, not {text[:40]!r}")
    return int(text)


def _start(services: CommandServices, request: Request, size: tuple[int, int]) -> Terminal:
    """A new terminal, with a shell in it or with what `command` says. Raises RequestError."""
    command, cwd = request.query("command"), request.query("cwd") or "."
    if "\0" in command:
        raise RequestError(400, "command contains a NUL byte")
    env = encode_env(services.config.command_env)
    env.setdefault(b"TERM", b"xterm-256color")
    cwd_fd = open_working_directory(services.workspace, cwd)
    try:
        path = env.get(b"PATH", b"")
        found = ((shell, find_executable(shell, path, cwd_fd)) for shell in _SHELLS)
        shell, executable = next(((name, program) for name, program in found if program), (b"sh", None))
        if executable is None:
            raise RequestError(400, "neither bash nor sh is in PATH")
        env[b"SHELL"] = executable
        argv = [shell, b"-c", command.encode()] if command else [shell]
        spec = CommandSpec(command=argv, timeout=0.0, working_dir=cwd, env=env)
        return services.terminals.open(spec, executable, cwd_fd, size, is_shell=not command)
    except OSError as error:
        raise RequestError(503, f"no terminal can be opened: {reason_of(error)}") from error
    finally:
        os.close(cwd_fd)


class _Attachment:
    """One client at one terminal, from attaching to leaving."""

    def __init__(self, terminal: Terminal, socket: Socket, offset: int) -> None:
        self._terminal = terminal
        self._socket = socket
        self._seen = offset

    async def taken_over(self) -> None:
        """Close: another client is attached now."""
        await self._socket.close(_TAKEN_OVER, "another client has attached to this terminal")

    async def run(self) -> None:
        """Both directions, until the client leaves, or the terminal has ended and all its output is sent."""
        terminal = self._terminal
        before, terminal.client = terminal.client, self  # no await in between: of two at once, one sees the other
        terminal.keep_pace(max(self._seen, terminal.output.start))
        typing = asyncio.create_task(self._receive())
        printing = asyncio.create_task(self._print())
        try:
            if before is not None:
                await before.taken_over()
            await asyncio.wait((typing, printing), return_when=asyncio.FIRST_COMPLETED)
            if not printing.done() or printing.exception() is not None:
                return
            await self._socket.close(_NORMAL)
            await asyncio.wait((typing,), timeout=_CLOSE_TIMEOUT_S)  # for the client's close frame
        finally:
            for task in (typing, printing):
                task.cancel()
            await asyncio.gather(typing, printing, return_exceptions=True)
            terminal.detach(self)
            self._socket.abort()

    async def _print(self) -> None:
        terminal = self._terminal
        if self._seen > terminal.output.end:
            self._seen = terminal.output.start  # the offset is of another terminal: send everything that is kept
        first = True
        while True:
            # Both before the output is read: what changes while it is sent wakes the next turn.
            ended, news = terminal.ended, terminal.changed.wait()
            pieces = terminal.output.since(self._seen)
            begin = pieces[0].offset if pieces else terminal.output.end
            if first:
                dropped = max(0, begin - self._seen)
                await self._send_json({"type": "ready", **terminal.describe(), "offset": begin, "dropped": dropped})
                first = False
            for piece in pieces:
                await self._socket.send(piece.data)
                self._seen = piece.offset + len(piece.data)
                if terminal.client is self:
                    terminal.keep_pace(self._seen)
            if ended and self._seen >= terminal.output.end:
                await self._send_json({"type": "exit", **exit_fields(terminal.child.exited.result())})
                return
            if self._seen >= terminal.output.end:
                await asyncio.shield(news)

    async def _receive(self) -> None:
        while (message := await self._socket.receive()) is not None:
            if isinstance(message, bytes):
                await self._terminal.type(message)
                continue
            try:
                self._control(message)
            except RequestError as error:
                await self._send_json({"type": "error", "error": str(error)})

    def _control(self, message: str) -> None:
        try:
            frame = json.loads(message)
        except (ValueError, RecursionError):
            frame = None
        kind = frame.get("type") if isinstance(frame, dict) else None
        if kind == "resize":
            cols, rows = frame.get("cols"), frame.get("rows")
            if not all(type(side) is int and 1 <= side <= MAX_SIDE for side in (cols, rows)):
                raise RequestError(400, f"resize: cols and rows are numbers from 1 to {MAX_SIDE}")
            self._terminal.resize(cols, rows)
        elif kind == "signal":
            self._terminal.signal(read_signal(frame.get("signal")))
        else:
            raise RequestError(400, 'expected {"type": "resize"} or {"type": "signal"}; what is typed goes as binary')

    async def _send_json(self, frame: dict[str, object]) -> None:
        await self._socket.send(to_json(frame).decode())
