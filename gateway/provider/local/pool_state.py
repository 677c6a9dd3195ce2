"""The state of a warm pool and the decisions over it: which sandboxes to start, hand out or end. No I/O.

Demand is what waits plus what should be warm; supply is what is warm plus what is starting; the difference is ordered.
A claim that finds nothing warm is a waiter: its cold start is ordered at once, and whichever sandbox of the runtime is
ready first, one ordered for it or a refill, goes to the waiter that came first.

Failures: every start that fails doubles the pause before the next refill (0.5 s .. 30 s). While the last start failed,
one start at a time is tried. Claims may try within the pause until MAX_FAILED_STARTS failures in a row; from then on
they are refused until it is over, so that requests cannot make a broken runtime start in a loop.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from gateway.core.backoff import backoff

SandboxT = TypeVar("SandboxT")
WaiterT = TypeVar("WaiterT")

FIRST_BACKOFF_S, MAX_BACKOFF_S = 0.5, 30.0
MAX_FAILED_STARTS = 3  # in a row, before claims are refused; PoolStatus.settled counts the same
EARLY_DEATH_S = 10.0  # a warm sandbox that dies younger than this counts as a failed start
MAX_LEAD_TIMES = 64  # start durations kept for the quantiles


class PoolState(Generic[SandboxT, WaiterT]):
    """One pool. Times are Clock.monotonic seconds."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.ready: deque[SandboxT] = deque()
        self.waiters: deque[WaiterT] = deque()
        self.starting = 0
        self.start_failures = 0
        self.early_deaths = 0
        self.retry_at: float | None = None
        self.last_error = ""
        self._lead_times: deque[float] = deque(maxlen=MAX_LEAD_TIMES)

    @property
    def failures(self) -> int:
        """Failed starts and early deaths in a row."""
        return self.start_failures + self.early_deaths

    def wanted(self, now: float) -> int:
        """How many starts to order now."""
        # e.g. target 3, 1 ready, 1 starting, 2 waiters: 2 + 3 - 1 - 1 = 3 more. Within a pause only the waiters count.
        backing_off = self.retry_at is not None and now < self.retry_at
        need = len(self.waiters) + (0 if backing_off else self.target) - len(self.ready) - self.starting
        if self.start_failures:
            need = min(need, 1 - self.starting)  # a start that may fail again is not tried ten times at once
        return max(0, need)

    def surplus(self) -> int:
        """How many of the starts under way are no longer needed."""
        return max(0, self.starting + len(self.ready) - self.target - len(self.waiters))

    def refusal(self, now: float) -> float | None:
        """Seconds after which a claim may be retried while starts keep failing; None: claim now."""
        if self.ready or self.start_failures < MAX_FAILED_STARTS or self.retry_at is None or now >= self.retry_at:
            return None
        return self.retry_at - now

    def take(self, is_alive: Callable[[SandboxT], bool]) -> SandboxT | None:
        """The warm sandbox that has been ready longest, or None. It leaves the pool, so it is handed out once."""
        # A loop: one may have ended in this very step of the event loop, before `exited` could be called for it.
        while self.ready:
            sandbox = self.ready.popleft()
            if is_alive(sandbox):
                return sandbox
        return None

    def start_ordered(self, count: int) -> None:
        """`count` more starts are under way."""
        self.starting += count

    def start_withdrawn(self) -> None:
        """A start was cancelled before it began, or its sandbox is not wanted."""
        self.starting -= 1

    def start_succeeded(self, sandbox: SandboxT, lead_time: float) -> WaiterT | bool:
        """Returns the waiter that gets the sandbox, True when it joined the pool, False when it is surplus."""
        self.starting -= 1
        self.start_failures = 0
        if not self.early_deaths:
            self.retry_at, self.last_error = None, ""
        self._lead_times.append(lead_time)
        if self.waiters:
            return self.waiters.popleft()
        if len(self.ready) < self.target:
            self.ready.append(sandbox)
            return True
        return False

    def start_failed(self, now: float, error: str) -> list[WaiterT]:
        """A start failed. Returns the waiters to refuse: those beyond the number of starts still under way."""
        self.starting -= 1
        self.start_failures += 1
        self._back_off(now, error)
        return [self.waiters.popleft() for _ in range(len(self.waiters) - self.starting)]

    def exited(self, sandbox: SandboxT, age: float, now: float, error: str) -> None:
        """A warm sandbox exited unasked; dying young counts as a failed start."""
        self.forget(sandbox)
        if age >= EARLY_DEATH_S:
            self.early_deaths = 0
            return
        self.early_deaths += 1
        self._back_off(now, error)

    def confirm_healthy(self, age: float) -> None:
        """A sandbox of that age was claimed alive; an old one clears the early deaths."""
        if age >= EARLY_DEATH_S and self.early_deaths:
            self.early_deaths = 0
            if not self.start_failures:
                self.retry_at, self.last_error = None, ""

    def resize(self, target: int) -> list[SandboxT]:
        """Set the target. Returns surplus warm ones to end, newest first: the older ones are known to be stable."""
        self.target = target
        return [self.ready.pop() for _ in range(len(self.ready) - target)]

    def forget(self, sandbox: SandboxT) -> None:
        """Remove it from the warm ones; absent is success."""
        if sandbox in self.ready:
            self.ready.remove(sandbox)

    def lead_time(self, q: float) -> float | None:
        """The q-quantile (nearest rank) of recent start durations, seconds from order to ready."""
        if not self._lead_times:
            return None
        ordered = sorted(self._lead_times)
        return ordered[min(len(ordered) - 1, int(q * len(ordered)))]

    def _back_off(self, now: float, error: str) -> None:
        self.last_error = error
        self.retry_at = now + backoff(self.failures, first=FIRST_BACKOFF_S, longest=MAX_BACKOFF_S)
