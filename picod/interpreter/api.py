"""The session's contexts and their HTTP: POST /api/run_code, and /api/contexts."""

from __future__ import annotations

import asyncio
import math
import os
import re
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from picod.commands.execute import find_executable
from picod.commands.runs import LiveRun, read_following, serve
from picod.compat.go_format import DurationError, parse_duration
from picod.http.json_fields import missing, parse_object, text_field, wrong_type
from picod.http.request import JSON_TYPE, ClientGoneError, Request, RequestError
from picod.interpreter.bash_context import BashContext
from picod.interpreter.contexts import MAX_QUEUED, Context, Outcome, Stop, Surroundings
from picod.interpreter.kernel import Ahead, KernelError
from picod.interpreter.python_context import PythonContext
from picod.interpreter.results import Collected
from picod.interpreter.state_files import StateFiles

if TYPE_CHECKING:
    from picod.app import Picod

DEFAULT_TIMEOUT = 60.0
DEFAULTS = {"python": "default", "bash": "bash"}  # language -> the context that is meant when none is named
_MAX_CONTEXTS = 16
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_STRUCT = "RunCodeRequest"
_SMALL = 256 << 10  # bytes up to which an answer is made in one piece


@dataclass(frozen=True)
class CodeOrder:
    """What is to be run, and where. `timeout` is in seconds; `context_id` empty: the language's default one."""

    code: str
    language: str
    context_id: str
    timeout: float


class Interpreter:
    """All contexts of this sandbox."""

    def __init__(self, picod: Picod) -> None:
        self._picod = picod
        self._folder = ""
        self._contexts: dict[str, Context] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._names = 0
        env = {name.encode(): value.encode() for name, value in picod.config.command_env.items()}
        self._around = Surroundings(picod.children, picod.workspace, env, self._find, self._make_folder)

    def all(self) -> list[Context]:
        """Those that exist, oldest first."""
        return list(self._contexts.values())

    def require(self, context_id: str) -> Context:
        """One by its name. Raises RequestError 404."""
        context = self._contexts.get(context_id)
        if context is None:
            raise RequestError(404, f"there is no context {context_id!r}; POST /api/contexts makes one")
        return context

    def create(self, language: str, context_id: str = "") -> Context:
        """A new one. Raises RequestError."""
        if len(self._contexts) >= _MAX_CONTEXTS:
            raise RequestError(409, f"a session has at most {_MAX_CONTEXTS} contexts; delete one first")
        if not context_id:
            while not context_id or context_id in self._contexts:
                self._names += 1
                context_id = f"{language}-{self._names}"
        if not _NAME.fullmatch(context_id):
            raise RequestError(400, "context_id: letters, digits, - and _ only, at most 64")
        if context_id in self._contexts:
            raise RequestError(409, f"there is a context {context_id!r} already")
        context: Context = (BashContext if language == "bash" else PythonContext)(context_id, self._around)
        self._contexts[context_id] = context
        return context

    def for_order(self, order: CodeOrder) -> Context:
        """The context that an order means; default ones are made when they are first meant. Raises RequestError."""
        if self._picod.config.code_context == "off":
            raise RequestError(403, "this runtime has no code contexts (codeContext: off); use /api/execute")
        name = order.context_id or DEFAULTS[order.language or "python"]
        if name in DEFAULTS.values() and name not in self._contexts:
            return self.create(next(language for language, default in DEFAULTS.items() if default == name), name)
        context = self.require(name)
        if order.language and context.language != order.language:
            raise RequestError(400, f"context {name!r} runs {context.language}, not {order.language}")
        if context.waiting >= MAX_QUEUED:
            raise RequestError(429, f"{MAX_QUEUED} runs wait for context {name!r} already")
        return context

    async def delete(self, context: Context) -> None:
        """End it and forget it."""
        self._contexts.pop(context.id, None)
        await context.delete()

    def expect(self, files: StateFiles, language: str) -> bool:
        """A state has come with the workspace: read it back when its context is used. False when that has no use."""
        context = self._contexts.get(files.context_id)
        if context is None:
            try:
                context = self.create(language, files.context_id)
            except RequestError:
                return False  # not a name of ours, or one too many
        return context.language == language and context.expect(files)

    def scratch(self, name: str) -> str:
        """A file outside of the workspace, for what a context's process tells of itself."""
        return os.path.join(self._make_folder(), f"{name}.report")

    def warm(self, ahead: Ahead) -> None:
        """Start the default context, for the first run to find it ready."""
        context = self._contexts.get(DEFAULTS["python"])
        if context is None:
            context = self.create("python", DEFAULTS["python"])
        if isinstance(context, PythonContext):
            context.begin(ahead)

    def spawn(self, work: Any) -> asyncio.Task[Any]:
        """Run a coroutine that may outlive its request."""
        task: asyncio.Task[Any] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def close(self) -> None:
        """Remove what lies outside of the workspace; the processes are ended by others."""
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _find(self, name: str) -> bytes | None:
        path = self._picod.config.command_env.get("PATH", "").encode()
        return find_executable(name.encode(), path, self._picod.workspace.fd)

    def _make_folder(self) -> str:
        if not os.path.isdir(self._folder):  # the session's own code may have removed it
            # Short: a socket's path may have 107 bytes.
            tmp = self._picod.config.command_env.get("TMPDIR") or "/tmp"  # noqa: S108 - the sandbox's own
            folder = os.path.join(tmp, f".wakegate-{os.urandom(4).hex()}")
            try:
                os.mkdir(folder, 0o700)
            except OSError as error:
                raise KernelError(f"there is no room for a context's sockets in {tmp}: {error.strerror}") from error
            self._folder = folder
        return self._folder


