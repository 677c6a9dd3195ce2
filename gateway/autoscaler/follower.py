"""Chooses the stocking rule to follow, by what each rule's shadow pool has cost (shadow.py).

The rules of the mixed forecast come first. Those of a single expert are followed where they are cheaper by a handicap:
mixed with others, a forecast of batches loses the tail for which one would stock. A forecasting rule is followed where
it is cheaper than the constants that serve as many claims, by a margin that is larger the fewer claims have been seen;
else a constant. Three things follow:

* the target miss rate is met as measured, and not as predicted by a model that may be wrong;
* where forecasts are worth nothing (bursts of seconds at random moments) the best constant is found and used, so the
  pool is never much worse than the best fixed one;
* a target miss rate is spread by worth: in quiet hours, when a warm sandbox would serve no claim, none is stocked.

A single burst is no pattern: of the misses of the worst minute as many count against the target as in the second worst
(the winsorized mean of Dixon 1960). Before, a burst of 408 claims in the first quarter of an hour had a pool of 400
stand ready for the next one, which did not come: 2.2 times the idle time of the best constant. A second such burst
counts whole.

Sources: following the best of many policies on their counterfactual cost is Hedge (Freund & Schapire 1997), with lazy
switching (Kalai & Vempala 2005).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gateway.autoscaler.forecast import Floats
from gateway.autoscaler.settings import DEFAULT_PRICE_CEILING
from gateway.autoscaler.shadow import A_FAMILY, CHOICE_INTERVAL_S, QUANTILES, THRESHOLDS, Shadow

# Another rule must be this much cheaper to be followed: each switch orders or ends sandboxes, and costs that differ by
# less than 3 % change places with a few claims.
_SWITCH_MARGIN = 0.03
# Forecasts must be this much cheaper than constants, and more by _SMALL_SAMPLE_MARGIN / sqrt(claims): by 8 % at 100
# claims, by 4 % at 2,500.
_FORECAST_MARGIN, _SMALL_SAMPLE_MARGIN = 0.03, 0.5
# The rule of a single expert must be this much cheaper than the mixture's, and more while little was seen: the cheapest
# of some hundred rules has been lucky, too.
_EXPERT_MARGIN, _YOUNG_S = 0.05, 900.0
_MIN_CLAIMS = 10.0  # before these, the first rule is followed


@dataclass(frozen=True, slots=True)
class Objective:
    """What a pool minimises.

    With `cold_start_cost` (in idle sandbox-seconds): idle time plus the cost of cold starts. Without it: idle time,
    subject to `target_miss_rate`, but no more than `price_ceiling` idle sandbox-seconds are paid to save one claim
    from a cold start; None: any number.
    """

    target_miss_rate: float = 0.01
    cold_start_cost: float | None = None
    price_ceiling: float | None = DEFAULT_PRICE_CEILING

    def first_threshold(self, lead: float) -> float:
        """The first rule's threshold: the newsvendor's critical ratio, or the target miss rate, right within 2x."""
        if self.cold_start_cost is None:
            return max(self.target_miss_rate, 1e-5)
        return lead / (self.cold_start_cost + lead)


@dataclass(frozen=True, slots=True)
class RuleCost:
    """What one rule would have cost on the remembered claims, followed or not."""

    constant: bool  # always hold `level`; else stock for `quantile` of horizons
    level: int  # what it asks for now
    quantile: float | None
    idle: float  # sandbox-seconds per hour
    misses: float  # claims per hour that find the pool empty
    miss_rate: float | None  # None before the first claim


@dataclass(frozen=True, slots=True)
class Account:
    """What following has cost since the beginning; nothing is forgotten. Idle times in sandbox-seconds."""

    span: float  # seconds
    claims: float
    misses: float
    idle: float
    fixed_idle: float  # of the constants, in hindsight, that serve as many claims


class Follower:
    """Follows the rule that a shadow found cheapest for one objective."""

    def __init__(self, objective: Objective, shadow: Shadow) -> None:
        self.objective = objective
        self._shadow = shadow
        self._first = self.rule = int(np.abs(np.log(THRESHOLDS / objective.first_threshold(shadow.lead))).argmin())
        self._first_threshold = float(THRESHOLDS[self._first])
        self._described = (-1, "")
        self._proven = False  # whether forecasts have been found better than constants
        self._idle = self._served = 0.0  # of the rules that were followed, since the beginning
        shadow.followers.append(self)

    @classmethod
    def beside(cls, objective: Objective, shadow: Shadow) -> Follower:
        """One that chooses once, by what the shadow knows now, and does not follow on."""
        one = cls(objective, shadow)
        shadow.followers.remove(one)
        one.choose(shadow)
        return one

    def add(self, idle: Floats, served: Floats) -> None:
        """Enter what each rule has idled and served since the last choice into the account."""
        self._idle += float(idle[self.rule])
        self._served += float(served[self.rule])

    def account(self) -> Account:
        """What following has cost until the last choice."""
        total = self._shadow.total
        fixed_idle = self._shadow.constant_idle(self._served, total.served, total.idle)
        return Account(total.span, total.claims, max(total.claims - self._served, 0.0), self._idle, fixed_idle)

    def choose(self, shadow: Shadow) -> None:
        """Choose forecasts or constants, and among them the cheapest rule within the target miss rate."""
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
            # Compared at the same number of served claims. The constant that meets the target may by chance serve more
            # than the target asks for, and would lose the comparison for it.
            by_costs = self.objective.cold_start_cost is not None
            price = float(cost[constant]) if by_costs else shadow.constant_idle(float(shadow.served[foreseeing]))
            margin = 0.0 if self._proven else _FORECAST_MARGIN + _SMALL_SAMPLE_MARGIN / math.sqrt(claims)
            spent = float(cost[foreseeing])
            if foreseeing >= A_FAMILY:
                margin += self._handicap(shadow)
                spent += self._ahead(shadow, foreseeing)
            best = foreseeing if spent <= (1.0 - margin) * price else constant
        self._proven = best < shadow.rules
        same = (best < shadow.rules) == (self.rule < shadow.rules)
        if not same or not allowed[self.rule] or cost[best] < cost[self.rule] - _SWITCH_MARGIN * abs(cost[self.rule]):
            self.rule = best

    def _cheapest(self, shadow: Shadow) -> tuple[int, int, Floats, npt.NDArray[np.bool_]]:
        """(cheapest forecasting rule, cheapest constant, cost of each rule, which of them miss few enough claims)"""
        cost, missed = shadow.idle, shadow.claims - shadow.served
        if self.objective.cold_start_cost is not None:
            cost = cost + self.objective.cold_start_cost * missed
            allowed = np.ones(len(cost), dtype=bool)
        else:
            counted = missed - shadow.once
            allowed = counted <= self._budget(shadow, counted)
        priced = np.where(allowed, cost, np.inf)
        foreseeing = int(priced[:A_FAMILY].argmin())
        if shadow.rules > A_FAMILY:
            expert = A_FAMILY + int(priced[A_FAMILY : shadow.rules].argmin())
            price = float(priced[foreseeing])
            if self.objective.cold_start_cost is None and allowed[foreseeing]:
                # At the same number of served claims, as with constants: among so many rules one always comes close to
                # the target, and would be chosen for missing more.
                served = np.maximum.accumulate(shadow.served[:A_FAMILY])
                price = min(price, float(np.interp(shadow.served[expert], served, cost[:A_FAMILY])))
            if priced[expert] + self._ahead(shadow, expert) < (1.0 - self._handicap(shadow)) * price:
                foreseeing = expert
        return foreseeing, shadow.rules + int(priced[shadow.rules :].argmin()), cost, allowed

    @staticmethod
    def _ahead(shadow: Shadow, rule: int) -> float:
        """What a rule would idle until the next choice if nobody came: for that it is chosen now.

        In the minute after a step from .1 to 20 claims a second the one rule within the target was that of an expert
        that had held nothing before and held 400 from then on, ten times what was needed.
        """
        return float(shadow.levels[rule]) * CHOICE_INTERVAL_S

    def _handicap(self, shadow: Shadow) -> float:
        """By how much the rule of a single expert must be cheaper: never in the first quarter of an hour, by a third
        after one hour and 1,000 claims, by 8 % after a day and 10,000.
        """
        few = _SMALL_SAMPLE_MARGIN / math.sqrt(max(shadow.claims, 1.0))
        return _EXPERT_MARGIN + few + _YOUNG_S / max(shadow.age, 1.0)

    def _budget(self, shadow: Shadow, missed: Floats) -> float:
        """The claims that may be missed: the target's share of those that any pool within the maximum could have
        served, and more where fewer would cost more than the ceiling. `missed`: those that count (Shadow.once).

        A burst beyond the maximum (36,000 claims, of which the largest pool misses 5,000) is no reason to stay at it:
        it leaves 5,000 + 1 % of 31,000. If a forecast, which is late by a lead time, misses 600 more, the largest pool
        must have idled for less than 600 x the ceiling to be preferred.
        """
        unavoidable, claims = float(missed.min()), shadow.claims
        budget = unavoidable + self.objective.target_miss_rate * (claims - unavoidable)
        if self.objective.price_ceiling is not None:
            # Where one more claim costs just the ceiling; further on along the frontier each costs more.
            price = shadow.idle + self.objective.price_ceiling * self._missed_again(shadow)
            budget = max(budget, float(missed[price.argmin()]))
        return budget + 1e-9 * claims

    @staticmethod
    def _missed_again(shadow: Shadow) -> Floats:
        """What each rule missed, without its worst minute: n batches are n - 1 times of waiting for one.

        After a batch of 14, four hours with 14 idle sandboxes cost 14,400 s for each of its claims, less than the
        ceiling of 20,000; so 14 were held after each batch, and given up two hours before the next one came.
        """
        return shadow.claims - shadow.served - shadow.worst

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

    def constants(self) -> list[RuleCost]:
        """What each constant would have cost."""
        return [self._cost_of(rule) for rule in range(self._shadow.rules, len(self._shadow.levels))]

    def _cost_of(self, rule: int) -> RuleCost:
        shadow = self._shadow
        missed = max(shadow.claims - float(shadow.served[rule]), 0.0)
        hours = shadow.span / 3600.0
        return RuleCost(
            constant=rule >= shadow.rules,
            level=int(shadow.levels[rule]),
            quantile=QUANTILES[rule % A_FAMILY] if rule < shadow.rules else None,
            idle=float(shadow.idle[rule]) / hours if hours else 0.0,
            misses=missed / hours if hours else 0.0,
            miss_rate=missed / shadow.claims if shadow.claims > 0.0 else None,
        )

    @property
    def constant(self) -> bool:
        """Whether a constant is followed, not the forecast."""
        return self.rule >= self._shadow.rules

    @property
    def nearest(self) -> int:
        """The index in THRESHOLDS of the rule that is followed; of the first guess while a constant is."""
        return self._first if self.constant else self.rule % A_FAMILY

    @property
    def family(self) -> int:
        """Whose forecast is followed: 0 is the mixture, also while a constant is."""
        return 0 if self.constant else self.rule // A_FAMILY

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
        return QUANTILES[self.nearest]

    def miss_rate(self) -> float | None:
        """What the followed rule would have missed of the remembered claims; None before the first claim."""
        claims = self._shadow.claims
        return 1.0 - float(self._shadow.served[self.rule]) / claims if claims > 0 else None

    def price(self, horizon: float) -> float | None:
        """Idle sandbox-seconds that the last sandbox of the followed rule spends for each claim that it saves; None
        where it has saved none.
        """
        shadow, rule = self._shadow, self.rule
        if not self.constant:
            return horizon / float(THRESHOLDS[self.nearest])
        if rule == shadow.rules:
            return 0.0
        saved = float(shadow.served[rule] - shadow.served[rule - 1])
        return float(shadow.idle[rule] - shadow.idle[rule - 1]) / saved if saved > 0.01 else None

    def describe(self) -> str:
        """The followed rule in words."""
        if self.rule != self._described[0]:
            self._described = (self.rule, self._words())
        return self._described[1]

    def _words(self) -> str:
        if self.constant:
            return f"constant {self.level}"
        expert = self._shadow.families[self.family]
        return f"quantile {self.quantile:.5g}" + (f" of {expert}" if expert else "")
