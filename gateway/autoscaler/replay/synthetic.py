"""Made-up traces with known laws, `synthetic:NAME`: what the policy was tuned on, so that real traces stay unseen.

| name | law | days |
|---|---|---|
| poisson | 4 claims a minute, forever | 2 |
| daily | a rate that follows the sun, 0.3 to 8 claims a minute | 6 |
| steps | a new rate every 3 to 30 minutes, lognormal around 3 a minute (a factor e either way) | 3 |
| onoff | silence of 3 minutes in the mean, then 30 s in the mean of 1 claim a second | 2 |
| rare | silence of 40 minutes in the mean, then 1 to 8 claims within half a minute | 3 |
| timer | 10 claims at once every 10 minutes, a second early or late | 2 |
| batches | 5 to 60 claims at once at random, 20 minutes apart in the mean | 3 |
| spikes | silences of 20 s in the mean, then about 8 s of about 6 claims a second, lognormal both | 1/24 |
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from gateway.autoscaler.forecast import Floats
from gateway.autoscaler.replay.trace import Trace
from gateway.core.errors import BadRequestError

_DAY_S = 86400.0


def _thinned(rng: np.random.Generator, span: float, most: float, rate: Callable[[Floats], Floats]) -> Floats:
    """A Poisson process with a rate that varies (Lewis & Shedler's thinning, 1979)."""
    # Points at the highest rate, of which each is kept with probability rate / highest rate.
    at = np.sort(rng.random(rng.poisson(most * span)) * span)
    return at[rng.random(len(at)) * most < rate(at)]


def _bursts(rng: np.random.Generator, span: float, gap: float, burst: Callable[[], Floats]) -> Floats:
    """Bursts with exponential silences between; `burst` gives offsets from its start."""
    parts, at = [], float(rng.exponential(gap))
    while at < span:
        offsets = burst()
        parts.append(at + offsets)
        # The gap is from the end of a burst, or long bursts would overlap.
        at += float(offsets.max(initial=0.0)) + float(rng.exponential(gap))
    out = np.sort(np.concatenate(parts)) if parts else np.zeros(0)
    return out[out < span]


def _steps(rng: np.random.Generator, span: float) -> Floats:
    parts, at = [], 0.0
    while at < span:
        width = float(rng.uniform(180.0, 1800.0))
        rate = 3.0 / 60.0 * math.exp(float(rng.normal()))
        parts.append(at + rng.random(rng.poisson(rate * width)) * width)
        at += width
    out = np.sort(np.concatenate(parts))
    return out[out < span]


def make(name: str, seed: int = 1) -> Trace:
    """One synthetic trace. Raises BadRequestError for a name that does not exist."""
    rng = np.random.default_rng(seed)
    laws: dict[str, tuple[float, Callable[[float], Floats]]] = {
        "poisson": (2, lambda span: np.sort(rng.random(rng.poisson(4.0 / 60.0 * span)) * span)),
        "daily": (
            6,
            lambda span: _thinned(
                # 0.3 claims a minute at midnight (4.15 - 3.85), 8 at noon (4.15 + 3.85).
                rng,
                span,
                8.0 / 60.0,
                lambda t: (4.15 - 3.85 * np.cos(2.0 * math.pi * t / _DAY_S)) / 60.0,
            ),
        ),
        "steps": (3, lambda span: _steps(rng, span)),
        "onoff": (2, lambda span: _bursts(rng, span, 180.0, lambda: _on(rng))),
        "rare": (3, lambda span: _bursts(rng, span, 2400.0, lambda: rng.random(rng.integers(1, 9)) * 30.0)),
        "timer": (2, lambda span: (np.arange(300.0, span, 600.0)[:, None] + rng.normal(size=(1, 10))).ravel()),
        "spikes": (1 / 24, lambda span: _bursts(rng, span, 20.0, lambda: _spike(rng))),
        "batches": (3, lambda span: _bursts(rng, span, 1200.0, lambda: rng.random(rng.integers(5, 61)) * 0.5)),
    }
    if name not in laws:
        raise BadRequestError(f"synthetic:{name} does not exist; there are {', '.join(laws)}")
    days, law = laws[name]
    arrivals = np.sort(law(days * _DAY_S))
    return Trace(f"synthetic-{name}", arrivals, 0.0, days * _DAY_S)


def _on(rng: np.random.Generator) -> Floats:
    length = float(rng.exponential(30.0))
    return np.sort(rng.random(rng.poisson(length)) * length)


def _spike(rng: np.random.Generator) -> Floats:
    # Medians exp(2.0) = 7.4 s and exp(1.8) = 6 claims a second.
    length = float(rng.lognormal(2.0, 0.8))
    return np.sort(rng.random(rng.poisson(length * float(rng.lognormal(1.8, 0.6)))) * length)
