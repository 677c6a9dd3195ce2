"""/api/processes: start in the background, list, logs, stdin, signal, wait, end."""

from __future__ import annotations

import asyncio
import codecs
import os
from collections.abc import Awaitable, Callable
from signal import Signals
from typing import TYPE_CHECKING

from picod.commands.background import Process
from picod.commands.command_spec import find_executable, open_working_directory, parse_command
from picod.commands.exit_status import exit_fields
from picod.commands.process_stream import join_stream, resize
from picod.commands.signals import read_signal, send_signal
from picod.compat.go_format import DurationError, parse_duration
from picod.http.json_fields import flag_field, parse_object, text_field
from picod.http.request import ClientGoneError, Request, RequestError, query_flag, reason_of
from picod.http.sse import EventStream

if TYPE_CHECKING:
    from picod.commands.services import CommandServices

_STRUCT = "StartProcessRequest"
_MAX_WAIT_S = 300.0
_MAX_NAME_CHARS = 200


async def list_processes(services: CommandServices, request: Request) -> None:
    """GET /api/processes: all, in the order they were started."""
    await request.answer_json(200, {"processes": [process.describe() for process in services.background.all()]})


async def start_process(services: CommandServices, request: Request) -> None:
    """POST /api/processes: the body of /api/execute without `timeout`, plus `name`, `stdin` and `keeps_awake`.

    201 with the process; 400 when it cannot be started, 429 when too many run.
    """
    body = await request.body(services.config.max_body)
    fields = parse_object(body, _STRUCT)
    spec = parse_command(body, services.config.command_env)
    if fields.get("timeout") is not None:
        raise RequestError(400, "timeout: a background process has none; wait for it, and send a signal or delete it")
    name = text_field(fields, _STRUCT, "name") or ""
    if len(name) > _MAX_NAME_CHARS:
        raise RequestError(400, f"name: at most {_MAX_NAME_CHARS} characters")
    stdin, keeps_awake = (
        flag_field(fields, _STRUCT, "stdin", default=False),
        flag_field(fields, _STRUCT, "keeps_awake", default=True),
    )
    shown = spec.command[0].decode()
    cwd_fd = open_working_directory(services.workspace, spec.working_dir)
    try:
        executable = find_executable(spec.command[0], spec.env.get(b"PATH", b""), cwd_fd)
        if executable is None:
            raise RequestError(400, f'exec: "{shown}": executable file not found in $PATH')
        process = services.background.start(spec, executable, cwd_fd, name=name, stdin=stdin, keeps_awake=keeps_awake)
    except OSError as error:
        raise RequestError(400, f"fork/exec {shown}: {reason_of(error)}") from error
    finally:
        os.close(cwd_fd)
    await request.answer_json(201, process.describe(), ((b"location", f"/api/processes/{process.id}".encode()),))


async def process(services: CommandServices, request: Request) -> None:
    """/api/processes/{id} and what is below it. 404 for an unknown one, 405 for a verb that it does not have."""
    name, _, verb = request.tail.decode("utf-8", "replace").partition("/")
    found = services.background.get(name)
    handlers = _VERBS.get(verb)
    if handlers is None:
        raise RequestError(
            404, f"no /api/processes/ID/{verb[:64]}; expected logs, stream, wait, stdin, signal or resize"
        )
    handler = handlers.get(request.method)
    if handler is None:
        allowed = ", ".join(handlers)
        raise RequestError(405, f"{request.method} is not for this path; use {allowed}")
    await handler(services, request, found)


async def _show(services: CommandServices, request: Request, process: Process) -> None:
    await request.answer_json(200, process.describe())


async def _delete(services: CommandServices, request: Request, process: Process) -> None:
    """Kill its whole tree, and forget it."""
    await services.background.forget(process)
    await request.answer_json(200, process.describe())


