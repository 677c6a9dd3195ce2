"""The experts of empirical.py and seasonal.py."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gateway.autoscaler import empirical, seasonal
from gateway.autoscaler.empirical import FastSlow
from gateway.autoscaler.forecast import Floats
from gateway.autoscaler.replay.compiled.counts import first_above, negative_binomial, one_certain
from gateway.autoscaler.replay.compiled.jit import compiled

_QUARTER_HOUR_S = seasonal._QUARTER_HOUR_S
_QUARTERS_A_WEEK, _QUARTERS_A_DAY = seasonal._QUARTERS_A_WEEK, seasonal._QUARTERS_A_DAY
_FAST_S, _SLOW_S, _DISPERSION_MEMORY_S = 60.0, 900.0, 7200.0  # FastSlow's defaults
_WEEK_KEEP, _DAY_KEEP = 0.75, 0.9  # WeekProfile's
_KEPT = 96  # gaps and sizes that Timers keeps
FIRST, LENGTH = 0, 1  # in Samples.ring
SPAN, INTERVAL, TOTAL, SAMPLED_AT = 0, 1, 2, 3  # in Samples.numbers
FAST, SLOW, DISPERSION, SEEN, OPEN, CLAIMS, EXPECTED = 0, 1, 2, 3, 4, 5, 6  # in the array of fast-slow
ALL_CLAIMS, ALL_SECONDS, QUARTER, NEW_CLAIMS, NEW_SECONDS = 0, 1, 2, 3, 4  # in Profile.numbers
GAPS, EPISODES, EPISODE = 0, 1, 2  # in Timers.counts: kept, seen in all, claims of the running one
HORIZON, EARLY, BEGAN, LAST, EVEN_SPREAD, EVEN_MEDIAN = 0, 1, 2, 3, 4, 5  # in Timers.numbers


class Samples(NamedTuple):
    """The state of a RollingQuantile."""

    at: Floats  # a ring
    value: npt.NDArray[np.int64]
    weight: Floats
    ring: npt.NDArray[np.int64]
    histogram: Floats  # by count; counts that no forecast reaches are left out
    numbers: Floats


class Profile(NamedTuple):
    """The state of a WeekProfile."""

    week: Floats
    day: Floats
    numbers: Floats


class Clocks(NamedTuple):
    """The state of Timers."""

    gaps: Floats  # a ring
    rising: Floats  # the same in order
    sizes: npt.NDArray[np.int64]  # a ring
    counts: npt.NDArray[np.int64]
    numbers: Floats


def make_samples(span: float, largest: int) -> Samples:
    """One that has seen nothing."""
    interval = max(empirical._SAMPLE_INTERVAL_S, span / empirical._MAX_SAMPLES)
    kept = int(span / interval) + 4
    return Samples(
        np.zeros(kept), np.zeros(kept, dtype=np.int64), np.zeros(kept), np.zeros(2, dtype=np.int64),
        np.zeros(largest), np.array([span, interval, 0.0, -math.inf]),
    )  # fmt: skip


def make_fast_slow() -> Floats:
    """One that has seen nothing."""
    return np.array([0.0, 0.0, 0.5, 0.0, 0.0, 0.0, 0.0])


def make_profile() -> Profile:
    """One that has seen nothing."""
    week, day = np.zeros((_QUARTERS_A_WEEK, 2)), np.zeros((_QUARTERS_A_DAY, 2))
    return Profile(week, day, np.array([0.0, 1.0, -1.0, 0.0, 0.0]))


def make_clocks(horizon: float, early: float) -> Clocks:
    """Timers that have seen nothing."""
    return Clocks(
        np.zeros(_KEPT), np.zeros(_KEPT), np.zeros(_KEPT, dtype=np.int64), np.zeros(3, dtype=np.int64),
        np.array([horizon, early, -math.inf, -math.inf, math.inf, math.inf]),
    )  # fmt: skip


def kept_fresh() -> Floats:
    """For how long the forecast of each expert after the first is reused: three windows, fast-slow, ..., bursts."""
    windows = [min(span / 30.0, 60.0) for span in (900.0, 3600.0, 86400.0)]
    return np.array([*windows, FastSlow.fresh, seasonal.WeekProfile.fresh, seasonal.Timers.fresh, 0.0])


@compiled
def observe_samples(s: Samples, now: float, value: int) -> None:
    """RollingQuantile.observe, `value` claims in the last horizon."""
    since = now - s.numbers[SAMPLED_AT]
    if 0.0 <= since < s.numbers[INTERVAL]:
        return
    kept = len(s.at)
    s.numbers[SAMPLED_AT] = now
    at = (s.ring[FIRST] + s.ring[LENGTH]) % kept
    s.ring[LENGTH] += 1
    s.at[at], s.value[at], s.weight[at] = now, value, min(abs(since), 60.0)
    if value < len(s.histogram):
        s.histogram[value] += s.weight[at]
    s.numbers[TOTAL] += s.weight[at]
    while s.ring[LENGTH] > 1 and s.at[s.ring[FIRST]] <= now - s.numbers[SPAN]:
        old = s.ring[FIRST]
        s.ring[FIRST] = (old + 1) % kept
        s.ring[LENGTH] -= 1
        s.numbers[TOTAL] -= s.weight[old]
        if s.value[old] < len(s.histogram):
            left = s.histogram[s.value[old]] - s.weight[old]
            s.histogram[s.value[old]] = left if left > 1e-9 else 0.0


@compiled
def samples_probabilities(s: Samples, out: Floats) -> None:
    """RollingQuantile.probabilities, for the horizon that was counted."""
    if s.numbers[TOTAL] <= 0.0:
        one_certain(out)
        return
    for n in range(len(out)):
        out[n] = s.histogram[n] / s.numbers[TOTAL]


@compiled
def _mean_rate(f: Floats) -> float:
    return float(max(f[SLOW], 0.6 * f[FAST] + 0.4 * f[SLOW]))


@compiled
def observe_fast_slow(f: Floats, elapsed: float, claims: int) -> None:
    """FastSlow.observe."""
    f[EXPECTED] += _mean_rate(f) * elapsed
    f[CLAIMS] += claims
    f[OPEN] += elapsed
    if f[OPEN] >= 10.0:
        if f[EXPECTED] > 1e-6:
            excess = (f[CLAIMS] - f[EXPECTED]) ** 2 / f[EXPECTED] - 1.0
            f[DISPERSION] += min(f[OPEN] / _DISPERSION_MEMORY_S, 1.0) * (min(excess, 400.0) - f[DISPERSION])
            f[DISPERSION] = max(f[DISPERSION], 0.02)
        f[CLAIMS] = f[EXPECTED] = f[OPEN] = 0.0
    rate = claims / elapsed
    f[FAST] += (rate - f[FAST]) * (1.0 - math.exp(-elapsed / _FAST_S))
    f[SLOW] += (rate - f[SLOW]) * (1.0 - math.exp(-elapsed / min(_SLOW_S, f[SEEN] + 60.0)))
    f[SEEN] += elapsed


@compiled
def fast_slow_probabilities(f: Floats, horizon: float, out: Floats) -> None:
    """FastSlow.probabilities."""
    negative_binomial(_mean_rate(f) * horizon, f[DISPERSION], out)


@compiled
def observe_profile(p: Profile, now: float, elapsed: float, claims: int) -> None:
    """WeekProfile.observe."""
    n = p.numbers
    quarter = now // _QUARTER_HOUR_S
    if quarter != n[QUARTER]:
        if n[NEW_SECONDS] > 0:
            of_week, of_day = p.week[int(n[QUARTER]) % _QUARTERS_A_WEEK], p.day[int(n[QUARTER]) % _QUARTERS_A_DAY]
            of_week[0] = of_week[0] * _WEEK_KEEP + n[NEW_CLAIMS]
            of_week[1] = of_week[1] * _WEEK_KEEP + n[NEW_SECONDS]
            of_day[0] = of_day[0] * _DAY_KEEP + n[NEW_CLAIMS]
            of_day[1] = of_day[1] * _DAY_KEEP + n[NEW_SECONDS]
            n[ALL_CLAIMS] = n[ALL_CLAIMS] * 0.999 + n[NEW_CLAIMS]
            n[ALL_SECONDS] = n[ALL_SECONDS] * 0.999 + n[NEW_SECONDS]
        n[NEW_CLAIMS] = n[NEW_SECONDS] = 0.0
        n[QUARTER] = quarter
    n[NEW_CLAIMS] += claims
    n[NEW_SECONDS] += min(elapsed, _QUARTER_HOUR_S)


@compiled
def profile_probabilities(p: Profile, now: float, horizon: float, out: Floats) -> None:
    """WeekProfile.probabilities."""
    quarter = int((now + horizon) // _QUARTER_HOUR_S)
    overall = p.numbers[ALL_CLAIMS] / p.numbers[ALL_SECONDS]
    day, week = p.day[quarter % _QUARTERS_A_DAY], p.week[quarter % _QUARTERS_A_WEEK]
    by_day = (day[0] + overall * _QUARTER_HOUR_S) / (day[1] + _QUARTER_HOUR_S)
    shape = week[0] + by_day * _QUARTER_HOUR_S + 0.5
    rate = shape / (week[1] + _QUARTER_HOUR_S)
    negative_binomial(rate * horizon, max(rate * horizon / shape, 0.02) + 0.2, out)


@compiled
def observe_clocks(t: Clocks, now: float, claims: int) -> None:
    """Timers.observe."""
    if not claims:
        return
    n, c = t.numbers, t.counts
    if now - n[LAST] > n[HORIZON]:
        if c[EPISODE]:
            t.sizes[c[EPISODES] % _KEPT] = c[EPISODE]
            t.gaps[c[EPISODES] % _KEPT] = now - n[BEGAN]
            c[EPISODES] += 1
            c[GAPS] = min(c[EPISODES], _KEPT)
            t.rising[: c[GAPS]] = np.sort(t.gaps[: c[GAPS]])
            if c[GAPS] >= 4:
                n[EVEN_SPREAD] = t.rising[3 * c[GAPS] // 4] - t.rising[c[GAPS] // 4]
                n[EVEN_MEDIAN] = t.rising[c[GAPS] // 2]
        n[BEGAN] = now
        c[EPISODE] = 0
    n[LAST] = now
    if now - n[BEGAN] <= n[HORIZON]:
        c[EPISODE] += claims


@compiled
def clocks_review_by(t: Clocks, now: float, horizon: float) -> float:
    """Timers.review_by."""
    n = t.numbers
    if n[EVEN_SPREAD] > 2.0 * horizon or n[EVEN_SPREAD] > n[EVEN_MEDIAN] / 4.0:
        return math.inf
    at = first_above(t.rising, t.counts[GAPS], now - n[BEGAN] + horizon + n[EARLY])
    return float(n[BEGAN] + t.rising[at] - horizon - n[EARLY]) if at < t.counts[GAPS] else math.inf


@compiled
def clocks_state(t: Clocks, now: float, horizon: float) -> tuple[int, int, int]:
    """What a forecast rests on: (gaps passed, gaps that end within the horizon, claims of the running episode)."""
    n, gaps = t.numbers, t.counts[GAPS]
    since = now - n[BEGAN]
    passed = first_above(t.rising, gaps, since)
    soon = first_above(t.rising, gaps, since + horizon + n[EARLY]) - passed
    return passed, soon, t.counts[EPISODE] if since <= horizon else 0


@compiled
def clocks_probabilities(t: Clocks, passed: int, soon: int, running: int, out: Floats) -> None:
    """Timers.probabilities, from its state."""
    kept, last = t.counts[GAPS], len(out) - 1
    if kept < 4:
        one_certain(out)
        return
    begins = 0.02 if passed == kept else (soon + 0.02) / (kept - passed + 1.0)
    out[:] = 0.0
    longer = 0
    whole, rest = np.zeros(last + 1, dtype=np.int64), np.zeros(last + 1, dtype=np.int64)
    for i in range(kept):
        size = t.sizes[i]
        whole[min(size, last)] += 1
        if running and size > running:
            rest[min(size - running, last)] += 1
            longer += 1
    for n in range(last + 1):
        out[n] += whole[n] * (begins / kept)
        out[n] += rest[n] * ((1.0 - begins) / kept)
    out[0] += (1.0 - begins) * (1.0 - longer / kept)
