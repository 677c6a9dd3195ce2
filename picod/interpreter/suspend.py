"""POST /api/suspend and /api/resume: what contexts know goes into the workspace before it is kept, and comes back.

A Python context's files are written and read by its own process (userside/state.py), a bash context's is a copy of its
state. Reading back waits until the context is first used, so that a wake costs nothing for those that are not. The
files of a context go away once they were read, or once the context ran on: a state that is older than the workspace
around it must not come back.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from picod.http.request import Request
from picod.interpreter.state_files import FOLDER, StateFiles, find

if TYPE_CHECKING:
    from picod.interpreter.services import InterpreterServices

_MAX_UNSAVED = 500  # names in an answer


async def suspend(services: InterpreterServices, request: Request) -> None:
    """POST: write what contexts know. Safe to repeat; nothing else changes, and contexts may go on afterwards."""
    await request.body(services.config.max_body)
    folder = os.path.join(services.config.workspace, FOLDER)
    if not services.has_interpreter:
        await request.answer_json(200, {"saved": 0, "unsaved": []})
        return
    interpreter = services.interpreter
    contexts = [context for context in interpreter.all() if context.has_state]
    reports = await asyncio.gather(
        *(context.save(StateFiles(folder, context.id), interpreter.scratch(context.id)) for context in contexts)
    )
    unsaved = [
        {"context": context.id, **entry}
        for context, report in zip(contexts, reports, strict=True)
        for entry in report["unsaved"]
    ]
    saved = sum(report["saved"] for report in reports)
    await request.answer_json(200, {"saved": saved, "unsaved": unsaved[:_MAX_UNSAVED]})


async def resume(services: InterpreterServices, request: Request) -> None:
    """POST: a workspace that was kept has come. Contexts that lie in it are read back when they are first used."""
    await request.body(services.config.max_body)
    folder = os.path.join(services.config.workspace, FOLDER)
    taken = [
        context_id
        for context_id, language in find(folder).items()
        if services.interpreter.expect(StateFiles(folder, context_id), language)
    ]
    await request.answer_json(200, {"contexts": taken})
