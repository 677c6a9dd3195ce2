"""Runs the calls of one message in a session: each at most once, in an order that is safe for their tools.

Both tool surfaces (openai/tool_calls.py, mcp/server.py) use this. A tool that fails is a result for the model; an
exception means that nothing was run. A call that is retried must not run twice, so it has three safeguards:

    turns        decides whether a message is a retry, and gives equal attempts the same key
    idempotency  shares a run under way on this gateway, and keeps its result for a while
    sandbox      sends the key with the request; picod answers from its record if it has run it before
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import orjson

from gateway.api.sandbox_json import BadAnswerError
from gateway.api.tools.actions import ACTIONS, check_names
from gateway.api.tools.arguments import ArgumentError
from gateway.api.tools.batches import steps
from gateway.api.tools.calls import Call
from gateway.api.tools.catalogue import Tool, tools_of
from gateway.api.tools.declared import check, run_declared
from gateway.api.tools.idempotency import IdempotencyCache
from gateway.api.tools.originals import keep_originals
from gateway.api.tools.pictures import PictureLimits
from gateway.api.tools.results import ToolResult, failure
from gateway.api.tools.run_events import Progress
from gateway.api.tools.sandbox import ToolSandbox
from gateway.api.tools.skills import SkillRuns
from gateway.api.tools.turns import Turn, Turns, call_key
from gateway.core.clock import Clock
from gateway.core.errors import (
    BadRequestError,
    SessionNotFoundError,
    UpstreamConnectError,
    WakegateError,
    public_message,
)
from gateway.core.interfaces import RuntimeCatalog, SandboxCaller
from gateway.core.model import Kind, Readiness, RuntimeKey, SessionId, SessionState
from gateway.sessions.lifecycle import Lifecycle

logger = logging.getLogger(__name__)

MAX_PICTURE_BYTES = 5_000_000  # of one picture as base64: the limit of Anthropic's API
_MAX_PICTURES_BYTES = 20_000_000  # of all pictures of one call, as base64
_MAX_CONCURRENT_CALLS = 8  # of one message: a sandbox has a core or two


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a call. `replayed`: an earlier attempt at the same message ran it."""

    result: ToolResult
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class Event:
    """What happened to call number `index`: it started, printed `text` to `stream`, or is completed."""

    index: int
    kind: str  # started | output | completed
    stream: str = ""
    text: str = ""
    outcome: Outcome | None = None


Observer = Callable[[Event], Awaitable[None]]


async def _ignore(_: Event) -> None:
    return None


