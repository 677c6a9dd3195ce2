"""The MCP server behind endpoint.py; with plain_calls.py the only module that imports the `mcp` SDK.

The SDK runs stateless: it keeps nothing between requests, since all state is in the session and its record.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from mcp import types
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.shared.exceptions import MCPError
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway import __version__
from gateway.api.errors import ParamError
from gateway.api.file_links import link_of
from gateway.api.loss_report import LossReport, new_loss_report
from gateway.api.mcp.plain_calls import PlainCalls
from gateway.api.mcp.protocol import (
    HANDLE,
    HANDSHAKE_VERSIONS,
    MAX_BODY_BYTES,
    RESTORED_META,
    SESSION_HEADER,
    VERSION_HEADER,
)
from gateway.api.mcp.sessions import MCPSessions
from gateway.api.sessions import choose_runtime, named_session
from gateway.api.tools.calls import Call
from gateway.api.tools.catalogue import ToolFormat, describe, tools_of
from gateway.api.tools.results import ToolResult, failure
from gateway.api.tools.run_events import Progress
from gateway.api.tools.service import ToolService
from gateway.core.errors import WakegateError, public_message
from gateway.core.interfaces import RuntimeCatalog
from gateway.core.model import SessionId

logger = logging.getLogger(__name__)

_PLAIN_S = 0.1  # after which a call is the SDK's, which watches for its client's leaving and keeps the connection alive
HEARTBEAT_S = 5.0  # between progress notifications, which keep a client's request timeout from expiring
_PROGRESS_INTERVAL_S = 0.2
_MAX_PROGRESS_CHARS = 2000
# Clients cap an event at 1 MiB (httpx-sse's readers, Claude's connectors); 64 KiB are left for links and the envelope.
_MAX_ANSWER_BYTES = (1 << 20) - (64 << 10)
_INSTRUCTIONS = (
    "An isolated Linux computer of this session's own. Its files, and the variables of run_python, stay from call to "
    "call and while nobody uses it. It has no network. Work in /workspace."
)
Result = dict[str, Any]  # the fields of a CallToolResult, by their aliases
_HANDLE_SCHEMA = {
    "type": "string",
    "description": "The session to work in, as the first result named it. Without it a new, empty session is made.",
}


class ToolServer:
    """Lists and runs tools over MCP. Its state: the calls under way, so that a client can cancel one."""

    def __init__(self, service: ToolService, sessions: MCPSessions, catalog: RuntimeCatalog) -> None:
        self._service = service
        self._sessions = sessions
        self._catalog = catalog
        self._running: dict[tuple[SessionId, str | int], asyncio.Task[Result]] = {}
        self._plain = PlainCalls()
        self._server: Server[Any] = Server(
            "wakegate",
            version=__version__,
            instructions=_INSTRUCTIONS,
            # No parameter is taken from a header, and without this the SDK would list all tools for each call.
            get_tool_input_schema=lambda _: None,
            on_list_tools=self._list,
            on_call_tool=self._call,
        )
        self.manager = StreamableHTTPSessionManager(self._server, stateless=True, max_request_body_size=MAX_BODY_BYTES)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer an HTTP request whose session and version endpoint.py has checked."""
        await self.manager.handle_request(scope, receive, send)

    def cancel(self, session_id: SessionId | None, params: Any) -> None:
        """Cancel a call, as `notifications/cancelled` asks: a separate HTTP request with the call's JSON-RPC id."""
        request_id = params.get("requestId") if isinstance(params, dict) else None
        # Ids are unique per client only. Two clients of one session that use the same id can cancel each other's calls:
        # they share the session with all its files anyway.
        if session_id is not None and isinstance(request_id, str | int):
            task = self._running.get((session_id, request_id))
            if task is not None:
                task.cancel()

    async def _list(
        self, context: ServerRequestContext[Any], params: types.PaginatedRequestParams | None
    ) -> types.ListToolsResult:
        session_id = _session_of(_request_of(context))
        try:
            if session_id is not None:
                tools = await self._sessions.tools(session_id)
            else:
                request = _request_of(context)
                tools = tools_of(choose_runtime(self._catalog, request, request.query_params.get("runtime")))
        except WakegateError as error:
            raise MCPError(types.INVALID_PARAMS, str(error)) from error
        described = describe(list(tools.values()), ToolFormat.MCP)
        if _takes_handle(_request_of(context)):
            described = [_with_handle(each) for each in described]
        return types.ListToolsResult(tools=[types.Tool.model_validate(each) for each in described])

    async def answer_plainly(self, request: Request, message: Mapping[str, Any]) -> Response | None:
        """The answer to a call whose form is known and that is over soon; None: the SDK has to answer.

        The SDK's own way to it takes 2 ms of CPU. It still checks the form of each kind of client once, and answers
        whatever is not an ordinary call; one that takes longer it goes on with, where this one left it.
        """
        call = self._plain.recognise(request, message)
        if call is None:
            return None
        try:
            task = request.state.mcp_call = self._begin(request, message["id"], call, None)
        except MCPError:
            return None  # the SDK words the refusal, by the same way
        try:
            await asyncio.wait({task}, timeout=_PLAIN_S)
        except asyncio.CancelledError:
            task.cancel()
            raise
        if not task.done() or task.cancelled() or task.exception() is not None:
            return None
        report: LossReport = request.state.loss_report
        return None if report.restored is not None else self._plain.answer(message["id"], task.result())

    async def _call(
        self, context: ServerRequestContext[Any], params: types.CallToolRequestParams
    ) -> types.CallToolResult:
        """Run a call with a progress notification every few seconds; cancel it when the client cancels or leaves."""
        request, report = _request_of(context), _Reporter(context)
        self._plain.learn(request)
        task: asyncio.Task[Result] | None = getattr(request.state, "mcp_call", None)
        if task is None:
            call = Call(str(context.request_id), params.name, dict(params.arguments or {}))
            # Progress may be sent only under a token that the client has given; without one, output is not even
            # collected.
            wants = bool(context.meta and context.meta.get("progress_token"))
            task = self._begin(request, context.request_id or "", call, report.add_output if wants else None)
        waited = 0.0
        try:
            # wait, and not wait_for: a heartbeat must not cancel the call.
            while not (await asyncio.wait({task}, timeout=HEARTBEAT_S))[0]:
                waited += HEARTBEAT_S
                await report.send(f"running for {waited:g} s")
            if task.cancelled():
                text = types.TextContent(text="Error (cancelled): the call was cancelled")
                return types.CallToolResult(content=[text], is_error=True)
            return types.CallToolResult.model_validate(task.result())
        finally:
            task.cancel()

    def _begin(
        self, request: Request, request_id: str | int, call: Call, progress: Progress | None
    ) -> asyncio.Task[Result]:
        """Start a call in a task of its own, which a client can cancel by the call's id. Raises MCPError."""
        makes_session = False
        if takes_handle := _takes_handle(request):
            call = replace(call, arguments={name: value for name, value in call.arguments.items() if name != HANDLE})
            makes_session = not getattr(request.state, "has_handle", True)
            session_id: SessionId | None = getattr(request.state, "session_id", None)
            if session_id is None:
                raise MCPError(types.INVALID_PARAMS, f"{HANDLE}: expected a session's id, as a result named it")
        else:
            session_id = _session_of(request)
        if session_id is None:
            raise MCPError(types.INVALID_REQUEST, "no session: send initialize first, or name one with x-session-id")
        task = asyncio.create_task(
            self._run(request, session_id, call, progress, ensures=takes_handle, names_session=makes_session)
        )
        key = (session_id, request_id)
        self._running[key] = task

        def forget(_: object) -> None:
            # A later call may have taken the same id.
            if self._running.get(key) is task:
                del self._running[key]

        task.add_done_callback(forget)
        return task

    async def _run(
        self,
        request: Request,
        session_id: SessionId,
        call: Call,
        progress: Progress | None,
        *,
        ensures: bool,
        names_session: bool,
    ) -> Result:
        report = request.state.loss_report = new_loss_report()  # endpoint.py acknowledges it with the delivered answer
        try:
            if ensures:
                await self._sessions.ensure(session_id)
            _, tools = await self._service.open(session_id)
        except WakegateError as error:
            result = failure(error.code.lower(), f"{public_message(error)}; nothing was run")
        else:
            # A first result has its text twice.
            max_bytes = _MAX_ANSWER_BYTES // 2 if names_session else _MAX_ANSWER_BYTES
            result = await self._service.run_once(session_id, tools, call, progress, max_bytes=max_bytes)
        return _answer(request, session_id, result, report, names_session=names_session)


