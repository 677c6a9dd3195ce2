"""Choose the stocking rule by simulation: each rule runs a simulated pool on the real claims; the cheapest is followed.

A rule is either "stock while another sandbox saves more than `threshold` claims per horizon" (the threshold is idle
cost over the cost of a cold start, so 1 - threshold is the newsvendor's quantile), or "always hold n". Every rule
runs its own shadow pool: a loss system with the measured lead time, from which its idle seconds and misses are read.
Then the cheapest rule is followed: a forecasting one where it is cheaper than the constants that serve as many claims,
by more the less has been seen, else a constant. Three things come out of that:

* the wanted miss rate is met as measured, not as promised by a model that may be wrong;
* where forecasts are worth nothing (bursts of seconds at random moments) a constant pool is found, and found to be
  the cheapest, so the pool is never much worse than the best fixed one;
* a target miss rate is shared by worth: in quiet hours, when a warm sandbox would serve no claim, none is stocked.

Sources: base stock with lost sales as an Erlang loss system, Karush (1957) and Zipkin, "Foundations of Inventory
Management" (2000), 7.3; following the best of many policies on their counterfactual cost is Hedge (Freund & Schapire
1997) with lazy switching (Kalai & Vempala 2005).
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from gateway.autoscaler.forecast import Floats, counts_up_to

THRESHOLDS: Floats = np.logspace(-0.6, -4.6, 17)
_MAX_MEMORY_S = 7 * 86400.0  # seconds; how long a rule's idle seconds and misses count, at most
_MIN_MEMORY_S = 3600.0  # and at least
_MIN_REMEMBERED_CLAIMS = (
    500.0  # claims; while fewer are remembered, none are forgotten early: they say too little about misses
)
_AGE_TO_MEMORY = (
    3.0  # of all time so far, this part counts: what a rule did before the experts had learned is soon forgotten
)
_CHOICE_INTERVAL_S = 60.0  # seconds
_SWITCH_MARGIN = 0.03  # another rule must be this much cheaper before it is followed
_RULES = len(THRESHOLDS)
_NEGATED: Floats = -THRESHOLDS
_QUANTILES: list[float] = (1.0 - THRESHOLDS).tolist()
_COLUMNS = np.arange(_RULES)
_EACH_RULE = range(_RULES)
_FORECAST_MARGIN, _SMALL_SAMPLE_MARGIN = (
    0.03,
    0.5,
)  # forecasts must be this much cheaper than constants; and more by this over sqrt(claims)
_MIN_CLAIMS = 10.0  # claims before anything but the first guess is followed


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


@dataclass(frozen=True, slots=True)
class RuleCost:
    """What one rule would have cost on the remembered claims, whether or not it was followed."""

    constant: bool  # always hold `level`; else stock for `quantile` of horizons
    level: int  # what it asks for now
    quantile: float | None
    idle: float  # sandbox-seconds per hour
    misses: float  # claims per hour that find the pool empty
    miss_rate: float | None  # None before the first claim


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
    """The rules' pools. `observe` costs a dozen numpy calls on some 60 numbers, whatever the traffic.

    A claim that finds the pool empty starts a sandbox of its own, or with `joins` takes the next one that gets ready
    and orders another for a later claim. The tallies do not depend on what the pools are for, so any number of
    followers may read them.
    """

    def __init__(self, lead: float, most: int, *, joins: bool = False) -> None:
        self.lead = lead
        self._joins = joins
        constants = np.array(constant_levels(most), dtype=np.float64)
        size = len(THRESHOLDS) + len(constants)
        self.levels: Floats = np.concatenate((np.zeros(len(THRESHOLDS)), constants))
        self.served: Floats = np.zeros(size)
        self.idle: Floats = np.zeros(size)  # sandbox-seconds
        self.claims = 0.0
        self.span = 0.0  # seconds remembered
        self.missed: Floats = np.zeros(size)  # of the claims of the latest tick
        self.followers: list[Follower] = []
        self._ready: Floats = self.levels.copy()
        self._wanted = [0] * _RULES  # the rules' levels as whole numbers
        self._orders: deque[tuple[float, Floats]] = deque()  # (ready at, sandboxes per rule), oldest first
        self._since = self._age = 0.0
        self._rarest = _RULES - 1  # index of the rule that `top` is read at

    def observe(self, now: float, elapsed: float, claims: int) -> None:
        """`claims` came in the `elapsed` seconds that end at `now`, while `levels` stood."""
        orders, ready = self._orders, self._ready
        # With joins, claims that wait make `ready` negative (two waiting: -2), which is no idle time. Without joins it
        # is never negative.
        self.idle += (np.maximum(ready, 0.0) if self._joins else ready) * elapsed
        while orders and orders[0][0] <= now:
            at, arrived = orders.popleft()
            ready += arrived
            self.idle += arrived * (now - at)
        self.span += elapsed
        if claims:
            served = np.minimum(np.maximum(ready, 0.0) if self._joins else ready, claims)
            self.served += served
            self.missed = claims - served
            self.claims += claims
            # Every pool refills as it is claimed from, without waiting for the next tick.
            taken = np.full(len(ready), float(claims)) if self._joins else served
            ready -= taken
            orders.append((now + self.lead, taken))
        self._since += elapsed
        if self._since >= _CHOICE_INTERVAL_S:
            self._choose()

    def _choose(self) -> None:
        self._age += self._since
        memory = min(max(self._age / _AGE_TO_MEMORY, _MIN_MEMORY_S), _MAX_MEMORY_S)
        if self.claims < _MIN_REMEMBERED_CLAIMS:
            memory = _MAX_MEMORY_S
        keep = 1.0 - min(self._since / memory, 1.0)
        self._since = 0.0
        self.served *= keep
        self.idle *= keep
        self.claims *= keep
        self.span *= keep
        for follower in self.followers:
            follower.choose(self)
        self._rarest = min(max([each.nearest for each in self.followers], default=_RULES) + 4, _RULES - 1)

    def update(self, now: float, values: Floats) -> None:
        """Set the rules' levels from what each further sandbox would save (claims per horizon)."""
        if b"\x01" not in (values[1:] > values[:-1]).tobytes():  # any() takes five times as long for so few
            levels: npt.NDArray[np.int64] = (-values).searchsorted(_NEGATED)
        else:  # the best total, since a second mode may or may not be worth the way to it
            gain = values.cumsum()[:, None] - _costs(len(values))
            best = gain.argmax(axis=0)
            levels = (best + 1) * (gain[best, _COLUMNS] > 0.0)
        wanted: list[int] = levels.tolist()
        if wanted != self._wanted:
            self._move(now, wanted)
            self.levels[:_RULES] = levels

    def _move(self, now: float, wanted: list[int]) -> None:
        """Order what is missing; give up what is too much, the latest orders first. Constants never move."""
        # Mostly one or two rules move by one: plain numbers are faster here than numpy on all of them.
        ordered: list[tuple[int, int]] = []
        before = self._wanted
        for rule in _EACH_RULE:
            if (more := wanted[rule] - before[rule]) > 0:
                ordered.append((rule, more))
            elif more:
                self._give_up(now, rule, -more)
        if ordered:
            ready_at = now + self.lead
            if not self._orders or self._orders[-1][0] != ready_at:  # else a claim of this tick has ordered, too
                self._orders.append((ready_at, np.zeros(len(self.levels))))
            order = self._orders[-1][1]
            for rule, more in ordered:
                order[rule] += more
        self._wanted = wanted

    def _give_up(self, now: float, rule: int, surplus: float) -> None:
        """A start that is given up was idle from its order on; what no start covers is taken from what is ready."""
        for ready_at, order in reversed(self._orders):
            given_up = min(order.item(rule), surplus)
            if given_up > 0.0:
                order[rule] -= given_up
                self.idle[rule] += given_up * max(now - ready_at + self.lead, 0.0)
                surplus -= given_up
                if surplus <= 0.0:
                    return
        self._ready[rule] -= surplus

    def constant_idle(self, served: float) -> float:
        """What a constant, or between two of them a mixture in time, idles to serve as many claims."""
        by_level, idle = self.served[_RULES:], self.idle[_RULES:]
        at = int(by_level.searchsorted(min(served, float(by_level[-1])) - 1e-9))
        if at == 0:
            return 0.0
        share = (served - by_level[at - 1]) / (by_level[at] - by_level[at - 1])
        return float(idle[at - 1] + min(share, 1.0) * (idle[at] - idle[at - 1]))

    @property
    def top(self) -> int:
        """The highest level that may soon be followed; rarer rules may be cut off at the end of the distribution."""
        return self._wanted[self._rarest]


