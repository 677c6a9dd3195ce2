"""How much to stock: rules tried side by side on the claims that really came, in pools that exist in numbers only.

A rule is either "stock while another sandbox saves more than `threshold` claims per horizon" (the threshold is idle
cost over the cost of a cold start, so 1 - threshold is the newsvendor's quantile), or "always hold n". Every rule
runs its own shadow pool: a loss system with the measured lead time, from which its idle seconds and misses are read.
Then the cheapest rule is followed. Three things come out of that:

* the wanted miss rate is met as measured, not as promised by a model that may be wrong;
* where forecasts are worth nothing (bursts of seconds at random moments) a constant pool is found, and found to be
  the cheapest, so the pool is never much worse than the best fixed one;
* a target miss rate is shared by worth: quiet hours where a warm sandbox serves nobody are not stocked at any price.

Sources: base stock with lost sales as an Erlang loss system, Karush (1957) and Zipkin, "Foundations of Inventory
Management" (2000), 7.3; following the best of many policies on their counterfactual cost is Hedge (Freund & Schapire
1997) with lazy switching (Kalai & Vempala 2005).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from gateway.autoscaler.forecast import Floats, counts_up_to, values_of_stock

THRESHOLDS: Floats = np.logspace(-0.6, -4.6, 17)
_MEMORY = 7 * 86400.0  # seconds; how long a rule's idle seconds and misses count
_CHOOSE_EVERY = 60.0  # seconds
_MARGIN = 0.03  # another rule must be this much cheaper before it is followed
_COLUMNS = np.arange(len(THRESHOLDS))
_ENOUGH = 200.0  # claims before anything but the first guess is followed


@dataclass(frozen=True, slots=True)
class Objective:
    """What a pool is for. With `cold_start_cost` (idle sandbox-seconds that one cold start is worth) costs decide;
    without it, the least idle that keeps misses within `target_miss_rate`.
    """

    target_miss_rate: float = 0.01
    cold_start_cost: float | None = None

    def first_threshold(self, lead: float) -> float:
        """Where to begin: the newsvendor's critical ratio. For a miss rate it is that rate, which holds within 2x."""
        if self.cold_start_cost is None:
            return max(self.target_miss_rate, 1e-5)
        return lead / (self.cold_start_cost + lead)


@lru_cache(maxsize=16)
def _costs(size: int) -> Floats:
    """[n - 1, threshold]: what n sandboxes cost, in claims per horizon."""
    return (counts_up_to(size + 1)[1:])[:, None] * THRESHOLDS


def constant_levels(most: int) -> list[int]:
    """0 .. most in steps that widen by a tenth."""
    levels = [0]
    while levels[-1] < most:
        levels.append(min(most, max(levels[-1] + 1, int(levels[-1] * 1.1))))
    return levels


class Shadow:
    """The rules' pools. `observe` costs a dozen numpy calls on some 50 numbers, whatever the traffic."""

    def __init__(self, objective: Objective, lead: float, most: int) -> None:
        self.objective = objective
        self.lead = lead
        self._constants = np.array(constant_levels(most), dtype=np.float64)
        self._n = len(THRESHOLDS)
        size = self._n + len(self._constants)
        self._levels: Floats = np.concatenate((np.zeros(self._n), self._constants))
        self._ready: Floats = self._levels.copy()
        self._starting: Floats = np.zeros(size)
        self._orders: deque[tuple[float, Floats]] = deque()  # (ready at, sandboxes per rule), oldest first
        self._position: Floats = self._levels.copy()  # ready and starting: what is paid for
        self._served: Floats = np.zeros(size)
        self._held: Floats = np.zeros(size)
        self._claims = 0.0
        self._chosen_at = 0.0
        self._since = 0.0
        ladder = np.abs(np.log(THRESHOLDS / objective.first_threshold(lead)))
        self._first = self.rule = int(ladder.argmin())

    def observe(self, now: float, elapsed: float, claims: int) -> None:
        """`claims` came in the `elapsed` seconds that end at `now`, while `levels` stood."""
        orders, ready = self._orders, self._ready
        while orders and orders[0][0] <= now:
            arrived = orders.popleft()[1]
            ready += arrived
            self._starting -= arrived
        self._held += self._position * elapsed
        if claims:
            served = np.minimum(ready, claims)
            ready -= served
            self._served += served
            self._claims += claims
            # Every pool refills as it is claimed from, without waiting for the next tick.
            self._starting += served
            orders.append((now + self.lead, served))
        self._since += elapsed
        if self._since >= _CHOOSE_EVERY:
            self._choose()

    def _choose(self) -> None:
        keep = 1.0 - min(self._since / _MEMORY, 1.0)
        self._since = 0.0
        for sums in (self._served, self._held):
            sums *= keep
        self._claims *= keep
        if self._claims < _ENOUGH:
            self.rule = self._first
            return
        idle = self._held - self._served * self.lead  # a start that was given up is idle too
        missed = self._claims - self._served
        if self.objective.cold_start_cost is not None:
            cost = idle + self.objective.cold_start_cost * missed
            allowed = np.ones(len(cost), dtype=bool)
        else:
            cost = idle
            allowed = missed <= self.objective.target_miss_rate * self._claims
            if not allowed.any():
                allowed = missed <= missed.min()
        best = int(np.where(allowed, cost, np.inf).argmin())
        if not allowed[self.rule] or cost[best] < cost[self.rule] - _MARGIN * abs(cost[self.rule]):
            self.rule = best

    def update(self, now: float, probabilities: Floats) -> int:
        """Set the rules' levels from a new forecast; returns the level of the rule that is followed."""
        worth = values_of_stock(probabilities).cumsum()
        gain = worth[:, None] - _costs(len(worth))
        best = gain.argmax(axis=0)
        wanted = (best + 1) * (gain[best, _COLUMNS] > 0.0)
        self._levels[: self._n] = wanted
        self._move(now)
        return int(self._levels[self.rule])

    def _move(self, now: float) -> None:
        """Order what is missing; give up what is too much, the latest orders first."""
        missing = self._levels - self._position
        low, high = float(missing.min()), float(missing.max())
        if high > 0.0:
            ordered = np.maximum(missing, 0.0)
            self._starting += ordered
            self._orders.append((now + self.lead, ordered))
        if low < 0.0:
            surplus = np.maximum(-missing, 0.0)
            for _, order in reversed(self._orders):
                given_up = np.minimum(order, surplus)
                order -= given_up
                self._starting -= given_up
                surplus -= given_up
                if not surplus.any():
                    break
            self._ready -= surplus
        if high > 0.0 or low < 0.0:
            np.copyto(self._position, self._levels)

    @property
    def top(self) -> int:
        """The highest level that a threshold asks for."""
        return int(self._levels[self._n - 1])

    @property
    def quantile(self) -> float:
        """The share of horizons that the followed rule stocks for (of the nearest guess while a constant is followed)."""
        return 1.0 - float(THRESHOLDS[self.rule if self.rule < self._n else self._first])

    def miss_rate(self) -> float | None:
        """What the followed rule would have missed of the remembered claims; None before the first claim."""
        return 1.0 - float(self._served[self.rule]) / self._claims if self._claims > 0 else None

    def describe(self) -> str:
        """The followed rule in words."""
        if self.rule < self._n:
            return f"quantile {self.quantile:.5g}"
        return f"constant {int(self._levels[self.rule])}"
