"""mixture.Mixture over its experts: rates, three windows, fast-slow, profile and timers, and bursts apart."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gateway.autoscaler import mixture
from gateway.autoscaler.forecast import Floats
from gateway.autoscaler.mixture import GOLDEN_RATIO
from gateway.autoscaler.replay.compiled import experts, rates
from gateway.autoscaler.replay.compiled.counts import pinball, quantile_of, values_of_stock
from gateway.autoscaler.replay.compiled.experts import (
    BEGAN,
    GAPS,
    Clocks,
    Profile,
    Samples,
    clocks_probabilities,
    clocks_state,
    fast_slow_probabilities,
    observe_clocks,
    observe_fast_slow,
    observe_profile,
    observe_samples,
    profile_probabilities,
    samples_probabilities,
)
from gateway.autoscaler.replay.compiled.jit import compiled
from gateway.autoscaler.replay.compiled.rates import (
    Bursts,
    Rates,
    bursts_probabilities,
    observe_bursts,
    observe_rates,
    rates_probabilities,
    rates_values,
)

_LEARNING_RATE, _MIN_WEIGHT = mixture._LEARNING_RATE, mixture._MIN_WEIGHT
_UNSCORED_MEMORY_S, _SCORE_INTERVAL_S = mixture._UNSCORED_MEMORY_S, mixture._SCORE_INTERVAL_S
_MIN_MIXED_WEIGHT = mixture._MIN_MIXED_WEIGHT
_FAVOURITE = 0.6
MIXED = 7  # experts of the mixture
OTHERS = 7  # asked beside the first: the mixture's other six, and bursts
_PROFILE, _CLOCKS, _BURSTS = 4, 5, 6  # among the others; three windows and fast-slow come before
_NUMBERS = np.dtype(
    [
        *((name, np.float64) for name in ("scored", "wanted_sum", "loss_sum", "opened_at", "open_after", "phase")),
        *((name, np.float64) for name in ("closes", "quantile", "counts_from", "memory_horizons", "delay")),
        *(
            (name, np.int64)
            for name in ("foretold", "covered", "open", "mixed", "counted", "length", "mixed_in", "others_known")
        ),
    ]
)


class Mixture(NamedTuple):
    """The state of a Mixture and of its experts."""

    rates: Rates
    quarter_hour: Samples
    hour: Samples
    whole_day: Samples
    fast_slow: Floats
    profile: Profile
    clocks: Clocks
    bursts: Bursts
    prior: Floats
    weights: Floats
    losses: Floats
    shares: Floats  # of the experts that are mixed in, summing to 1; else 0
    foretold: npt.NDArray[np.int64]  # the open horizon's, per expert
    due: Floats  # of the others
    fresh_for: Floats
    cached: Floats  # [other, n - 1]: what stock is worth by it alone
    is_fresh: npt.NDArray[np.bool_]  # whether that has just changed
    clocks_known: npt.NDArray[np.float64]  # what the cached forecast of timers rests on
    others: Floats  # what stock is worth by the others together
    first: Floats  # what stock is worth by the first
    values: Floats  # and by the mixture
    room: Floats  # for a distribution
    mixed_room: Floats  # and for another
    n: Any  # _NUMBERS


def make_mixture(horizon: float, tick: float, largest: int) -> Mixture:
    """One that has seen nothing."""
    numbers = np.zeros(1, dtype=_NUMBERS).view(np.recarray)[0]
    numbers["opened_at"], numbers["delay"] = -math.inf, tick
    numbers["memory_horizons"] = mixture._MEMORY_HORIZONS
    prior = np.array([_FAVOURITE] + [(1.0 - _FAVOURITE) / (MIXED - 1)] * (MIXED - 1))
    made = Mixture(
        rates.make_rates(horizon, largest), experts.make_samples(900.0, largest),
        experts.make_samples(3600.0, largest), experts.make_samples(86400.0, largest),
        experts.make_fast_slow(), experts.make_profile(), experts.make_clocks(horizon, tick), rates.make_bursts(),
        prior, prior.copy(), np.zeros(MIXED), np.zeros(MIXED), np.zeros(MIXED, np.int64), np.full(OTHERS, -math.inf),
        experts.kept_fresh(), np.zeros((OTHERS, largest)), np.zeros(OTHERS, np.bool_), np.full(6, math.nan),
        np.zeros(largest), np.zeros(largest), np.zeros(largest), np.zeros(largest), np.zeros(largest), numbers,
    )  # fmt: skip
    weigh(made)
    return made


@compiled
def weigh(m: Mixture) -> None:
    """Mixture._weigh."""
    total = 0.0
    for i in range(MIXED):
        m.shares[i] = m.weights[i] if m.weights[i] >= _MIN_MIXED_WEIGHT else 0.0
        total += m.shares[i]
    m.n.mixed_in = 0
    for i in range(MIXED):
        m.shares[i] /= total
        if i > 0 and m.shares[i] > 0.0:
            m.n.mixed_in += 1
    m.n.others_known = 0


@compiled
def observe(m: Mixture, now: float, elapsed: float, claims: int, recent: int) -> None:
    """Mixture.observe; `recent`: the claims of the last horizon."""
    n = m.n
    observe_rates(m.rates, now, elapsed, claims)
    observe_samples(m.quarter_hour, now, recent)
    observe_samples(m.hour, now, recent)
    observe_samples(m.whole_day, now, recent)
    observe_fast_slow(m.fast_slow, elapsed, claims)
    observe_profile(m.profile, now, elapsed, claims)
    observe_clocks(m.clocks, now, claims)
    observe_bursts(m.bursts, elapsed, claims)
    if n.open:
        if n.counts_from < now <= n.closes:
            n.counted += claims
        if now >= n.closes:
            _score(m, now)


@compiled
def _score(m: Mixture, now: float) -> None:
    n = m.n
    n.open = 0
    q, seen = n.quantile, n.counted
    keep = math.exp(-max(now - n.closes, 0.0) / _UNSCORED_MEMORY_S) * (1.0 - 1.0 / n.memory_horizons)
    total, least = 0.0, math.inf
    for i in range(MIXED):
        m.losses[i] = m.losses[i] * keep + pinball(m.foretold[i], seen, q)
        total += m.losses[i]
        least = min(least, m.losses[i])
    n.scored = n.scored * keep + 1.0
    n.foretold += 1
    n.covered += seen <= n.mixed
    n.wanted_sum += q
    n.loss_sum += pinball(n.mixed, seen, q)
    scale = total / MIXED / max(n.scored, 1.0)
    if scale > 0.0:
        weights = m.prior * np.exp(-_LEARNING_RATE * (m.losses - least) / scale / max(n.scored / 20.0, 1.0))
        m.weights[:] = _MIN_WEIGHT + (1.0 - _MIN_WEIGHT * MIXED) * weights / weights.sum()
        weigh(m)


@compiled
def _ask(m: Mixture, other: int, now: float, horizon: float, out: Floats) -> None:
    """The forecast of one of the others."""
    if other == 0:
        samples_probabilities(m.quarter_hour, out)
    elif other == 1:
        samples_probabilities(m.hour, out)
    elif other == 2:
        samples_probabilities(m.whole_day, out)
    elif other == 3:
        fast_slow_probabilities(m.fast_slow, horizon, out)
    elif other == _PROFILE:
        profile_probabilities(m.profile, now, horizon, out)
    elif other == _CLOCKS:
        passed, soon, running = clocks_state(m.clocks, now, horizon)
        clocks_probabilities(m.clocks, passed, soon, running, out)
    else:
        bursts_probabilities(m.bursts, horizon, out)


@compiled
def _open(m: Mixture, now: float, horizon: float, size: int, q: float) -> None:
    """Mixture._open."""
    n, out, mixed = m.n, m.room[:size], m.mixed_room[:size]
    mixed[:] = 0.0
    for i in range(MIXED):
        if i == 0:
            rates_probabilities(m.rates, horizon, out)
        else:
            _ask(m, i - 1, now, horizon, out)
        m.foretold[i] = quantile_of(out, q)
        mixed += m.shares[i] * out
    n.open = 1
    n.counts_from = now + n.delay
    n.closes = n.counts_from + horizon
    n.quantile = q
    n.mixed = quantile_of(mixed, q)
    n.opened_at = now
    n.phase = (n.phase + GOLDEN_RATIO) % 1.0
    n.open_after = _SCORE_INTERVAL_S * (0.25 + 1.5 * n.phase)
    n.counted = 0


@compiled
def _clocks_unchanged(m: Mixture, now: float, horizon: float, size: int) -> bool:
    """Whether the forecast of timers is the one that is kept; remembers what it rests on now."""
    passed, soon, running = clocks_state(m.clocks, now, horizon)
    state = np.array([passed, soon, running, m.clocks.numbers[BEGAN], m.clocks.counts[GAPS], size], dtype=np.float64)
    same = bool((m.clocks_known == state).all())
    m.clocks_known[:] = state
    return same


@compiled
def values(m: Mixture, now: float, horizon: float, size: int, q: float) -> None:
    """Mixture.values, into `values`, `first`, `cached` and `is_fresh`."""
    n = m.n
    if not n.open and not 0.0 <= now - n.opened_at < n.open_after:
        _open(m, now, horizon, size, q)
    if size != n.length:
        n.length, n.others_known = size, 0
        m.due[:] = -math.inf
    rates_values(m.rates, horizon, m.first[: size - 1])
    out = m.room[:size]
    for i in range(OTHERS):
        m.is_fresh[i] = False
        if now >= m.due[i] or now < m.due[i] - 120.0:
            m.due[i] = now + m.fresh_for[i]
            if i == _CLOCKS and _clocks_unchanged(m, now, horizon, size):
                continue
            _ask(m, i, now, horizon, out)
            values_of_stock(out, m.cached[i])
            m.is_fresh[i] = True
            if i < MIXED - 1 and m.shares[i + 1] > 0.0:
                n.others_known = 0
    for k in range(size - 1):
        m.values[k] = m.first[k] * m.shares[0]
    if not n.mixed_in:
        return
    if not n.others_known:
        m.others[: size - 1] = 0.0
        for i in range(MIXED - 1):
            if m.shares[i + 1] > 0.0:
                m.others[: size - 1] += m.shares[i + 1] * m.cached[i, : size - 1]
        n.others_known = 1
    m.values[: size - 1] += m.others[: size - 1]
