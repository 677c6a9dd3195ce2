"""shadow.Shadow and follower.Follower."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gateway.autoscaler import follower, shadow
from gateway.autoscaler.follower import Objective
from gateway.autoscaler.forecast import Floats
from gateway.autoscaler.replay.compiled.jit import compiled
from gateway.autoscaler.shadow import A_FAMILY, THRESHOLDS, constant_levels

_MAX_MEMORY_S, _MIN_MEMORY_S = shadow._MAX_MEMORY_S, shadow._MIN_MEMORY_S
_MIN_REMEMBERED_CLAIMS, _AGE_TO_MEMORY = shadow._MIN_REMEMBERED_CLAIMS, shadow._AGE_TO_MEMORY
_GROUPS_A_LEAD, _MAX_GROUPS = shadow._GROUPS_A_LEAD, shadow._MAX_GROUPS
_CHOICE_INTERVAL_S, _FEW_MISSES = shadow.CHOICE_INTERVAL_S, shadow._FEW_MISSES
_SWITCH_MARGIN, _MIN_CLAIMS = follower._SWITCH_MARGIN, follower._MIN_CLAIMS
_FORECAST_MARGIN, _SMALL_SAMPLE_MARGIN = follower._FORECAST_MARGIN, follower._SMALL_SAMPLE_MARGIN
CLAIMS, SPAN, SINCE, AGE, LEAD, EXPERT_MARGIN, YOUNG_S, KEPT = 0, 1, 2, 3, 4, 5, 6, 7  # in Pools.numbers
FIRST, LENGTH, RULES, JOINS = 0, 1, 2, 3  # in Pools.counts
TARGET, COLD_START, CEILING, THRESHOLD = 0, 1, 2, 3  # the columns of Followers.objective
RULE, GUESS, PROVEN = 0, 1, 2  # those of Followers.state


class Pools(NamedTuple):
    """The state of a Shadow."""

    levels: Floats
    ready: Floats
    served: Floats
    idle: Floats
    missed: Floats
    kept: Floats  # of `served`, what was left after the last choice
    worst: Floats
    second: Floats
    once: Floats
    wanted: npt.NDArray[np.int64]  # [family, threshold]
    order_at: Floats  # a ring
    orders: Floats  # [order, rule]
    numbers: Floats
    counts: npt.NDArray[np.int64]


class Followers(NamedTuple):
    """The state of Followers: a row each."""

    objective: Floats
    state: npt.NDArray[np.int64]


def make_pools(lead: float, tick: float, most: int, families: int, *, joins: bool) -> Pools:
    """Pools that have seen nothing."""
    rules = A_FAMILY * families
    constants = np.array(constant_levels(most), dtype=np.float64)
    levels = np.concatenate((np.zeros(rules), constants))
    # A tick orders for each group of its claims, and for levels that have changed.
    kept = (int(lead / tick) + 3) * (_MAX_GROUPS + 3 if lead < 8 * tick else 3)
    return Pools(
        levels, levels.copy(), np.zeros(len(levels)), np.zeros(len(levels)), np.zeros(len(levels)),
        np.zeros(len(levels)), np.zeros(len(levels)), np.zeros(len(levels)), np.zeros(len(levels)),
        np.zeros((families, A_FAMILY), np.int64), np.zeros(kept), np.zeros((kept, len(levels))),
        np.array([0.0, 0.0, 0.0, 0.0, lead, follower._EXPERT_MARGIN, follower._YOUNG_S, 0.0]),
        np.array([0, 0, rules, joins], dtype=np.int64),
    )  # fmt: skip


def make_followers(objectives: Sequence[Objective], lead: float) -> Followers:
    """Followers that have chosen nothing."""
    firsts = [int(np.abs(np.log(THRESHOLDS / each.first_threshold(lead))).argmin()) for each in objectives]
    rows = [
        [
            each.target_miss_rate,
            math.nan if each.cold_start_cost is None else each.cold_start_cost,
            math.nan if each.price_ceiling is None else each.price_ceiling,
            float(THRESHOLDS[first]),
        ]
        for each, first in zip(objectives, firsts, strict=True)
    ]
    return Followers(np.array(rows), np.array([[first, first, 0] for first in firsts], dtype=np.int64))


@compiled
def observe_pools(
    p: Pools, f: Followers, now: float, elapsed: float, claims: int, times: Floats, came_at: int, known: int
) -> None:
    """Shadow.observe; the times are `known` of `times` from `came_at` on."""
    n = p.numbers
    since, rest = now - elapsed, claims
    if claims:
        p.missed[:] = 0.0
    at = since
    if known and now - max(times[came_at], since) > n[LEAD] / _GROUPS_A_LEAD:
        width = max(n[LEAD] / _GROUPS_A_LEAD, (times[came_at + known - 1] - times[came_at]) / _MAX_GROUPS)
        first, came, last = times[came_at], 0, since
        for i in range(came_at, came_at + known):
            if came and times[i] - first > width:
                _advance(p, at, last)
                _claim(p, last, came)
                at, rest = last, rest - came
                first, came = times[i], 0
            came, last = came + 1, min(max(times[i], last), now)
        _advance(p, at, last)
        _claim(p, last, came)
        at, rest = last, rest - came
    _advance(p, at, now)
    if rest:
        _claim(p, now, rest)
    n[CLAIMS] += claims
    n[SPAN] += elapsed
    n[SINCE] += elapsed
    if n[SINCE] >= _CHOICE_INTERVAL_S:
        _choose_all(p, f)


@compiled
def _advance(p: Pools, since: float, until: float) -> None:
    joins, kept = p.counts[JOINS] == 1, len(p.order_at)
    for rule in range(len(p.ready)):
        ready = p.ready[rule]
        p.idle[rule] += (max(ready, 0.0) if joins else ready) * (until - since)
    while p.counts[LENGTH] and p.order_at[p.counts[FIRST]] <= until:
        first = p.counts[FIRST]
        at, arrived = p.order_at[first], p.orders[first]
        p.counts[FIRST] = (first + 1) % kept
        p.counts[LENGTH] -= 1
        for rule in range(len(arrived)):
            ready = p.ready[rule]
            if joins:
                p.idle[rule] += (max(ready + arrived[rule], 0.0) - max(ready, 0.0)) * (until - at)
            else:
                p.idle[rule] += arrived[rule] * (until - at)
            p.ready[rule] = ready + arrived[rule]


@compiled
def _new_order(p: Pools, at: float) -> Floats:
    """A row of orders that are ready at a time, to be filled."""
    index = (p.counts[FIRST] + p.counts[LENGTH]) % len(p.order_at)
    p.counts[LENGTH] += 1
    p.order_at[index] = at
    order: Floats = p.orders[index]
    return order


@compiled
def _claim(p: Pools, now: float, claims: int) -> None:
    joins = p.counts[JOINS] == 1
    order = _new_order(p, now + p.numbers[LEAD])
    for rule in range(len(p.ready)):
        ready = p.ready[rule]
        served = min(max(ready, 0.0) if joins else ready, float(claims))
        p.served[rule] += served
        order[rule] = claims if joins else served
        p.ready[rule] = ready - order[rule]
        p.missed[rule] += claims - served


@compiled
def _choose_all(p: Pools, f: Followers) -> None:
    n = p.numbers
    n[AGE] += n[SINCE]
    memory = min(max(n[AGE] / _AGE_TO_MEMORY, _MIN_MEMORY_S), _MAX_MEMORY_S)
    if n[CLAIMS] < _MIN_REMEMBERED_CLAIMS:
        memory = _MAX_MEMORY_S
    keep = 1.0 - min(n[SINCE] / memory, 1.0)
    n[SINCE] = 0.0
    for rule in range(len(p.served)):
        missed = (n[CLAIMS] - n[KEPT]) - (p.served[rule] - p.kept[rule])
        p.second[rule] = keep * max(p.second[rule], min(missed, p.worst[rule]))
        p.worst[rule] = keep * max(p.worst[rule], missed)
        p.once[rule] = max(p.worst[rule] - max(p.second[rule], _FEW_MISSES), 0.0)
    p.served[:] *= keep
    p.idle[:] *= keep
    n[CLAIMS] *= keep
    n[SPAN] *= keep
    p.kept[:], n[KEPT] = p.served, n[CLAIMS]
    for i in range(len(f.state)):
        _choose(p, f.objective[i], f.state[i])


@compiled
def _argmin(values: Floats, allowed: npt.NDArray[np.bool_], first: int, end: int) -> int:
    """The index of the least allowed value; `first` where none is."""
    best, least = first, math.inf
    for i in range(first, end):
        if allowed[i] and values[i] < least:
            best, least = i, values[i]
    return best


@compiled
def _ahead(p: Pools, rule: int) -> float:
    return float(p.levels[rule] * _CHOICE_INTERVAL_S)


@compiled
def _handicap(p: Pools) -> float:
    few = _SMALL_SAMPLE_MARGIN / math.sqrt(max(p.numbers[CLAIMS], 1.0))
    return float(p.numbers[EXPERT_MARGIN] + few + p.numbers[YOUNG_S] / max(p.numbers[AGE], 1.0))


@compiled
def _idle_at(served: Floats, cost: Floats, wanted: float) -> float:
    """np.interp(wanted, np.maximum.accumulate(served), cost), for the mixture's rules."""
    rising = served[:A_FAMILY].copy()
    for i in range(1, A_FAMILY):
        rising[i] = max(rising[i], rising[i - 1])
    at = int(np.searchsorted(rising, wanted, side="right")) - 1
    if at < 0:
        return float(cost[0])
    if at >= A_FAMILY - 1 or rising[at] == wanted:
        return float(cost[at] if at < A_FAMILY - 1 else cost[A_FAMILY - 1])
    return float((cost[at + 1] - cost[at]) / (rising[at + 1] - rising[at]) * (wanted - rising[at]) + cost[at])


