"""GET /api/activity: is this sandbox at work although no request is in flight?

The gateway asks before it puts an idle session to sleep. Answered from memory, and without loading what was not used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from picod.http.request import Request

if TYPE_CHECKING:
    from picod.app import Picod


async def activity(picod: Picod, request: Request) -> None:
    """`busy`, and why: ids of background processes that keep it awake, of terminals in which a command runs, and of
    runs that go on without a client; how many requests with a key do (`unattended`).
    """
    parts = vars(picod)
    processes = (
        [process.id for process in parts["background"].all() if process.running and process.keeps_awake]
        if "background" in parts
        else []
    )
    terminals = [each.id for each in parts["terminals"].all() if each.busy] if "terminals" in parts else []
    runs = [run.id for run in parts["runs"].all() if run.background and run.ended_at is None] if "runs" in parts else []
    unattended = parts["once"].unattended if "once" in parts else 0
    busy = bool(processes or terminals or runs or unattended)
    await request.answer_json(
        200, {"busy": busy, "processes": processes, "terminals": terminals, "runs": runs, "unattended": unattended}
    )
