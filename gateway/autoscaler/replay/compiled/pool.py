"""replay/pool.simulate for targets that are known beforehand, and lab's pools of one size."""

from __future__ import annotations

import math

import numpy as np

from gateway.autoscaler.forecast import Floats
from gateway.autoscaler.replay.compiled.jit import compiled
from gateway.autoscaler.replay.pool import Outcome, Targets, largest_shortfall


def simulate(
    arrivals: Floats, targets: Targets, *, lead: float, scored_from: float, end: float, joins: bool = False
) -> Outcome:
    """pool.simulate, its arithmetic step by step."""
    compact = targets.compact()
    counts, sums, missed, waits = _simulate(
        np.append(arrivals, end), np.append(compact.times, math.inf), compact.levels.astype(np.int64), lead,
        scored_from, end, joins,
    )  # fmt: skip
    hits, claims, orders = counts.tolist()
    idle, held = sums.tolist()
    worst = largest_shortfall(missed, lead)
    return Outcome(claims, hits, idle, held, end - scored_from, orders, worst, missed, waits)


@compiled
def _simulate(
    claims_at: Floats, times: Floats, levels: Floats, lead: float, scored_from: float, end: float, joins: bool
) -> tuple[Floats, Floats, Floats, Floats]:
    """(hits, claims and orders; idle and held seconds; times of misses; their waits)"""
    ready = target = orders = hits = claims = at_claim = at_change = 0
    idle = held = before = 0.0
    most = len(claims_at) + (levels.max() if len(levels) else 0) + 1
    starts, first, starting = np.zeros(most), 0, 0  # a ring: when each was ordered
    missed, misses, waits, waited = np.zeros(len(claims_at)), 0, np.zeros(len(claims_at)), 0
    waiting, served, queued = np.zeros(len(claims_at)), 0, 0  # since when claims wait; how many of them do no more; all
    while True:
        claim, change = claims_at[at_claim], times[at_change]
        soonest = starts[first] + lead if starting else end
        now = min(claim, change, soonest)
        if now > scored_from:
            passed = now - max(before, scored_from)
            idle += ready * passed
            held += (ready + starting) * passed
        before = now
        if now >= end:
            break
        if starting and soonest <= now:
            ordered = starts[first]
            first, starting = (first + 1) % most, starting - 1
            if served < queued:
                if waiting[served] >= scored_from:
                    waits[waited] = now - waiting[served]
                    waited += 1
                served += 1
            elif not joins or ready < target:
                ready += 1
            elif now > scored_from:
                idle += now - ordered
        elif change <= now:
            target = levels[at_change]
            at_change += 1
            surplus = (ready if joins else ready + starting) - target
            while surplus > 0 and starting and not joins:
                starting -= 1
                surplus -= 1
                if now > scored_from:
                    idle += now - starts[(first + starting) % most]
            if surplus > 0:
                ready -= surplus
        else:
            at_claim += 1
            counted = now >= scored_from
            claims += counted
            if ready:
                ready -= 1
                hits += counted
            else:
                if counted:
                    missed[misses] = now
                    misses += 1
                if joins:
                    waiting[queued] = now
                    queued += 1
                elif counted:
                    waits[waited] = lead
                    waited += 1
        short = target + queued - served - ready - starting
        if short > 0:
            for _ in range(short):
                starts[(first + starting) % most] = now
                starting += 1
            orders += short if now >= scored_from else 0
    return np.array([hits, claims, orders]), np.array([idle, held]), missed[:misses], waits[:waited]


@compiled
def served(arrivals: Floats, size: int, lead: float, scored_from: float) -> tuple[int, float, int]:
    """lab's `_served`."""
    ring, at, hits, claims = np.full(size, -1e18), 0, 0, 0
    for now in arrivals:
        counted = now >= scored_from
        claims += counted
        if ring[at] <= now:
            ring[at] = now + lead
            at = at + 1 if at + 1 < size else 0
            hits += counted
    return hits, 0.0, claims