@compiled
def _constant_idle(p: Pools, served: float) -> float:
    """Shadow.constant_idle."""
    rules = p.counts[RULES]
    by_level, idle = p.served[rules:], p.idle[rules:]
    at = np.searchsorted(by_level, min(served, by_level[-1]) - 1e-9)
    if at == 0:
        return 0.0
    share = (served - by_level[at - 1]) / (by_level[at] - by_level[at - 1])
    return float(idle[at - 1] + min(share, 1.0) * (idle[at] - idle[at - 1]))


@compiled
def _choose(p: Pools, objective: Floats, state: npt.NDArray[np.int64]) -> None:
    """Follower.choose and all that it calls."""
    claims, rules, everything = p.numbers[CLAIMS], p.counts[RULES], len(p.idle)
    if claims < _MIN_CLAIMS:
        state[RULE] = state[GUESS]
        return
    by_costs = not math.isnan(objective[COLD_START])
    cost: Floats = p.idle.copy()
    missed: Floats = claims - p.served
    if by_costs:
        cost += objective[COLD_START] * missed
        budget = math.inf
    else:
        missed -= p.once
        unavoidable = missed.min()
        budget = unavoidable + objective[TARGET] * (claims - unavoidable)
        if not math.isnan(objective[CEILING]):
            again = claims - p.served - p.worst
            dearest = int((p.idle + objective[CEILING] * again).argmin())
            budget = max(budget, missed[dearest])
        budget += 1e-9 * claims
    allowed = missed <= budget
    foreseeing = _argmin(cost, allowed, 0, A_FAMILY)
    expert = _argmin(cost, allowed, A_FAMILY, rules)
    price = cost[foreseeing] if allowed[foreseeing] else math.inf
    if not by_costs and allowed[foreseeing]:
        price = min(price, _idle_at(p.served, cost, p.served[expert]))
    if allowed[expert] and cost[expert] + _ahead(p, expert) < (1.0 - _handicap(p)) * price:
        foreseeing = expert
    constant = _argmin(cost, allowed, rules, everything)
    if not allowed[constant]:
        best = foreseeing
    elif not allowed[foreseeing]:
        best = constant
    else:
        price = cost[constant] if by_costs else _constant_idle(p, p.served[foreseeing])
        margin = 0.0 if state[PROVEN] else _FORECAST_MARGIN + _SMALL_SAMPLE_MARGIN / math.sqrt(claims)
        spent = cost[foreseeing]
        if foreseeing >= A_FAMILY:
            margin += _handicap(p)
            spent += _ahead(p, foreseeing)
        best = foreseeing if spent <= (1.0 - margin) * price else constant
    state[PROVEN] = best < rules
    rule = state[RULE]
    same = (best < rules) == (rule < rules)
    if not same or not allowed[rule] or cost[best] < cost[rule] - _SWITCH_MARGIN * abs(cost[rule]):
        state[RULE] = best


