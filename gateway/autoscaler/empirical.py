"""Forecasters that read the future off what was counted before, without a model of how claims come about."""

from __future__ import annotations

import math
from collections import deque

import numpy as np

from gateway.autoscaler.forecast import BackwardLooking, Floats, negative_binomial
from gateway.autoscaler.window import RollingCount

_SAMPLE_INTERVAL_S = 10.0  # seconds between samples of the rolling count, at least
_MAX_SAMPLES = 1440  # in a span: of a day one a minute; one in ten seconds would be a megabyte for each busy runtime


def _unit(size: int) -> Floats:
    out = np.zeros(size)
    out[0] = 1.0
    return out


class RollingQuantile(BackwardLooking):
    """The distribution of H-second counts over the last `span` seconds: the next horizon will be like one of those.

    Sources: Autopilot's moving-window recommender (Rzadca et al., EuroSys 2020), and Intelligent Pooling's empirical
    demand distribution (VLDB 2024). Cost: a dictionary update per sample, whatever the span. `count` is shared with
    whoever else looks at the last horizon, and brought up to date before `observe`.
    """

    def __init__(self, name: str, span: float, count: RollingCount) -> None:
        self.name = name
        self.fresh = min(span / 30.0, 60.0)
        self._span = span
        self._interval = max(_SAMPLE_INTERVAL_S, span / _MAX_SAMPLES)
        self._count = count
        self._samples: deque[tuple[float, int, float]] = deque()
        self._histogram: dict[int, float] = {}
        self._total = 0.0
        self._sampled_at = -math.inf

    def observe(self, now: float, elapsed: float, claims: int) -> None:
        """`claims` came in the `elapsed` seconds that end at `now`."""
        if 0.0 <= now - self._sampled_at < self._interval:
            return
        # A sample stands for the time since the one before: quiet stretches are reviewed less often, not less counted.
        weight = min(abs(now - self._sampled_at), 60.0)
        self._sampled_at = now
        value, histogram = self._count.total, self._histogram
        self._samples.append((now, value, weight))
        histogram[value] = histogram.get(value, 0.0) + weight
        self._total += weight
        while len(self._samples) > 1 and self._samples[0][0] <= now - self._span:
            _, old, gone = self._samples.popleft()
            self._total -= gone
            histogram[old] -= gone
            if histogram[old] <= 1e-9:
                del histogram[old]

    def shift(self, step: float) -> None:
        """Move the samples with the clock, or those from before a step back would stay for as long as the step."""
        self._samples = deque((at + step, value, weight) for at, value, weight in self._samples)
        self._sampled_at += step

    def probabilities(self, now: float, horizon: float, size: int) -> Floats:
        """P(claims in (now, now + horizon] = 0 .. size - 1), counts scaled when the horizon has changed since."""
        if self._total <= 0.0:
            return _unit(size)
        seconds = [0.0] * size  # plain floats: a number at a time is four times as fast so
        scale = horizon / self._count.span
        for value, weight in self._histogram.items():
            at = value if abs(scale - 1.0) < 0.05 else round(value * scale)
            if at < size:
                seconds[at] += weight
        return np.array(seconds) / self._total


class FastSlow(BackwardLooking):
    """Negative binomial around max(slow, 0.6 fast + 0.4 slow), with a dispersion learned from its own errors.

    The two rates are exponentially weighted means of 1 and 15 minutes; a burst lifts the forecast at once, and the slow
    rate keeps it from falling between two claims. Sources: Croston, "Forecasting and stock control for intermittent
    demands" (1972), for smoothing counts that are mostly zero; Snyder, Ord & Beaumont, "Forecasting the intermittent
    demand for slow-moving inventories" (IJF 28, 2012), for the negative binomial on top of it; Knative's burst and
    stable windows for the pair of rates.
    """

    name = "fast-slow"
    fresh = 30.0

    def __init__(self, fast: float = 60.0, slow: float = 900.0, memory: float = 7200.0) -> None:
        self._fast_span, self._slow_span, self._memory = fast, slow, memory
        self._fast = self._slow = 0.0
        self._dispersion = 0.5
        self._span = self._open = 0.0
        self._claims = 0
        self._expected = 0.0

    def mean_rate(self) -> float:
        """Mean rate over the window, claims per second."""
        return max(self._slow, 0.6 * self._fast + 0.4 * self._slow)

    def observe(self, now: float, elapsed: float, claims: int) -> None:
        """`claims` came in the `elapsed` seconds that end at `now`."""
        self._expected += self.mean_rate() * elapsed
        self._claims += claims
        self._open += elapsed
        if self._open >= 10.0:
            self._learn()
        rate = claims / elapsed
        # Steps are uneven: `elapsed` seconds count 1 - exp(-elapsed / span) in a mean with that time constant. Until 15
        # minutes are seen, the slow rate is about the mean of what is seen and a minute without claims before it (or
        # one claim in the first second would be one a second), and not drawn towards the zero that it began with.
        self._fast += (rate - self._fast) * (1.0 - math.exp(-elapsed / self._fast_span))
        self._slow += (rate - self._slow) * (1.0 - math.exp(-elapsed / min(self._slow_span, self._span + 60.0)))
        self._span += elapsed

    def _learn(self) -> None:
        """Move the dispersion towards (error^2 / mean) - 1 of the window that has just closed."""
        if self._expected > 1e-6:
            # A negative binomial with variance m (1 + d) has E[(n - m)^2] / m = 1 + d, so one window gives one estimate
            # of d. It is bounded: 40 claims where 4 were expected give 323, and would else widen the forecast for
            # hours.
            excess = (self._claims - self._expected) ** 2 / self._expected - 1.0
            self._dispersion += min(self._open / self._memory, 1.0) * (min(excess, 400.0) - self._dispersion)
            self._dispersion = max(self._dispersion, 0.02)
        self._claims, self._expected, self._open = 0, 0.0, 0.0

    def probabilities(self, now: float, horizon: float, size: int) -> Floats:
        """P(claims in (now, now + horizon] = 0 .. size - 1)."""
        return negative_binomial(self.mean_rate() * horizon, self._dispersion, size)
