"""The policy under test: `Demand` and `decide`, called as the live loop calls them, once a tick in virtual time.

With `port` the compiled port of `Demand` takes the looks (replay/compiled), and `decide` is asked only where its answer
is not plain. The decisions are the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gateway.autoscaler.demand import Demand
from gateway.autoscaler.follower import Follower, Objective
from gateway.autoscaler.forecast import Forecast
from gateway.autoscaler.replay.pool import Targets
from gateway.autoscaler.replay.trace import Trace
from gateway.autoscaler.scaler import Decision, Observed, ScalerSpec, decide
from gateway.autoscaler.window import RollingCount

if TYPE_CHECKING:
    from gateway.autoscaler.replay.compiled.demand import Looks

Progress = Callable[[float], None]


@dataclass(frozen=True)
class Calibration:
    """How the mixture's wanted quantile did on the scored part."""

    wanted: float  # mean quantile that was wanted
    covered: float  # share of horizons with no more claims than foretold
    pinball: float  # mean loss per horizon, claims
    weights: dict[str, float]  # experts at the end


class _Pool:
    """One objective's pool: `decide` at every look, and again when a lower level has stood for long enough."""

    def __init__(self, objective: Objective, spec: ScalerSpec, misses: RollingCount) -> None:
        self.objective = objective
        self._spec = spec
        self.misses = misses
        self._last = Decision(0, 0, "hold", "")
        self._forecast: Forecast | None = None
        self._recent = 0
        self._times: list[float] = []
        self._levels: list[int] = []

    def look(self, now: float, forecast: Forecast, recent: int, missed: int) -> None:
        """Decide on a new forecast; `missed` claims found the pool empty since the last one."""
        self._forecast, self._recent = forecast, recent
        self.misses.add(now, missed)
        self._decide(now)

    def pass_by(self, now: float, level: int, recent: int, missed: int) -> bool:
        """Whether `look` would leave everything as it is: the level is the target, and no more claims came than that.
        Then all that it would do is to remember the misses, and that is done.
        """
        last, spec = self._last, self._spec
        settled = level == last.target and spec.min <= level <= spec.max and recent <= level
        if not settled or last.lower_since is not None or last.surging or not self._times:
            return False
        if missed:
            self.misses.add(now, missed)
        return True

    def lower_before(self, until: float, tick: float) -> None:
        """Ticks without news, up to the next look: only a reduction that waits for its time can come due in them."""
        since = self._last.lower_since
        if since is not None and (due := since + math.ceil(self._spec.lower_after / tick) * tick) < until:
            self.misses.expire(due)
            self._decide(due)

    def _decide(self, now: float) -> None:
        last = self._last
        # Nothing is known here of ready, starting and failed sandboxes.
        seen = Observed(
            last.target, 0, 0, self._recent, self.misses.total, 0, "", last.lower_since, last.lower_to,
            surging=last.surging,
        )  # fmt: skip
        self._last = decide(self._spec, seen, self._forecast, now)
        if self._last.target != last.target or not self._times:
            self._times.append(now)
            self._levels.append(self._last.target)

    def targets(self) -> Targets:
        """The targets that it has ordered."""
        return Targets(np.array(self._times), np.array(self._levels, dtype=np.float64))


