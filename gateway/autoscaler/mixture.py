"""One forecast out of many: experts weighed by their recent pinball loss at the wanted quantile.

Each closed horizon, what every expert had foretold for it is compared with what came. Weights are exponential in the
forgotten-by-half-lives sum of losses, and each expert keeps a small share so that it can come back when the traffic
changes its nature. Sources: Cesa-Bianchi & Lugosi, "Prediction, Learning, and Games" (2006), ch. 2, for exponential
weights; Herbster & Warmuth (1998) for the fixed share; the linear pool of distributions is Stone (1961).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import numpy as np

from gateway.autoscaler.forecast import Floats, Forecaster, pinball, quantile_of

_ETA = 2.0  # how sharply losses (in units of the mean loss) turn into weights
_SHARE = 0.01  # of the whole, kept by every expert
_MEMORY = 6 * 3600.0  # seconds; how long a loss counts
_REFRESH = 10.0  # seconds; how long the forecast of a slow expert may be reused
_SCORE_EVERY = 60.0  # seconds, at least, between the horizons that are scored
_BELOW = 0.02  # an expert with less weight than this is scored but not mixed in


class Mixture:
    """The experts, their weights, and one mixed distribution. The first expert is asked every time, the others cached."""

    def __init__(self, experts: Sequence[Forecaster], favourite: float = 0.6) -> None:
        self.experts = tuple(experts)
        n = len(self.experts)
        rest = (1.0 - favourite) / max(n - 1, 1)
        self._prior = np.array([favourite] + [rest] * (n - 1)) if n > 1 else np.ones(1)
        self.weights: Floats = self._prior.copy()
        self.losses: Floats = np.zeros(n)  # discounted sums, claims
        self.mixed_loss = 0.0
        self.covered = deque[tuple[float, bool]](maxlen=4096)  # (wanted quantile, did it cover) of the latest horizons
        self._scored = 0.0  # discounted number of horizons scored
        self._cached: list[tuple[float, Floats]] = []
        self._size = 0
        self._opened_at = -math.inf
        self._cached_at = -math.inf
        self._pending: tuple[float, float, list[int], int] | None = None  # (closes at, q, per expert, mixed)
        self._counted = 0

    def observe(self, now: float, elapsed: float, claims: int) -> None:
        """Tell every expert, and score what was foretold for the horizon that has closed."""
        for expert in self.experts:
            expert.observe(now, elapsed, claims)
        self._counted += claims
        if self._pending is not None and now >= self._pending[0]:
            self._score(now)

    def _score(self, now: float) -> None:
        assert self._pending is not None
        closed_at, q, foretold, mixed = self._pending
        self._pending = None
        seen = self._counted
        keep = math.exp(-max(now - closed_at, 0.0) / _MEMORY) * (1.0 - 10.0 / _MEMORY)
        self.losses *= keep
        self.losses += [pinball(value, seen, q) for value in foretold]
        self.mixed_loss = self.mixed_loss * keep + pinball(mixed, seen, q)
        self._scored = self._scored * keep + 1.0
        self.covered.append((q, seen <= mixed))
        scale = float(self.losses.mean()) / max(self._scored, 1.0)
        if scale > 0.0:
            # In units of the mean loss, and as if for at most 20 horizons: one bad burst does not decide alone.
            gain = -_ETA * (self.losses - self.losses.min()) / scale / max(self._scored / 20.0, 1.0)
            weights = self._prior * np.exp(gain)
            self.weights = _SHARE + (1.0 - _SHARE * len(weights)) * weights / weights.sum()

    def probabilities(self, now: float, horizon: float, size: int, q: float) -> Floats:
        """The mixed distribution of claims in (now, now + horizon]; remembers each expert's `q` quantile for scoring."""
        first = self.experts[0].probabilities(now, horizon, size)
        stale = now - self._cached_at >= _REFRESH or size != self._size
        self._size = size
        opening = self._pending is None and now - self._opened_at >= _SCORE_EVERY
        weights = self.weights.tolist()
        if stale:
            self._cached = [
                (weight, expert.probabilities(now, horizon, size))
                for weight, expert in zip(weights[1:], self.experts[1:], strict=True)
                if weight >= _BELOW
            ]
            self._cached_at = now
        total = weights[0]
        mixed = first * total
        for weight, probabilities in self._cached:
            mixed += weight * probabilities
            total += weight
        mixed /= total
        if opening:
            foretold = [quantile_of(first, q)]
            foretold += [quantile_of(expert.probabilities(now, horizon, size), q) for expert in self.experts[1:]]
            self._opened_at = now
            self._pending = (now + horizon, q, foretold, quantile_of(mixed, q))
            self._counted = 0
        return mixed

    def shares(self) -> dict[str, float]:
        """Expert -> weight, for people."""
        return {expert.name: round(float(w), 3) for expert, w in zip(self.experts, self.weights, strict=True)}