class _Reporter:
    """Sends the progress of one call: the end of its output, at most five times a second."""

    def __init__(self, context: ServerRequestContext[Any]) -> None:
        self._context = context
        self._steps = 0
        self._text = ""
        self._next = 0.0

    async def add_output(self, _: str, text: str) -> None:
        """Add output. It is sent at once if the interval has passed, else with the next output after that."""
        # The end of what was printed: of output that outruns the interval, a person wants to see the latest line.
        self._text = (self._text + text)[-_MAX_PROGRESS_CHARS:]
        now = asyncio.get_running_loop().time()
        if now >= self._next:
            self._next = now + _PROGRESS_INTERVAL_S
            text, self._text = self._text, ""
            await self.send(text)

    async def send(self, message: str) -> None:
        """Send a progress notification. Its count grows by one each time, as MCP demands that progress increases."""
        self._steps += 1
        await self._context.session.report_progress(self._steps, message=message)


@asynccontextmanager
async def serving(service: ToolService, sessions: MCPSessions, catalog: RuntimeCatalog) -> AsyncIterator[ToolServer]:
    """Run a server until the block is left.

    The SDK's task group has to be exited by the task that entered it, and requests of different tasks enter here, so it
    runs in a separate task.
    """
    server = ToolServer(service, sessions, catalog)
    ready, stop = asyncio.Event(), asyncio.Event()

    async def run() -> None:
        async with server.manager.run():
            ready.set()
            await stop.wait()

    task = asyncio.create_task(run(), name="mcp")
    await ready.wait()
    try:
        yield server
    finally:
        stop.set()
        await task


