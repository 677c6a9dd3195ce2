"""Time as a dependency: the one module that reads the machine's clock."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Wall-clock time and monotonic time, both in seconds."""

    def now(self) -> float:
        """Seconds since the Unix epoch."""
        ...

    def monotonic(self) -> float:
        """Seconds since some fixed point; only differences mean anything."""
        ...


class SystemClock:
    """The operating system's clock; tests use `gateway.testing.ManualClock` instead."""

    now = staticmethod(time.time)
    monotonic = staticmethod(time.monotonic)
