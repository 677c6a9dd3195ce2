"""Extends sessions by the time in which this gateway did not run: a suspended machine, a stopped process.

A record's deadline is a point in time, which passes even while nothing runs. A gateway that finds a gap between two
readings of the clock moves the deadlines of its sandboxes by that gap. Sessions of a gateway that was killed do not
need it: the next start records them as lost, and their retention counts from then.

A clock that is set looks the same, and may be set to the wrong time: by a machine without one until it has asked the
network, by a wrong answer. Set back, deadlines move back, and last uses that are still to come are now. After a jump
either way nothing is deleted for SETTLE_S that only a deadline condemns and that cannot be had again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace

from gateway.core.clock import Clock
from gateway.core.errors import FencedOutError, StaleWriteError
from gateway.core.model import SessionId
from gateway.sessions.activity import Activity
from gateway.sessions.bindings import Bindings
from gateway.sessions.ownership import Ownership
from gateway.sessions.records import Records
from gateway.sessions.transitions import bounded

logger = logging.getLogger(__name__)

# The clock is read once a second, and an overloaded event loop is late by less than 2 s. A false positive is harmless:
# a stall of 4 s that is taken for a pause extends sessions by 4 s.
MIN_PAUSE_S = 3.0
MIN_JUMP_S = 3600.0
SETTLE_S = 600.0


class Durations:
    """Detects pauses. `catch_up` is called once a second, and before any decision that reads a deadline."""

    def __init__(
        self, *, records: Records, ownership: Ownership, bindings: Bindings, activity: Activity, clock: Clock
    ) -> None:
        self._records = records
        self._ownership = ownership
        self._bindings = bindings
        self._activity = activity
        self._set_back: list[Callable[[], None]] = []
        self._settled_at = float("-inf")  # monotonic
        self._clock = clock
        self._last_check = clock.now()
        self._owed: dict[SessionId, float] = {}  # seconds that a session's record does not have yet
        self._lock = asyncio.Lock()

    def on_set_back(self, listener: Callable[[], None]) -> None:
        """Call this when the clock was set back: times kept in memory are then further away than they may be."""
        self._set_back.append(listener)

    @property
    def is_settled(self) -> bool:
        """Whether the clock has not jumped lately."""
        return self._clock.monotonic() >= self._settled_at

    async def catch_up(self) -> None:
        """Move the deadlines of sessions bound here by the time since the last call, if that was a pause.

        The end that a user set (ttl) is a point in time and does not move. Raises StoreUnavailableError; the next call
        then writes the rest.
        """
        now = self._clock.now()
        gap, self._last_check = now - self._last_check, now
        if abs(gap) >= MIN_JUMP_S:
            self._settled_at = self._clock.monotonic() + SETTLE_S
        if gap <= -MIN_PAUSE_S:
            logger.warning("the clock was set back by %.0f s", -gap)
            self._activity.none_after(now)
            for listener in self._set_back:
                listener()
        if abs(gap) >= MIN_PAUSE_S and not self._ownership.shared_provider:  # sandboxes elsewhere went on running
            sessions = self._bindings.sessions
            if sessions and gap > 0:
                logger.warning("this gateway did not run for %.0f s; extending %d sessions by that", gap, len(sessions))
            for session_id in sessions:
                self._owed[session_id] = self._owed.get(session_id, 0.0) + gap
        if self._owed or self._lock.locked():
            async with self._lock:
                for session_id in list(self._owed):
                    # The operation that holds it may wait for a sandbox for minutes, and requests wait for this call.
                    # The next call, a second later, tries again.
                    if not self._records.is_held(session_id):
                        await self._extend(session_id, self._owed[session_id])
                        del self._owed[session_id]

    async def _extend(self, session_id: SessionId, seconds: float) -> None:
        async with self._records.holding(session_id):
            session = await self._records.get(session_id)
            if session is None or session.sandbox is None or session.sandbox.id not in self._bindings:
                return  # it was hibernated, ended or taken over, which set a new deadline
            limit = (session.limit_at or session.expires_at) + seconds
            moved = replace(session, limit_at=limit, expires_at=bounded(limit, session.ends_at))
            try:
                await self._records.put(
                    replace(moved, last_active_at=min(session.last_active_at, self._clock.now())),
                )
            except (StaleWriteError, FencedOutError):
                logger.info("session %s moved to another gateway before its deadline was extended", session_id)
