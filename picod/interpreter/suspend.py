"""POST /api/suspend and /api/resume: save contexts into the workspace before hibernation, and load them after a wake.

A Python context's files are written and read by its own process (userside/state.py), a bash context's is a copy of its
state. A context is loaded when it is first used, so that a wake costs nothing for the others. Its files are removed
once they are loaded, or once the context has run again: state that is older than the workspace must never be loaded.
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
    """POST /api/suspend: save all contexts. Safe to repeat; contexts may run on afterwards."""
    await request.body(services.config.max_body)
    folder = os.path.join(services.config.workspace, FOLDER)
    if not services.has_interpreter:  # most sessions have no context, and asking must not import the interpreter
        await request.answer_json(200, {"saved": 0, "unsaved": []})
        return
    interpreter = services.interpreter
    # All at once: each may take its 10 s, and 16 contexts in turn would take longer than a hibernation may.
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
    """POST /api/resume: the workspace has been restored. Contexts saved in it are loaded when they are first used."""
    await request.body(services.config.max_body)
    folder = os.path.join(services.config.workspace, FOLDER)
    taken = [
        context_id
        for context_id, language in find(folder).items()
        if services.interpreter.expect(StateFiles(folder, context_id), language)
    ]
    await request.answer_json(200, {"contexts": taken})