def _request_of(context: ServerRequestContext[Any]) -> Request:
    request = context.request
    if not isinstance(request, Request):
        raise MCPError(types.INTERNAL_ERROR, "the request is not HTTP")
    return request


def _session_of(request: Request) -> SessionId | None:
    try:
        named = named_session(request)
    except ParamError as error:
        raise MCPError(types.INVALID_PARAMS, str(error)) from error
    value = named or request.headers.get(SESSION_HEADER)
    return SessionId(value) if value else None


def _takes_handle(request: Request) -> bool:
    """Whether a client's revision has no MCP sessions, and the client names none with a header of its own."""
    version = request.headers.get(VERSION_HEADER)
    return version is not None and version not in HANDSHAKE_VERSIONS and named_session(request) is None


def _with_handle(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A tool's description with the optional handle."""
    schema = tool["inputSchema"]
    properties = {**schema.get("properties", {}), HANDLE: _HANDLE_SCHEMA}
    return {**tool, "inputSchema": {**schema, "properties": properties}}


def _answer(
    request: Request,
    session_id: SessionId,
    result: ToolResult,
    report: LossReport,
    *,
    names_session: bool,
) -> Result:
    """The fields of a CallToolResult. `names_session`: it is the first of a session that no one knows yet.

    Plain, since the SDK's models of it cost 60 us to make and to write out, and an ordinary call needs neither.
    """
    # An answer of pictures alone has no empty text before them.
    lines = [result.text] if result.text or not result.images else []
    links = [each for each in result.originals if not each.is_known]
    if links:
        base_url = str(request.base_url)
        lines += [link_of(base_url, session_id, each).line() for each in links]
    if report.restored is not None:
        lines.append(report.text())
    fields: Result = {"content": [], "isError": result.failed}
    if names_session:
        fields["structuredContent"] = {HANDLE: session_id, "output": "\n".join(lines)}
        lines.append(f"[{HANDLE}: {session_id}; pass it with the next call to go on with these files and variables]")
    if lines:
        fields["content"].append({"type": "text", "text": "\n".join(lines)})
    fields["content"] += [{"type": "image", "data": image.data, "mimeType": image.mime} for image in result.images]
    if report.restored is not None:
        fields["_meta"] = {RESTORED_META: report.restored}
    return fields
