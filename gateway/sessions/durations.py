"""Gives sessions back the time in which this gateway did not run: a suspended machine, a stopped process.

Deadlines of records are points in time, which pass while nothing runs. A gateway that notices a gap between two looks
at the clock moves the deadlines of the sandboxes that it has by that gap. What a killed gateway had needs none of it:
its sessions are recorded as lost at the next start, and have the retention of a hibernated session from there on.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

from gateway.core.clock import Clock
from gateway.core.errors import FencedOutError, StaleWriteError
from gateway.core.model import SessionId
from gateway.sessions.bindings import Bindings
from gateway.sessions.ownership import Ownership
from gateway.sessions.records import Records
from gateway.sessions.transitions import bounded

logger = logging.getLogger(__name__)

# Looked at once a second; an overloaded loop is late by less. To take a stall of 4 s for a pause costs nothing: the
# sessions live 4 s longer.
MIN_PAUSE_S = 3.0


class Durations:
    """`catch_up` is called once a second, and before what rests on a deadline. State: gaps that are not written yet."""

    def __init__(self, *, records: Records, ownership: Ownership, bindings: Bindings, clock: Clock) -> None:
        self._records = records
        self._ownership = ownership
        self._bindings = bindings
        self._clock = clock
        self._looked_at = clock.now()
        self._owed: dict[SessionId, float] = {}
        self._lock = asyncio.Lock()

    async def catch_up(self) -> None:
        """Move the deadlines of sessions bound here by the time since the last call, if that was a pause.

        The end that a user asked for (ttl) is a point in time and stays. Raises StoreUnavailableError; what is not
        written then is at the next call.
        """
        now = self._clock.now()
        gap, self._looked_at = now - self._looked_at, now
        if gap >= MIN_PAUSE_S and not self._ownership.shared_provider:  # sandboxes elsewhere went on running
            sessions = self._bindings.sessions
            if sessions:
                logger.warning("nothing ran for %.0f s: %d sessions get that time back", gap, len(sessions))
            for session_id in sessions:
                self._owed[session_id] = self._owed.get(session_id, 0.0) + gap
        if self._owed or self._lock.locked():
            async with self._lock:
                for session_id in list(self._owed):
                    # A verb may take as long as a sandbox pleases, and this call must not: next time, then.
                    if not self._records.is_held(session_id):
                        await self._extend(session_id, self._owed[session_id])
                        del self._owed[session_id]

    async def _extend(self, session_id: SessionId, seconds: float) -> None:
        async with self._records.holding(session_id):
            session = await self._records.get(session_id)
            if session is None or session.sandbox is None or session.sandbox.id not in self._bindings:
                return  # it was hibernated, ended or taken over meanwhile: its deadline is another one now
            limit = (session.limit_at or session.expires_at) + seconds
            try:
                await self._records.put(replace(session, limit_at=limit, expires_at=bounded(limit, session.ends_at)))
            except (StaleWriteError, FencedOutError):
                logger.info("session %s changed hands before its deadline was moved", session_id)
