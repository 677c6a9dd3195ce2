"""POST /api/execute with `stream: true`: what a command prints, as server-sent events.

The ordinary way (execute.py) collects and answers once; here the order goes to a run that can be followed (runs.py).
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from picod.commands.execute import Order, find_executable, start, timed_out
from picod.commands.pipe_reader import Outlet
from picod.commands.runs import Following, LiveRun, serve
from picod.compat.go_format import format_time
from picod.http.request import Request, RequestError, os_failure
from picod.interpreter.contexts import Stop, first_of

if TYPE_CHECKING:
    from picod.app import Picod
    from picod.commands.processes import Child


async def stream_command(picod: Picod, request: Request, order: Order, cwd_fd: int, following: Following) -> None:
    """Start the command, or go on with one that runs, and answer its events. Raises RequestError."""
    if following.run_id:
        await serve(request, picod.runs.require(following.run_id), following.after)
        return
    name = order.command[0]
    executable = find_executable(name, order.env.get(b"PATH", b""), cwd_fd)
    if executable is None:
        raise RequestError(400, f'exec: "{name.decode()}": executable file not found in $PATH')
    stop = Stop()
    run = LiveRun(stop.ask, background=following.background)
    picod.runs.add(run)
    child, outlets = await _spawn(picod, order, executable, cwd_fd, run)
    run.begin(pid=child.pid)
    picod.keep(_wait(picod, run, child, outlets, order.timeout, stop))
    await serve(request, run)


async def _spawn(
    picod: Picod, order: Order, executable: bytes, cwd_fd: int, run: LiveRun
) -> tuple[Child, dict[str, Outlet]]:
    ends: list[int] = []
    try:
        for _ in ("stdout", "stderr"):
            ends += os.pipe2(os.O_CLOEXEC)
        child = await start(picod, order, executable, cwd_fd, ends[1], ends[3])
    except OSError as error:
        for fd in ends:
            os.close(fd)
        run.end({"exit_code": 1})
        raise os_failure(error, f"fork/exec {executable.decode()}") from error
    os.close(ends[1])
    os.close(ends[3])
    outlets = {"stdout": Outlet(ends[0]), "stderr": Outlet(ends[2])}
    run.feeds(outlets.values())
    for name, outlet in outlets.items():
        outlet.attach(lambda data, name=name: run.output(name, data))  # type: ignore[misc]
    return child, outlets


async def _wait(
    picod: Picod, run: LiveRun, child: Child, outlets: dict[str, Outlet], timeout: float, stop: Stop
) -> None:
    started_ns = time.time_ns()
    why = await first_of(child.exited, stop, timeout)
    if why:
        await picod.children.kill(child)
    for outlet in outlets.values():
        outlet.drain()
        outlet.detach()  # what a child left behind still prints is read and dropped until it ends
    ended_ns = time.time_ns()
    code = child.exited.result() if child.exited.done() else -1
    if why:
        run.output("stderr", (timed_out(timeout) if why == "timeout" else f"the run was ended: {why}").encode())
    run.end(
        {
            "exit_code": 124 if why == "timeout" else max(code, -1),
            "duration": (ended_ns - started_ns) / 1e9,
            "start_time": format_time(started_ns),
            "end_time": format_time(ended_ns),
        }
    )
