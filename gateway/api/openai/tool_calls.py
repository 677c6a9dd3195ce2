"""`GET /v1/tools` and `POST /v1/tool_calls`: the tools for a model, and the calls that the model then makes."""

from __future__ import annotations

import logging
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from gateway.api.errors import Handler, ParamError
from gateway.api.file_links import link_of
from gateway.api.http import JSON, read_json, session_headers
from gateway.api.openai.messages import LIST_NAMES, message
from gateway.api.openai.tool_call_stream import EventStream
from gateway.api.sessions import ClientLeftError, choose_runtime, create_session, named_session, while_connected
from gateway.api.tools.calls import Call, ToolCalls, loads_leniently, parse_tool_calls
from gateway.api.tools.catalogue import Tool, ToolFormat, describe, tools_of
from gateway.api.tools.idempotency import IdempotencyCache
from gateway.api.tools.service import Event, Observer, Outcome, ToolService
from gateway.api.tools.turns import RetryHints, Turn
from gateway.core.clock import Clock
from gateway.core.interfaces import RuntimeCatalog, SandboxCaller
from gateway.core.model import Runtime, SessionId, StartKind
from gateway.sessions.lifecycle import Lifecycle

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 16 << 20  # it includes the files that the model writes
# Whoever sends the key gets the session that was created with it, so it must be long enough not to be guessed.
_MIN_KEY_CHARS, _MAX_KEY_CHARS = 16, 256


@dataclass(frozen=True, slots=True)
class OpenSession:
    """The session that calls run in, with its tools and how its sandbox was started."""

    session_id: SessionId
    start: StartKind
    restored: str | None
    tools: Mapping[str, Tool]
    is_new: bool = False  # created for this request
    is_unnamed: bool = False  # and known by its answer alone

    def headers(self) -> dict[str, str]:
        """The headers that answers of the data path also have."""
        restored = {} if self.restored is None else {"x-wakegate-restored": self.restored}
        return {**session_headers(self.session_id), "x-wakegate-start": self.start.value, **restored}


