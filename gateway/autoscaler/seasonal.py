"""Forecasters that know the clock: the time of day and of the week, and timers that fire at even gaps."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter, deque

import numpy as np

from gateway.autoscaler.forecast import BackwardLooking, Floats, negative_binomial

_QUARTER_HOUR_S = 900.0
_QUARTERS_A_WEEK = 672
_QUARTERS_A_DAY = 96


class WeekProfile(BackwardLooking):
    """The same quarter hour of the week and of the day before, as a gamma-Poisson estimate with exponential forgetting.

    Each quarter hour keeps discounted claims and exposure; the week's slot leans on the day's, and the day's on the
    overall rate, by how much has been seen of each. Sources: seasonal profiles as in AWS predictive scaling and ProRP
    (Azure SQL); the discounted gamma-Poisson is West & Harrison, "Bayesian Forecasting and Dynamic Models", ch. 14.
    """

    name = "profile"
    fresh = 60.0

    def __init__(self, keep: float = 0.75) -> None:
        self._keep = keep  # of a slot's past, each time it comes round again
        self._week = np.zeros((_QUARTERS_A_WEEK, 2))  # claims, seconds
        self._day = np.zeros((_QUARTERS_A_DAY, 2))
        self._overall = [0.0, 1.0]
        self._quarter = -1
        self._claims, self._seconds = 0, 0.0

    def observe(self, now: float, elapsed: float, claims: int) -> None:
        """`claims` came in the `elapsed` seconds that end at `now`."""
        quarter = int(now // _QUARTER_HOUR_S)
        if quarter != self._quarter:
            self._close()
            self._quarter = quarter
        self._claims += claims
        self._seconds += min(elapsed, _QUARTER_HOUR_S)

    def _close(self) -> None:
        if self._seconds > 0:
            for table, size, keep in ((self._week, _QUARTERS_A_WEEK, self._keep), (self._day, _QUARTERS_A_DAY, 0.9)):
                row = table[self._quarter % size]
                row *= keep
                row += (self._claims, self._seconds)
            self._overall[0] = self._overall[0] * 0.999 + self._claims
            self._overall[1] = self._overall[1] * 0.999 + self._seconds
        self._claims, self._seconds = 0, 0.0

    def probabilities(self, now: float, horizon: float, size: int) -> Floats:
        """P(claims in (now, now + horizon] = 0 .. size - 1)."""
        quarter = int((now + horizon) // _QUARTER_HOUR_S)
        overall = self._overall[0] / self._overall[1]
        day = self._day[quarter % _QUARTERS_A_DAY]
        by_day = (day[0] + overall * _QUARTER_HOUR_S) / (day[1] + _QUARTER_HOUR_S)
        week = self._week[quarter % _QUARTERS_A_WEEK]
        # The gamma posterior of this slot's rate: its claims and seconds, and a prior worth one quarter hour at the
        # day's rate. A Poisson count with a gamma rate is negative binomial, with dispersion mean / shape; 0.2 more for
        # bursts within the quarter hour.
        shape = week[0] + by_day * _QUARTER_HOUR_S + 0.5
        rate = shape / (week[1] + _QUARTER_HOUR_S)
        return negative_binomial(float(rate) * horizon, max(float(rate * horizon / shape), 0.02) + 0.2, size)


class Timers:
    """Finds timers and batches: gaps between episodes, and how many claims an episode brings.

    An episode begins with a claim after more than a horizon without claims. The chance that the next one begins within
    the horizon is read from the gaps that are longer than the present one; its size from the sizes so far. Source:
    the inter-arrival histogram of Shahrad et al., "Serverless in the Wild" (USENIX ATC 2020), and IceBreaker's look at
    periodic functions (ASPLOS 2022). It looks `early` seconds further than the horizon, for the tick that orders wait.
    """

    name = "timers"
    fresh = 1.0

    def __init__(self, horizon: float, *, early: float = 0.0, keep: int = 96) -> None:
        self._horizon = horizon
        self._early = early
        self._gaps: deque[float] = deque(maxlen=keep)
        self._sorted: list[float] = []
        self._sizes: deque[int] = deque(maxlen=keep)
        self._began = self._last = -math.inf
        self._size = 0
        self._known: tuple[object, ...] = ()  # what the forecast in `_forecast` rests on
        self._forecast: Floats = np.zeros(0)
        self._even = (math.inf, math.inf)  # spread and median of the gaps, where there are enough

    def observe(self, now: float, elapsed: float, claims: int) -> None:
        """`claims` came in the `elapsed` seconds that end at `now`."""
        if not claims:
            return
        if now - self._last > self._horizon:
            if self._size:
                self._sizes.append(self._size)
                self._gaps.append(now - self._began)
                gaps = self._sorted = sorted(self._gaps)
                if (n := len(gaps)) >= 4:
                    self._even = (gaps[3 * n // 4] - gaps[n // 4], gaps[n // 2])
            self._began, self._size = now, 0
        self._last = now
        if now - self._began <= self._horizon:  # what comes later was not due within a horizon
            self._size += claims

    def shift(self, step: float) -> None:
        """Move the running episode with the clock: the next one begins a gap after it."""
        self._began += step
        self._last += step

    def review_by(self, now: float, horizon: float) -> float:
        """A horizon before the next time at which an episode has begun before, if gaps are even enough for a timer."""
        spread, median = self._even
        # The spread is the interquartile range. A timer of 600 s with a second of jitter has one of a second or two.
        if spread > 2.0 * horizon or spread > median / 4.0:
            return math.inf
        gaps = self._sorted
        at = bisect_right(gaps, now - self._began + horizon + self._early)
        return self._began + gaps[at] - horizon - self._early if at < len(gaps) else math.inf

    def probabilities(self, now: float, horizon: float, size: int) -> Floats:
        """P(claims in (now, now + horizon] = 0 .. size - 1). The same array while nothing has changed."""
        since_began = now - self._began
        passed = bisect_right(self._sorted, since_began)
        soon = bisect_right(self._sorted, since_began + horizon + self._early) - passed
        running = self._size if since_began <= horizon else 0
        known = (passed, soon, running, self._began, len(self._sorted), horizon, size)
        if known != self._known:
            self._known, self._forecast = known, self._foretell(passed, soon, running, size)
        return self._forecast

    def _foretell(self, passed: int, soon: int, running: int, size: int) -> Floats:
        out = np.zeros(size)
        if len(self._sorted) < 4:
            out[0] = 1.0
            return out
        # Of the gaps that are longer than the time since the last episode began, the share that ends within the
        # horizon. With 10 gaps of which 8 have passed and one ends soon: 1.02 / 3 = 34 %. One gap and 0.02 of an end
        # are added, so that few gaps never give 0 or 1.
        begins = (soon + 0.02) / (len(self._sorted) - passed + 1.0)
        if passed == len(self._sorted):
            begins = 0.02  # longer than every gap so far: nothing is known
        sizes, last, share = list(self._sizes), size - 1, begins / len(self._sizes)
        rest = [each - running for each in sizes if each > running] if running else []
        for values, each_share in ((sizes, share), (rest, (1.0 - begins) / len(sizes))):
            for value, often in Counter(values).items():
                out[min(value, last)] += often * each_share
        out[0] += (1.0 - begins) * (1.0 - len(rest) / len(sizes))
        return out
