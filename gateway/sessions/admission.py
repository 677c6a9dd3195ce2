"""Admission control: which requests get a sandbox, how long others wait for one, which are refused.

All claims of the lifecycle pass through here on their way to the provider, whether they create, wake or recover a
session. So the autoscaler and the metrics count claims here.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from gateway.core.clock import Clock
from gateway.core.errors import ActivationTimeoutError, QueueFullError, WakegateError
from gateway.core.interfaces import SandboxProvider
from gateway.core.model import Runtime, RuntimeKey, Sandbox, SessionId, StartKind
from gateway.sessions.activity import ClaimListener, WaitListener
from gateway.sessions.fairness import FairQueue

MIN_HOLD_S = 10.0
# Times the expected start: room for a few starts queued before this one, and still an answer while somebody waits. With
# starts of 4 s a request is held for 14 s.
HOLD_FACTOR = 3.5
# Of a request whose session another gateway owns: either that one drains (30 s) and hibernates its sessions (45 s), or
# it is dead and all its sessions are started here at once.
MAX_OWNER_WAIT_S = 90.0
MAX_HOLD_S = 60.0  # of a request whose queue moves
_MAX_RETRY_AFTER_S = 30.0  # further ahead, the queue depends on clients that have not come yet
_ANSWER_S = 5.0  # from the end of a start's time until the engine's error is there
_RECHECK_LEAD_S = 0.05  # before a hold ends


class StartTimes:
    """Durations of one runtime's last 64 starts, for the hold rule; older ones no longer count after a slow hour."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=64)

    def add(self, seconds: float) -> None:
        """Add the duration of a start that has succeeded."""
        self._recent.append(seconds)

    def expected(self) -> float:
        """The 90th percentile of recent starts in seconds; 0 without any."""
        if not self._recent:
            return 0.0
        # e.g. of 64 the 58th smallest: a tenth of the requests takes longer than is expected here.
        ordered = sorted(self._recent)
        return ordered[min(len(ordered) - 1, len(ordered) * 9 // 10)]


class Backlog:
    """The queue of claims for one runtime that wait for a sandbox to start, and the rate at which it is served.

    The rate is measured over one queue: from when the first claim began to wait until none waits any more, and only
    once _MIN_SERVED were served. Cold starts that came one at a time do not show how many could run side by side.

    Example: 10 claims wait and 20 were served in 5 s. One more would wait (10 + 1) * 5 / 20 = 2.75 s.
    """

    _MIN_SERVED = 8  # claims served in this queue before its rate is used

    def __init__(self) -> None:
        self.waiting = 0
        self._served = 0
        self._since = 0.0

    def joined(self, now: float) -> None:
        """Add a claim that begins to wait. `now` is of a monotonic clock."""
        if not self.waiting:
            self._served, self._since = 0, now
        self.waiting += 1

    def left(self, *, served: bool) -> None:
        """Remove a claim; `served`: a sandbox was started for it, so it counts towards the rate."""
        self.waiting -= 1
        self._served += served

    @property
    def moves(self) -> bool:
        """Whether a claim of this queue was served: starts work, and the queue is just long."""
        return self._served > 0

    def expected_wait(self, now: float) -> float | None:
        """Seconds that one more claim would wait behind those in the queue; None while the rate is unknown."""
        if not self.waiting or self._served < self._MIN_SERVED or now <= self._since:
            return None
        return (self.waiting + 1) * (now - self._since) / self._served


class _Hold:
    """The deadline of one held request, which may be extended. Times of the event loop's clock."""

    def __init__(self, runtime: RuntimeKey | None, began: float, seconds: float) -> None:
        self.runtime = runtime
        self.loop = asyncio.get_running_loop()
        self.began = began
        self.until = began + seconds
        self.awaits_owner = False  # may take MAX_OWNER_WAIT_S in all
        self.timeout = asyncio.timeout_at(self.until)
        self.check: asyncio.TimerHandle

    def recheck(self, lengthen: Callable[[_Hold], None]) -> None:
        """Call `lengthen` just before the deadline."""
        self.check = self.loop.call_at(self.until - _RECHECK_LEAD_S, lengthen, self)

    def extend(self, until: float, lengthen: Callable[[_Hold], None]) -> None:
        """Move the deadline to `until`, unless that is earlier than the present one."""
        if until > self.until and not self.timeout.expired():
            self.until = until
            self.timeout.reschedule(until)
            self.check.cancel()
            self.recheck(lengthen)


class Admission:
    """Applies the limits and the hold rule of this gateway, and notifies listeners of claims."""

    def __init__(
        self,
        provider: SandboxProvider,
        clock: Clock,
        queue: FairQueue,
        *,
        max_sandboxes: int = 512,
        start_timeout: float = 0.0,
    ) -> None:
        """`start_timeout`: seconds that requests are held at least, besides the hold rule: as long as a start may take.
        The engine's own error, which says why nothing started, then comes before the end of the hold.
        """
        self._provider = provider
        self._queue = queue
        self._clock = clock
        self._max_sandboxes = max_sandboxes
        self._min_hold = start_timeout + _ANSWER_S if start_timeout else MIN_HOLD_S
        self._claiming = 0
        self._holds: dict[SessionId | None, set[_Hold]] = {}  # None: requests that create a session
        self._start_times: dict[RuntimeKey, StartTimes] = {}
        self._backlogs: dict[RuntimeKey, Backlog] = {}
        self._claimed: list[ClaimListener] = []
        self._waiting: list[WaitListener] = []

    def on_claim(self, listener: ClaimListener) -> None:
        """Call `listener(runtime, start, now)` for each claim that has succeeded; the autoscaler counts them."""
        self._claimed.append(listener)

    def on_waiting(self, listener: WaitListener) -> None:
        """Call `listener(runtime, 1, now)` as a claim begins, and with -1 when it has its sandbox or has failed."""
        self._waiting.append(listener)

    def hold_time(self, runtime: RuntimeKey | None) -> float:
        """Seconds that a request may be held for a sandbox of this runtime (None: of the slowest runtime)."""
        times = self._start_times.values() if runtime is None else filter(None, [self._start_times.get(runtime)])
        return max(self._min_hold, HOLD_FACTOR * max((each.expected() for each in times), default=0.0))

    def overdue(self, runtime: RuntimeKey | None, waited: float) -> WakegateError:
        """The error of a request for which no sandbox was ready in time (runtime None: it is not known yet).

        If others in the queue were served meanwhile it is overload: 429, with the time that the queue takes. If none
        was, starts fail or hang: 504.
        """
        moving = self._moving(runtime)
        text = f"no sandbox was ready within {waited:.1f} s; the request was not sent to one"
        if not moving:
            return ActivationTimeoutError(text, retry_after=1)
        expected = max(each.expected_wait(self._clock.monotonic()) or 1.0 for each in moving)
        return QueueFullError(f"{text}: others wait too", retry_after=min(max(1.0, expected), _MAX_RETRY_AFTER_S))

    @asynccontextmanager
    async def held(self, runtime: RuntimeKey | None, session_id: SessionId | None = None) -> AsyncIterator[None]:
        """Apply the hold rule to a block that waits for a sandbox. Raises ActivationTimeoutError, QueueFullError.

        The expected start is computed again just before the deadline: when many starts queue, the first to finish show
        how long they take under that load, and a request that is still in the queue is then held for longer instead of
        being refused. `extend_holds` extends the holds of one session as well.
        """
        hold = _Hold(runtime, asyncio.get_running_loop().time(), self.hold_time(runtime))
        holds = self._holds.setdefault(session_id, set())
        holds.add(hold)
        hold.recheck(self._lengthen)
        try:
            async with hold.timeout:
                yield
        except TimeoutError:
            if not hold.timeout.expired():
                raise
            raise self.overdue(runtime, hold.loop.time() - hold.began) from None
        finally:
            hold.check.cancel()
            holds.discard(hold)
            if not holds:
                self._holds.pop(session_id, None)

    def extend_holds(self, session_id: SessionId) -> None:
        """Start the holds of a session's requests again, up to MAX_OWNER_WAIT_S in all.

        They wait for another gateway, which is dead or shuts down; the hold rule alone covers only starts.
        """
        for hold in self._holds.get(session_id, ()):
            hold.awaits_owner = True
            self._restart(hold)

    def _restart(self, hold: _Hold) -> None:
        longest = hold.began + MAX_OWNER_WAIT_S
        hold.extend(min(hold.loop.time() + self.hold_time(hold.runtime), longest), self._lengthen)

    def _lengthen(self, hold: _Hold) -> None:
        if hold.awaits_owner and self._moving(hold.runtime):
            # One of many sessions that are taken over at once. Refused, its client would only come back into the queue.
            self._restart(hold)
            return
        longest = max(MAX_HOLD_S, hold.until - hold.began)
        hold.extend(hold.began + min(self.hold_time(hold.runtime), longest), self._lengthen)

    def _moving(self, runtime: RuntimeKey | None) -> list[Backlog]:
        """The queues of this runtime (None: of all) of which claims were served."""
        queues = self._backlogs.items()
        return [each for key, each in queues if each.moves and (key == runtime or (runtime is None and each.waiting))]

    def _time_left(self, runtime: RuntimeKey, session_id: SessionId) -> float:
        """Seconds that a request which claims a sandbox for the session now may still be held."""
        now = asyncio.get_running_loop().time()
        taken_over = [each for each in self._holds.get(session_id, ()) if each.awaits_owner]
        return max([self.hold_time(runtime), *(each.began + MAX_OWNER_WAIT_S - now for each in taken_over)])

    async def claim(self, runtime: Runtime, session_id: SessionId, *, tenant: str, bound: int) -> tuple[Sandbox, float]:
        """Claim a sandbox for a session. Returns it and the seconds that this took. `bound` sandboxes are in use.

        Raises: QueueFullError at the limit of sandboxes, or when the claim would take longer than requests are held;
        whatever the provider's claim raises.
        """
        # Claims under way count: a hundred at once would all find the last free place.
        if bound + self._claiming >= self._max_sandboxes:
            raise QueueFullError(
                f"all {self._max_sandboxes} sandboxes of this gateway are in use; end a session or try again later",
                retry_after=5,
            )
        began = self._clock.monotonic()
        backlog = self._backlogs.setdefault(runtime.key, Backlog())
        expected, hold = backlog.expected_wait(began), self._time_left(runtime.key, session_id)
        if expected is not None and expected > hold:
            raise QueueFullError(
                f"{backlog.waiting} sessions wait for a sandbox of {runtime.key}, which takes about {expected:.0f} s; "
                f"requests are held for {hold:.0f} s at most",
                # When the client is back, half a hold of the queue is left. Expected 30 s, hold 10 s: in 25 s.
                retry_after=min(expected - hold / 2, _MAX_RETRY_AFTER_S),
            )
        self._claiming += 1
        self._notify_waiting(runtime.key, 1)
        backlog.joined(began)
        started = False
        try:
            sandbox = await self._claim(runtime.key, session_id, tenant)
            started = sandbox.start is StartKind.COLD  # a claim from the warm pool shows nothing of how fast starts are
        finally:
            self._claiming -= 1
            self._notify_waiting(runtime.key, -1)
            backlog.left(served=started)
        took = self._clock.monotonic() - began
        self._start_times.setdefault(runtime.key, StartTimes()).add(took)
        for listener in self._claimed:
            listener(runtime.key, sandbox.start, self._clock.now())
        return sandbox, took

    async def _claim(self, runtime: RuntimeKey, session_id: SessionId, tenant: str) -> Sandbox:
        """Claim from the engine, in the order of tenants' shares while more claims wait than starts run at once."""
        if self._queue.is_full and (await self._provider.status(runtime)).ready > 0:
            # What runs are cold starts, perhaps all of another tenant. A warm sandbox takes nothing from them.
            return await self._provider.claim(runtime, session_id)
        async with self._queue.slot(tenant):
            return await self._provider.claim(runtime, session_id)

    def _notify_waiting(self, runtime: RuntimeKey, change: int) -> None:
        for listener in self._waiting:
            listener(runtime, change, self._clock.now())
