"""POST /api/execute: run one command to its end and answer what it printed.

The command ends with its exit, its timeout or the client's disconnect, whichever is first; the latter two kill its
whole process tree.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from picod.commands.command_spec import (
    STRUCT,
    CommandSpec,
    find_executable,
    open_working_directory,
    parse_command,
    timed_out,
)
from picod.commands.exit_status import exit_status, out_of_memory
from picod.commands.output import Stream
from picod.commands.output_files import OUTPUT_FOLDER, open_output_file
from picod.compat.go_format import format_time
from picod.http.json_fields import parse_object
from picod.http.request import JSON_TYPE, ClientGoneError, Request, RequestError, os_failure, reason_of, to_json

if TYPE_CHECKING:
    from picod.commands.services import CommandServices

_SMALL_BYTES = 256 << 10  # bytes of output up to which the answer is made in one piece


@dataclass
class Result:
    """How a command ended, and its output. `note` is picod's own text, appended to stderr."""

    exit_code: int
    note: str = ""
    signal: str = ""
    stdout: Stream | None = None
    stderr: Stream | None = None
    stdout_file: str = ""
    stderr_file: str = ""
    started_ns: int = 0
    ended_ns: int = 0


async def execute(services: CommandServices, request: Request) -> None:
    """Run the command and answer; 200 even if it fails to start, as AgentCube does."""
    body = await request.body(services.config.max_body)
    spec = parse_command(body, services.config.command_env)
    cwd_fd = open_working_directory(services.workspace, spec.working_dir)
    try:
        if b'"stream"' in body:  # a search costs microseconds, the import of what follows milliseconds
            from picod.commands.following import read_following
            from picod.commands.streaming import stream_command

            following = read_following(parse_object(body, STRUCT), request, STRUCT)
            if following.stream:
                await stream_command(services, request, spec, cwd_fd, following)
                return
        result = await run(services, request, spec, cwd_fd)
    finally:
        os.close(cwd_fd)
    await _answer(request, result)


async def run(services: CommandServices, request: Request, spec: CommandSpec, cwd_fd: int) -> Result:
    """Start the command and wait for its end. Raises ClientGoneError when the client leaves; the command is killed."""
    started_ns = time.time_ns()
    if spec.timeout <= 0:
        result = Result(124, timed_out(spec.timeout))
    else:
        name = spec.command[0]
        executable = find_executable(name, spec.env.get(b"PATH", b""), cwd_fd)
        if executable is None:
            result = Result(1, f'exec: "{name.decode()}": executable file not found in $PATH')
        else:
            result = await _run_started(services, request, spec, executable, cwd_fd)
    result.started_ns, result.ended_ns = started_ns, time.time_ns()
    return result


async def _run_started(
    services: CommandServices, request: Request, spec: CommandSpec, executable: bytes, cwd_fd: int
) -> Result:
    async with _streams(services) as (result, stdout_w, stderr_w):
        before = out_of_memory.began()  # read before the start: a command can be killed within milliseconds
        try:
            child = await services.start(spec, executable, cwd_fd, stdout_w, stderr_w)
        except OSError as error:
            result.exit_code, result.note = 1, f"fork/exec {executable.decode()}: {reason_of(error)}"
            return result
        finally:
            # Ours must go, or the readers would never see the end of the pipe.
            os.close(stdout_w)
            os.close(stderr_w)
        gone = asyncio.create_task(request.gone())
        ends: set[asyncio.Future[int] | asyncio.Task[None]] = {child.exited, gone}
        try:
            # Not wait_for: it would cancel `exited` at the timeout, and the kill below needs it.
            await asyncio.wait(ends, timeout=spec.timeout, return_when=asyncio.FIRST_COMPLETED)
            if child.exited.done():
                status = exit_status(child.exited.result(), before)
                result.exit_code, result.signal = status.code, status.signal
                result.note = f"{status.sentence()}\n" if status.signal else ""
            elif gone.done():
                raise ClientGoneError
            else:
                result.exit_code, result.note = 124, timed_out(spec.timeout)
        finally:
            gone.cancel()
            if not child.exited.done():
                await services.children.kill(child)
        return result


@contextlib.asynccontextmanager
async def _streams(services: CommandServices) -> AsyncIterator[tuple[Result, int, int]]:
    """Two pipes with a reader on each. Leaving reads the rest of the output, or drops all of it after an error."""
    result = Result(0)
    name = os.urandom(8).hex()
    result.stdout, result.stdout_file, stdout_w = _open_stream(services, f"{OUTPUT_FOLDER}/{name}.stdout")
    try:
        result.stderr, result.stderr_file, stderr_w = _open_stream(services, f"{OUTPUT_FOLDER}/{name}.stderr")
    except RequestError:
        os.close(stdout_w)
        await result.stdout.close()
        raise
    try:
        yield result, stdout_w, stderr_w
    except BaseException:
        await result.stdout.close()
        await result.stderr.close()
        raise
    await result.stdout.finish()
    await result.stderr.finish()


def _open_stream(services: CommandServices, spill: str) -> tuple[Stream, str, int]:
    try:
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
    except OSError as error:
        raise os_failure(error, "Failed to run the command: pipe") from error
    os.set_blocking(read_end, False)  # the write end stays blocking: programs do not expect EAGAIN from print
    config, workspace = services.config, services.workspace
    stream = Stream(
        read_end,
        limit=config.max_output,
        max_spill=config.max_spill,
        open_spill=lambda: open_output_file(workspace, spill, config.max_spill),
    )
    return stream, spill, write_end


async def _answer(request: Request, result: Result) -> None:
    streams = [stream for stream in (result.stdout, result.stderr) if stream is not None]
    if sum(len(stream.kept) for stream in streams) <= _SMALL_BYTES:
        await request.answer(200, b"".join(_as_json(result)), (JSON_TYPE,))
        return
    # Ten megabytes of NUL bytes are sixty of JSON (\u0000 each): encoded and sent in pieces, so that memory never holds
    # all of it at once.
    await request.start(200, (JSON_TYPE,))
    for piece in _as_json(result):
        await request.write(piece, more=True)
        await asyncio.sleep(0)
    await request.write(b"", more=False)


def _as_json(result: Result) -> Iterator[bytes]:
    yield b'{"stdout":"'
    yield from _escaped(result.stdout)
    yield b'","stderr":"'
    yield from _escaped(result.stderr)
    yield to_json(result.note)[1:]  # without its opening quote: it continues the text of stderr
    rest: dict[str, object] = {
        "exit_code": result.exit_code,
        "duration": (result.ended_ns - result.started_ns) / 1e9,
        "start_time": format_time(result.started_ns),
        "end_time": format_time(result.ended_ns),
        "stdout_truncated": result.stdout is not None and result.stdout.truncated,
        "stderr_truncated": result.stderr is not None and result.stderr.truncated,
    }
    if result.signal:
        rest["signal"] = result.signal
    if result.stdout is not None and result.stdout.spilled:
        rest["stdout_file"] = result.stdout_file
    if result.stderr is not None and result.stderr.spilled:
        rest["stderr_file"] = result.stderr_file
    yield b"," + to_json(rest)[1:]


def _escaped(stream: Stream | None) -> Iterator[bytes]:
    if stream is not None:
        for text in stream.text():
            yield json.dumps(text, ensure_ascii=False)[1:-1].encode()
