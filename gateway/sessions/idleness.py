"""Whether a session is in use: by what this gateway sees, by what its record tells of the others, by its sandbox.

gateway/sessions/activity.py counts in memory what goes through here; it reaches the record once in HEARTBEAT_S. So a
record tells of every gateway's requests, late by a beat or two.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from gateway.core.clock import Clock
from gateway.core.errors import StoreUnavailableError, WakegateError
from gateway.core.model import Sandbox, Session, SessionId, SessionState
from gateway.sessions.activity import Activity
from gateway.sessions.records import Records

HEARTBEAT_S = 1.0  # activity is written so often
_WORK_CHECK_S = 2.0  # seconds that a sandbox has to say whether it is at work

_AWAKE = (SessionState.ACTIVE, SessionState.HIBERNATING, SessionState.WAKING)

WorkCheck = Callable[[Sandbox, SessionId], Awaitable[bool]]


class IdleTracker:
    """Says when a session was last used. `shared_provider`: other gateways serve its sandbox and write heartbeats."""

    def __init__(
        self,
        records: Records,
        activity: Activity,
        clock: Clock,
        *,
        shared_provider: bool,
        hibernated_retention: float,
    ) -> None:
        self._records = records
        self._activity = activity
        self._clock = clock
        self._shared_provider = shared_provider
        self._retention = hibernated_retention
        self._work_check: WorkCheck | None = None

    def use_work_check(self, check: WorkCheck) -> None:
        """Let `at_work` ask `check(sandbox, session)` before an idle session is hibernated or ends."""
        self._work_check = check

    async def flush(self) -> None:
        """Write buffered activity to the store in one batch; what it does not take is tried again next time."""
        seen = self._activity.take_unwritten(self._clock.now())
        if not seen:
            return
        try:
            await self._records.store.touch_many(seen)
        except StoreUnavailableError:
            self._activity.give_back(seen)
            raise

    def last_used(self, session: Session, now: float) -> float:
        """Epoch seconds, by the record and by what this gateway saw since; `now` while a request is in flight."""
        return max(session.last_active_at, self._activity.latest(session.id, now) or 0.0)

    def is_idle(self, session: Session) -> bool:
        """Whether its idle timeout is over since it was last used."""
        now = self._clock.now()
        return self.last_used(session, now) + session.idle_timeout <= now

    def is_over(self, session: Session) -> bool:
        """Whether its time is over: the end its user asked for, its maximum duration, or the retention.

        An awake session that was idle before its maximum duration ended is due for hibernation, not for its end: from
        then on it used up none of that. If no gateway hibernates it, because the one that has it is dead, it is over
        when the retention would be that counts from the same moment.
        """
        now = self._clock.now()
        if session.expires_at > now:
            return False
        if session.state not in _AWAKE or (session.ends_at is not None and session.ends_at <= now):
            return True
        idle_at = self.last_used(session, now) + session.idle_timeout
        return idle_at >= session.expires_at or idle_at + self._retention <= now

    def busy(self, session_id: SessionId) -> bool:
        """Whether this gateway has requests under way on it."""
        return self._activity.busy(session_id)

    async def busy_elsewhere(self, session: Session) -> bool:
        """Whether another gateway has requests under way on it: their heartbeats reach the record every second."""
        now = self._clock.now()
        if not self._shared_provider or session.last_active_at + 3 * HEARTBEAT_S < now:
            return False
        if session.last_active_at > now + HEARTBEAT_S:
            return True  # the clock was set back: heartbeats do not show until it has caught up
        # The first beat may tell of requests that have ended; only one that is under way shows in a later one as well.
        # Beats come late from a gateway that has much to do: there is time for more than two.
        await asyncio.sleep(1.5 * HEARTBEAT_S)
        first = await self._records.get(session.id)
        await asyncio.sleep(2.5 * HEARTBEAT_S)
        second = await self._records.get(session.id)
        return first is not None and second is not None and second.last_active_at > first.last_active_at

    async def at_work(self, session: Session) -> bool:
        """Whether something runs in its sandbox that no request waits for. Then it counts as used now."""
        if self._work_check is None or session.sandbox is None:
            return False
        try:
            async with asyncio.timeout(_WORK_CHECK_S):
                at_work = await self._work_check(session.sandbox, session.id)
        except (WakegateError, TimeoutError):
            return False  # gone, or an executor of another kind: nothing speaks against hibernation
        if at_work:
            await self._records.store.touch_many({session.id: self._clock.now()})
        return at_work
