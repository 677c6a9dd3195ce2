"""POST /api/processes/stream starts a process and sends its output; GET /api/processes/{id}/stream joins one that runs.

Unlike the log of process_api.py, a stream misses nothing and changes nothing: the process waits for a slow client, and
output is sent as bytes (base64), not as text. It is what clients need that show a process as if it ran beside them. A
client that leaves does not end the process, which then runs on without waiting for anybody.
"""

from __future__ import annotations

import asyncio
import os
from base64 import b64encode
from typing import TYPE_CHECKING, Any

from picod.commands.background import Process
from picod.commands.command_spec import CommandSpec, find_executable, parse_command
from picod.commands.exit_status import exit_fields
from picod.commands.terminal import MAX_SIDE
from picod.filesystem.paths import PathError
from picod.filesystem.system import SystemTree
from picod.http.json_fields import flag_field, parse_object, text_field, wrong_type
from picod.http.request import Request, RequestError, os_failure, reason_of
from picod.http.sse import EventStream

if TYPE_CHECKING:
    from picod.commands.services import CommandServices

_STRUCT = "StreamProcessRequest"
_MAX_NAME_CHARS = 200
_MAX_EVENT_BYTES = 64 << 10  # of output in one event; more would only delay the first byte


async def start_stream(services: CommandServices, request: Request) -> None:
    """POST /api/processes/stream: as /api/processes, plus `timeout` and `terminal`: {"cols", "rows"}.

    `working_dir` is an absolute path of the sandbox, or relative to the workspace, and must exist. With `timeout` the
    process is killed when it has passed. Events: `start` with the process, `stdout`, `stderr` or `pty` {"data"},
    `exit` {"exit_code", "signal", "timed_out"}.
    Raises RequestError 400 when it cannot be started, 429 when too many run.
    """
    body = await request.body(services.config.max_body)
    fields = parse_object(body, _STRUCT)
    spec = parse_command(body, services.config.command_env)
    name = text_field(fields, _STRUCT, "name") or ""
    if len(name) > _MAX_NAME_CHARS:
        raise RequestError(400, f"name: at most {_MAX_NAME_CHARS} characters")
    terminal = _terminal_field(fields)
    if terminal is not None:
        spec.env.setdefault(b"TERM", b"xterm-256color")
    process = _start(services, spec, name, flag_field(fields, _STRUCT, "stdin", default=False), terminal)
    if fields.get("timeout"):
        services.spawn_task(_kill_after(services, process, spec.timeout))
    await _send(request, process, 0)


async def join_stream(_: CommandServices, request: Request, process: Process) -> None:
    """GET /api/processes/{id}/stream: `start`, and the output from now on."""
    await _send(request, process, process.log.end)


async def resize(services: CommandServices, request: Request, process: Process) -> None:
    """POST /api/processes/{id}/resize {"cols", "rows"}."""
    fields = parse_object(await request.body(services.config.max_body), _STRUCT)
    size = _size(fields, _STRUCT)
    process.resize(*size)
    await request.answer_json(200, process.describe())


def _start(
    services: CommandServices, spec: CommandSpec, name: str, stdin: bool, terminal: tuple[int, int] | None
) -> Process:
    shown = spec.command[0].decode()
    cwd_fd = _open_directory(services, spec.working_dir)
    try:
        executable = find_executable(spec.command[0], spec.env.get(b"PATH", b""), cwd_fd)
        if executable is None:
            raise RequestError(400, f'exec: "{shown}": executable file not found in $PATH')
        return services.background.start(
            spec, executable, cwd_fd, name=name, stdin=stdin, keeps_awake=True, terminal=terminal
        )
    except OSError as error:
        raise RequestError(400, f"fork/exec {shown}: {reason_of(error)}") from error
    finally:
        os.close(cwd_fd)


def _open_directory(services: CommandServices, path: str) -> int:
    tree = SystemTree() if path.startswith("/") else services.workspace
    try:
        return tree.open_directory(path)
    except PathError as error:
        raise RequestError(400, f"working_dir: {error}") from error
    except OSError as error:
        failure = os_failure(error, f"working_dir: cannot enter {path}")
        failure.status = 400  # of the request: no file was asked for that could be missing
        raise failure from error
    finally:
        if tree is not services.workspace:
            tree.close()


async def _kill_after(services: CommandServices, process: Process, seconds: float) -> None:
    await asyncio.wait((process.child.exited,), timeout=seconds)
    if not process.child.exited.done():
        process.timed_out = True
        await services.background.end(process)


async def _send(request: Request, process: Process, offset: int) -> None:
    follower = object()
    process.keep_pace(follower, offset)
    try:
        async with EventStream(request) as events:
            await events.send("start", process.describe())
            while True:
                running, news = process.running, process.changed.wait()
                offset = max(offset, process.log.start)
                for piece in process.log.since(offset):
                    for start in range(0, len(piece.data), _MAX_EVENT_BYTES):
                        data = b64encode(piece.data[start : start + _MAX_EVENT_BYTES])
                        await events.raw(b'event: %b\ndata: {"data":"%b"}\n\n' % (piece.stream.encode(), data))
                    offset = piece.offset + len(piece.data)
                    process.keep_pace(follower, offset)
                if offset < process.log.end:
                    continue
                if not running:
                    fields = exit_fields(process.child.exited.result())
                    await events.send("exit", {**fields, "timed_out": process.timed_out})
                    return
                await events.until(news)
    finally:
        process.keep_pace(follower, None)


def _terminal_field(fields: dict[str, Any]) -> tuple[int, int] | None:
    value = fields.get("terminal")
    if value is None:
        return None
    if not isinstance(value, dict):
        raise wrong_type(value, _STRUCT, "terminal", "object")
    return _size(value, f"{_STRUCT}.terminal")


def _size(fields: dict[str, Any], struct: str) -> tuple[int, int]:
    sides = []
    for name in ("cols", "rows"):
        side = fields.get(name)
        if isinstance(side, bool) or not isinstance(side, int):
            raise wrong_type(side, struct, name, "number")
        if not 1 <= side <= MAX_SIDE:
            raise RequestError(400, f"{name}: expected a number from 1 to {MAX_SIDE}, not {side}")
        sides.append(side)
    return sides[0], sides[1]
