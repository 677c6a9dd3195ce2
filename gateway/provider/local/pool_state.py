"""A warm pool's bookkeeping: plain synchronous decisions about which sandboxes to start, hand out or end.

Demand is what waits plus what should be warm; supply is what is warm plus what is starting; the difference is ordered.
A claim that finds nothing warm is a waiter: its cold start is ordered at once, and whichever sandbox of the runtime is
ready first, one ordered for it or a refill, goes to the waiter who came first.

Failures: every start that fails doubles the pause before the next refill (0.5 s .. 30 s). While the last start failed,
one start at a time is tried. Claims may try within the pause until GIVE_UP failures in a row; from then on they are
refused until it is over, so that no number of requests makes a broken runtime spin.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

BoxT = TypeVar("BoxT")
WaiterT = TypeVar("WaiterT")

BACKOFF_FIRST, BACKOFF_MAX = 0.5, 30.0  # seconds
GIVE_UP = 3  # PoolStatus.settled counts the same
EARLY = 10.0  # seconds: a warm sandbox that dies younger than this counts as a failed start
LEAD_TIMES = 64  # start durations kept for the quantiles


class Book(Generic[BoxT, WaiterT]):
    """The books of one pool. Times are Clock.monotonic seconds."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.ready: deque[BoxT] = deque()
        self.waiters: deque[WaiterT] = deque()
        self.starting = 0
        self.start_failures = 0
        self.early_deaths = 0
        self.retry_at: float | None = None
        self.last_error = ""
        self._lead_times: deque[float] = deque(maxlen=LEAD_TIMES)

    @property
    def failures(self) -> int:
        """Failures in a row, of either sort."""
        return self.start_failures + self.early_deaths

    def wanted(self, now: float) -> int:
        """How many starts to order now."""
        backing_off = self.retry_at is not None and now < self.retry_at
        need = len(self.waiters) + (0 if backing_off else self.target) - len(self.ready) - self.starting
        if self.start_failures:
            need = min(need, 1 - self.starting)
        return max(0, need)

    def surplus(self) -> int:
        """How many of the starts under way nobody wants any more."""
        return max(0, self.starting + len(self.ready) - self.target - len(self.waiters))

    def refusal(self, now: float) -> float | None:
        """Seconds a claim should wait before it asks again, when starting one for it is known to be vain."""
        if self.ready or self.start_failures < GIVE_UP or self.retry_at is None or now >= self.retry_at:
            return None
        return self.retry_at - now

    def take(self, is_alive: Callable[[BoxT], bool]) -> BoxT | None:
        """The warm sandbox that has been ready longest, or None. It leaves the book: nobody else can get it."""
        while self.ready:
            box = self.ready.popleft()
            if is_alive(box):
                return box
        return None

    def ordered(self, count: int) -> None:
        """So many starts are under way."""
        self.starting += count

    def withdrawn(self) -> None:
        """A start was given up before it began."""
        self.starting -= 1

    def arrived(self, box: BoxT, lead_time: float) -> WaiterT | bool:
        """A start succeeded. Returns who gets it, True when it was put in the pool, False when nobody wants it."""
        self.starting -= 1
        self.start_failures = 0
        if not self.early_deaths:
            self.retry_at, self.last_error = None, ""
        self._lead_times.append(lead_time)
        if self.waiters:
            return self.waiters.popleft()
        if len(self.ready) < self.target:
            self.ready.append(box)
            return True
        return False

    def failed(self, now: float, error: str) -> list[WaiterT]:
        """A start failed. Returns the waiters who can no longer be served: more wait than starts are under way."""
        self.starting -= 1
        self.start_failures += 1
        self._back_off(now, error)
        return [self.waiters.popleft() for _ in range(len(self.waiters) - self.starting)]

    def died(self, box: BoxT, age: float, now: float, error: str) -> None:
        """A warm sandbox ended by itself."""
        self.forget(box)
        if age >= EARLY:
            self.early_deaths = 0
            return
        self.early_deaths += 1
        self._back_off(now, error)

    def proved(self, age: float) -> None:
        """A sandbox of that age was claimed and is well."""
        if age >= EARLY and self.early_deaths:
            self.early_deaths = 0
            if not self.start_failures:
                self.retry_at, self.last_error = None, ""

    def resize(self, target: int) -> list[BoxT]:
        """Set the target. Returns warm ones to end, the newest: the older ones have shown that they live."""
        self.target = target
        return [self.ready.pop() for _ in range(len(self.ready) - target)]

    def forget(self, box: BoxT) -> None:
        """It is no longer warm; absent is success."""
        if box in self.ready:
            self.ready.remove(box)

    def lead_time(self, q: float) -> float | None:
        """The q-quantile (nearest rank) of recent start durations, seconds from order to ready."""
        if not self._lead_times:
            return None
        ordered = sorted(self._lead_times)
        return ordered[min(len(ordered) - 1, int(q * len(ordered)))]

    def _back_off(self, now: float, error: str) -> None:
        self.last_error = error
        self.retry_at = now + min(BACKOFF_MAX, BACKOFF_FIRST * 2 ** min(self.failures - 1, 16))
