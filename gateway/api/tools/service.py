"""Runs a message's calls in a session: each at most once, in the order that their tools need, results in theirs.

The one place where all tool surfaces (tools/http.py, endpoint.py) meet. A tool that fails is a result; what is raised
means that nothing was run.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from gateway.api.tools.actions import ACTIONS, ArgumentError, Sandbox, check_names
from gateway.api.tools.batches import steps
from gateway.api.tools.calls import Call
from gateway.api.tools.catalogue import Tool, tools_of
from gateway.api.tools.declared import run_declared
from gateway.api.tools.idempotency import IdempotencyCache, key_of
from gateway.api.tools.results import ToolResult, failure
from gateway.api.tools.run_events import Progress
from gateway.core.clock import Clock
from gateway.core.errors import BadRequestError, SessionNotFoundError, UpstreamConnectError, WakegateError
from gateway.core.interfaces import RuntimeCatalog, SandboxCaller
from gateway.core.model import Kind, Readiness, RuntimeKey, SessionId, SessionState
from gateway.sessions.lifecycle import Lifecycle

logger = logging.getLogger(__name__)

_SIDE_BY_SIDE = 8  # calls of one message at once: a sandbox has a core or two


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to call number `index`: it began, printed something, or has a result."""

    index: int
    kind: str  # started | output | completed
    stream: str = ""
    text: str = ""
    result: ToolResult | None = None
    replayed: bool = False


Observer = Callable[[Event], Awaitable[None]]


async def _nobody(_: Event) -> None:
    return None


class ToolService:
    """Runs tool calls in sessions, for all surfaces."""

    def __init__(self, lifecycle: Lifecycle, catalog: RuntimeCatalog, caller: SandboxCaller, clock: Clock) -> None:
        self._lifecycle = lifecycle
        self._catalog = catalog
        self._caller = caller
        self.memory = IdempotencyCache[ToolResult](clock, lambda result: result.size)

    async def tools(self, session_id: SessionId) -> dict[str, Tool]:
        """The tools of a session, by name; it is left asleep if it sleeps. Raises SessionNotFoundError."""
        session = await self._lifecycle.get(session_id)
        if session.state is SessionState.TERMINATED:
            raise SessionNotFoundError(f"session {session_id} has ended: {session.reason}")
        return self._tools_of(session_id, session.runtime)

    async def open(self, session_id: SessionId) -> tuple[Readiness, dict[str, Tool]]:
        """See to it that the session is awake before anything is run. Raises what the data path raises."""
        readiness = await self._caller.ready(session_id)
        return readiness, self._tools_of(session_id, readiness.runtime)

    def _tools_of(self, session_id: SessionId, runtime: RuntimeKey) -> dict[str, Tool]:
        if runtime.kind is not Kind.CODE_INTERPRETER:
            raise BadRequestError(f"session {session_id} runs {runtime}, which has no tools; take another runtime")
        return tools_of(self._catalog.get(runtime))

    async def run(
        self,
        session_id: SessionId,
        tools: Mapping[str, Tool],
        calls: Sequence[Call],
        observe: Observer | None = None,
    ) -> list[ToolResult]:
        """All calls with these tools, results in the same order. The session must be open."""
        results: list[ToolResult] = [ToolResult("")] * len(calls)
        gate = asyncio.Semaphore(_SIDE_BY_SIDE)

        async def run_one(index: int) -> None:
            async with gate:
                results[index] = await self._observed(session_id, calls[index], index, tools, observe or _nobody)

        for group in steps([_is_ordered(call, tools) for call in calls]):
            await asyncio.gather(*(run_one(index) for index in group))
        return results

    async def run_once(
        self, session_id: SessionId, tools: Mapping[str, Tool], call: Call, progress: Progress | None = None
    ) -> ToolResult:
        """One call whose id means nothing beyond its request. Cancelling this ends what it runs."""
        if call.name not in tools:
            return _unknown(call, tools)
        try:
            return await _run(Sandbox(self._caller, session_id, progress), tools[call.name], call)
        except WakegateError as error:
            return _nothing_run(error)

    async def _observed(
        self, session_id: SessionId, call: Call, index: int, tools: Mapping[str, Tool], observe: Observer
    ) -> ToolResult:
        async def progress(stream: str, text: str) -> None:
            await observe(Event(index, "output", stream, text))

        await observe(Event(index, "started"))
        if call.problem is not None:
            result, replayed = call.problem, False
        elif call.name not in tools:
            result, replayed = _unknown(call, tools), False
        else:
            tool = tools[call.name]
            looked_at = None if observe is _nobody else progress
            result, replayed = await self._remembered(session_id, call, tool, looked_at)
        await observe(Event(index, "completed", result=result, replayed=replayed))
        return result

    async def _remembered(
        self, session_id: SessionId, call: Call, tool: Tool, progress: Progress | None
    ) -> tuple[ToolResult, bool]:
        key = key_of(session_id, call)
        sandbox = Sandbox(self._caller, session_id, progress, once=key)
        try:
            result, replayed = await self.memory.run(key, lambda: _run(sandbox, tool, call))
            return result, replayed or sandbox.replayed
        except WakegateError as error:
            return _nothing_run(error), False


def _unknown(call: Call, tools: Mapping[str, Tool]) -> ToolResult:
    return failure("unknown_tool", f"{call.name[:64]}; there are {', '.join(tools)}")


def _nothing_run(error: WakegateError) -> ToolResult:
    return failure(error.code.lower(), f"{error}; nothing was run")


def _is_ordered(call: Call, tools: Mapping[str, Tool]) -> bool:
    return call.name in tools and tools[call.name].ordered


async def _run(sandbox: Sandbox, tool: Tool, call: Call) -> ToolResult:
    """One call to its result. Raises WakegateError only where nothing was sent, so that it may be tried again."""
    try:
        if tool.declared is not None:
            return await run_declared(sandbox, tool.declared, call.arguments)
        check_names(tool.name, call.arguments)
        return await ACTIONS[tool.name](sandbox, call.arguments)
    except ArgumentError as error:
        return failure("invalid_arguments", f"{error}; nothing was run")
    except WakegateError as error:
        if isinstance(error, UpstreamConnectError) or error.status in (404, 429, 503):
            raise
        return failure(error.code.lower(), f"{error}; it may or may not have run")
    except (ValueError, KeyError, TypeError) as error:
        # Code in the sandbox may have taken picod's place: its answer is not to be trusted, nor shown.
        logger.warning("a sandbox's answer to %s cannot be read: %s", tool.name, error)
        return failure("bad_answer", "the sandbox's answer cannot be read")
