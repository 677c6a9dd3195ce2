"""Collects what x-wakegate-restored of an answer must say, on surfaces that call picod several times per request.

Any of those calls may find that the session's sandbox was lost. The report is kept in a context variable of the request
(tasks inherit it), so that it need not be a parameter of every function between the call and the answer.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from gateway.api.http import session_headers
from gateway.core.interfaces import SandboxCaller
from gateway.core.model import Readiness, SandboxReply, SessionId
from gateway.sessions.activation import NOTHING_RESTORED


@dataclass(slots=True)
class LossReport:
    """The loss found by the calls of one request. `restored` is the value of x-wakegate-restored; None: no loss."""

    session_id: SessionId | None = None
    restored: str | None = None

    def add(self, session_id: SessionId, restored: str | None) -> None:
        """Add the `restored` of one readiness or reply; None changes nothing."""
        # The latest loss counts: the state that the files are in now is that of the last restore.
        if restored is not None:
            self.session_id, self.restored = session_id, restored

    def headers(self) -> dict[str, str]:
        """The headers of the answer, which `control_app` acknowledges on delivery; empty without a loss."""
        if self.restored is None:
            return {}
        return {**session_headers(self.session_id), "x-wakegate-restored": self.restored}

    def text(self) -> str:
        """A line for a model with the same information; empty without a loss."""
        if self.restored is None:
            return ""
        # In words, as a model sees the text of a result and no headers.
        if self.restored == NOTHING_RESTORED:
            return "[the session's sandbox was lost with all files and variables; this is a new, empty one]"
        return (
            f"[the session's sandbox was lost; its files are those of {self.restored}: later changes and variables"
            " in memory are lost]"
        )


_report: ContextVar[LossReport | None] = ContextVar("loss_report", default=None)


def new_loss_report() -> LossReport:
    """Start the report of a request. It stays current while the answer is streamed, after the handler has returned."""
    report = LossReport()
    _report.set(report)
    return report


def current_loss_report() -> LossReport:
    """The report of the current request; a new one outside of requests."""
    # Background work has no answer to add headers to; what it finds is reported again by the next request.
    return _report.get() or LossReport()


class LossReportingCaller:
    """A SandboxCaller that adds losses found by its calls to the report of the current request."""

    def __init__(self, caller: SandboxCaller) -> None:
        self._caller = caller

    def acknowledge(self, session_id: SessionId, restored: str) -> None:
        """Forward the acknowledgement of an answer that was delivered with `restored`."""
        self._caller.acknowledge(session_id, restored)

    async def ready(self, session_id: SessionId) -> Readiness:
        """Forward to the wrapped caller; a loss is added to the report."""
        readiness = await self._caller.ready(session_id)
        current_loss_report().add(session_id, readiness.restored)
        return readiness

    async def call(
        self,
        session_id: SessionId,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | AsyncIterator[bytes] = b"",
        timeout: float = 60.0,
        limit: int = 64 << 20,
    ) -> SandboxReply:
        """Forward to the wrapped caller; a loss is added to the report."""
        reply = await self._caller.call(
            session_id, method, path, headers=headers, body=body, timeout=timeout, limit=limit
        )
        current_loss_report().add(session_id, reply.restored)
        return reply

    @asynccontextmanager
    async def stream(
        self,
        session_id: SessionId,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | AsyncIterator[bytes] = b"",
    ) -> AsyncIterator[tuple[SandboxReply, AsyncIterator[bytes]]]:
        """Forward to the wrapped caller; a loss is added to the report before the first chunk."""
        async with self._caller.stream(session_id, method, path, headers=headers, body=body) as (reply, chunks):
            current_loss_report().add(session_id, reply.restored)
            yield reply, chunks
