"""The policy under test: `Demand` and `decide`, called as the live loop calls them, once a tick in virtual time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from gateway.autoscaler.demand import Demand
from gateway.autoscaler.replay.pool import Targets
from gateway.autoscaler.replay.traces import Trace
from gateway.autoscaler.scaler import Decision, Observed, ScalerSpec, decide
from gateway.autoscaler.shadow import Follower, Objective
from gateway.autoscaler.window import RollingCount

Progress = Callable[[float], None]


@dataclass(frozen=True)
class Calibration:
    """How the mixture's wanted quantile did on the scored part."""

    wanted: float  # mean quantile that was wanted
    covered: float  # share of horizons with no more claims than foretold
    pinball: float  # mean loss per horizon, claims
    weights: dict[str, float]  # experts at the end


def replay_predictive(
    trace: Trace,
    objectives: Sequence[Objective],
    *,
    lead: float,
    tick: float,
    spec: ScalerSpec,
    joins: bool = False,
    progress: Progress | None = None,
) -> tuple[list[Targets], Calibration]:
    """Targets for each objective. One pass serves all: what is learned does not depend on the objective, but for the
    quantile at which experts are scored, which is the first objective's.

    A tick at which nothing is due is skipped, as in the live loop.
    """
    demand = Demand(objectives[0], lead=lead, tick=tick, most=spec.max, joins=joins)
    followers = [demand.follower] + [Follower(objective, demand.shadow) for objective in objectives[1:]]
    missed = [RollingCount(demand.horizon) for _ in objectives]
    decisions: list[Decision] = [Decision(0, 0, "hold", "")] * len(objectives)
    times: list[float] = []
    levels: list[list[int]] = [[] for _ in objectives]
    ticks = np.floor((trace.arrivals - trace.start) / tick) + 1.0
    busy, counts = np.unique(ticks, return_counts=True)
    busy_at, claims_at = (trace.start + busy * tick).tolist(), counts.tolist()
    busy_at.append(math.inf)
    claims_at.append(0)
    at, now, warm, reported = 0, trace.start + tick, trace.start + 0.3 * trace.span, 0
    while now < trace.end:
        claims = 0
        if busy_at[at] <= now:
            claims = claims_at[at]
            at += 1
        demand.observe(now, claims)
        forecast = demand.forecast(now)
        times.append(now)
        recent = demand.recent.total
        for i, follower in enumerate(followers):
            last = decisions[i]
            misses = missed[i]
            misses.add(now, follower.missed if claims else 0)
            seen = Observed(
                last.target,
                recent_claims=recent,
                recent_misses=misses.total,
                lower_since=last.lower_since,
                lower_to=last.lower_to,
            )
            mine = forecast if i == 0 else forecast.at(follower.level, follower.quantile, demand.alert(follower))
            decisions[i] = decide(spec, seen, mine, now)
            levels[i].append(decisions[i].target)
        if now >= warm:
            warm = math.inf
            demand.mixture.restart_score()
        now = min(busy_at[at], max(now + tick, trace.start + math.ceil((demand.review_at - trace.start) / tick) * tick))
        if progress is not None and (done := int(100.0 * (now - trace.start) / trace.span)) > reported:
            reported = done
            progress(min(done, 100) / 100.0)
    wanted, covered, loss = demand.mixture.calibration()
    targets = [Targets(np.array(times), np.array(each, dtype=np.float64)) for each in levels]
    return targets, Calibration(wanted, covered, loss, demand.mixture.shares())
