"""The app: a table of routes, and what every request goes through before it reaches one.

A further room (code contexts, processes, snapshots) is a module with handlers and lines in ROUTES.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Coroutine
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote_to_bytes

from picod import wire
from picod.activity import activity
from picod.commands.execute import encoded, execute, find_executable
from picod.commands.preload import Preload
from picod.commands.processes import Children
from picod.compat.go_format import format_duration
from picod.config import PicodConfig
from picod.files.listing import download, list_files
from picod.files.uploads import upload, upload_raw
from picod.filesystem.paths import Workspace
from picod.http.auth import Guard
from picod.http.request import ClientGoneError, Receive, Request, RequestError, Scope, Send, TooLargeError
from picod.interpreter.fonts import put_fonts
from picod.snapshot.api import load, restore_snapshot, send_snapshot

if TYPE_CHECKING:
    from picod.commands.background import Background
    from picod.commands.runs import Runs
    from picod.commands.terminal import Terminals
    from picod.http.idempotency import Once
    from picod.interpreter.api import Interpreter
    from picod.ports.agent import Agent

_IDLE_BEFORE_LOADING = 1.0  # seconds from the start
_IDLE_BEFORE_CONTEXT = 0.5
_CONTEXT_NICE = 10  # a pool that fills must not slow down the sandboxes that work
_BUSY_PAUSE, _BUSY_PAUSES = 0.5, 20  # seconds, and how often, that its start waits for a free core

VERSION = "0.0.1"  # of the executor API, as AgentCube's reports it

Handler = Callable[["Picod", Request], Awaitable[None]]

ANY: tuple[str, ...] = ()  # in a route: every method


class Route(NamedTuple):
    """Methods and path of a handler. A path that ends in `/` takes all below it; the rest is `request.tail`."""

    methods: tuple[str, ...]
    path: bytes
    handler: Handler
    open: bool = False  # answers without a token
    once: bool = False  # with an Idempotency-Key it runs once (idempotency.py)


def late(module: str, name: str) -> Handler:
    """A handler whose module is loaded when it is first called: no session needs all of them, each start would pay."""

    async def handle(picod: Picod, request: Request) -> None:
        handler: Handler = getattr(import_module(module), name)
        await handler(picod, request)

    return handle


def runnable() -> int:
    """How many threads of the whole machine run or would, this one among them. 0 where the kernel does not say."""
    try:
        with open("/proc/loadavg") as file:
            return int(file.read().split()[3].partition("/")[0])
    except (OSError, ValueError, IndexError):
        return 0


async def health(picod: Picod, request: Request) -> None:
    """Say that we are here. Does as little as can be: the gateway asks it of each sandbox before it counts as warm."""
    if picod.agent is not None:
        await picod.agent.ready.wait()
    uptime = format_duration(time.monotonic() - picod.started_at)
    await request.answer_json(200, {"service": "PicoD", "status": "ok", "uptime": uptime, "version": VERSION})


ROUTES = (
    Route(("GET",), wire.HEALTH_PATH.encode(), health, open=True),
    Route(("POST",), b"/api/execute", execute, once=True),
    Route(("POST",), wire.RUN_CODE_PATH.encode(), late("picod.interpreter.api", "run_code"), once=True),
    Route(("GET",), wire.CONTEXTS_PATH.encode(), late("picod.interpreter.api", "list_contexts")),
    Route(("POST",), wire.CONTEXTS_PATH.encode(), late("picod.interpreter.api", "create_context")),
    Route(("DELETE",), wire.CONTEXTS_PATH.encode() + b"/", late("picod.interpreter.api", "delete_context")),
    Route(("POST",), wire.CONTEXTS_PATH.encode() + b"/", late("picod.interpreter.api", "control_context")),
    Route(("GET",), b"/api/runs", late("picod.commands.runs", "list_runs")),
    Route(("GET",), b"/api/runs/", late("picod.commands.runs", "follow_run")),
    Route(("DELETE",), b"/api/runs/", late("picod.commands.runs", "stop_run")),
    Route(("POST",), wire.SUSPEND_PATH.encode(), late("picod.interpreter.suspend", "suspend")),
    Route(("POST",), wire.RESUME_PATH.encode(), late("picod.interpreter.suspend", "resume")),
    Route(("POST",), b"/api/files", upload),
    Route(("GET",), b"/api/files", list_files),
    Route(("GET", "HEAD"), b"/api/files/", download),
    Route(("PUT",), b"/api/files/", upload_raw, once=True),
    Route(("DELETE",), b"/api/files/", late("picod.files.manage", "delete")),
    Route(("GET",), b"/api/fs/stat", late("picod.files.manage", "stat_file")),
    Route(("GET",), b"/api/fs/tree", late("picod.files.manage", "list_tree")),
    Route(("GET",), b"/api/fs/watch", late("picod.files.watch", "watch")),
    Route(("GET",), b"/api/fs/archive", late("picod.files.archive_api", "send_archive")),
    Route(("PUT",), b"/api/fs/archive", late("picod.files.archive_api", "receive_archive")),
    Route(("POST",), b"/api/fs/mkdir", late("picod.files.manage", "make_directory")),
    Route(("POST",), b"/api/fs/move", late("picod.files.manage", "move")),
    Route(("GET",), wire.SNAPSHOT_PATH.encode(), send_snapshot),
    Route(("PUT",), wire.SNAPSHOT_PATH.encode(), restore_snapshot),
    Route(("GET",), wire.ACTIVITY_PATH.encode(), activity),
    Route(("GET",), b"/api/ports", late("picod.ports.api", "list_ports")),
    Route(ANY, wire.PORTS_PATH.encode(), late("picod.ports.api", "bridge")),
    Route(("GET",), b"/api/processes", late("picod.commands.process_api", "list_processes")),
    Route(("POST",), b"/api/processes", late("picod.commands.process_api", "start_process")),
    Route(ANY, b"/api/processes/", late("picod.commands.process_api", "process")),
    Route(("GET",), wire.TERMINAL_PATH.encode(), late("picod.commands.terminal_api", "open_terminal")),
    Route(("GET",), b"/api/terminals", late("picod.commands.terminal_api", "list_terminals")),
    Route(("DELETE",), b"/api/terminals/", late("picod.commands.terminal_api", "end_terminal")),
)


class Picod:
    """The ASGI app, and what its handlers share."""

    def __init__(self, config: PicodConfig) -> None:
        self.config = config
        self.started_at = time.monotonic()
        self.workspace = Workspace(config.workspace)
        self.children = Children()
        self.preload = Preload(
            self.children, config.preload, encoded(config.command_env), self.workspace.fd, delay=config.preload_delay
        )
        self.guard = Guard(config.keys_file, config.audience) if config.auth == "jwt" else None
        self.agent = _agent(self)
        self._work: set[asyncio.Task[None]] = set()
        self._interpreter: Interpreter | None = None
        self.snapshots = asyncio.Lock()
        self.watchers = 0  # clients that follow changes of files
        self._warming: asyncio.Task[None] | None = None

    @cached_property
    def background(self) -> Background:
        """The processes that were started in the background. Made when it is first asked for (activity.py)."""
        from picod.commands.background import Background

        return Background(self.children)

    @cached_property
    def terminals(self) -> Terminals:
        """The terminals, made when they are first asked for."""
        from picod.commands.terminal import Terminals

        return Terminals(self.children)

    def start(self) -> None:
        """Begin what the first request should not wait for. On the loop, once it listens."""
        if self.guard is not None:
            self._warming = asyncio.ensure_future(asyncio.to_thread(self.guard.warm))
        path = self.config.command_env.get("PATH", "").encode()
        put_fonts(find_executable(b"python3", path, self.workspace.fd), self.config.command_env)
        self.preload.start()
        # A session that wakes up on this sandbox should not wait for imports; a cold start should not pay for them.
        loop = asyncio.get_running_loop()
        loop.call_later(_IDLE_BEFORE_LOADING, loop.run_in_executor, None, load)
        if self.agent is not None:
            self.agent.start()
        if self.config.code_context == "warm":
            self.keep(self._warm_context())

    @cached_property
    def runs(self) -> Runs:
        """The runs that can be followed. Made when it is first asked for (activity.py)."""
        from picod.commands.runs import Runs

        return Runs()

    @cached_property
    def once(self) -> Once:
        """The requests that have a key. Made when the first comes (activity.py)."""
        from picod.http.idempotency import Once

        return Once(self)

    def keep(self, work: Coroutine[Any, Any, None]) -> None:
        """Have a coroutine done that may outlive its request."""
        task = asyncio.get_running_loop().create_task(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)

    async def _warm_context(self) -> None:
        """Start the first context ahead of its use, where that takes no core from somebody.

        It costs more CPU than all the rest of a sandbox's start, and sessions that come thick use it least. Niceness
        alone does not keep it behind: where the kernel groups processes by session, it counts within the sandbox only.
        """
        from picod.interpreter.kernel import Ahead

        await asyncio.sleep(_IDLE_BEFORE_CONTEXT)
        for _ in range(_BUSY_PAUSES):
            if runnable() <= (os.cpu_count() or 1):
                break
            await asyncio.sleep(_BUSY_PAUSE)
        self.interpreter.warm(Ahead(_CONTEXT_NICE, tuple(self.config.preload)))

    @property
    def interpreter(self) -> Interpreter:
        """The session's code contexts; made when first asked for."""
        if self._interpreter is None:
            from picod.interpreter.api import Interpreter

            self._interpreter = Interpreter(self)
        return self._interpreter

    @property
    def has_interpreter(self) -> bool:
        """Code contexts were asked for."""
        return self._interpreter is not None

    def close(self) -> None:
        """Leave nothing outside of the workspace."""
        if self._interpreter is not None:
            self._interpreter.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Route, check the token, answer; errors become JSON."""
        path = unquote_to_bytes(scope["raw_path"])
        route = _find(scope["method"], path) if self.agent is None else _of_agent(scope, path)
        request = Request(scope, receive, send, path[len(route.path) :] if route else b"")
        if route is None:
            await request.answer(404, b"404 page not found", ((b"content-type", b"text/plain"),))
            return
        try:
            if self.guard is not None and not route.open:
                if self._warming is not None:
                    await asyncio.shield(self._warming)
                self.guard.check(request)
            key = request.header(b"idempotency-key") if route.once else ""
            if key:
                await self.once.run(request, route.handler, key)
            else:
                await route.handler(self, request)
        except RequestError as error:
            await self._refuse(request, error)
        except ClientGoneError:
            raise
        except Exception:
            if request.started:
                raise
            traceback.print_exc(file=sys.stderr)
            await self._refuse(request, RequestError(500, "internal error; the sandbox's log has the details"))

    async def _refuse(self, request: Request, error: RequestError) -> None:
        if request.started:
            raise error
        # The rest of a body that is too large is not wanted.
        headers = ((b"connection", b"close"),) if isinstance(error, TooLargeError) else ()
        await request.answer_json(error.status, error.body, headers)


_EXACT = {(method, route.path): route for route in ROUTES for method in route.methods}
_HEALTH, _AGENT = ROUTES[0], Route(ANY, b"", late("picod.ports.agent", "serve"))
_BELOW = tuple(route for route in ROUTES if route.path.endswith(b"/"))


def _find(method: str, path: bytes) -> Route | None:
    exact = _EXACT.get((method, path))
    if exact is not None:
        return exact
    for route in _BELOW:
        if path.startswith(route.path) and (method in route.methods or route.methods is ANY):
            return route
    return None


def _of_agent(scope: Scope, path: bytes) -> Route:
    """All that comes with a token is the agent's, also what is called as something of ours."""
    authorized = any(name == b"authorization" for name, _ in scope["headers"])
    return _HEALTH if path == _HEALTH.path and not authorized else _AGENT


def _agent(picod: Picod) -> Agent | None:
    if picod.config.agent is None:
        return None
    from picod.ports.agent import Agent, AgentConfig

    return Agent(picod, AgentConfig.from_document(picod.config.agent))


def make_app(config: PicodConfig) -> Picod:
    """The executor as an ASGI app. Raises OSError if the workspace cannot be opened."""
    return Picod(config)
