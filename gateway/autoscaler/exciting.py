"""A self-exciting forecaster: claims that bring more claims, in batches and in bursts that feed themselves."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from gateway.autoscaler.forecast import BackwardLooking, Floats, negative_binomial

_SPANS_S: Floats = np.repeat([5.0, 20.0, 80.0, 320.0], 4)  # for how long an event brings others
_BRANCHING: Floats = np.tile([0.0, 0.35, 0.65, 0.9], 4)  # events that one event brings, in the mean
_SUBCRITICAL: Floats = 1.0 - _BRANCHING
_EVIDENCE_MEMORY_S = 3 * 3600.0  # how long a pair's past success counts
_RATE_MEMORY_S = 6 * 3600.0  # of the mean rate of events
_SIZE_MEMORY = 200.0  # events that the mean size of an event is taken over


@lru_cache(maxsize=1024)
def _decay(elapsed: float) -> tuple[Floats, Floats]:
    """(what is left of each excitation, how many events a unit of it brings) after `elapsed` seconds."""
    left = np.exp(-elapsed / _SPANS_S)
    return left, _BRANCHING * (1.0 - left)


@lru_cache(maxsize=64)
def _ahead(horizon: float) -> tuple[Floats, Floats]:
    """(events within the horizon for each unit of excitation, their descendants included; the dispersion added)."""
    grown = -np.expm1(-_SUBCRITICAL * horizon / _SPANS_S)
    # Of an infinite horizon the count has 1 / (1 - n)^2 times the variance of a Poisson count; a short one sees of each
    # family only what comes within it.
    within = -np.expm1(-horizon / _SPANS_S)
    return _BRANCHING * grown / _SUBCRITICAL, (1.0 / _SUBCRITICAL**2 - 1.0) * within


class SelfExciting(BackwardLooking):
    """A Hawkes process with marks: an event, a tick with claims, brings others for a while; how many claims it has is
    learned too. Sixteen pairs of span and branching ratio run side by side, weighed by how well each foretold the
    events.

    The forecast is a negative binomial with the mean and variance of their mixture. Sources: Hawkes, "Spectra of some
    self-exciting and mutually exciting point processes" (Biometrika 58, 1971); Oakes, "The Markovian self-exciting
    process" (J. Appl. Prob. 12, 1975), for the mean from a given excitation on.
    """

    name = "bursts"
    fresh = 0.0

    def __init__(self) -> None:
        self._excited: Floats = np.zeros(len(_SPANS_S))  # 1 for each event, fading
        self._evidence: Floats = np.zeros(len(_SPANS_S))  # log likelihood, fading
        self._weights: Floats = np.full(len(_SPANS_S), 1.0 / len(_SPANS_S))
        self._rate, self._seen = 0.0, 60.0  # events a second, and the seconds that they are the mean of
        self._size, self._square = 1.0, 1.5  # claims of an event: their mean, and that of their squares
        self._sizes = 1.0

    def observe(self, now: float, elapsed: float, claims: int) -> None:
        """`claims` came in the `elapsed` seconds that end at `now`."""
        left, brings = _decay(elapsed)
        expected = self._rate * elapsed * _SUBCRITICAL + self._excited * brings + 1e-9
        self._evidence *= 1.0 - min(elapsed / _EVIDENCE_MEMORY_S, 1.0)
        self._evidence -= expected
        self._excited *= left
        self._seen = min(self._seen + elapsed, _RATE_MEMORY_S)
        self._rate += ((1.0 if claims else 0.0) / elapsed - self._rate) * min(elapsed / self._seen, 1.0)
        if claims:
            # Whether something came, not how much: 40 claims in a second are one event of 40.
            self._evidence += np.log(-np.expm1(-expected)) + expected
            weights = np.exp(self._evidence - self._evidence.max())
            self._weights = weights / weights.sum()
            self._excited += 1.0
            self._sizes = min(self._sizes + 1.0, _SIZE_MEMORY)
            self._size += (claims - self._size) / self._sizes
            self._square += (claims * claims - self._square) / self._sizes

    def probabilities(self, now: float, horizon: float, size: int) -> Floats:
        """P(claims in (now, now + horizon] = 0 .. size - 1)."""
        brings, spread = _ahead(horizon)
        # The mean rate's events, and more or fewer by how the excitation differs from its own mean.
        events = np.maximum(self._rate * horizon + brings * (self._excited - self._rate * _SPANS_S), 1e-9)
        mean = float(self._weights @ events)
        if mean <= 1e-9:
            return negative_binomial(0.0, 1.0, size)
        variance = float(self._weights @ (events * (1.0 + spread) + events**2)) - mean**2
        # Of a sum of as many sizes as there are events.
        claims = mean * self._size
        total = mean * (self._square - self._size**2) + variance * self._size**2
        return negative_binomial(claims, max(total / claims - 1.0, 0.02), size)
