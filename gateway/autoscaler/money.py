"""What idle sandboxes and cold starts of a runtime cost in money, from the operator's prices."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.core.model import Runtime
from gateway.usage.prices import Prices
from gateway.usage.recorder import size_of


@dataclass(frozen=True, slots=True)
class Money:
    """Prices of one runtime, in the file's currency."""

    currency: str
    sandbox_hour: float  # of a sandbox by its limits, idle or not
    cold_start: float  # of a claim that finds no warm sandbox; 0: not priced

    @property
    def cold_start_cost(self) -> float | None:
        """A cold start in idle sandbox-seconds, what a pool is sized by; None where one of the two has no price."""
        priced = self.cold_start > 0.0 and self.sandbox_hour > 0.0
        return self.cold_start / self.sandbox_hour * 3600.0 if priced else None

    def hour(self, idle: float, misses: float) -> float:
        """An hour with so many idle sandbox-seconds and misses."""
        return idle / 3600.0 * self.sandbox_hour + misses * self.cold_start


def money_of(prices: Prices | None, runtime: Runtime) -> Money | None:
    """The prices of a runtime; None where sandboxes of its size cost nothing."""
    if prices is None:
        return None
    rates = prices.of(str(runtime.key))
    hour = rates.sandbox(size_of(runtime), 3600.0)
    return Money(prices.currency, hour, rates.cold_start) if hour > 0.0 else None
