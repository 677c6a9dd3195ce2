"""The route table of picod's API. A new endpoint is a handler in a module of its package, and a line in ROUTES."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from picod import wire
from picod.activity import activity, health
from picod.commands.execute import execute
from picod.commands.services import CommandServices
from picod.config import PicodConfig
from picod.files.listing import download, list_files
from picod.files.services import FileServices
from picod.files.uploads import upload, upload_raw
from picod.http.request import Request, Scope
from picod.interpreter.services import InterpreterServices
from picod.services import Services
from picod.snapshot.api import SnapshotServices, restore_snapshot, send_fingerprint, send_snapshot

if TYPE_CHECKING:
    from picod.ports.agent import Agent
    from picod.ports.egress_way import EgressWay

Handler = Callable[[Services, Request], Awaitable[None]]
T = TypeVar("T")

ANY: tuple[str, ...] = ()  # in a route: every method


class Route(NamedTuple):
    """Methods and path of a handler. A path that ends in `/` matches all paths below it; the rest is `request.tail`."""

    methods: tuple[str, ...]
    path: bytes
    handler: Handler
    open: bool = False  # answers without a token
    idempotent: bool = False  # runs once per Idempotency-Key (http/idempotency.py)


def _commands(services: Services) -> CommandServices:
    return services.commands


def _files(services: Services) -> FileServices:
    return services.files


def _interpreter(services: Services) -> InterpreterServices:
    return services.interpreter


def _snapshots(services: Services) -> SnapshotServices:
    return services.snapshots


def _egress(services: Services) -> EgressWay | None:
    return services.egress


def _config(services: Services) -> PicodConfig:
    return services.config


def _agent(services: Services) -> Agent:
    assert services.agent is not None  # Picod uses this route only if there is an agent
    return services.agent


def _with(part: Callable[[Services], T], handler: Callable[[T, Request], Awaitable[None]]) -> Handler:
    """A handler that gets its own part of the services, and cannot depend on the others."""

    def handle(services: Services, request: Request) -> Awaitable[None]:
        return handler(part(services), request)

    return handle


def _late(part: Callable[[Services], object], module: str, name: str) -> Handler:
    """A handler whose module is imported on its first call: importing all of them would slow down every start."""

    async def handle(services: Services, request: Request) -> None:
        handler: Callable[[Any, Request], Awaitable[None]] = getattr(import_module(module), name)
        await handler(part(services), request)

    return handle


_CONTEXT = wire.CONTEXTS_PATH.encode() + b"/"

ROUTES = (
    Route(("GET",), wire.HEALTH_PATH.encode(), health, open=True),
    Route(("POST",), b"/api/execute", _with(_commands, execute), idempotent=True),
    Route(
        ("POST",),
        wire.RUN_CODE_PATH.encode(),
        _late(_interpreter, "picod.interpreter.api", "run_code"),
        idempotent=True,
    ),
    Route(("GET",), wire.CONTEXTS_PATH.encode(), _late(_interpreter, "picod.interpreter.api", "list_contexts")),
    Route(("POST",), wire.CONTEXTS_PATH.encode(), _late(_interpreter, "picod.interpreter.api", "create_context")),
    Route(("DELETE",), _CONTEXT, _late(_interpreter, "picod.interpreter.api", "delete_context")),
    Route(("POST",), _CONTEXT, _late(_interpreter, "picod.interpreter.api", "control_context")),
    Route(("GET",), b"/api/runs", _late(_commands, "picod.commands.runs_api", "list_runs")),
    Route(("GET",), b"/api/runs/", _late(_commands, "picod.commands.runs_api", "follow_run")),
    Route(("DELETE",), b"/api/runs/", _late(_commands, "picod.commands.runs_api", "stop_run")),
    Route(("POST",), wire.SUSPEND_PATH.encode(), _late(_interpreter, "picod.interpreter.suspend", "suspend")),
    Route(("POST",), wire.RESUME_PATH.encode(), _late(_interpreter, "picod.interpreter.suspend", "resume")),
    Route(("POST",), b"/api/files", _with(_files, upload)),
    Route(("GET",), b"/api/files", _with(_files, list_files)),
    Route(("GET", "HEAD"), b"/api/files/", _with(_files, download)),
    Route(("PUT",), b"/api/files/", _with(_files, upload_raw), idempotent=True),
    Route(("DELETE",), b"/api/files/", _late(_files, "picod.files.manage", "delete")),
    Route(("GET",), b"/api/fs/stat", _late(_files, "picod.files.manage", "stat_file")),
    Route(("GET",), b"/api/fs/tree", _late(_files, "picod.files.manage", "list_tree")),
    Route(("GET",), b"/api/fs/watch", _late(_files, "picod.files.watch", "watch")),
    Route(("GET",), b"/api/fs/archive", _late(_files, "picod.files.archive_api", "send_archive")),
    Route(("PUT",), b"/api/fs/archive", _late(_files, "picod.files.archive_api", "receive_archive")),
    Route(("POST",), b"/api/fs/mkdir", _late(_files, "picod.files.manage", "make_directory")),
    Route(("POST",), b"/api/fs/move", _late(_files, "picod.files.manage", "move")),
    Route(("GET",), wire.SNAPSHOT_PATH.encode(), _with(_snapshots, send_snapshot)),
    Route(("PUT",), wire.SNAPSHOT_PATH.encode(), _with(_snapshots, restore_snapshot)),
    Route(("GET",), wire.FINGERPRINT_PATH.encode(), _with(_snapshots, send_fingerprint)),
    Route(("GET",), wire.ACTIVITY_PATH.encode(), activity),
    Route(("PUT",), wire.EGRESS_PATH.encode(), _late(_egress, "picod.ports.egress_way", "tell")),
    Route(("GET",), b"/api/ports", _late(_config, "picod.ports.api", "list_ports")),
    Route(ANY, wire.PORTS_PATH.encode(), _late(_config, "picod.ports.api", "forward_to_port")),
    Route(("GET",), b"/api/processes", _late(_commands, "picod.commands.process_api", "list_processes")),
    Route(("POST",), b"/api/processes", _late(_commands, "picod.commands.process_api", "start_process")),
    Route(("POST",), b"/api/processes/stream", _late(_commands, "picod.commands.process_stream", "start_stream")),
    Route(ANY, b"/api/processes/", _late(_commands, "picod.commands.process_api", "process")),
    Route(("GET",), wire.TERMINAL_PATH.encode(), _late(_commands, "picod.commands.terminal_api", "open_terminal")),
    Route(("GET",), b"/api/terminals", _late(_commands, "picod.commands.terminal_api", "list_terminals")),
    Route(("DELETE",), b"/api/terminals/", _late(_commands, "picod.commands.terminal_api", "end_terminal")),
)

# Exact paths by a dictionary, the few prefixes in turn: a router's regular expressions would be compiled at each start.
_EXACT = {(method, route.path): route for route in ROUTES for method in route.methods}
_BELOW = tuple(route for route in ROUTES if route.path.endswith(b"/"))
_HEALTH, _AGENT = ROUTES[0], Route(ANY, b"", _late(_agent, "picod.ports.agent", "serve"))


def find_route(method: str, path: bytes) -> Route | None:
    """The route of a request to picod's own API, or None: 404."""
    exact = _EXACT.get((method, path))
    if exact is not None:
        return exact
    for route in _BELOW:
        if path.startswith(route.path) and (method in route.methods or route.methods is ANY):
            return route
    return None


def agent_route(scope: Scope, path: bytes) -> Route:
    """The route of a request to a sandbox with an agent: with a token every path is the agent's, /health included."""
    authorized = any(name == b"authorization" for name, _ in scope["headers"])
    return _HEALTH if path == _HEALTH.path and not authorized else _AGENT
