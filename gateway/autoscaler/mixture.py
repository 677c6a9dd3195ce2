"""Mixes many forecasts into one: experts are weighted by their recent pinball loss at the wanted quantile.

When a horizon closes, every expert's forecast for it is compared with the claims that came. Weights are exponential in
the discounted sum of losses. Each expert keeps a small share, so that its weight can recover when the traffic changes.

The pinball loss at quantile q charges q per claim above the forecast and 1 - q per sandbox below it. At q = 0.99, to
forecast 3 when 5 claims come costs 2 * 0.99 = 1.98; to forecast 5 when 3 come costs 2 * 0.01 = 0.02. Its mean is least
for the true quantile, so the expert that is best at what the pool needs gains weight. Squared error would reward the
expert with the best mean, however wrong its tail is.

Sources: Cesa-Bianchi & Lugosi, "Prediction, Learning, and Games" (2006), ch. 2, for exponential weights; Herbster &
Warmuth (1998) for the fixed share; the linear pool of distributions is Stone (1961).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from gateway.autoscaler.forecast import (
    BackwardLooking,
    Floats,
    Forecaster,
    pinball,
    quantile_of,
    quantiles_of,
    values_of_stock,
)
from gateway.autoscaler.rates import RateBelief

_LEARNING_RATE = 2.0  # how sharply losses (in units of the mean loss) turn into weights
_MIN_WEIGHT = 0.01  # share that every expert keeps; from 0 a weight could never grow again
# Scored horizons that losses are remembered for, three days at one in 120 s (180, six hours, make no difference:
# docs/autoscaler.md), and the memory of time in which nothing is scored.
_MEMORY_HORIZONS, _UNSCORED_MEMORY_S = 2160.0, 6 * 3600.0
_SCORE_INTERVAL_S = 120.0  # mean time between scored horizons
# Steps of the golden ratio fill (0, 1) evenly, so the times of scoring never lock to the period of a timer's claims.
GOLDEN_RATIO = 0.6180339887498949
# Below this an expert is scored but not mixed in: at the floor of 0.01 it would cost time and change nothing.
_MIN_MIXED_WEIGHT = 0.02


class Mixture:
    """Holds experts with weights and mixes their forecasts. The first is evaluated each time, the others when stale.

    Experts `apart` are asked as often as the others, and not mixed in. A forecast is scored on the horizon that begins
    `delay` seconds later, when the orders that follow it are out.
    """

    def __init__(
        self,
        first: RateBelief,
        others: Sequence[Forecaster] = (),
        *,
        apart: Sequence[Forecaster] = (),
        delay: float = 0.0,
        favourite: float = 0.6,
    ) -> None:
        self._first = first
        self._delay = delay
        self.experts: tuple[Forecaster, ...] = (first, *others)
        self.all_experts = (*self.experts, *apart)
        self._foreseeing = [each for each in self.all_experts if not isinstance(each, BackwardLooking)]
        n = len(self.experts)
        rest = (1.0 - favourite) / max(n - 1, 1)
        self._prior = np.array([favourite] + [rest] * (n - 1)) if n > 1 else np.ones(1)
        self.weights: Floats = self._prior.copy()
        self.losses: Floats = np.zeros(n)  # discounted sums, claims
        self._foretold = self._covered = 0  # horizons scored since restart_score, and those with no more than foretold
        self._wanted_sum = self._loss_sum = 0.0
        self._scored = 0.0  # discounted number of horizons scored
        self._cached: list[Floats] = [np.zeros(0)] * (len(self.all_experts) - 1)
        self._foretold_by: list[Floats] = list(self._cached)
        self._due = [-math.inf] * len(self._cached)
        self._size = 0
        self._opened_at = -math.inf
        self._open_after = self._phase = 0.0
        # (index among the experts after the first, what stock is worth by it alone) where that has changed. The first
        # is not among them: nearly all of the mixture is its forecast.
        self.fresh_values: list[tuple[int, Floats]] = []
        self.first_values: Floats = np.zeros(0)  # what stock is worth by the first expert alone
        self._mixed: list[float] = []
        self._mixed_in: list[int] = []  # which of the others are mixed in
        self._others: Floats | None = None  # what stock is worth by those together, each by its weight
        self._weigh()
        self._pending: tuple[float, float, list[int], int] | None = None  # (closes at, q, per expert, mixed)
        self._counted = 0
        self._counts_from = 0.0

    def observe(self, now: float, elapsed: float, claims: int) -> None:
        """Pass claims to every expert, and score their forecasts once the pending horizon has closed."""
        for expert in self.all_experts:
            expert.observe(now, elapsed, claims)
        if self._pending is not None:
            if self._counts_from < now <= self._pending[0]:
                self._counted += claims
            if now >= self._pending[0]:
                self._score(now)

    def shift(self, step: float) -> None:
        """The clock was set by `step` seconds. The open horizon goes on: its end moves as well."""
        for expert in self.all_experts:
            expert.shift(step)
        self._opened_at += step
        self._counts_from += step
        self._due = [due + step for due in self._due]
        if self._pending is not None:
            closes, q, foretold, mixed = self._pending
            self._pending = (closes + step, q, foretold, mixed)

    def _score(self, now: float) -> None:
        assert self._pending is not None
        closed_at, q, foretold, mixed = self._pending
        self._pending = None
        seen = self._counted
        # Time that passes unscored, as while nobody leads, is discounted by the clock.
        keep = math.exp(-max(now - closed_at, 0.0) / _UNSCORED_MEMORY_S) * (1.0 - 1.0 / _MEMORY_HORIZONS)
        self.losses *= keep
        self.losses += [pinball(value, seen, q) for value in foretold]
        self._scored = self._scored * keep + 1.0
        # The score is of what the pool was told: of the mixture as it was then, not as the weights would mix it now.
        self._foretold += 1
        self._covered += seen <= mixed
        self._wanted_sum += q
        self._loss_sum += pinball(mixed, seen, q)
        scale = float(self.losses.sum()) / len(foretold) / max(self._scored, 1.0)
        if scale > 0.0:
            # In units of the mean loss, so that busy and quiet runtimes switch alike. Scaled to at most 20 horizons:
            # with 200 scored, a tenth of the sum counts. Unscaled, the sums grow so far apart that one expert would
            # have all the weight, and one burst could move it from one expert to another.
            gain = -_LEARNING_RATE * (self.losses - self.losses.min()) / scale / max(self._scored / 20.0, 1.0)
            weights = self._prior * np.exp(gain)
            self.weights = _MIN_WEIGHT + (1.0 - _MIN_WEIGHT * len(weights)) * weights / weights.sum()
            self._weigh()

    def values(self, now: float, horizon: float, size: int, q: float) -> Floats:
        """What each of size - 1 sandboxes is expected to save, claims per horizon, falling or nearly so.

        Values are linear in the distribution, so they are mixed as the distributions would be. Remembers the experts'
        `q` quantiles, when the last scored horizon lies back far enough, for scoring.
        """
        if self._pending is None and not 0.0 <= now - self._opened_at < self._open_after:
            self._open(now, horizon, size, q)
        if size != self._size:
            self._size, self._due, self._others = size, [-math.inf] * len(self._due), None
        weights = self._mixed
        self.first_values = self._first.values(now, horizon, size)
        self.fresh_values = []
        mixed: Floats = self.first_values * weights[0]
        others = self._others
        for i, due in enumerate(self._due):
            # `now < due - 120`: the clock was set back, and what is cached would be kept for as long as it was set back
            # by.
            if now >= due or now < due - 120.0:
                expert = self.all_experts[i + 1]
                self._due[i] = now + expert.fresh
                foretold = expert.probabilities(now, horizon, size)
                # An expert that answers the same object says that nothing has changed: its values, a cumulative sum
                # over the size, need not be made again.
                if foretold is self._foretold_by[i]:
                    continue
                self._foretold_by[i] = foretold
                self._cached[i] = alone = values_of_stock(foretold)
                self.fresh_values.append((i, alone))
                if i in self._mixed_in:
                    others = None
        if not self._mixed_in:
            return mixed
        if others is None:
            others = np.zeros(size - 1)
            for i in self._mixed_in:
                others += weights[i + 1] * self._cached[i]
            self._others = others
        mixed += others
        return mixed

    def probabilities(self, now: float, horizon: float, size: int) -> Floats:
        """The mixed distribution of claims in (now, now + horizon]."""
        mixed = np.zeros(size)
        for weight, expert in zip(self._mixed, self.experts, strict=True):
            if weight > 0.0:
                mixed += weight * expert.probabilities(now, horizon, size)
        return mixed

    def review_by(self, now: float, horizon: float) -> float:
        """When the forecast changes without new claims, because an expert expects an event; infinity if never."""
        soonest = math.inf
        for expert in self._foreseeing:
            soonest = min(soonest, expert.review_by(now, horizon))
        return soonest

    def _open(self, now: float, horizon: float, size: int, q: float) -> None:
        """Record the forecasts of each expert and of the mixture for the next horizon, to be scored when it closes."""
        each = np.array([expert.probabilities(now, horizon, size) for expert in self.experts])
        mixed = np.array(self._mixed).dot(each)
        self._counts_from = now + self._delay
        self._pending = (self._counts_from + horizon, q, quantiles_of(each, q), quantile_of(mixed, q))
        self._opened_at = now
        self._phase = (self._phase + GOLDEN_RATIO) % 1.0
        self._open_after = _SCORE_INTERVAL_S * (0.25 + 1.5 * self._phase)
        self._counted = 0

    def _weigh(self) -> None:
        """Drop weights below _MIN_MIXED_WEIGHT and scale the rest to a sum of 1."""
        raw = [w if w >= _MIN_MIXED_WEIGHT else 0.0 for w in self.weights.tolist()]
        total = sum(raw)
        self._mixed = [w / total for w in raw]
        self._mixed_in = [i for i, w in enumerate(self._mixed[1:]) if w > 0.0]
        self._others = None

    def shares(self) -> dict[str, float]:
        """Expert name -> weight, rounded to three digits."""
        return {expert.name: round(float(w), 3) for expert, w in zip(self.experts, self.weights, strict=True)}

    def restart_score(self) -> None:
        """Reset the tallies of calibration (a replay does at the end of its warm-up)."""
        self._foretold = self._covered = 0
        self._wanted_sum = self._loss_sum = 0.0

    def calibration(self) -> tuple[float, float, float]:
        """Mean quantile wanted, share of horizons it covered, mean pinball loss in claims; since restart_score."""
        n = max(self._foretold, 1)
        return self._wanted_sum / n, self._covered / n, self._loss_sum / n
