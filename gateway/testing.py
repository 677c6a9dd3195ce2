"""Fakes that ship with the package, for tests here and elsewhere."""

from __future__ import annotations


class ManualClock:
    """A Clock that stands still until it is told to advance."""

    def __init__(self, start: float = 1_700_000_000.0) -> None:
        self._now = start
        self._monotonic = 0.0

    def now(self) -> float:
        """Seconds since the Unix epoch."""
        return self._now

    def monotonic(self) -> float:
        """Seconds since the clock was made."""
        return self._monotonic

    def advance(self, seconds: float) -> None:
        """Let time pass. Negative: the wall clock was set back; the monotonic one never is."""
        self._now += seconds
        self._monotonic += max(seconds, 0.0)
