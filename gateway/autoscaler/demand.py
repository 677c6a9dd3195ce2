"""Forecasts one runtime's claims: experts, mixture and shadow pools behind `observe` and `forecast`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from gateway.autoscaler.empirical import FastSlow, RollingQuantile
from gateway.autoscaler.exciting import SelfExciting
from gateway.autoscaler.follower import Follower, Objective
from gateway.autoscaler.forecast import Floats, Forecast, Forecaster
from gateway.autoscaler.mixture import GOLDEN_RATIO, Mixture
from gateway.autoscaler.rates import FIRST_PRIOR, RateBelief
from gateway.autoscaler.seasonal import Timers, WeekProfile
from gateway.autoscaler.shadow import Shadow
from gateway.autoscaler.window import RollingCount

_MAX_REVIEW_INTERVAL_S = 60.0  # between forecasts for a runtime without claims
# A longer time without claims is observed in steps of this; beyond an hour it counts as a step of the clock.
_MAX_STEP_S = 60.0
_USUAL_S = 3600.0  # memory of the mean rate that a surge is compared with
_TICKS_A_LEAD = 8  # in a lead time of so many ticks it makes no difference when in a tick a claim came
_MAX_SLEW_S = 1.0  # two clocks may differ by this much between looks before one counts as set
_NO_WEIGHTS: Mapping[str, float] = MappingProxyType({})
_MIN_COUNTS, _MAX_COUNTS = 32, 4096  # counts a distribution is kept for


def make_experts(recent: RollingCount, tick: float) -> list[Forecaster]:
    """The experts of one runtime beside the rate belief."""
    return [
        RollingQuantile("last 15 min", 900.0, recent),
        RollingQuantile("last hour", 3600.0, recent),
        RollingQuantile("last day", 86400.0, recent),
        FastSlow(),
        WeekProfile(),
        Timers(recent.span, early=tick),
    ]


class Demand:
    """One runtime's demand. Call `observe` whenever `due`, then `forecast`; both are O(1) in the length of history.

    `phase`, from 0 to 1 and another for each runtime, spreads the reviews of runtimes without claims.
    Times are seconds since the epoch, of one clock that may be set: what is kept moves with it (`shift`). Who knows how
    long it really was since the last call says so; else a step back is taken for one tick, and so is more than an hour.
    """

    def __init__(
        self,
        objective: Objective,
        *,
        lead: float,
        tick: float,
        most: int,
        joins: bool = False,
        prior: Floats = FIRST_PRIOR,
        phase: float | None = None,
        experts: list[Forecaster] | None = None,
    ) -> None:
        self.tick = tick
        self._phase = phase
        self.lead = lead
        self.horizon = round(lead + tick / 2.0, 3)
        self.most = most
        self.recent = RollingCount(self.horizon)
        self.rates = RateBelief(prior)
        self.mixture = Mixture(
            self.rates,
            make_experts(self.recent, tick) if experts is None else experts,
            apart=[SelfExciting()] if experts is None else (),
            delay=tick,
        )
        names = [expert.name for expert in self.mixture.all_experts[1:]]
        self.shadow = Shadow(lead, min(most, _MAX_COUNTS), joins=joins, experts=names)
        self.follower = Follower(objective, self.shadow)
        self._largest = min(most + 2, _MAX_COUNTS)
        self._size = min(_MIN_COUNTS, self._largest)
        self._now: float | None = None
        self._observed = 0.0
        self._usual_rate = 0.0  # claims a second in the last hour's mean
        self._claimed_at = -math.inf
        self._review_at = -math.inf
        self._last: Forecast | None = None
        self._values: Floats = np.zeros(0)

    @property
    def values(self) -> Floats:
        """What each further sandbox of the pool is expected to save, claims per horizon."""
        return self._values

    @property
    def review_at(self) -> float:
        """When the next forecast is due if no claim comes before, epoch seconds."""
        return self._review_at

    def due(self, now: float, claims: int) -> bool:
        """Whether anything has changed enough to look again: a claim, or the review time has come."""
        return claims > 0 or now >= self._review_at or self._last is None or (self._now is not None and now < self._now)

    def set_lead(self, lead: float) -> None:
        """Set the measured lead time, which also sets the horizon. A change of up to 10 % is ignored."""
        # Quantiles of measured lead times move a little with each start, and each horizon needs tables of its own
        # (rates.py): without the margin they would be computed again all the time.
        if abs(lead / self.lead - 1.0) > 0.1:
            self.lead = self.shadow.lead = lead
            self.horizon = round(lead + self.tick / 2.0, 3)
            self.recent.span = self.horizon
            self._last = None

    def observe(self, now: float, claims: int, elapsed: float | None = None, times: Sequence[float] = ()) -> None:
        """`claims` came since the last call; `elapsed`: the seconds since then, by a clock that is never set; `times`:
        when they came, rising, where that is known.
        """
        apparent = self.tick if self._now is None else now - self._now
        real = apparent if elapsed is None else max(elapsed, 0.01)
        if not 0.0 < real <= 3600.0:
            # The clock was set, or nothing was observed: the claims between are unknown.
            self.recent.clear()
            real = self.tick
        if self._now is not None and (apparent <= 0.0 or abs(apparent - real) > _MAX_SLEW_S):
            if elapsed is None and apparent > 0.0:
                self.shadow.shift(apparent - real)  # it may have passed: the experts' last claims lie back as far
            else:
                self.shift(apparent - real)
        while real > _MAX_STEP_S:
            real -= _MAX_STEP_S
            self._step(now - real, _MAX_STEP_S, 0)
        # Ticks are never quite alike. What the experts compute for a length they keep, so there should be few of them.
        if self.lead >= _TICKS_A_LEAD * self.tick:
            times = ()
        self._step(now, round(real, 2) or 0.01, claims, [min(max(at, now - real), now) for at in times])
        self._now = now
        if claims:
            self._claimed_at = now

    def shift(self, step: float) -> None:
        """The clock was set by `step` seconds, forward if positive."""
        self.recent.shift(step)
        self.mixture.shift(step)
        self.shadow.shift(step)
        self._claimed_at += step
        self._review_at += step

    def learn(self, now: float, elapsed: float, claims: int) -> None:
        """Add old counts of long buckets. Only the experts learn from them: shadow pools need single seconds."""
        self.recent.add(now, claims)
        self.mixture.observe(now, elapsed, claims)
        self._observed += elapsed
        self._now = now

    def _step(self, now: float, elapsed: float, claims: int, times: Sequence[float] = ()) -> None:
        for at in times:
            self.recent.add(at, 1)
        self.recent.add(now, max(claims - len(times), 0))
        self.mixture.observe(now, elapsed, claims)
        self._observed += elapsed
        self._usual_rate += (claims / elapsed - self._usual_rate) * min(elapsed / min(self._observed, _USUAL_S), 1.0)
        self.shadow.observe(now, elapsed, claims, times)

    def forecast(self, now: float) -> Forecast:
        """The forecast from here on, and when to look again."""
        q = self.follower.quantile
        self._values = self.mixture.values(now, self.horizon, self._size, q)
        self.shadow.update(now, self._values)
        for expert, values in self.mixture.fresh_values:
            self.shadow.update(now, values, expert + 1)
        top = self.shadow.top
        # Doubled above 0.7 of the size, after which `top` is above 0.35 of it; halved below 0.15, after which it is
        # below 0.3: neither step ever causes the other.
        if top > 0.7 * self._size and self._size < self._largest:
            self._size = min(2 * self._size, self._largest)
            return self.forecast(now)
        if self._size > _MIN_COUNTS and top < 0.15 * self._size:
            self._size //= 2
        quiet = now - self._claimed_at
        longest = _MAX_REVIEW_INTERVAL_S
        if self._phase is not None:
            # Reviewed every minute to the second, a thousand silent runtimes would all have their turn in one pass.
            self._phase = (self._phase + GOLDEN_RATIO) % 1.0
            longest *= 1.0 - 0.25 * self._phase
        foreseen = max(self.mixture.review_by(now, self.horizon), now + self.tick)
        # After 20 s without a claim in 20 s, after 40 s in 40 s, at most in a minute: a runtime that nobody uses costs
        # little.
        self._review_at = min(now + min(max(quiet, 1.5 * self.horizon), longest), foreseen)
        level, alert = self.wanted_by(self.follower)
        constant = self.follower.constant
        self._last = Forecast(
            now, self.horizon, 0.0, q, level, self.follower.describe(), _NO_WEIGHTS, alert, self._observed,
            usual=self._usual_rate * self.horizon, claims=self.shadow.claims, constant=constant,
        )  # fmt: skip
        return self._last

    def wanted_by(self, follower: Follower) -> tuple[int, int]:
        """(level, the level to go up to should the claims of the last horizon have outrun that: else just the level)"""
        level = follower.level
        return level, follower.alert(self.mixture.first_values) if self.recent.total > level else level

    def probabilities(self, forecast: Forecast) -> Floats:
        """P(0, 1, 2, ... claims within the horizon of the latest forecast), as the experts that made it still say."""
        return self.mixture.probabilities(forecast.made_at, forecast.horizon, self._size)

    def explained(self) -> Forecast | None:
        """The latest forecast with the figures that only readers need, not the loop: mean, weights, expected misses."""
        if self._last is None:
            return None
        last = self._last
        p = self.probabilities(last)
        mean = float(p @ np.arange(len(p)))
        saved = float(self._values[: last.level].sum())
        return Forecast(
            last.made_at,
            last.horizon,
            mean,
            last.quantile,
            last.level,
            self.follower.describe(),
            self.mixture.shares(),
            alert=last.alert,
            observed=last.observed,
            usual=last.usual,
            claims=last.claims,
            expected_misses=max(mean - saved, 0.0) * 3600.0 / last.horizon,
            constant=last.constant,
        )
