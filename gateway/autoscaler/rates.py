"""The forecaster that carries most of the weight: a Bayesian belief about the present rate of claims.

The rate is one of RATES, logarithmically spaced. Between claims it either stays or, at some hazard, jumps to a rate
drawn from what this runtime's rates have been (over all time, and at this time of day). That is a Markov-modulated
Poisson process, and its filter is exact: multiply by the likelihood of what came, mix in the jumps. Since nobody
knows the hazard, several filters run side by side and are weighed by how well each foretold the claims. The forecast
is a mixture of Poisson distributions, so it is over-dispersed just as much as the rate is uncertain.

Sources: Fearnhead & Sherlock, "An exact Gibbs sampler for the Markov-modulated Poisson process" (JRSS B 68, 2006),
for the filter; Adams & MacKay, "Bayesian online changepoint detection" (2007), for hazard and jump prior; Herbster &
Warmuth, "Tracking the best expert" (1998), for weighing filters with forgetting. A rate that is uncertain and changes
with traffic follows RobustScaler (ICDE 2022), which models it as a non-homogeneous Poisson process.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from operator import mul, truediv

import numpy as np

from gateway.autoscaler.forecast import BackwardLooking, Floats, counts_up_to, log_factorials

RATES: Floats = np.logspace(-5.0, 2.5, 76)  # claims a second: one a day to 316, in steps of 26 %
# What rates are before anything is seen: as likely at each step up to one in 50 s, then falling with rate^1.5. Were
# every rate as likely, a claim in a runtime's first seconds would be one of hundreds: 278 sandboxes at a lead of 10 s.
FIRST_PRIOR: Floats = 1.0 / (1.0 + RATES / 0.02) ** 1.5
FIRST_PRIOR /= FIRST_PRIOR.sum()
_LOG_RATES: Floats = np.log(RATES)
_ONES: Floats = np.ones(len(RATES))
HAZARDS: Floats = np.array([1 / 15, 1 / 60, 1 / 240, 1 / 1000, 1 / 4000])  # jumps a second
_EVIDENCE_MEMORY_S = 3 * 3600.0  # seconds; how long a filter's past success counts
_PRIOR_MEMORY_S = 3 * 86400.0  # seconds over which the jump prior is averaged
_FIRST_PRIOR_S = 600.0  # seconds that the first prior counts for
_TAUGHT_S = 3600.0  # seconds that another runtime must have been seen to say something of new ones
_SLOTS_A_DAY = 48  # of a day
_SLOT_MEMORY_S = 10 * 86400.0 / _SLOTS_A_DAY  # ten days' worth of one slot
_COMMIT_INTERVAL_S = 60.0  # seconds between updates of the jump priors
_SAMPLE_INTERVAL_S = 15.0  # seconds at least between two of the beliefs that a minute's mean is taken of
_NO_JUMP = (1.0,) * len(HAZARDS)  # no jump
_MIN_EVIDENCE = 1e-30  # a belief that sums to less is brought back to 1
_MIN_WEIGHT = 1e-280  # weight that a filter keeps, so that it can come back


@lru_cache(maxsize=1024)
def _moves(elapsed: float) -> tuple[Floats, Floats, Floats]:
    """([hazard, hazard + 1]: the share of each filter's belief that stays within `elapsed` seconds, then what jumps;
    that last column of it, to be written before each use: jumps times the sum of the belief; jumps, each a share).
    """
    stays = np.exp(-HAZARDS * elapsed)
    jumps: Floats = 1.0 - stays
    moves = np.column_stack((np.diag(stays), jumps))
    return moves, moves[:, -1], jumps


@lru_cache(maxsize=64)
def _stay_half(horizon: float) -> tuple[float, ...]:
    """The chance, per hazard, that the rate has not jumped half a horizon from now."""
    return tuple(np.exp(-HAZARDS * horizon / 2.0).tolist())


@lru_cache(maxsize=1024)
def _likelihood(elapsed: float, claims: int) -> Floats:
    """[hazard, rate]: the likelihood of the claims at each rate, up to a factor; the rows are all alike, since numpy
    multiplies equal shapes three times as fast as it repeats a row.
    """
    logs = claims * _LOG_RATES - RATES * elapsed
    out: Floats = np.tile(np.exp(logs - logs.max()), (len(HAZARDS), 1))
    return out


@lru_cache(maxsize=64)
def poisson_table(horizon: float, size: int) -> Floats:
    """[rate, count]: probabilities of 0 .. size - 1 claims within the horizon at each of RATES."""
    mean = (RATES * horizon)[:, None]
    return np.exp(counts_up_to(size) * np.log(mean) - mean - log_factorials(size))


@lru_cache(maxsize=64)
def erlang_values(horizon: float, size: int) -> Floats:
    """[rate, n - 1]: the claims per horizon that the n-th sandbox saves at each of RATES, exact for Poisson claims.

    Erlang's loss formula by its recursion B(n) = a B(n-1) / (n + a B(n-1)), a = rate x horizon (Erlang 1917).
    """
    load = RATES * horizon
    blocked = np.ones((size, len(RATES)))
    for n in range(1, size):
        blocked[n] = load * blocked[n - 1] / (n + load * blocked[n - 1])
    return np.ascontiguousarray((load * (blocked[:-1] - blocked[1:])).T)


def prior_from(beliefs: Iterable[RateBelief]) -> Floats:
    """What to expect of a new runtime: what the rates of others have been, and FIRST_PRIOR with the weight of two."""
    others = [belief.overall for belief in beliefs if belief.known_for >= _TAUGHT_S]
    out: Floats = np.sum([FIRST_PRIOR, FIRST_PRIOR, *others], axis=0) / (2.0 + len(others))
    return out


class RateBelief(BackwardLooking):
    """Filters over RATES at each of HAZARDS. Time of day is UTC's; 40 kB of state.

    `prior`: what rates to expect before anything is seen, and for the first ten minutes mostly.
    """

    name = "rates"
    fresh = 0.0

    def __init__(self, prior: Floats = FIRST_PRIOR) -> None:
        n = len(HAZARDS)
        # Each filter's belief up to a factor, and below them the prior of the jumps: one product moves them all.
        self._rows: Floats = np.tile(prior, (n + 1, 1))
        self._belief = self._rows[:n]
        self._prior = self._rows[n]
        self._evidence: Floats = np.ones(n)  # what the rows of the belief sum to
        self._sums = [1.0] * n  # the same as plain floats
        self._moved: Floats = np.empty((n, len(RATES)))
        self._weight = [1.0 / n] * n  # of the filters
        self.overall: Floats = prior
        self._overall_span = _FIRST_PRIOR_S
        self._slots: Floats = np.tile(prior, (_SLOTS_A_DAY, 1))
        self._slot_span = [0.0] * _SLOTS_A_DAY
        self._unseen = 0.0  # seconds since a belief was last taken into the minute's mean
        self._since_commit: Floats = np.zeros(len(RATES))
        self._uncommitted = 0.0

    @property
    def known_for(self) -> float:
        """Seconds that it has seen, at most those that it remembers."""
        return self._overall_span - _FIRST_PRIOR_S

    def observe(self, now: float, elapsed: float, claims: int) -> None:
        """`claims` came in the `elapsed` seconds that end at `now`."""
        belief, moved, evidence = self._belief, self._moved, self._evidence
        moves, jumped, jumps = _moves(elapsed)
        np.multiply(jumps, evidence, jumped)
        moves.dot(self._rows, moved)
        np.multiply(moved, _likelihood(elapsed, claims), belief)
        belief.dot(_ONES, evidence)
        # Five numbers: plain floats are three times as fast here as numpy's calls.
        keep = 1.0 - min(elapsed / _EVIDENCE_MEMORY_S, 1.0)
        sums: list[float] = evidence.tolist()
        raw = [
            weight**keep * new / old + _MIN_WEIGHT
            for weight, new, old in zip(self._weight, sums, self._sums, strict=True)
        ]
        total = sum(raw)
        self._weight = [each / total for each in raw]
        if min(sums) < _MIN_EVIDENCE:
            belief /= evidence[:, None]
            evidence.fill(1.0)
            sums = [1.0] * len(sums)
        self._sums = sums
        self._unseen += elapsed
        self._uncommitted += elapsed
        if self._unseen >= _SAMPLE_INTERVAL_S or self._uncommitted >= _COMMIT_INTERVAL_S:
            self._since_commit += self._belief_ahead(_NO_JUMP) * self._unseen
            self._unseen = 0.0
            if self._uncommitted >= _COMMIT_INTERVAL_S:
                self._commit(now)

    def _commit(self, now: float) -> None:
        """Fold the last minute's belief into the priors of the jumps, and choose the prior for this time of day."""
        span = self._uncommitted
        seen = self._since_commit / span
        self._overall_span = min(self._overall_span + span, _PRIOR_MEMORY_S)
        self.overall = self.overall + (seen - self.overall) * min(span / self._overall_span, 1.0)
        slot = int(now % 86400.0 * _SLOTS_A_DAY / 86400.0)
        known_for = self._slot_span[slot] = min(self._slot_span[slot] + span, _SLOT_MEMORY_S)
        of_slot = self._slots[slot]
        of_slot += (seen - of_slot) * min(span / known_for, 1.0)
        self._prior[:] = self.overall + 0.5 * known_for / (known_for + 1800.0) * (of_slot - self.overall)
        self._since_commit = np.zeros(len(RATES))
        self._uncommitted = 0.0

    def probabilities(self, now: float, horizon: float, size: int) -> Floats:
        """P(claims in (now, now + horizon] = 0 .. size - 1), with the jumps that half a horizon brings."""
        out: Floats = self._belief_ahead(_stay_half(horizon)).dot(poisson_table(horizon, size))
        return out

    def values(self, now: float, horizon: float, size: int) -> Floats:
        """What each of size - 1 sandboxes saves, claims per horizon (see forecast.values_of_stock)."""
        out: Floats = self._belief_ahead(_stay_half(horizon)).dot(erlang_values(horizon, size))
        return out

    def _belief_ahead(self, stays: tuple[float, ...]) -> Floats:
        """The belief of all filters together at a time until which each stays with that chance."""
        kept = list(map(mul, self._weight, stays))
        factors = list(map(truediv, kept, self._sums))
        factors.append(1.0 - sum(kept))
        ahead: Floats = np.array(factors).dot(self._rows)
        return ahead

    def rate(self) -> float:
        """The mean of the belief, claims a second."""
        return float(self._belief_ahead(_NO_JUMP) @ RATES)
