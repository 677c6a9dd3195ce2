"""Counts of recent claims: how many fell into the last H seconds, and how many in each second of the last hours."""

from __future__ import annotations

from collections import deque

_GOLDEN_RATIO = 0.6180339887498949
MAX_TIMES = 1000  # claims of a runtime whose times are kept from one look to the next
Counts = tuple[float, int]  # (time, claims that came in the tick ending then)


def times_within(second: float, claims: int) -> list[float]:
    """Times for claims of which only the second is known: spread over it, unevenly, as steps of the golden ratio do. Of
    MAX_TIMES claims at most; the others count as coming at the end of the look.
    """
    return sorted(second + (number * _GOLDEN_RATIO) % 1.0 for number in range(1, min(claims, MAX_TIMES) + 1))


class RollingCount:
    """Claims of the last `span` seconds. Amortised O(1) per addition."""

    __slots__ = ("_events", "span", "total")

    def __init__(self, span: float) -> None:
        self.span = span
        self.total = 0
        self._events: deque[Counts] = deque()

    def add(self, now: float, claims: int) -> None:
        """`claims` came by `now`. A time before the last one means that the clock was set: see `shift`."""
        if self._events and now < self._events[-1][0]:
            self.shift(now - self._events[-1][0])
        if claims:
            self._events.append((now, claims))
            self.total += claims
        self.expire(now)

    def expire(self, now: float) -> int:
        """Forget what lies more than `span` back; returns what is left."""
        events, edge = self._events, now - self.span
        while events and events[0][0] <= edge:
            self.total -= events.popleft()[1]
        return self.total

    def shift(self, step: float) -> None:
        """Follow the clock, which was set by `step` seconds."""
        self._events = deque((at + step, claims) for at, claims in self._events)

    def clear(self) -> None:
        """Forget everything, as after a step of the clock."""
        self._events.clear()
        self.total = 0
