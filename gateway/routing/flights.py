"""One attempt at a time to get a session a live sandbox, however many requests wait for it.

A thousand requests to one hibernated session make one wake: the first takes off, the others join it, and all get what
it brings or its error. Rejected: a lock per session, under which the second request would look again, and at a failed
wake a thousand would fail one after the other, each after the time of a try.
"""

from __future__ import annotations

import asyncio

from gateway.core.errors import QueueFullError
from gateway.core.model import SandboxId, SessionId
from gateway.sessions.activation import Opened, SessionOpener


class Flights:
    """The attempts under way, and how many requests wait for each, at most `per_session`."""

    def __init__(self, opener: SessionOpener, per_session: int) -> None:
        self._opener = opener
        self._per_session = per_session
        self._flights: dict[SessionId, asyncio.Task[Opened]] = {}
        self._waiting: dict[SessionId, int] = {}

    def __repr__(self) -> str:
        return f"<Flights {len(self._flights)} sessions, {sum(self._waiting.values())} requests>"

    async def join(self, session_id: SessionId, unreachable: SandboxId | None) -> Opened:
        """Wait for the session's sandbox, which is opened unless somebody does so already.

        Raises QueueFullError, and what SessionOpener.open raises.
        """
        waiting = self._waiting.get(session_id, 0)
        if waiting >= self._per_session:
            raise QueueFullError(f"{waiting} requests already wait for this session's sandbox; try again shortly")
        flight = self._flights.get(session_id)
        if flight is None:
            flight = self._flights[session_id] = asyncio.create_task(
                self._opener.open(session_id, unreachable=unreachable)
            )
            flight.add_done_callback(lambda done: self._land(session_id, done))
        self._waiting[session_id] = waiting + 1
        try:
            # Shielded: a client that leaves must not take the sandbox away from the other requests that wait.
            return await asyncio.shield(flight)
        finally:
            self._waiting[session_id] -= 1
            if not self._waiting[session_id]:
                del self._waiting[session_id]

    def _land(self, session_id: SessionId, flight: asyncio.Task[Opened]) -> None:
        self._flights.pop(session_id, None)
        if not flight.cancelled():
            flight.exception()  # marks it as seen: all requests that waited for it may have left
