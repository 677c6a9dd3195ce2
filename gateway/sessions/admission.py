"""Admission: who gets a sandbox, who waits for one and how long, who is told to come back.

Between the lifecycle, whose verbs need sandboxes, and the provider, which has them. The autoscaler and the metrics
listen here: each claim is one, whether it creates, wakes or recovers a session.
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

MIN_HOLD_S = 10.0
HOLD_FACTOR = 3.5  # times the expected start: room for a queue of starts before it, still an answer while people wait
# Of a request whose session another gateway has: that drains (30 s) and hibernates its sessions, or it is dead and all
# that it had is started here at once.
LONGEST_OWNER_WAIT_S = 90.0
LONGEST_HOLD_S = 60.0  # of a request in a queue that moves
_LONGEST_RETRY_S = 30.0  # a longer Retry-After would be a guess about other clients
_RECHECK_BEFORE_S = 0.05  # before its time is over


class StartTimes:
    """Recent durations of starts of one kind, for the hold rule. The last 64, so that a slow hour is forgotten."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=64)

    def add(self, seconds: float) -> None:
        """A start took this long."""
        self._recent.append(seconds)

    def expected(self) -> float:
        """The 90 % quantile of recent starts; 0 without any."""
        if not self._recent:
            return 0.0
        ordered = sorted(self._recent)
        return ordered[min(len(ordered) - 1, len(ordered) * 9 // 10)]


class Backlog:
    """Admission of one runtime that wait for a sandbox to start, and how fast such claims are served just now.

    A rate is known only while they queue, from the moment on which the first began to wait until none does any more,
    and only once several were served. Single cold starts, however many, say nothing of what could be started at once.
    """

    _ENOUGH = 8  # claims served in this queue before its rate is believed

    def __init__(self) -> None:
        self.waiting = 0
        self._served = 0
        self._since = 0.0

    def joined(self, now: float) -> None:
        """A claim begins to wait. `now` on a clock that never steps back."""
        if not self.waiting:
            self._served, self._since = 0, now
        self.waiting += 1

    def left(self, *, served: bool) -> None:
        """It stops waiting, `served` with a sandbox that was started or not."""
        self.waiting -= 1
        self._served += served

    @property
    def moves(self) -> bool:
        """Whether a claim in this queue has been served: it is long, but starts work."""
        return self._served > 0

    def expected_wait(self, now: float) -> float | None:
        """Seconds that one more claim would wait behind those that do; None while that is unknown."""
        if not self.waiting or self._served < self._ENOUGH or now <= self._since:
            return None
        return (self.waiting + 1) * (now - self._since) / self._served


class _Hold:
    """How long one request is held. Times of the loop."""

    def __init__(self, runtime: RuntimeKey | None, began: float, seconds: float) -> None:
        self.runtime = runtime
        self.loop = asyncio.get_running_loop()
        self.began = began
        self.until = began + seconds
        self.awaits_owner = False  # may take LONGEST_OWNER_WAIT_S in all
        self.timeout = asyncio.timeout_at(self.until)
        self.check: asyncio.TimerHandle

    def recheck(self, lengthen: Callable[[_Hold], None]) -> None:
        """Call `lengthen` just before the time is over."""
        self.check = self.loop.call_at(self.until - _RECHECK_BEFORE_S, lengthen, self)

    def extend(self, until: float, lengthen: Callable[[_Hold], None]) -> None:
        """Hold it until then; an earlier end than the present one changes nothing."""
        if until > self.until and not self.timeout.expired():
            self.until = until
            self.timeout.reschedule(until)
            self.check.cancel()
            self.recheck(lengthen)


class Admission:
    """Admission of this gateway, the hold rule, and who listens."""

    def __init__(self, provider: SandboxProvider, clock: Clock, *, max_sandboxes: int = 512) -> None:
        self._provider = provider
        self._clock = clock
        self._max_sandboxes = max_sandboxes
        self._claiming = 0
        self._holds: dict[SessionId | None, set[_Hold]] = {}  # None: of sessions that are not made yet
        self._start_times: dict[RuntimeKey, StartTimes] = {}
        self._backlogs: dict[RuntimeKey, Backlog] = {}
        self._claimed: list[ClaimListener] = []
        self._waiting: list[WaitListener] = []

    def on_claim(self, listener: ClaimListener) -> None:
        """Call `listener(runtime, start, now)` for each claim; the autoscaler learns from it."""
        self._claimed.append(listener)

    def on_waiting(self, listener: WaitListener) -> None:
        """Call `listener(runtime, 1, now)` as a claim begins, and with -1 when it has its sandbox or has failed."""
        self._waiting.append(listener)

    def hold_time(self, runtime: RuntimeKey | None) -> float:
        """Seconds that a request may be held for a sandbox of this runtime (None: of whichever is slowest)."""
        times = self._start_times.values() if runtime is None else filter(None, [self._start_times.get(runtime)])
        return max(MIN_HOLD_S, HOLD_FACTOR * max((each.expected() for each in times), default=0.0))

    def overdue(self, runtime: RuntimeKey | None, waited: float) -> WakegateError:
        """The error of a request for which no sandbox was ready within the hold rule (runtime None: of whichever).

        When others who queued were served meanwhile it is overload, so 429 with the time that the queue takes; when
        none was, starts fail or hang: 504.
        """
        moving = self._moving(runtime)
        text = f"no sandbox was ready within {waited:.1f} s; the request was not sent to one"
        if not moving:
            return ActivationTimeoutError(text, retry_after=1)
        expected = max(each.expected_wait(self._clock.monotonic()) or 1.0 for each in moving)
        return QueueFullError(f"{text}: others wait too", retry_after=min(max(1.0, expected), _LONGEST_RETRY_S))

    @asynccontextmanager
    async def held(self, runtime: RuntimeKey | None, session_id: SessionId | None = None) -> AsyncIterator[None]:
        """The hold rule around what waits for a sandbox. Raises ActivationTimeoutError, QueueFullError at its end.

        What is expected of a start is looked up again at the end: in a storm starts queue, and the first that came
        through have taught how long they take. A request in the queue is then held on, rather than refused. So is one
        for a session of which `prolong` was called.
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

    def prolong(self, session_id: SessionId) -> None:
        """Its requests wait for another gateway, dead or about to end: their hold begins anew, within a bound."""
        for hold in self._holds.get(session_id, ()):
            hold.awaits_owner = True
            self._hold_anew(hold)

    def _hold_anew(self, hold: _Hold) -> None:
        longest = hold.began + LONGEST_OWNER_WAIT_S
        hold.extend(min(hold.loop.time() + self.hold_time(hold.runtime), longest), self._lengthen)

    def _lengthen(self, hold: _Hold) -> None:
        if hold.awaits_owner and self._moving(hold.runtime):
            # Its session is one of many that are taken over: it is slow, and not for a client to ask again.
            self._hold_anew(hold)
            return
        longest = max(LONGEST_HOLD_S, hold.until - hold.began)
        hold.extend(hold.began + min(self.hold_time(hold.runtime), longest), self._lengthen)

    def _moving(self, runtime: RuntimeKey | None) -> list[Backlog]:
        """The queues of this runtime (None: of any) in which starts work."""
        queues = self._backlogs.items()
        return [each for key, each in queues if each.moves and (key == runtime or (runtime is None and each.waiting))]

    def _time_left(self, runtime: RuntimeKey, session_id: SessionId) -> float:
        """Seconds for which a request that claims a sandbox for the session now may be held for it."""
        now = asyncio.get_running_loop().time()
        taken_over = [each for each in self._holds.get(session_id, ()) if each.awaits_owner]
        return max([self.hold_time(runtime), *(each.began + LONGEST_OWNER_WAIT_S - now for each in taken_over)])

    async def claim(self, runtime: Runtime, session_id: SessionId, *, bound: int) -> tuple[Sandbox, float]:
        """A sandbox for that session, and the seconds that it took. `bound` sandboxes are in use already.

        Raises: QueueFullError when there is no room, or when it would come too late; what the provider's claim raises.
        """
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
                retry_after=min(expected - hold / 2, _LONGEST_RETRY_S),
            )
        self._claiming += 1
        self._tell_waiting(runtime.key, 1)
        backlog.joined(began)
        started = False
        try:
            sandbox = await self._provider.claim(runtime.key, session_id)
            started = sandbox.start is StartKind.COLD
        finally:
            self._claiming -= 1
            self._tell_waiting(runtime.key, -1)
            backlog.left(served=started)
        took = self._clock.monotonic() - began
        self._start_times.setdefault(runtime.key, StartTimes()).add(took)
        for listener in self._claimed:
            listener(runtime.key, sandbox.start, self._clock.now())
        return sandbox, took

    def _tell_waiting(self, runtime: RuntimeKey, change: int) -> None:
        for listener in self._waiting:
            listener(runtime, change, self._clock.now())
