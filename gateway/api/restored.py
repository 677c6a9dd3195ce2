"""Notes the losses of sandboxes that an answer has to tell of, on surfaces that ask picod several times per request.

Any of those calls may find the loss, so it is noted in the context of the request (contextvars, which tasks inherit)
instead of being handed through every function between the call and the answer.
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
class LossNote:
    """The loss that the calls of one request found. `restored` is as in x-wakegate-restored; None without a loss."""

    session_id: SessionId | None = None
    restored: str | None = None

    def add(self, session_id: SessionId, restored: str | None) -> None:
        """Note what one readiness or reply says."""
        if restored is not None:
            self.session_id, self.restored = session_id, restored

    def headers(self) -> dict[str, str]:
        """The headers that tell of it, by which gateway/api/app.py acknowledges it; empty without a loss."""
        if self.restored is None:
            return {}
        return {**session_headers(self.session_id), "x-wakegate-restored": self.restored}

    def text(self) -> str:
        """The same as a line for a model; empty without a loss."""
        if self.restored is None:
            return ""
        if self.restored == NOTHING_RESTORED:
            return "[the session's sandbox was lost with all files and variables; this is a new, empty one]"
        return (
            f"[the session's sandbox was lost; its files are those of {self.restored}: later changes and variables"
            " in memory are gone]"
        )


_note: ContextVar[LossNote | None] = ContextVar("loss_note", default=None)


def new_note() -> LossNote:
    """The note of a request that begins. It stays in effect while the answer is streamed, after the handler."""
    note = LossNote()
    _note.set(note)
    return note


def current_note() -> LossNote:
    """The note of the request under way; an empty one outside of any."""
    return _note.get() or LossNote()


class NotingCaller:
    """A SandboxCaller that adds what each call says of a loss to the note of the request."""

    def __init__(self, caller: SandboxCaller) -> None:
        self._caller = caller

    def acknowledge(self, session_id: SessionId, restored: str) -> None:
        """An answer that said `restored` was delivered."""
        self._caller.acknowledge(session_id, restored)

    async def ready(self, session_id: SessionId) -> Readiness:
        """As the caller inside; notes a loss."""
        readiness = await self._caller.ready(session_id)
        current_note().add(session_id, readiness.restored)
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
        """As the caller inside; notes a loss."""
        reply = await self._caller.call(
            session_id, method, path, headers=headers, body=body, timeout=timeout, limit=limit
        )
        current_note().add(session_id, reply.restored)
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
        """As the caller inside; notes a loss before the first chunk."""
        async with self._caller.stream(session_id, method, path, headers=headers, body=body) as (reply, chunks):
            current_note().add(session_id, reply.restored)
            yield reply, chunks