async def _wait(services: CommandServices, request: Request, process: Process) -> None:
    """Answer when it has exited, or after `?timeout=` (30s), whichever comes first; `state` tells which."""
    seconds = query_duration(request, "timeout", "30s")
    gone = asyncio.create_task(request.gone())
    try:
        await asyncio.wait((process.child.exited, gone), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.sleep(0)  # lets Process._exited run first, which sets the state that is answered
        if gone.done():
            raise ClientGoneError
    finally:
        gone.cancel()
    await request.answer_json(200, process.describe())


async def _signal(services: CommandServices, request: Request, process: Process) -> None:
    """{"signal": "TERM"}: to its process group; KILL also reaches what it started in other groups and sessions."""
    fields = parse_object(await request.body(services.config.max_body), "SignalRequest")
    number = read_signal(fields.get("signal"))
    if not process.running:
        raise RequestError(409, "the process has exited already", code="PROCESS_EXITED")
    if number == Signals.SIGKILL:
        await services.background.end(process)
        await asyncio.sleep(0)
    else:
        send_signal(process.child, number)
    await request.answer_json(200, process.describe())


async def _stdin(services: CommandServices, request: Request, process: Process) -> None:
    """Write the body to its stdin as it arrives, then close that with `?eof=true`. Answers how much was written."""
    if not process.has_stdin:
        raise RequestError(409, 'the process was started without a stdin; start it with "stdin": true', code="NO_STDIN")
    written = 0
    async with process.writing:
        try:
            async for chunk in request.chunks():
                await process.write_stdin(chunk)
                written += len(chunk)
            if query_flag(request, "eof"):
                process.close_stdin()
        except BrokenPipeError:
            process.close_stdin()
            raise RequestError(
                409, "the process does not read its stdin any more", code="STDIN_CLOSED", written=written
            ) from None
        except TimeoutError:
            raise RequestError(408, "the process does not read its stdin", written=written) from None
        finally:
            if not process.running:
                process.close_stdin()
    await request.answer_json(200, {"written": written})


async def _logs(services: CommandServices, request: Request, process: Process) -> None:
    """Answer the output that is kept from `?offset=` on; `?stream=` chooses one stream, `?follow=true` sends events."""
    stream = request.query("stream")
    if stream not in ("", *process.streams):
        raise RequestError(400, f"stream: expected {' or '.join(process.streams)}, not {stream[:40]!r}")
    streams = (stream,) if stream else process.streams
    start = request.header(b"last-event-id") or request.query("offset") or "0"
    if not start.isascii() or not start.isdigit() or len(start) > 18:
        raise RequestError(400, f"offset: expected a number of bytes, not {start[:40]!r}")
    offset = int(start)
    if query_flag(request, "follow"):
        await _follow(request, process, streams, offset)
        return
    pieces = process.log.since(offset)
    text = {
        name: b"".join(piece.data for piece in pieces if piece.stream == name).decode("utf-8", "replace")
        for name in streams
    }
    dropped = max(0, process.log.start - offset)
    await request.answer_json(200, {**text, "dropped": dropped, "next": process.log.end, **process.describe()})


async def _follow(request: Request, process: Process, streams: tuple[str, ...], offset: int) -> None:
    """Events stdout and stderr {"text"}, or pty, gap {"dropped"} for what is lost, exit {"exit_code", "signal"}.

    The id of an event is the offset of the byte after it, so that Last-Event-ID continues there.
    """
    # One decoder per stream: a character that is split between two pieces is decoded whole.
    decoders = {name: codecs.getincrementaldecoder("utf-8")("replace") for name in streams}
    async with EventStream(request) as events:
        while True:
            running, news = process.running, process.changed.wait()
            if process.log.start > offset:
                await events.send("gap", {"dropped": process.log.start - offset}, process.log.start)
                offset = process.log.start
                continue  # more may have been overwritten while that was sent
            # A send waits for the client, and the ring goes on meanwhile: each piece is checked to follow the last one.
            for piece in process.log.since(offset):
                if piece.offset > offset:
                    break  # the next piece was overwritten while this one was sent
                offset = piece.offset + len(piece.data)
                if piece.stream in decoders:
                    await events.send(piece.stream, {"text": decoders[piece.stream].decode(piece.data)}, offset)
            if offset < process.log.end:
                continue
            if not running:
                await events.send("exit", exit_fields(process.child.exited.result()), offset)
                return
            await events.until(news)


def query_duration(request: Request, name: str, default: str) -> float:
    """Seconds of a duration in the query, five minutes at most. Raises RequestError 400."""
    try:
        return max(0.0, min(parse_duration(request.query(name) or default), _MAX_WAIT_S))
    except DurationError as error:
        raise RequestError(400, f"{name}: {error}") from error


_Verb = Callable[["CommandServices", Request, Process], Awaitable[None]]
_VERBS: dict[str, dict[str, _Verb]] = {
    "": {"GET": _show, "DELETE": _delete},
    "logs": {"GET": _logs},
    "stream": {"GET": join_stream},
    "resize": {"POST": resize},
    "wait": {"GET": _wait},
    "stdin": {"POST": _stdin},
    "signal": {"POST": _signal},
}