class ToolService:
    """Runs tool calls in sessions, for all surfaces. `picture_max_side` in pixels."""

    def __init__(
        self,
        lifecycle: Lifecycle,
        catalog: RuntimeCatalog,
        caller: SandboxCaller,
        clock: Clock,
        *,
        picture_max_side: int,
    ) -> None:
        self._max_side = picture_max_side
        self._lifecycle = lifecycle
        self._catalog = catalog
        self._caller = caller
        self.results = IdempotencyCache[ToolResult](clock, lambda result: result.size)
        self.turns = Turns(caller, clock)
        self.skills = SkillRuns(lifecycle, caller)

    async def tools(self, session_id: SessionId) -> dict[str, Tool]:
        """The tools of a session by name, without waking it. Raises SessionNotFoundError."""
        session = await self._lifecycle.get(session_id)
        if session.state is SessionState.TERMINATED:
            raise SessionNotFoundError(f"session {session_id} has ended: {session.reason}")
        return self._tools_of(session_id, session.runtime)

    async def open(self, session_id: SessionId) -> tuple[Readiness, dict[str, Tool]]:
        """Wake the session if it is hibernated, and return its tools. Raises what the data path raises."""
        readiness = await self._caller.ready(session_id)
        return readiness, self._tools_of(session_id, readiness.runtime)

    def _tools_of(self, session_id: SessionId, runtime: RuntimeKey) -> dict[str, Tool]:
        if runtime.kind is not Kind.CODE_INTERPRETER:
            raise BadRequestError(f"session {session_id} runs {runtime}, which has no tools; use another runtime")
        return tools_of(self._catalog.get(runtime))

    async def run(
        self,
        turn: Turn,
        tools: Mapping[str, Tool],
        calls: Sequence[Call],
        observe: Observer | None = None,
    ) -> list[Outcome]:
        """Run the calls of a message with these tools; outcomes in the same order. The session must be open."""
        outcomes = [Outcome(ToolResult(""))] * len(calls)
        gate = asyncio.Semaphore(_MAX_CONCURRENT_CALLS)

        async def run_one(index: int) -> None:
            async with gate:
                outcomes[index] = await self._run_observed(turn, calls[index], index, tools, observe or _ignore)

        # A group at a time: an ordered call sees the effects of those before it, and those behind it see its own.
        for group in steps([_is_ordered(call, tools) for call in calls]):
            await asyncio.gather(*(run_one(index) for index in group))
        return outcomes

    async def run_once(
        self,
        session_id: SessionId,
        tools: Mapping[str, Tool],
        call: Call,
        progress: Progress | None = None,
        *,
        max_bytes: int,
    ) -> ToolResult:
        """Run a call without idempotency, as its id is unique to its request only. Cancelling this cancels the run.

        `max_bytes`: the bound on text and pictures of the answer, as JSON.
        """
        if call.name not in tools:
            return _unknown(call, tools)
        sandbox = ToolSandbox(self._caller, session_id, progress)
        try:
            result = await _run(sandbox, tools[call.name], call, self.skills)
            left = max(0, max_bytes - len(orjson.dumps(result.text)))
            return await keep_originals(sandbox, result, PictureLimits(self._max_side, left, left))
        except WakegateError as error:
            return _nothing_run(error)

    async def _run_observed(
        self, turn: Turn, call: Call, index: int, tools: Mapping[str, Tool], observe: Observer
    ) -> Outcome:
        async def progress(stream: str, text: str) -> None:
            await observe(Event(index, "output", stream, text))

        await observe(Event(index, "started"))
        if call.problem is not None:
            outcome = Outcome(call.problem)
        elif call.name not in tools:
            outcome = Outcome(_unknown(call, tools))
        else:
            outcome = await self._run_idempotent(turn, call, tools[call.name], None if observe is _ignore else progress)
        await observe(Event(index, "completed", outcome=outcome))
        return outcome

    async def _run_idempotent(self, turn: Turn, call: Call, tool: Tool, progress: Progress | None) -> Outcome:
        key = call_key(turn, call)
        sandbox = ToolSandbox(self._caller, turn.session_id, progress, key=key)
        limits = PictureLimits(self._max_side, MAX_PICTURE_BYTES, _MAX_PICTURES_BYTES)

        async def run() -> ToolResult:
            return await keep_originals(sandbox, await _run(sandbox, tool, call, self.skills), limits)

        try:
            result, replayed = await self.results.run(key, run)
            return Outcome(result, replayed or sandbox.replayed)
        except WakegateError as error:
            return Outcome(_nothing_run(error))


def _unknown(call: Call, tools: Mapping[str, Tool]) -> ToolResult:
    return failure("unknown_tool", f"{call.name[:64]}; there are {', '.join(tools)}")


def _nothing_run(error: WakegateError) -> ToolResult:
    return failure(error.code.lower(), f"{public_message(error)}; nothing was run")


def _is_ordered(call: Call, tools: Mapping[str, Tool]) -> bool:
    return call.name in tools and tools[call.name].ordered


async def _run(sandbox: ToolSandbox, tool: Tool, call: Call, skills: SkillRuns) -> ToolResult:
    """Run one call. Raises WakegateError only if nothing was sent: then the caller's retry may run it."""
    try:
        if tool.declared is not None:
            if tool.declared.skill is not None:
                await asyncio.to_thread(check, tool.declared, call.arguments)
                return await skills.run(tool.declared, sandbox.session_id, call.arguments, sandbox.progress)
            return await run_declared(sandbox, tool.declared, call.arguments)
        check_names(tool.name, call.arguments)
        return await ACTIONS[tool.name](sandbox, call.arguments)
    except ArgumentError as error:
        return failure("invalid_arguments", f"{error}; nothing was run")
    except BadAnswerError as error:
        logger.warning("a sandbox's answer to %s cannot be read: %s", tool.name, error)
        return failure("bad_answer", "the sandbox's answer cannot be read")
    except WakegateError as error:
        if isinstance(error, UpstreamConnectError) or error.status in (404, 429, 503):
            raise
        return failure(error.code.lower(), f"{public_message(error)}; it may or may not have run")
    except (ValueError, KeyError, TypeError) as error:
        # Code in the sandbox may have replaced picod, so the answer is neither trusted nor shown to the model.
        logger.warning("a sandbox's answer to %s cannot be read: %s", tool.name, error)
        return failure("bad_answer", "the sandbox's answer cannot be read")