def replay_predictive(
    trace: Trace,
    objectives: Sequence[Objective],
    *,
    lead: float,
    tick: float,
    spec: ScalerSpec,
    joins: bool = False,
    planned: Callable[[float], float] | None = None,
    progress: Progress | None = None,
    port: bool = False,
) -> tuple[list[Targets], Calibration]:
    """Targets for each objective. One pass serves all: what is learned does not depend on the objective, but for the
    quantile at which experts are scored, which is the first objective's.

    A tick at which nothing is due is skipped, as in the live loop. `planned`: the lead time to plan with at a time,
    where it does not stay `lead`. `port`: the compiled port takes the looks, which needs numba and one lead time.
    """
    demand = Demand(objectives[0], lead=lead, tick=tick, most=spec.max, joins=joins)
    if port and planned is None:
        # Here, as numba takes half a second to import, and a minute to compile where nothing is kept of an earlier run.
        from gateway.autoscaler.replay.compiled.demand import Run

        run = Run(trace, objectives, lead, tick, spec.max, joins=joins)
        pools = [_Pool(each, spec, RollingCount(demand.horizon)) for each in objectives]
        for looks, count in run.blocks():
            _replay_block(pools, looks, count, demand.horizon, tick, spec)
            if progress is not None:
                progress(min(float(looks.until[count - 1] - trace.start) / trace.span, 1.0))
        shares = {
            each.name: round(weight, 3) for each, weight in zip(demand.mixture.experts, run.weights(), strict=True)
        }
        return [pool.targets() for pool in pools], Calibration(*run.calibration(), shares)
    followers = [demand.follower] + [Follower(objective, demand.shadow) for objective in objectives[1:]]
    pools = [_Pool(follower.objective, spec, RollingCount(demand.horizon)) for follower in followers]
    # A claim is seen at the end of the tick in which it came, as the live loop sees it.
    ticks = np.floor((trace.arrivals - trace.start) / tick) + 1.0
    busy, first, counts = np.unique(ticks, return_index=True, return_counts=True)
    busy_at, claims_at = (trace.start + busy * tick).tolist(), counts.tolist()
    first_at = first.tolist()
    busy_at.append(math.inf)
    claims_at.append(0)
    no_times: list[float] = []
    at, now, warm, reported = 0, trace.start + tick, trace.start + 0.3 * trace.span, 0
    while now < trace.end:
        claims, times = 0, no_times
        if busy_at[at] <= now:
            claims = claims_at[at]
            times = trace.arrivals[first_at[at] : first_at[at] + claims].tolist()
            at += 1
        if planned is not None:
            demand.set_lead(planned(now))
        demand.observe(now, claims, times=times)
        forecast = demand.forecast(now)
        recent = demand.recent.total
        for pool, follower in zip(pools, followers, strict=True):
            pool.misses.span = demand.horizon
            mine = forecast
            # The forecast is made once; for the other objectives only the rule that reads a level from it differs.
            if follower is not demand.follower:
                level, alert = demand.wanted_by(follower)
                mine = forecast.at(level, follower.quantile, alert, follower.describe(), constant=follower.constant)
            pool.look(now, mine, recent, follower.missed if claims else 0)
        if now >= warm:
            warm = math.inf
            demand.mixture.restart_score()
        # The next tick at which there is something to do: one with claims, or the first after the review time.
        now = min(busy_at[at], max(now + tick, trace.start + math.ceil((demand.review_at - trace.start) / tick) * tick))
        for pool in pools:
            pool.lower_before(now, tick)
        if progress is not None and (done := int(100.0 * (now - trace.start) / trace.span)) > reported:
            reported = done
            progress(min(done, 100) / 100.0)
    wanted, covered, loss = demand.mixture.calibration()
    return [pool.targets() for pool in pools], Calibration(wanted, covered, loss, demand.mixture.shares())


def _replay_block(
    pools: Sequence[_Pool], looks: Looks, count: int, horizon: float, tick: float, spec: ScalerSpec
) -> None:
    """Decide on a block of looks, which do not depend on what is decided."""
    every = range(count)
    at, until = looks.at[:count].tolist(), looks.until[:count].tolist()
    recent, usual = looks.recent[:count].tolist(), looks.usual[:count].tolist()
    observed, claims = looks.observed[:count].tolist(), looks.claims[:count].tolist()
    for row, pool in enumerate(pools):
        levels, missed = looks.level[row, :count].tolist(), looks.missed[row, :count].tolist()
        alerts, constants = looks.alert[row], looks.constant[row]
        for i in every:
            if observed[i] < spec.learn_for or not pool.pass_by(at[i], levels[i], recent[i], missed[i]):
                forecast = Forecast(
                    at[i], horizon, 0.0, 0.0, levels[i], "", alert=int(alerts[i]), observed=observed[i], usual=usual[i],
                    claims=claims[i], constant=bool(constants[i]),
                )  # fmt: skip
                pool.look(at[i], forecast, recent[i], missed[i])
                pool.lower_before(until[i], tick)
