"""Decides one pool's target, from its spec, its present state and the forecast. Pure.

    forecast fresh -> its level        stale or absent -> what the last horizons needed, plus one
    less than a minute seen            -> the starting size
    claims outrun it by more than luck -> at least what came in the last horizon (surge guard)
    within [min, max]; up at once; down when the lower level has stood for `lower_after` seconds
    create failures in a row >= 3      -> no step up until the cooldown is over, one more order then (breaker)

The share of the budget over all runtimes is cut afterwards, by `share_budget`.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, TypeVar

from gateway.autoscaler.forecast import Forecast
from gateway.core.model import PoolMode

K = TypeVar("K")
# Standard deviations, and their square / 6 for the skewness of small counts (Cornish & Fisher 1938). With 3 it goes up
# by chance every half hour, since each second looks at another horizon: that costs a tenth of the idle time.
_SURGE_SIGMAS = 3.5
_FEW_CLAIMS = 30.0  # seen so far, at which half of what chance allows counts as a surge


@dataclass(frozen=True, slots=True)
class ScalerSpec:
    """The limits and options of a pool; counts are sandboxes, times seconds."""

    min: int = 0
    max: int = 0
    mode: PoolMode = PoolMode.PREDICTIVE
    fixed: int = 0  # the size in mode fixed, and of a pool that knows too little yet
    learn_for: float = 60.0  # seconds of demand before a forecast is followed
    lower_after: float = 3.0  # how long a lower level must have stood: fewer sandboxes are ended only to be made again
    stale_after: float = 120.0  # older forecasts are not followed
    failures_open: int = 3  # create failures in a row that open the breaker
    cooldown: float = 30.0  # while open, one try per cooldown


class Observed(NamedTuple):
    """The pool's present state, and the state that the last decision returned."""

    target: int
    ready: int = 0
    starting: int = 0
    recent_claims: int = 0  # in the last horizon
    recent_misses: int = 0  # of those, how many found the pool empty
    failures: int = 0  # create failures in a row
    last_error: str = ""
    lower_since: float | None = None  # since when a lower level than the target is wanted
    lower_to: int = 0  # the highest level wanted since then
    tried_at: float | None = None  # when the breaker last let a step up through
    surging: bool = False  # whether the surge guard holds the pool


class Decision(NamedTuple):
    """The new target, what was wanted before limits and guards, and why (one sentence, shown to operators)."""

    target: int
    wanted: int
    rule: str  # forecast | constant | surge | learning | fallback | hold | breaker | fixed | max | min
    why: str
    lower_since: float | None = None
    lower_to: int = 0
    tried_at: float | None = None
    surging: bool = False


def decide(spec: ScalerSpec, observed: Observed, forecast: Forecast | None, now: float) -> Decision:
    """Decide the target of one pool. The explanation is made here as well, so that it always matches the numbers."""
    if spec.mode is PoolMode.FIXED:
        size = max(spec.fixed, 0)
        return Decision(size, size, "fixed", f"The pool is fixed at {size}.")
    wanted, rule, why = _want(spec, observed, forecast, now)
    return _within(spec, observed, Decision(0, wanted, rule, why), now)._replace(surging=rule == "surge")


def _within(spec: ScalerSpec, observed: Observed, want: Decision, now: float) -> Decision:
    """Limits, hysteresis and breaker."""
    wanted, rule, why = want.wanted, want.rule, want.why
    if wanted > spec.max:
        wanted, rule, why = spec.max, "max", f"{why} That is more than its maximum, {spec.max}."
    elif wanted < spec.min:
        wanted, rule, why = spec.min, "min", f"{why} That is less than its minimum, {spec.min}."
    target = min(max(observed.target, spec.min), spec.max)
    if wanted > target:
        return _raise(spec, observed, Decision(wanted, wanted, rule, why), target, now)
    if wanted == target:
        return Decision(target, wanted, rule, why)
    since = now if observed.lower_since is None or observed.lower_since > now else observed.lower_since
    highest = wanted if observed.lower_since is None else max(wanted, min(observed.lower_to, target))
    if now - since >= spec.lower_after:
        return Decision(highest, wanted, rule, why, now if highest > wanted else None, wanted)
    left = spec.lower_after - (now - since)
    return Decision(
        target, wanted, "hold", f"{why} It holds {target} for {left:.0f} s more before going down.", since, highest
    )


