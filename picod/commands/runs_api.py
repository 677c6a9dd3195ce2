"""/api/runs: list runs that can be followed, follow one, end one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from picod.commands.following import read_event_id
from picod.commands.runs import serve
from picod.http.request import Request, RequestError

if TYPE_CHECKING:
    from picod.commands.services import CommandServices


async def list_runs(services: CommandServices, request: Request) -> None:
    """GET /api/runs: what can be followed."""
    await request.answer_json(200, {"runs": [run.describe() for run in services.runs.all()]})


async def follow_run(services: CommandServices, request: Request) -> None:
    """GET /api/runs/{id}: its events, after the one that Last-Event-ID names."""
    run = services.runs.require(request.tail.decode(errors="replace"))
    run_id, after = read_event_id(request)
    if run_id and run_id != run.id:
        raise RequestError(400, f"Last-Event-ID is of run {run_id[:64]!r}, not of {run.id!r}")
    await serve(request, run, after)


async def stop_run(services: CommandServices, request: Request) -> None:
    """DELETE /api/runs/{id}: end it. Its last events can still be read."""
    run = services.runs.require(request.tail.decode(errors="replace"))
    run.stop("stopped")
    await request.answer(204, b"", ())