class Follower:
    """Follows, for one objective, the rule that a shadow found cheapest."""

    def __init__(self, objective: Objective, shadow: Shadow) -> None:
        self.objective = objective
        self._shadow = shadow
        self._first = self.rule = int(np.abs(np.log(THRESHOLDS / objective.first_threshold(shadow.lead))).argmin())
        self._first_threshold = float(THRESHOLDS[self._first])
        self._proven = False  # whether forecasts have been found better than constants
        shadow.followers.append(self)

    def choose(self, shadow: Shadow) -> None:
        """Choose between forecasts and constants, and there the cheapest rule that does not miss too much."""
        claims = shadow.claims
        if claims < _MIN_CLAIMS:
            self.rule = self._first
            return
        foreseeing, constant, cost, allowed = self._cheapest(shadow)
        if not allowed[constant]:
            best = foreseeing
        elif not allowed[foreseeing]:
            best = constant
        else:
            # Not against the constant that meets the target: that one serves more than is asked for, by chance.
            by_costs = self.objective.cold_start_cost is not None
            price = float(cost[constant]) if by_costs else shadow.constant_idle(float(shadow.served[foreseeing]))
            margin = 0.0 if self._proven else _FORECAST_MARGIN + _SMALL_SAMPLE_MARGIN / math.sqrt(claims)
            best = foreseeing if cost[foreseeing] <= (1.0 - margin) * price else constant
        self._proven = best < _RULES
        same = (best < _RULES) == (self.rule < _RULES)
        if not same or not allowed[self.rule] or cost[best] < cost[self.rule] - _SWITCH_MARGIN * abs(cost[self.rule]):
            self.rule = best

    def _cheapest(self, shadow: Shadow) -> tuple[int, int, Floats, npt.NDArray[np.bool_]]:
        """(cheapest forecasting rule, cheapest constant, cost of each rule, which of them miss few enough claims)"""
        cost, missed = shadow.idle, shadow.claims - shadow.served
        if self.objective.cold_start_cost is not None:
            cost = cost + self.objective.cold_start_cost * missed
            allowed = np.ones(len(cost), dtype=bool)
        else:
            allowed = missed <= self.objective.target_miss_rate * shadow.claims
            if not allowed.any():
                allowed = missed <= missed.min()
        priced = np.where(allowed, cost, np.inf)
        return int(priced[:_RULES].argmin()), _RULES + int(priced[_RULES:].argmin()), cost, allowed

    def compared(self) -> tuple[RuleCost, RuleCost | None]:
        """The followed rule and the best of the other kind (constants beside forecasts, forecasts beside constants).

        There is no other one until as many claims were seen as a choice takes.
        """
        shadow = self._shadow
        followed = self._cost_of(self.rule)
        if shadow.claims < _MIN_CLAIMS:
            return followed, None
        foreseeing, constant, _, _ = self._cheapest(shadow)
        return followed, self._cost_of(foreseeing if self.constant else constant)

    def _cost_of(self, rule: int) -> RuleCost:
        shadow = self._shadow
        missed = max(shadow.claims - float(shadow.served[rule]), 0.0)
        hours = shadow.span / 3600.0
        return RuleCost(
            constant=rule >= _RULES,
            level=int(shadow.levels[rule]),
            quantile=_QUANTILES[rule] if rule < _RULES else None,
            idle=float(shadow.idle[rule]) / hours if hours else 0.0,
            misses=missed / hours if hours else 0.0,
            miss_rate=missed / shadow.claims if shadow.claims > 0.0 else None,
        )

    @property
    def constant(self) -> bool:
        """Whether a constant is followed, not the forecast."""
        return self.rule >= _RULES

    @property
    def nearest(self) -> int:
        """The index in THRESHOLDS of the rule that is followed; of the first guess while a constant is."""
        return self.rule if self.rule < len(THRESHOLDS) else self._first

    @property
    def level(self) -> int:
        """What the followed rule asks for now."""
        return int(self._shadow.levels[self.rule])

    def alert(self, values: Floats) -> int:
        """What the first guess asks for, with these values: in a surge neither constants nor slow experts are right."""
        return int(np.count_nonzero(values > self._first_threshold))

    @property
    def missed(self) -> int:
        """What the followed rule would have missed of the latest tick's claims."""
        return int(self._shadow.missed[self.rule])

    @property
    def quantile(self) -> float:
        """The share of horizons that the followed rule stocks for (of the first guess while a constant is followed)."""
        return _QUANTILES[self.nearest]

    def miss_rate(self) -> float | None:
        """What the followed rule would have missed of the remembered claims; None before the first claim."""
        claims = self._shadow.claims
        return 1.0 - float(self._shadow.served[self.rule]) / claims if claims > 0 else None

    def describe(self) -> str:
        """The followed rule in words."""
        return f"quantile {self.quantile:.5g}" if self.rule < len(THRESHOLDS) else f"constant {self.level}"