@compiled
def update_levels(p: Pools, now: float, values: Floats, family: int) -> None:
    """Shadow.update."""
    size, falling = len(values), True
    for n in range(1, size):
        falling &= not values[n] > values[n - 1]
    level, order = 0, -1
    if not falling:
        values = values.cumsum()  # what all sandboxes up to each save
    for threshold in range(A_FAMILY):
        if falling:
            while level < size and values[level] > THRESHOLDS[threshold]:
                level += 1
        else:
            best = values[0] - THRESHOLDS[threshold]
            level = 1
            for n in range(1, size):
                gain = values[n] - (n + 1.0) * THRESHOLDS[threshold]
                if gain > best:
                    best, level = gain, n + 1
            if not best > 0.0:
                level = 0
        was, rule = p.wanted[family, threshold], family * A_FAMILY + threshold
        if level > was:
            if order < 0:
                order = _order_of_now(p, now + p.numbers[LEAD])
            p.orders[order, rule] += level - was
        elif level < was:
            _cancel(p, now, rule, was - level)
        p.wanted[family, threshold] = level
        p.levels[rule] = level


@compiled
def _order_of_now(p: Pools, ready_at: float) -> int:
    """The row of orders of this look: a claim or another family may have ordered."""
    kept = len(p.order_at)
    last = (p.counts[FIRST] + p.counts[LENGTH] - 1) % kept
    if not p.counts[LENGTH] or p.order_at[last] != ready_at:
        _new_order(p, ready_at)[:] = 0.0
        last = (p.counts[FIRST] + p.counts[LENGTH] - 1) % kept
    return int(last)


@compiled
def _cancel(p: Pools, now: float, rule: int, surplus: float) -> None:
    """Shadow._cancel."""
    kept = len(p.order_at)
    for back in range(p.counts[LENGTH] - 1, -1, -1):
        index = (p.counts[FIRST] + back) % kept
        cancelled = min(p.orders[index, rule], surplus)
        if cancelled > 0.0:
            p.orders[index, rule] -= cancelled
            p.idle[rule] += cancelled * max(now - p.order_at[index] + p.numbers[LEAD], 0.0)
            surplus -= cancelled
            if surplus <= 0.0:
                return
    p.ready[rule] -= surplus
