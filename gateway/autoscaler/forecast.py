"""What a forecaster is, and the arithmetic on count distributions that all of them share.

A forecast is the distribution of the number of claims in the next `horizon` seconds, as probabilities of 0, 1, 2, ...;
what lies beyond the end of the array is its missing mass. The horizon is the lead time plus half a tick: a sandbox
ordered for a claim is ready one lead time later, and a change of level waits for a tick, half of one in the mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
_SCALAR_COUNTS = 64  # counts


class Forecaster(Protocol):
    """One expert. Synchronous, no I/O; `observe` and `probabilities` are O(1) in the length of history."""

    name: str
    fresh: float  # seconds that a forecast may be reused for

    def observe(self, now: float, elapsed: float, claims: int) -> None:
        """`claims` came in the `elapsed` seconds that end at `now`."""
        ...

    def probabilities(self, now: float, horizon: float, size: int) -> Floats:
        """P(claims in (now, now + horizon] = 0 .. size - 1)."""
        ...

    def review_by(self, now: float, horizon: float) -> float:
        """When its forecast will change though nothing happens; infinity if it will not."""
        ...

    def shift(self, step: float) -> None:
        """The clock was set by `step` seconds: times that are kept to measure distances from move with it."""
        ...


class BackwardLooking:
    """For experts that look back only."""

    def review_by(self, now: float, horizon: float) -> float:
        """Infinity: these forecasts change only with claims and with time without claims."""
        return math.inf

    def shift(self, step: float) -> None:
        """Nothing: they keep no times but the time of day, which the clock knows better now."""


def quantile_of(probabilities: Floats, q: float) -> int:
    """The least count that covers a share `q`; the array's length when it does not reach that far."""
    return int(probabilities.cumsum().searchsorted(q - 1e-12))


def quantiles_of(probabilities: Floats, q: float) -> list[int]:
    """`quantile_of` each row of a matrix of distributions."""
    return [int(row.searchsorted(q - 1e-12)) for row in probabilities.cumsum(axis=1)]


def pinball(predicted: float, seen: float, q: float) -> float:
    """The pinball (quantile) loss: shortfall costs q, excess 1 - q; least in the mean at the true quantile.

    Source: Koenker & Bassett, "Regression Quantiles", Econometrica 46 (1978).
    """
    gap = seen - predicted
    return q * gap if gap > 0 else (q - 1.0) * gap


@lru_cache(maxsize=64)
def counts_up_to(size: int) -> Floats:
    """The array 0.0, 1.0, ... size - 1; cached, so callers must not modify it."""
    return np.arange(size, dtype=np.float64)


@lru_cache(maxsize=64)
def log_factorials(size: int) -> Floats:
    """ln 0!, ln 1!, ... ln (size - 1)!"""
    return np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, max(size, 2), dtype=np.float64)))))[:size]


def negative_binomial(mean: float, dispersion: float, size: int) -> Floats:
    """Probabilities of a negative binomial with this mean and variance mean * (1 + dispersion), dispersion > 0.

    Evaluated through the ratio p(k+1)/p(k) in logarithms, so that no gamma function is needed.
    """
    if mean <= 1e-9:
        out = np.zeros(size)
        out[0] = 1.0
        return out
    shape = mean / dispersion
    if size <= _SCALAR_COUNTS and shape * math.log1p(dispersion) < 500.0:  # nothing underflows: plain floats are faster
        ratio = dispersion / (1.0 + dispersion)
        each = math.exp(-shape * math.log1p(dispersion))
        few = [each]
        for n in range(1, size):
            each *= (shape + (n - 1)) * ratio / n
            few.append(each)
        return np.array(few)
    k = counts_up_to(size)
    steps = np.log((shape + k[:-1]) * (dispersion / (1.0 + dispersion)) / (k[:-1] + 1.0))
    logs = np.empty(size)
    logs[0] = -shape * math.log1p(dispersion)
    np.cumsum(steps, out=logs[1:])
    logs[1:] += logs[0]
    return np.exp(logs)


def values_of_stock(probabilities: Floats) -> Floats:
    """For each n = 1, 2, ...: the claims per horizon that the n-th sandbox of a pool saves from a cold start.

    A pool whose every claim orders its replacement is a loss system (Erlang B: a missed claim starts a sandbox of its
    own and takes no place in the pool). With N claims in a horizon, two bounds hold for the claims served by n
    sandboxes: min(N, n), as if all N came at once, and the claims that find fewer than n before them in a horizon,
    N when N <= n and else none. Their mean lies within a few per cent of Erlang's exact answer where it matters
    (10 expected claims, 18 sandboxes: 9.916 against 9.929) and holds for any distribution of N, not only Poisson's.
    """
    tail = 1.0 - probabilities.cumsum()
    out = counts_up_to(len(probabilities))[1:] * probabilities[1:]
    out += tail[:-1]
    out *= 0.5
    return out


class Forecast(NamedTuple):
    """What is expected of one runtime, made at `made_at` for the `horizon` seconds after it."""

    made_at: float
    horizon: float  # seconds
    mean: float  # claims expected within the horizon
    quantile: float  # share of horizons that `level` should cover
    level: int  # sandboxes wanted: ready and starting
    source: str  # the rule of shadow.py that chose the level, in words
    weights: Mapping[str, float] = MappingProxyType({})  # expert -> share of the mixture
    alert: int = 0  # what to go up to when claims outrun the level
    observed: float = 0.0  # seconds of demand that it rests on
    expected_misses: float = 0.0  # claims per hour expected to find the pool empty at `level`
    usual: float = 0.0  # claims in a horizon, in the last hour's mean
    claims: float = 0.0  # seen so far, as far as they are remembered
    constant: bool = False  # `level` is a constant, found cheaper than following the forecast

    def at(self, level: int, quantile: float, alert: int, source: str, *, constant: bool) -> Forecast:
        """The same forecast, read for another objective."""
        return self._replace(quantile=quantile, level=level, alert=alert, source=source, constant=constant)
