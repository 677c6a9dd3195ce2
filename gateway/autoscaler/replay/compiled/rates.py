"""rates.RateBelief and exciting.SelfExciting."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from gateway.autoscaler import exciting, rates
from gateway.autoscaler.exciting import _BRANCHING, _SPANS_S, _SUBCRITICAL
from gateway.autoscaler.forecast import Floats
from gateway.autoscaler.rates import _LOG_RATES, FIRST_PRIOR, HAZARDS, RATES
from gateway.autoscaler.replay.compiled.counts import negative_binomial
from gateway.autoscaler.replay.compiled.jit import compiled

_HAZARDS, _RATES = len(HAZARDS), len(RATES)
_EVIDENCE_MEMORY_S, _PRIOR_MEMORY_S = rates._EVIDENCE_MEMORY_S, rates._PRIOR_MEMORY_S
_SLOTS_A_DAY, _SLOT_MEMORY_S = rates._SLOTS_A_DAY, rates._SLOT_MEMORY_S
_COMMIT_INTERVAL_S, _SAMPLE_INTERVAL_S = rates._COMMIT_INTERVAL_S, rates._SAMPLE_INTERVAL_S
_MIN_EVIDENCE, _MIN_WEIGHT = rates._MIN_EVIDENCE, rates._MIN_WEIGHT
_EVENTS_EVIDENCE_S, _RATE_MEMORY_S = exciting._EVIDENCE_MEMORY_S, exciting._RATE_MEMORY_S
_SIZE_MEMORY = exciting._SIZE_MEMORY
OVERALL_SPAN, UNSEEN, UNCOMMITTED = 0, 1, 2  # in Rates.spans
RATE, SEEN, SIZE, SQUARE, SIZES = 0, 1, 2, 3, 4  # in Bursts.numbers


class Rates(NamedTuple):
    """The state of a RateBelief."""

    rows: Floats  # [hazard + 1, rate]: beliefs, and the prior of jumps
    evidence: Floats  # [hazard]
    weight: Floats  # [hazard]
    overall: Floats  # [rate]
    slots: Floats  # [slot of the day, rate]
    slot_span: Floats
    since_commit: Floats  # [rate]
    spans: Floats
    poisson: Floats  # [rate, count] for the horizon
    erlang: Floats  # [rate, n - 1]


class Bursts(NamedTuple):
    """The state of a SelfExciting."""

    excited: Floats
    evidence: Floats
    weights: Floats
    numbers: Floats


def make_rates(horizon: float, largest: int) -> Rates:
    """A belief that has seen nothing."""
    return Rates(
        np.tile(FIRST_PRIOR, (_HAZARDS + 1, 1)), np.ones(_HAZARDS), np.full(_HAZARDS, 1.0 / _HAZARDS),
        FIRST_PRIOR.copy(), np.tile(FIRST_PRIOR, (_SLOTS_A_DAY, 1)), np.zeros(_SLOTS_A_DAY), np.zeros(_RATES),
        np.array([rates._FIRST_PRIOR_S, 0.0, 0.0]), rates.poisson_table(horizon, largest),
        rates.erlang_values(horizon, largest),
    )  # fmt: skip


def make_bursts() -> Bursts:
    """One that has seen nothing."""
    n = len(_SPANS_S)
    return Bursts(np.zeros(n), np.zeros(n), np.full(n, 1.0 / n), np.array([0.0, 60.0, 1.0, 1.5, 1.0]))


@compiled
def observe_rates(r: Rates, now: float, elapsed: float, claims: int) -> None:
    """RateBelief.observe."""
    likely = claims * _LOG_RATES - RATES * elapsed
    likely = np.exp(likely - likely.max())
    keep = 1.0 - min(elapsed / _EVIDENCE_MEMORY_S, 1.0)
    total, least = 0.0, math.inf
    for i in range(_HAZARDS):
        stays = math.exp(-HAZARDS[i] * elapsed)
        jumped = (1.0 - stays) * r.evidence[i]
        evidence = 0.0
        for j in range(_RATES):
            belief = (stays * r.rows[i, j] + jumped * r.rows[_HAZARDS, j]) * likely[j]
            r.rows[i, j] = belief
            evidence += belief
        r.weight[i] = r.weight[i] ** keep * evidence / r.evidence[i] + _MIN_WEIGHT
        total += r.weight[i]
        r.evidence[i] = evidence
        least = min(least, evidence)
    for i in range(_HAZARDS):
        r.weight[i] /= total
        if least < _MIN_EVIDENCE:
            r.rows[i] /= r.evidence[i]
            r.evidence[i] = 1.0
    r.spans[UNSEEN] += elapsed
    r.spans[UNCOMMITTED] += elapsed
    if r.spans[UNSEEN] >= _SAMPLE_INTERVAL_S or r.spans[UNCOMMITTED] >= _COMMIT_INTERVAL_S:
        r.since_commit[:] += _belief_ahead(r, 0.0) * r.spans[UNSEEN]
        r.spans[UNSEEN] = 0.0
        if r.spans[UNCOMMITTED] >= _COMMIT_INTERVAL_S:
            _commit(r, now)


@compiled
def _commit(r: Rates, now: float) -> None:
    span = r.spans[UNCOMMITTED]
    seen = r.since_commit / span
    r.spans[OVERALL_SPAN] = min(r.spans[OVERALL_SPAN] + span, _PRIOR_MEMORY_S)
    r.overall[:] += (seen - r.overall) * min(span / r.spans[OVERALL_SPAN], 1.0)
    slot = int(now % 86400.0 * _SLOTS_A_DAY / 86400.0)
    known_for = r.slot_span[slot] = min(r.slot_span[slot] + span, _SLOT_MEMORY_S)
    r.slots[slot] += (seen - r.slots[slot]) * min(span / known_for, 1.0)
    r.rows[_HAZARDS] = r.overall + 0.5 * known_for / (known_for + 1800.0) * (r.slots[slot] - r.overall)
    r.since_commit[:] = 0.0
    r.spans[UNCOMMITTED] = 0.0


@compiled
def _belief_ahead(r: Rates, seconds: float) -> Floats:
    """The belief of all filters together, `seconds` from now."""
    left, ahead = 0.0, np.zeros(_RATES)
    for i in range(_HAZARDS):
        kept = r.weight[i] * math.exp(-HAZARDS[i] * seconds)
        left += kept
        factor = kept / r.evidence[i]
        for j in range(_RATES):
            ahead[j] += factor * r.rows[i, j]
    for j in range(_RATES):
        ahead[j] += (1.0 - left) * r.rows[_HAZARDS, j]
    return ahead


@compiled
def _through(belief: Floats, table: Floats, out: Floats) -> None:
    """The product of a belief and the first columns of a table."""
    out[:] = 0.0
    for j in range(_RATES):
        for n in range(len(out)):
            out[n] += belief[j] * table[j, n]


@compiled
def rates_probabilities(r: Rates, horizon: float, out: Floats) -> None:
    """RateBelief.probabilities."""
    _through(_belief_ahead(r, horizon / 2.0), r.poisson, out)


@compiled
def rates_values(r: Rates, horizon: float, out: Floats) -> None:
    """RateBelief.values."""
    _through(_belief_ahead(r, horizon / 2.0), r.erlang, out)


@compiled
def observe_bursts(b: Bursts, elapsed: float, claims: int) -> None:
    """SelfExciting.observe."""
    n = b.numbers
    left = np.exp(-elapsed / _SPANS_S)
    expected = n[RATE] * elapsed * _SUBCRITICAL + b.excited * (_BRANCHING * (1.0 - left)) + 1e-9
    b.evidence[:] *= 1.0 - min(elapsed / _EVENTS_EVIDENCE_S, 1.0)
    b.evidence[:] -= expected
    b.excited[:] *= left
    n[SEEN] = min(n[SEEN] + elapsed, _RATE_MEMORY_S)
    n[RATE] += ((1.0 if claims else 0.0) / elapsed - n[RATE]) * min(elapsed / n[SEEN], 1.0)
    if claims:
        b.evidence[:] += np.log(-np.expm1(-expected)) + expected
        weights = np.exp(b.evidence - b.evidence.max())
        b.weights[:] = weights / weights.sum()
        b.excited[:] += 1.0
        n[SIZES] = min(n[SIZES] + 1.0, _SIZE_MEMORY)
        n[SIZE] += (claims - n[SIZE]) / n[SIZES]
        n[SQUARE] += (claims * claims - n[SQUARE]) / n[SIZES]


@compiled
def bursts_probabilities(b: Bursts, horizon: float, out: Floats) -> None:
    """SelfExciting.probabilities."""
    n = b.numbers
    mean = square = 0.0
    for i in range(len(_SPANS_S)):
        brings = _BRANCHING[i] * -math.expm1(-_SUBCRITICAL[i] * horizon / _SPANS_S[i]) / _SUBCRITICAL[i]
        spread = (1.0 / _SUBCRITICAL[i] ** 2 - 1.0) * -math.expm1(-horizon / _SPANS_S[i])
        events = max(n[RATE] * horizon + brings * (b.excited[i] - n[RATE] * _SPANS_S[i]), 1e-9)
        mean += b.weights[i] * events
        square += b.weights[i] * (events * (1.0 + spread) + events**2)
    if mean <= 1e-9:
        negative_binomial(0.0, 1.0, out)
        return
    claims = mean * n[SIZE]
    total = mean * (n[SQUARE] - n[SIZE] ** 2) + (square - mean**2) * n[SIZE] ** 2
    negative_binomial(claims, max(total / claims - 1.0, 0.02), out)