def _want(spec: ScalerSpec, observed: Observed, forecast: Forecast | None, now: float) -> tuple[int, str, str]:
    """The level before limits: forecast, surge guard or fallback."""
    recent = observed.recent_claims
    if forecast is None or not 0.0 <= now - forecast.made_at <= spec.stale_after:
        wanted = recent + 1 if recent else max(min(observed.target, spec.max), spec.min)
        age = "There is no forecast" if forecast is None else "The forecast is too old"
        return wanted, "fallback", f"{age}, so it keeps what the last claims needed: {wanted}."
    wanted = forecast.level
    if forecast.observed < spec.learn_for:
        wanted = max(spec.fixed, recent, min(observed.target, spec.max))
        return wanted, "learning", f"It has seen {forecast.observed:.0f} s of demand so far and holds {wanted}."
    if recent > wanted and _is_surge(spec, observed, forecast):
        wanted = max(recent, forecast.alert)
        why = f"{recent} claims came within {forecast.horizon:.0f} s and {observed.recent_misses} found the pool empty"
        return wanted, "surge", f"{why}; that takes {wanted}."
    if forecast.constant:
        return (
            wanted,
            "constant",
            f"A constant pool of {wanted} has done better on the claims so far than the forecast.",
        )
    return wanted, "forecast", _covers(wanted, forecast.horizon, forecast.source)


def _is_surge(spec: ScalerSpec, observed: Observed, forecast: Forecast) -> bool:
    """Whether claims outrun what is usual: from two misses on, and as long as more come than in the last hour's mean.

    Compared are the claims of the last horizon with the larger of level and last hour's mean, and three and a half
    standard deviations of chance. At 34 claims a horizon and a level of 30, which leaves one in five to a cold start,
    40 come every few minutes, and find the pool empty: to go up each time, after the event, costs twice the idle time
    of a constant. Of a runtime with few claims nobody knows what is usual: at 10 claims a quarter of that will do.

    A guard that looked at misses only would let go as soon as it works: at 50 claims a second it orders 600, a horizon
    later none of them misses, the forecast's 5 is back, and all claims miss again.
    """
    if observed.surging:
        return observed.recent_claims > forecast.usual
    if observed.recent_misses < 2:
        return False
    usual = max(min(max(forecast.level, spec.min), spec.max), forecast.usual)
    known = forecast.claims / (forecast.claims + _FEW_CLAIMS)
    return observed.recent_claims > usual + known * (_SURGE_SIGMAS * math.sqrt(usual) + _SURGE_SIGMAS**2 / 6.0)


@lru_cache(maxsize=1024)
def _covers(wanted: int, horizon: float, source: str) -> str:
    """The sentence of rule `forecast`; cached, as most ticks repeat it."""
    return f"{wanted} are what the rule that has done best, {source}, asks for the claims of the next {horizon:.0f} s."


def _raise(spec: ScalerSpec, observed: Observed, up: Decision, target: int, now: float) -> Decision:
    """Raise the target, unless creates fail: then by one sandbox per cooldown, to test whether they work again."""
    if observed.failures < spec.failures_open:
        return up
    failing = f"Creates failed {observed.failures} times in a row"
    detail = f" ({observed.last_error})" if observed.last_error else ""
    if observed.tried_at is not None and 0.0 <= now - observed.tried_at < spec.cooldown:
        left = spec.cooldown - (now - observed.tried_at)
        why = f"{failing}{detail}; it wants {up.wanted} but orders nothing for {left:.0f} s more."
        return Decision(target, up.wanted, "breaker", why, tried_at=observed.tried_at)
    tried = min(target + 1, up.wanted)
    return Decision(tried, up.wanted, "breaker", f"{failing}{detail}; it tries one more.", tried_at=now)


def share_budget(
    budget: int, wanted: Mapping[K, int], minimums: Mapping[K, int], worth: Mapping[K, Sequence[float]]
) -> dict[K, int]:
    """Cut targets to `budget` sandboxes in all: minimums first, then one by one to where the next is worth most.

    `worth[k][n]` is what sandbox n + 1 of pool k saves (claims per second kept from a cold start); falling in n, so
    that taking the best next one is optimal (Fox, "Discrete optimization via marginal analysis", 1966). What a pool
    has no worth for counts zero. Minimums are kept even when they alone exceed the budget: operators rely on them.
    """
    if sum(wanted.values()) <= budget:
        return dict(wanted)
    given = {key: min(minimums.get(key, 0), want) for key, want in wanted.items()}
    left = budget - sum(given.values())

    def entry(order: int, key: K) -> tuple[float, int, K]:
        values = worth.get(key, ())
        return (-float(values[given[key]]) if given[key] < len(values) else 0.0, order, key)

    heap = [entry(order, key) for order, key in enumerate(wanted) if given[key] < wanted[key]]
    heapq.heapify(heap)
    while left > 0 and heap:
        _, order, key = heapq.heappop(heap)
        given[key] += 1
        left -= 1
        if given[key] < wanted[key]:
            heapq.heappush(heap, entry(order, key))
    return given
