"""One try of a task: its session, the request to the agent, and what came of it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from time import perf_counter

from gateway.core.errors import (
    ActivationTimeoutError,
    ConflictError,
    OwnerAwayError,
    QueueFullError,
    QuotaForbiddenError,
    SessionNotFoundError,
    StoreUnavailableError,
    UnavailableError,
    UpstreamBrokenError,
    UpstreamConnectError,
    UpstreamTimeoutError,
    WakegateError,
)
from gateway.core.errors import LimitError as TenantLimitError
from gateway.core.interfaces import SandboxCaller
from gateway.core.model import SessionId, SessionState
from gateway.observability.counters import Counters
from gateway.sessions.lifecycle import Lifecycle
from gateway.tasks.decisions import Failure, Then
from gateway.tasks.events import LastEvent
from gateway.tasks.model import Answer, Progress, Task

# Nothing has reached the agent: the session's sandbox, or room for it, is not to be had now.
_LATER = (
    QueueFullError, TenantLimitError, UnavailableError, StoreUnavailableError, ActivationTimeoutError, ConflictError,
    UpstreamConnectError,
)  # fmt: skip


@dataclass(slots=True)
class Try:
    """What is known of a try that is under way. `body`: what the agent has answered so far, at most the limit."""

    body: bytearray = field(default_factory=bytearray)
    content_type: str = ""
    events: LastEvent | None = None

    @property
    def progress(self) -> Progress:
        """For whoever asks how far it is."""
        found = self.events
        return Progress(len(self.body), 0 if found is None else found.count, "" if found is None else found.last)


class Attempts:
    """Tries tasks. `max_answer`: bytes of an answer that are kept."""

    def __init__(self, lifecycle: Lifecycle, caller: SandboxCaller, counters: Counters, max_answer: int) -> None:
        self._lifecycle = lifecycle
        self._caller = caller
        self._counters = counters
        self._max_answer = max_answer

    async def session(self, task: Task) -> SessionId:
        """Make the session of a task that names none, with a sandbox. Raises WakegateError."""
        opened = await self._lifecycle.create(task.key, metadata={"task": task.id})
        return opened.session.id

    async def is_there(self, task: Task) -> bool:
        """Whether the task's session can still be used."""
        try:
            session = await self._lifecycle.get(SessionId(task.session))
        except SessionNotFoundError:
            return False
        return session.runtime.base == task.key and session.state is not SessionState.TERMINATED

    async def discard(self, session_id: SessionId) -> None:
        """End a session that no task knows."""
        await self._lifecycle.end_unclaimed(session_id)

    async def run(self, task: Task, body: bytes, seen: Try) -> Answer | Failure:
        """Send the request to the session's agent, as the caller that the code runs for; `seen` is kept up to date."""
        try:
            async with asyncio.timeout(task.timeout):
                return await self._run(task, body, seen)
        except TimeoutError:
            return Failure(f"the agent did not answer within {task.timeout:g} s", Then.RETRY)

    async def _run(self, task: Task, body: bytes, seen: Try) -> Answer | Failure:
        session_id, began = SessionId(task.session), perf_counter()
        runtime = None
        status = 502
        start = None
        try:
            session = await self._lifecycle.get_cached(session_id)
            if session.runtime.base != task.key:
                return Failure(f"its session is not one of {task.key}", Then.NEVER)
            runtime = session.runtime
            headers = {
                **dict(task.headers),
                "x-wakegate-task": task.id,
                "x-wakegate-attempt": str(task.attempts),
            }
            async with self._caller.stream(session_id, "POST", task.path, headers=headers, body=body) as (
                reply,
                chunks,
            ):
                start, status = reply.start, reply.status
                seen.content_type = reply.headers.get("content-type", "")[:200]
                if seen.content_type.startswith("text/event-stream"):
                    seen.events = LastEvent()
                async for chunk in chunks:
                    if len(seen.body) + len(chunk) > self._max_answer:
                        text = f"its answer is larger than {self._max_answer} bytes; let the agent write a file"
                        return Failure(text, Then.NEVER)
                    seen.body += chunk
                    if seen.events is not None:
                        seen.events.feed(chunk)
            return Answer(status, seen.content_type, len(seen.body))
        except WakegateError as error:
            return failure_of(error)
        finally:
            if runtime is not None:
                self._counters.find(runtime).answer(start, status, perf_counter() - began)


def failure_of(error: WakegateError) -> Failure:
    """What an error of the gateway's own means for the next try."""
    text = str(error)
    if isinstance(error, SessionNotFoundError):
        return Failure(f"its session is gone: {text}", Then.RETRY, lost_session=True)
    if isinstance(error, OwnerAwayError):
        return Failure(text, Then.LATER, lost_session=True)
    if isinstance(error, QuotaForbiddenError):
        return Failure(text, Then.NEVER)
    if isinstance(error, _LATER):
        return Failure(text, Then.LATER)
    if isinstance(error, UpstreamBrokenError | UpstreamTimeoutError):
        return Failure(text, Then.RETRY)
    return Failure(text, Then.RETRY if error.status >= 500 else Then.NEVER)
