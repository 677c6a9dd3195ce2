"""POST /api/execute with `stream: true`: what a command prints, as server-sent events.

execute.py collects the output and answers once; here the command becomes a run that can be followed (live_run.py).
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from picod.commands.command_spec import CommandSpec, find_executable, timed_out
from picod.commands.exit_status import exit_status, out_of_memory
from picod.commands.following import Following
from picod.commands.live_run import LiveRun
from picod.commands.pipe_reader import PipeReader
from picod.commands.runs import serve
from picod.commands.stop import Stop, first_of
from picod.compat.go_format import format_time
from picod.http.request import Request, RequestError, os_failure

if TYPE_CHECKING:
    from picod.commands.processes import Child
    from picod.commands.services import CommandServices


async def stream_command(
    services: CommandServices, request: Request, spec: CommandSpec, cwd_fd: int, following: Following
) -> None:
    """Start the command, or follow a run that was started before, and answer its events. Raises RequestError."""
    if following.run_id:
        await serve(request, services.runs.require(following.run_id), following.after)
        return
    name = spec.command[0]
    executable = find_executable(name, spec.env.get(b"PATH", b""), cwd_fd)
    if executable is None:
        raise RequestError(400, f'exec: "{name.decode()}": executable file not found in $PATH')
    stop = Stop()
    run = LiveRun(stop.ask, background=following.background)
    services.runs.add(run)
    child, pipes = await _spawn(services, spec, executable, cwd_fd, run)
    run.begin(pid=child.pid)
    # A task of its own: the run outlives a request whose connection breaks, if it is in the background.
    services.spawn_task(_wait(services, run, child, pipes, spec.timeout, stop))
    await serve(request, run)


async def _spawn(
    services: CommandServices, spec: CommandSpec, executable: bytes, cwd_fd: int, run: LiveRun
) -> tuple[Child, dict[str, PipeReader]]:
    ends: list[int] = []
    try:
        for _ in ("stdout", "stderr"):
            ends += os.pipe2(os.O_CLOEXEC)
        child = await services.start(spec, executable, cwd_fd, ends[1], ends[3])
    except OSError as error:
        for fd in ends:
            os.close(fd)
        run.end({"exit_code": 1})
        raise os_failure(error, f"fork/exec {executable.decode()}") from error
    os.close(ends[1])
    os.close(ends[3])
    pipes = {"stdout": PipeReader(ends[0]), "stderr": PipeReader(ends[2])}
    run.set_pipes(pipes.values())
    for name, pipe in pipes.items():
        pipe.attach(lambda data, name=name: run.output(name, data))  # type: ignore[misc]
    return child, pipes


async def _wait(
    services: CommandServices, run: LiveRun, child: Child, pipes: dict[str, PipeReader], timeout: float, stop: Stop
) -> None:
    started_ns = time.time_ns()
    before = out_of_memory.began()
    why = await first_of(child.exited, stop, timeout)
    if why:
        await services.children.kill(child)
    for pipe in pipes.values():
        pipe.drain()
        pipe.detach()  # what a child left behind still prints is read and dropped until it ends
    ended_ns = time.time_ns()
    status = exit_status(child.exited.result(), before, killed_by_us=bool(why)) if child.exited.done() else None
    if why:
        run.output("stderr", (timed_out(timeout) if why == "timeout" else f"the run was ended: {why}").encode())
    elif status is not None and status.signal:
        run.output("stderr", f"{status.sentence()}\n".encode())
    run.end(
        {
            **({"exit_code": 124} if why == "timeout" else status.fields() if status else {"exit_code": -1}),
            "duration": (ended_ns - started_ns) / 1e9,
            "start_time": format_time(started_ns),
            "end_time": format_time(ended_ns),
        }
    )
