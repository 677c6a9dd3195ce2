"""forecast.py's arithmetic on distributions of counts. `out` is filled; its length is the number of counts."""

from __future__ import annotations

import math

import numpy as np

from gateway.autoscaler.forecast import _SCALAR_COUNTS, Floats
from gateway.autoscaler.replay.compiled.jit import compiled


@compiled
def one_certain(out: Floats) -> None:
    """No claims, for certain."""
    out[:] = 0.0
    out[0] = 1.0


@compiled
def negative_binomial(mean: float, dispersion: float, out: Floats) -> None:
    """forecast.negative_binomial, its two ways included: each rounds otherwise."""
    if mean <= 1e-9:
        one_certain(out)
        return
    size = len(out)
    shape = mean / dispersion
    first = -shape * math.log1p(dispersion)
    ratio = dispersion / (1.0 + dispersion)
    if size <= _SCALAR_COUNTS and -first < 500.0:
        each = math.exp(first)
        out[0] = each
        for n in range(1, size):
            each *= (shape + (n - 1)) * ratio / n
            out[n] = each
        return
    out[0] = math.exp(first)
    total = 0.0
    for n in range(1, size):
        total += math.log((shape + (n - 1.0)) * ratio / n)
        out[n] = math.exp(total + first)


@compiled
def values_of_stock(probabilities: Floats, out: Floats) -> None:
    """forecast.values_of_stock, into the first `len(probabilities) - 1` of `out`."""
    covered = probabilities[0]
    for n in range(1, len(probabilities)):
        tail = 1.0 - covered
        out[n - 1] = (n * probabilities[n] + tail) * 0.5
        covered += probabilities[n]


@compiled
def quantile_of(probabilities: Floats, q: float) -> int:
    """forecast.quantile_of."""
    covered = 0.0
    for n in range(len(probabilities)):
        covered += probabilities[n]
        if covered >= q - 1e-12:
            return n
    return len(probabilities)


@compiled
def pinball(predicted: float, seen: float, q: float) -> float:
    """forecast.pinball."""
    gap = seen - predicted
    return q * gap if gap > 0 else (q - 1.0) * gap


@compiled
def first_above(rising: Floats, length: int, value: float) -> int:
    """bisect_right on the first `length` numbers."""
    return int(np.searchsorted(rising[:length], value, side="right"))
