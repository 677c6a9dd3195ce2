"""What the gateway itself asks of a sandbox: GET /health and GET /api/activity."""

from __future__ import annotations

import time

from picod.compat.go_format import format_duration
from picod.http.request import Request
from picod.services import Services

VERSION = "0.0.1"  # of the executor API, as AgentCube's reports it


async def health(services: Services, request: Request) -> None:
    """GET /health: 200 once the sandbox can serve. Cheap: asked of each sandbox before it counts as warm."""
    if services.agent is not None:
        await services.agent.ready.wait()
    uptime = format_duration(time.monotonic() - services.started_at)
    await request.answer_json(200, {"service": "PicoD", "status": "ok", "uptime": uptime, "version": VERSION})


async def activity(services: Services, request: Request) -> None:
    """GET /api/activity: whether something runs that no request waits for. Asked before a session is hibernated.

    `busy`, and why: ids of background processes that keep the session awake, of terminals in which a command runs and
    of background runs; and the number of requests with an Idempotency-Key whose client has left (`unattended`).
    """
    parts = services.commands.busy()
    unattended = services.unattended
    await request.answer_json(200, {"busy": any(parts.values()) or unattended > 0, **parts, "unattended": unattended})
