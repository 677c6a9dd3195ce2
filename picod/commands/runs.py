"""The runs that can be followed: /api/execute and /api/run_code with `stream`, and /api/runs to come back to one.

A run is kept for a while after its end, so that a client whose connection broke continues where it was: by GET
/api/runs/{id}, or by the same POST again, each with Last-Event-ID. A client that leaves ends its run, unless that was
started in the background. live_run.py is one run, following.py what a request says of it.
"""

from __future__ import annotations

import time

from picod.commands.live_run import LiveRun
from picod.http.request import ClientGoneError, Request, RequestError
from picod.http.sse import EventStream

_KEEP_S = 300.0  # after its end
_MAX_ENDED_BYTES = 16 << 20  # of events, of all runs that have ended
_MAX_ENDED = 64
_MAX_BACKGROUND = 16  # that have not ended


class Runs:
    """The runs of this sandbox: those that have not ended, and those that ended less than _KEEP_S ago."""

    def __init__(self) -> None:
        self._runs: dict[str, LiveRun] = {}

    def all(self) -> list[LiveRun]:
        """All runs that are kept, oldest first."""
        self._forget()
        return list(self._runs.values())

    def add(self, run: LiveRun) -> None:
        """Keep a run. Raises RequestError 429 when too many run in the background."""
        self._forget()
        running = sum(each.background and each.ended_at is None for each in self._runs.values())
        if run.background and running >= _MAX_BACKGROUND:
            raise RequestError(429, f"{_MAX_BACKGROUND} runs go on in the background; DELETE /api/runs/ID ends one")
        self._runs[run.id] = run

    def require(self, run_id: str) -> LiveRun:
        """A run by its id. Raises RequestError 404."""
        run = self._runs.get(run_id)
        if run is None:
            raise RequestError(404, f"there is no run {run_id[:64]!r}: it ended some time ago, or in another sandbox")
        return run

    def _forget(self) -> None:
        ended = [run for run in self._runs.values() if run.ended_at is not None]
        kept = sum(run.kept for run in ended)
        for index, run in enumerate(ended):  # the oldest first
            old = time.time() - (run.ended_at or 0) > _KEEP_S
            if not old and kept <= _MAX_ENDED_BYTES and len(ended) - index <= _MAX_ENDED:
                return
            kept -= run.kept
            del self._runs[run.id]


async def serve(request: Request, run: LiveRun, after: int = 0) -> None:
    """Answer with the run's events. A client that leaves ends the run, unless it is in the background."""
    try:
        async with EventStream(request) as stream:
            await run.follow(stream, after)
    except ClientGoneError:
        # Nobody would see how it ends, and it may hold a context that others wait for.
        if not run.background:
            run.stop("the client left")
        raise
