"""Handlers of code contexts: POST /api/run_code, and /api/contexts."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any

from picod.commands.command_spec import read_env
from picod.commands.following import read_following
from picod.commands.live_run import LiveRun
from picod.commands.runs import serve
from picod.commands.stop import Stop
from picod.compat.go_format import DurationError, parse_duration
from picod.http.json_fields import flag_field, missing, parse_object, text_field, wrong_type
from picod.http.request import JSON_TYPE, ClientGoneError, Request, RequestError
from picod.interpreter.contexts import Context, Outcome
from picod.interpreter.kernel import KernelError
from picod.interpreter.python_context import PythonContext
from picod.interpreter.registry import DEFAULTS, CodeSpec
from picod.interpreter.results import Collected

if TYPE_CHECKING:
    from picod.interpreter.services import InterpreterServices

DEFAULT_TIMEOUT_S = 60.0
_STRUCT = "RunCodeRequest"
_ONE_PIECE_BYTES = 256 << 10  # an answer up to this size is built as one piece


def parse_code(fields: dict[str, Any]) -> CodeSpec:
    """The code to run, from a request's JSON fields. Raises RequestError 400."""
    code = text_field(fields, _STRUCT, "code")
    if code is None:
        raise missing(_STRUCT, "code")
    try:
        code.encode()
    except UnicodeEncodeError as error:
        raise RequestError(400, "code is not valid UTF-8") from error
    language = text_field(fields, _STRUCT, "language") or ""
    if language not in ("", *DEFAULTS):
        raise RequestError(400, f"language must be python or bash, not {language!r}")
    return CodeSpec(
        code,
        language,
        text_field(fields, _STRUCT, "context_id") or "",
        seconds_field(fields, _STRUCT, DEFAULT_TIMEOUT_S),
        read_env(fields, _STRUCT),
        flag_field(fields, _STRUCT, "silent", default=False),
        flag_field(fields, _STRUCT, "comms", default=False),
    )


def seconds_field(fields: dict[str, Any], struct: str, default: float) -> float:
    """`timeout`: a number of seconds, or a duration such as "90s" or "2m". Raises RequestError 400."""
    value = fields.get("timeout")
    if value is None or value == "":
        return default
    if isinstance(value, str):
        try:
            seconds = parse_duration(value)
        except DurationError as error:
            raise RequestError(400, f"Invalid timeout format: {error}") from error
    elif isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    else:
        raise wrong_type(value, struct, "timeout", "number")
    if not 0 < seconds < math.inf:
        raise RequestError(400, "timeout must be above zero")
    return seconds


async def run_code(services: InterpreterServices, request: Request) -> None:
    """Run code in a context and answer with its output and results; 200 also when the code failed."""
    fields = parse_object(await request.body(services.config.max_body), _STRUCT)
    spec, following = parse_code(fields), read_following(fields, request, _STRUCT)
    interpreter = services.interpreter
    if following.run_id:
        await serve(request, services.commands.runs.require(following.run_id), following.after)
        return
    context = interpreter.context_for(spec)
    if following.stream:
        await _stream(services, request, spec, context, background=following.background)
        return
    # In a task of its own: when the client leaves, the run must still be ended and its context released.
    collected, stop = Collected(services.config, services.commands.workspace), Stop()
    running = interpreter.spawn(_collect(context, spec, collected, stop))
    gone = asyncio.create_task(request.gone())
    try:
        await asyncio.wait({running, gone}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
        if not running.done():
            stop.ask("the client left")  # the run's own task ends it, and releases the context for the next run
    if not running.done():
        raise ClientGoneError
    outcome = _outcome(running)
    pieces = collected.answer({**outcome.fields(), "context_id": context.id})
    if collected.size <= _ONE_PIECE_BYTES:
        await request.answer(200, b"".join(pieces), (JSON_TYPE,))
        return
    await request.start(200, (JSON_TYPE,))
    for piece in pieces:
        await request.write(piece, more=True)
    await request.write(b"", more=False)


async def _collect(context: Context, spec: CodeSpec, collected: Collected, stop: Stop) -> Outcome:
    try:
        return await context.run(spec.code, spec.timeout, collected, stop, spec.env, silent=spec.silent)
    finally:
        await collected.finish()


async def _stream(
    services: InterpreterServices, request: Request, spec: CodeSpec, context: Context, *, background: bool
) -> None:
    stop = Stop()
    run = LiveRun(stop.ask, background=background, comms=spec.comms)
    services.commands.runs.add(run)
    run.begin(context_id=context.id)

    async def work() -> None:
        try:
            outcome = await context.run(spec.code, spec.timeout, run, stop, spec.env, silent=spec.silent)
            run.end({**outcome.fields(), "context_id": context.id})
        except KernelError as error:
            run.end({"error": {"name": "ContextError", "value": str(error), "traceback": []}, "context_id": context.id})
        finally:
            if run.ended_at is None:  # a bug in picod: clients that follow the run must not wait forever
                value = "internal error; the sandbox's log has the details"
                run.end({"error": {"name": "InternalError", "value": value, "traceback": []}, "context_id": context.id})

    services.commands.spawn_task(work())
    await serve(request, run)


def _outcome(running: asyncio.Task[Outcome]) -> Outcome:
    try:
        return running.result()
    except KernelError as error:
        raise RequestError(503, str(error)) from error


async def list_contexts(services: InterpreterServices, request: Request) -> None:
    """GET /api/contexts: describe all contexts, oldest first."""
    await request.answer_json(200, {"contexts": [context.describe() for context in services.interpreter.all()]})


async def create_context(services: InterpreterServices, request: Request) -> None:
    """POST /api/contexts: create one; `language` is python (default) or bash, `context_id` an optional name."""
    fields = parse_object(await request.body(services.config.max_body) or b"{}", "ContextRequest")
    language = text_field(fields, "ContextRequest", "language") or "python"
    if language not in DEFAULTS:
        raise RequestError(400, f"language must be python or bash, not {language!r}")
    context = services.interpreter.create(language, text_field(fields, "ContextRequest", "context_id") or "")
    if isinstance(context, PythonContext):
        context.begin()
    await request.answer_json(201, context.describe())


async def delete_context(services: InterpreterServices, request: Request) -> None:
    """DELETE /api/contexts/{id}: end the context and every process that runs in it."""
    context = services.interpreter.require(request.tail.decode(errors="replace"))
    await services.interpreter.delete(context)
    await request.answer(204, b"", ())


async def control_context(services: InterpreterServices, request: Request) -> None:
    """POST /api/contexts/{id}/restart and .../interrupt."""
    name, _, verb = request.tail.decode(errors="replace").partition("/")
    if verb not in ("restart", "interrupt"):
        raise RequestError(404, "POST /api/contexts/{id}/restart or /api/contexts/{id}/interrupt")
    context = services.interpreter.require(name)
    if verb == "restart":
        await context.restart()
        if isinstance(context, PythonContext):
            context.begin()
        await request.answer_json(200, context.describe())
    else:
        await request.answer_json(200, {"interrupted": context.interrupt()})
