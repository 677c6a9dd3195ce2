"""Decides whether a session is in use, from three sources: this gateway's requests, the record, the sandbox.

gateway/sessions/activity.py counts this gateway's requests in memory; every HEARTBEAT_INTERVAL_S they are written to
the records. So a record shows the requests of all gateways, one or two heartbeats late.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from gateway.core.clock import Clock
from gateway.core.errors import StoreUnavailableError, WakegateError
from gateway.core.model import Sandbox, Session, SessionId, SessionState
from gateway.sessions.activity import Activity
from gateway.sessions.records import Records

HEARTBEAT_INTERVAL_S = 1.0  # between two writes of buffered activity
GATEWAY_TTL_S = 3.5  # how long a gateway counts as alive after it said so, once a second: it may miss two times
_WORK_CHECK_TIMEOUT_S = 2.0  # for picod's answer to the work check
_ANSWERS_TIMEOUT_S = 1.0  # for what other gateways say of a session; they answer in milliseconds

_AWAKE = (SessionState.ACTIVE, SessionState.HIBERNATING, SessionState.WAKING)

WorkCheck = Callable[[Sandbox, SessionId], Awaitable[bool]]


class IdleTracker:
    """Knows when a session was last used.

    `shared_provider`: other gateways reach the same sandboxes, serve the session and write heartbeats of their own.
    `holder`: this gateway's name among them.
    """

    def __init__(
        self,
        records: Records,
        activity: Activity,
        clock: Clock,
        *,
        shared_provider: bool,
        hibernated_retention: float,
        holder: str = "",
    ) -> None:
        self._records = records
        self._activity = activity
        self._clock = clock
        self._shared_provider = shared_provider
        self._retention = hibernated_retention
        self._holder = holder
        self._work_check: WorkCheck | None = None

    def use_work_check(self, check: WorkCheck) -> None:
        """Set the check that `has_background_work` calls before an idle session is hibernated or ended."""
        self._work_check = check

    async def flush(self) -> None:
        """Write buffered activity to the store in one batch. After a failure it is written by the next call."""
        # Taken before the write: what happens during it is newer, and belongs to the next one.
        seen = self._activity.take_unwritten(self._clock.now())
        if not seen:
            return
        try:
            await self._records.store.touch_many(seen)
        except StoreUnavailableError:
            self._activity.give_back(seen)
            raise

    def last_used(self, session: Session, now: float) -> float:
        """The later of the record's time and this gateway's, in epoch seconds; `now` while a request is in flight."""
        return max(session.last_active_at, self._activity.latest(session.id, now) or 0.0)

    def is_idle(self, session: Session) -> bool:
        """Whether it has been unused for its idle timeout."""
        now = self._clock.now()
        return self.last_used(session, now) + session.idle_timeout <= now

    def is_expired(self, session: Session) -> bool:
        """Whether it has passed the end that its user set, its maximum duration, or the retention.

        An awake session that became idle before it reached its maximum duration has not expired: it is due for
        hibernation, and idle time does not count towards that duration. If nobody hibernates it, because its owner is
        dead, it expires when the retention has passed since it became idle, as if it had been hibernated then.
        """
        now = self._clock.now()
        if session.expires_at > now:
            return False
        if session.state not in _AWAKE or (session.ends_at is not None and session.ends_at <= now):
            return True
        idle_at = self.last_used(session, now) + session.idle_timeout
        return idle_at >= session.expires_at or idle_at + self._retention <= now

    def busy(self, session_id: SessionId) -> bool:
        """Whether this gateway has requests under way on the session."""
        return self._activity.busy(session_id)

    async def busy_elsewhere(self, session: Session) -> bool:
        """Whether another gateway has requests under way on it.

        Where the session was used within the last 3 s, the others are asked; they then ask the store before they use it
        again. If one does not answer, heartbeats in the record tell, which takes 4 s.
        """
        now = self._clock.now()
        if not self._shared_provider or session.last_active_at + 3 * HEARTBEAT_INTERVAL_S < now:
            return False
        if session.last_active_at > now + HEARTBEAT_INTERVAL_S:
            return True  # the clock was set back: until it has caught up, heartbeats do not change the record
        alive = await self._records.store.quotas.gateways(self._holder, GATEWAY_TTL_S)
        others = alive - {self._holder}
        answers = await self._records.store.questions.ask(session.id, others, _ANSWERS_TIMEOUT_S) if others else {}
        if any(answers.values()):
            return True
        if others <= answers.keys():
            return False
        # The first heartbeat may be of a request that has ended; one that is still under way shows in a later heartbeat
        # as well. A loaded gateway writes late, so there is time for more than two: 1.5 s, then 2.5 s.
        await asyncio.sleep(1.5 * HEARTBEAT_INTERVAL_S)
        first = await self._records.get(session.id)
        await asyncio.sleep(2.5 * HEARTBEAT_INTERVAL_S)
        second = await self._records.get(session.id)
        return first is not None and second is not None and second.last_active_at > first.last_active_at

    async def has_background_work(self, session: Session) -> bool:
        """Whether something runs in its sandbox that no request waits for; if so the session counts as used now."""
        if self._work_check is None or session.sandbox is None:
            return False
        try:
            async with asyncio.timeout(_WORK_CHECK_TIMEOUT_S):
                has_background_work = await self._work_check(session.sandbox, session.id)
        except (WakegateError, TimeoutError):
            return False  # the sandbox has ended, or its executor has no such check: hibernate it as an idle one
        if has_background_work:
            await self._records.store.touch_many({session.id: self._clock.now()})
        return has_background_work