def parse_code_order(fields: dict[str, Any]) -> CodeOrder:
    """Check the request. Raises RequestError 400."""
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
    return CodeOrder(
        code, language, text_field(fields, _STRUCT, "context_id") or "", seconds_field(fields, _STRUCT, DEFAULT_TIMEOUT)
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


async def run_code(picod: Picod, request: Request) -> None:
    """Run code in a context and answer what came of it; 200 also when the code failed."""
    fields = parse_object(await request.body(picod.config.max_body), _STRUCT)
    order, following = parse_code_order(fields), read_following(fields, request, _STRUCT)
    interpreter = picod.interpreter
    if following.run_id:
        await serve(request, picod.runs.require(following.run_id), following.after)
        return
    context = interpreter.for_order(order)
    if following.stream:
        await _stream(picod, request, order, context, background=following.background)
        return
    collected, stop = Collected(picod.config.max_output), Stop()
    running = interpreter.spawn(context.run(order.code, order.timeout, collected, stop))
    gone = asyncio.create_task(request.gone())
    try:
        await asyncio.wait({running, gone}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
        if not running.done():
            stop.ask("the client left")  # the run ends itself, and lets the next one have its turn
    if not running.done():
        raise ClientGoneError
    outcome = _outcome(running)
    pieces = collected.answer({**outcome.fields(), "context_id": context.id})
    if collected.size <= _SMALL:
        await request.answer(200, b"".join(pieces), (JSON_TYPE,))
        return
    await request.start(200, (JSON_TYPE,))
    for piece in pieces:
        await request.write(piece, more=True)
    await request.write(b"", more=False)


async def _stream(picod: Picod, request: Request, order: CodeOrder, context: Context, *, background: bool) -> None:
    stop = Stop()
    run = LiveRun(stop.ask, background=background)
    picod.runs.add(run)
    run.begin(context_id=context.id)

    async def work() -> None:
        try:
            outcome = await context.run(order.code, order.timeout, run, stop)
            run.end({**outcome.fields(), "context_id": context.id})
        except KernelError as error:
            run.end({"error": {"name": "ContextError", "value": str(error), "traceback": []}, "context_id": context.id})
        finally:
            if run.ended_at is None:  # a fault of ours: who follows is not to wait for ever
                value = "internal error; the sandbox's log has the details"
                run.end({"error": {"name": "InternalError", "value": value, "traceback": []}, "context_id": context.id})

    picod.keep(work())
    await serve(request, run)


def _outcome(running: asyncio.Task[Outcome]) -> Outcome:
    try:
        return running.result()
    except KernelError as error:
        raise RequestError(503, str(error)) from error


async def list_contexts(picod: Picod, request: Request) -> None:
    """GET: all contexts."""
    await request.answer_json(200, {"contexts": [context.describe() for context in picod.interpreter.all()]})


async def create_context(picod: Picod, request: Request) -> None:
    """POST: a new context; `language` python (default) or bash, `context_id` if it should have a name."""
    fields = parse_object(await request.body(picod.config.max_body) or b"{}", "ContextRequest")
    language = text_field(fields, "ContextRequest", "language") or "python"
    if language not in DEFAULTS:
        raise RequestError(400, f"language must be python or bash, not {language!r}")
    context = picod.interpreter.create(language, text_field(fields, "ContextRequest", "context_id") or "")
    if isinstance(context, PythonContext):
        context.begin()
    await request.answer_json(201, context.describe())


async def delete_context(picod: Picod, request: Request) -> None:
    """DELETE /api/contexts/{id}: end it with all that runs in it."""
    context = picod.interpreter.require(request.tail.decode(errors="replace"))
    await picod.interpreter.delete(context)
    await request.answer(204, b"", ())


async def control_context(picod: Picod, request: Request) -> None:
    """POST /api/contexts/{id}/restart and .../interrupt."""
    name, _, verb = request.tail.decode(errors="replace").partition("/")
    if verb not in ("restart", "interrupt"):
        raise RequestError(404, "POST /api/contexts/{id}/restart or /api/contexts/{id}/interrupt")
    context = picod.interpreter.require(name)
    if verb == "restart":
        await context.restart()
        if isinstance(context, PythonContext):
            context.begin()
        await request.answer_json(200, context.describe())
    else:
        await request.answer_json(200, {"interrupted": context.interrupt()})