class ToolsAPI:
    """Handlers that list tools, and run tool calls in the message formats of OpenAI and Anthropic."""

    def __init__(
        self,
        service: ToolService,
        lifecycle: Lifecycle,
        catalog: RuntimeCatalog,
        caller: SandboxCaller,
        clock: Clock,
    ) -> None:
        self._service = service
        self._lifecycle = lifecycle
        self._catalog = catalog
        self._caller = caller
        # Sessions created by requests with an Idempotency-Key, so that a retry does not create another one.
        self._sessions = IdempotencyCache[OpenSession](clock, lambda _: 1024)

    def handlers(self) -> dict[str, Handler]:
        """The handler of each operation of openapi/table.py, by its name."""
        return {"list_tools": self._list, "run_tool_calls": self._run}

    async def _list(self, request: Request) -> Response:
        query = request.query_params
        for name in query:
            if name not in ("format", "runtime"):
                raise ParamError(name[:64], "unknown parameter; expected format or runtime")
        form = query.get("format", ToolFormat.CHAT)
        if form not in list(ToolFormat):
            raise ParamError("format", f"expected one of {', '.join(ToolFormat)}, got {form[:64]!r}")
        session_id = named_session(request)
        if session_id is not None:
            tools = await self._service.tools(session_id)
        else:
            tools = tools_of(choose_runtime(self._catalog, request, query.get("runtime")))
        return JSON({"tools": describe(list(tools.values()), ToolFormat(form))})

    async def _run(self, request: Request) -> Response:
        asked = parse_tool_calls(await read_json(request, MAX_BODY_BYTES, loads_leniently))
        if not asked.calls:
            return JSON({"session_id": named_session(request, asked.session_id), LIST_NAMES[asked.shape]: []})
        session = await self._open(request, asked)
        request.state.session_id = session.session_id
        turn = await self._service.turns.begin(
            session.session_id, asked.calls, retry_hints(request), is_new=session.is_new
        )
        base_url = str(request.base_url)
        if asked.stream:
            return self._streamed(asked, session, turn, base_url)
        running = self._service.run(turn, session.tools, asked.calls)
        outcomes = await (self._run_for_client(request, session, running) if session.is_unnamed else running)
        document = self._document(asked, session, outcomes, base_url)
        # A client that has disconnected may retry, and must then get these results: its turn has not ended.
        if not await request.is_disconnected():
            await self._service.turns.end(turn)
        replayed = {"idempotency-replayed": "true"} if document["replayed"] else {}
        return JSON(document, headers={**session.headers(), **replayed})

    async def _open(self, request: Request, asked: ToolCalls) -> OpenSession:
        """Find or create the session and wake it. Errors up to here are HTTP errors, as nothing was run."""
        session_id = named_session(request, asked.session_id)
        if session_id is None:
            runtime = choose_runtime(self._catalog, request, asked.runtime)
            key = _idempotency_key(request)
            if key is None:
                opened = await create_session(request, self._lifecycle, runtime.key)
                return OpenSession(
                    opened.session.id, opened.start, None, tools_of(runtime), is_new=True, is_unnamed=True
                )
            session_id = (await self._sessions.run(key, lambda: self._create(runtime)))[0].session_id
        request.state.session_id = session_id
        readiness, tools = await self._service.open(session_id)
        return OpenSession(session_id, readiness.start, readiness.restored, tools)

    async def _create(self, runtime: Runtime) -> OpenSession:
        # Not `create_session`, which ends the session when the client leaves: with its key it can ask for it again.
        opened = await self._lifecycle.create(runtime.key)
        return OpenSession(opened.session.id, opened.start, None, tools_of(runtime), is_new=True)

    async def _run_for_client(
        self, request: Request, session: OpenSession, running: Coroutine[Any, Any, Sequence[Outcome]]
    ) -> Sequence[Outcome]:
        """Run calls for a client that alone will know the session, by the answer; without it the session ends."""
        try:
            return await while_connected(request, running, "tool calls in a new session")
        except ClientLeftError:
            await self._lifecycle.end_unclaimed(session.session_id)
            raise

    def _document(
        self, asked: ToolCalls, session: OpenSession, outcomes: Sequence[Outcome], base_url: str
    ) -> dict[str, Any]:
        messages: list[dict[str, Any]] = []
        files: list[dict[str, Any]] = []
        for call, outcome in zip(asked.calls, outcomes, strict=True):
            links = [link_of(base_url, session.session_id, each) for each in outcome.result.originals]
            messages.append(message(asked.shape, call, outcome.result, links))
            files += [link.document(call.id) for link in links]
        replayed = [call.id for call, outcome in zip(asked.calls, outcomes, strict=True) if outcome.replayed]
        return {
            "session_id": session.session_id,
            LIST_NAMES[asked.shape]: messages,
            "files": files,
            "replayed": replayed,
        }

    def _streamed(self, asked: ToolCalls, session: OpenSession, turn: Turn, base_url: str) -> Response:
        async def work(observe: Observer) -> dict[str, Any]:
            outcomes = await self._service.run(turn, session.tools, asked.calls, observe)
            return {"type": "tool_calls.completed", **self._document(asked, session, outcomes, base_url)}

        def show(event: Event) -> dict[str, Any]:
            return _event_document(event, asked.calls[event.index])

        headers = {**session.headers(), "cache-control": "no-cache", "x-accel-buffering": "no"}
        first_event = {"type": "tool_calls.started", "session_id": session.session_id}
        events = EventStream(first_event, work, show, partial(self._service.turns.end, turn))
        return StreamingResponse(events, media_type="text/event-stream", headers=headers)


def retry_hints(request: Request) -> RetryHints:
    """What the headers say about earlier attempts. Raises ParamError."""
    key = request.headers.get("idempotency-key", "")
    if len(key) > _MAX_KEY_CHARS:
        raise ParamError("idempotency-key", f"expected at most {_MAX_KEY_CHARS} characters")
    attempts = request.headers.get("x-stainless-retry-count", "0")  # of the SDKs of OpenAI and Anthropic
    is_retry = attempts.isascii() and attempts.isdigit() and attempts.strip("0") != ""
    return RetryHints(key, is_retry)


def _idempotency_key(request: Request) -> tuple[str, str] | None:
    """The key under which a request without a session creates one; None without the header. Raises ParamError."""
    key = request.headers.get("idempotency-key")
    if key is None:
        return None
    if not _MIN_KEY_CHARS <= len(key) <= _MAX_KEY_CHARS:
        raise ParamError(
            "idempotency-key", f"expected {_MIN_KEY_CHARS} to {_MAX_KEY_CHARS} characters that cannot be guessed"
        )
    # With the client's credentials: the same key from another client must not open the first one's session.
    return request.headers.get("authorization", ""), key


def _event_document(event: Event, call: Call) -> dict[str, Any]:
    """One progress event. The complete messages are in the last event of the stream."""
    shown: dict[str, Any] = {
        "type": f"tool_call.{event.kind}", "index": event.index, "tool_call_id": call.id, "name": call.name
    }  # fmt: skip
    if event.kind == "output":
        shown |= {"stream": event.stream, "delta": event.text}
    if event.outcome is not None:
        result = event.outcome.result
        shown |= {"text": result.text, "failed": result.failed, "replayed": event.outcome.replayed}
    return shown
