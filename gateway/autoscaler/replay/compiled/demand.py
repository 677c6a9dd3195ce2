"""demand.Demand, and the looks at it that a replay takes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gateway.autoscaler import demand
from gateway.autoscaler.follower import Objective
from gateway.autoscaler.forecast import Floats
from gateway.autoscaler.replay.compiled import mixture
from gateway.autoscaler.replay.compiled.experts import clocks_review_by
from gateway.autoscaler.replay.compiled.jit import compiled
from gateway.autoscaler.replay.compiled.mixture import OTHERS, Mixture, make_mixture
from gateway.autoscaler.replay.compiled.shadow import (
    AGE,
    CLAIMS,
    GUESS,
    RULE,
    RULES,
    THRESHOLD,
    Followers,
    Pools,
    make_followers,
    make_pools,
    observe_pools,
    update_levels,
)
from gateway.autoscaler.replay.trace import Trace
from gateway.autoscaler.shadow import A_FAMILY, QUANTILES

_MAX_REVIEW_INTERVAL_S, _MAX_STEP_S = demand._MAX_REVIEW_INTERVAL_S, demand._MAX_STEP_S
_USUAL_S, _TICKS_A_LEAD = demand._USUAL_S, demand._TICKS_A_LEAD
_MIN_COUNTS, _MAX_COUNTS = demand._MIN_COUNTS, demand._MAX_COUNTS
_QUANTILES: Floats = np.array(QUANTILES)
_BLOCK = 16384  # looks that are taken at a time
_NUMBERS = np.dtype(
    [
        *(
            (name, np.float64)
            for name in ("lead", "tick", "horizon", "start", "end", "warm", "next", "now", "observed")
        ),
        *((name, np.float64) for name in ("usual_rate", "claimed_at", "review_at")),
        *((name, np.int64) for name in ("length", "largest", "busy", "recent", "oldest", "newest")),
    ]
)


class Claims(NamedTuple):
    """The ticks of a trace in which claims came, and those claims."""

    busy_at: Floats  # the end of each such tick, then infinity
    counts: npt.NDArray[np.int64]
    first: npt.NDArray[np.int64]  # of each tick's claims, an index of `times`
    times: Floats


class State(NamedTuple):
    """The state of a Demand with followers."""

    mixture: Mixture
    pools: Pools
    followers: Followers
    recent_at: Floats  # claims of the last horizon lie between `oldest` and `newest`
    recent: npt.NDArray[np.int64]
    n: Any  # _NUMBERS


class Looks(NamedTuple):
    """What a run of looks has found, a column each; of levels, alerts and misses a row for each follower."""

    at: Floats
    until: Floats  # the next look's time
    recent: npt.NDArray[np.int64]
    usual: Floats
    observed: Floats
    claims: Floats
    level: npt.NDArray[np.int64]
    alert: npt.NDArray[np.int64]
    constant: npt.NDArray[np.bool_]
    missed: npt.NDArray[np.int64]


def _make(
    trace: Trace, objectives: Sequence[Objective], lead: float, tick: float, most: int, warm: float, *, joins: bool
) -> State:
    horizon = round(lead + tick / 2.0, 3)
    numbers = np.zeros(1, dtype=_NUMBERS).view(np.recarray)[0]
    numbers["lead"], numbers["tick"], numbers["horizon"] = lead, tick, horizon
    numbers["start"], numbers["end"], numbers["warm"] = trace.start, trace.end, warm
    numbers["next"], numbers["now"] = trace.start + tick, math.nan
    numbers["claimed_at"] = numbers["review_at"] = -math.inf
    numbers["largest"] = min(most + 2, _MAX_COUNTS)
    numbers["length"] = min(_MIN_COUNTS, numbers["largest"])
    return State(
        make_mixture(horizon, tick, int(numbers["largest"])),
        make_pools(lead, tick, min(most, _MAX_COUNTS), OTHERS + 1, joins=joins),
        make_followers(objectives, lead),
        np.zeros(len(trace.arrivals) + 1), np.zeros(len(trace.arrivals) + 1, dtype=np.int64), numbers,
    )  # fmt: skip


def _looks(block: int, followers: int) -> Looks:
    one, each = block, (followers, block)
    return Looks(
        np.zeros(one), np.zeros(one), np.zeros(one, np.int64), np.zeros(one), np.zeros(one), np.zeros(one),
        np.zeros(each, np.int64), np.zeros(each, np.int64), np.zeros(each, np.bool_), np.zeros(each, np.int64),
    )  # fmt: skip


class Run:
    """A replay of `predictive.replay_predictive`'s looks, for a lead time that does not change."""

    def __init__(
        self,
        trace: Trace,
        objectives: Sequence[Objective],
        lead: float,
        tick: float,
        most: int,
        *,
        joins: bool,
        block: int = _BLOCK,
    ) -> None:
        self._block = block
        ticks = np.floor((trace.arrivals - trace.start) / tick) + 1.0
        busy, first, counts = np.unique(ticks, return_index=True, return_counts=True)
        busy_at = np.append(trace.start + busy * tick, math.inf)
        self._claims = Claims(busy_at, np.append(counts, 0), np.append(first, 0), np.ascontiguousarray(trace.arrivals))
        warm = trace.start + 0.3 * trace.span
        self.state = _make(trace, objectives, lead, tick, most, warm, joins=joins)
        self._followers = len(objectives)

    def blocks(self) -> Iterator[tuple[Looks, int]]:
        """Looks in blocks, and how many of each block are filled; the same arrays each time."""
        looks = _looks(self._block, self._followers)
        while count := _take(self.state, self._claims, looks):
            yield looks, count

    def calibration(self) -> tuple[float, float, float]:
        """Mixture.calibration."""
        n = self.state.mixture.n
        scored = max(int(n["foretold"]), 1)
        return float(n["wanted_sum"]) / scored, int(n["covered"]) / scored, float(n["loss_sum"]) / scored

    def weights(self) -> list[float]:
        """The weight of each expert of the mixture."""
        weights: list[float] = self.state.mixture.weights.tolist()
        return weights


@compiled
def _take(s: State, c: Claims, looks: Looks) -> int:
    """Look until the block is full or the trace has ended; returns how many looks were taken."""
    n, taken = s.n, 0
    while n.next < n.end and taken < len(looks.at):
        now, claims, first = n.next, 0, 0
        if c.busy_at[n.busy] <= now:
            claims, first = c.counts[n.busy], c.first[n.busy]
            n.busy += 1
        _observe(s, now, claims, c.times, first)
        _forecast(s, now)
        looks.at[taken], looks.recent[taken] = now, n.recent
        looks.usual[taken], looks.observed[taken] = n.usual_rate * n.horizon, n.observed
        looks.claims[taken] = s.pools.numbers[CLAIMS]
        for i in range(len(s.followers.state)):
            rule = s.followers.state[i, RULE]
            level = alert = int(s.pools.levels[rule])
            if n.recent > level:
                alert = 0
                for k in range(n.length - 1):
                    alert += s.mixture.first[k] > s.followers.objective[i, THRESHOLD]
            looks.level[i, taken], looks.alert[i, taken] = level, alert
            looks.constant[i, taken] = rule >= s.pools.counts[RULES]
            looks.missed[i, taken] = int(s.pools.missed[rule]) if claims else 0
        if now >= n.warm:
            n.warm = math.inf
            s.mixture.n.foretold = s.mixture.n.covered = 0
            s.mixture.n.wanted_sum = s.mixture.n.loss_sum = 0.0
        review = n.start + math.ceil((n.review_at - n.start) / n.tick) * n.tick
        n.next = min(c.busy_at[n.busy], max(now + n.tick, review))
        looks.until[taken] = n.next
        taken += 1
    return taken


@compiled
def _observe(s: State, now: float, claims: int, times: Floats, first: int) -> None:
    """Demand.observe."""
    n = s.n
    real = n.tick if math.isnan(n.now) else now - n.now
    while real > _MAX_STEP_S:
        real -= _MAX_STEP_S
        _step(s, now - real, _MAX_STEP_S, 0, times, 0, 0)
    known = 0 if n.lead >= _TICKS_A_LEAD * n.tick else claims
    for i in range(first, first + known):
        times[i] = min(max(times[i], now - real), now)
    _step(s, now, max(round(real, 2), 0.01), claims, times, first, known)
    n.now = now
    if claims:
        n.claimed_at = now


@compiled
def _step(s: State, now: float, elapsed: float, claims: int, times: Floats, first: int, known: int) -> None:
    """Demand._step."""
    n = s.n
    for i in range(first, first + known):
        s.recent_at[n.newest], s.recent[n.newest] = times[i], 1
        n.newest += 1
    if claims > known:
        s.recent_at[n.newest], s.recent[n.newest] = now, claims - known
        n.newest += 1
    n.recent += claims
    while n.oldest < n.newest and s.recent_at[n.oldest] <= now - n.horizon:
        n.recent -= s.recent[n.oldest]
        n.oldest += 1
    mixture.observe(s.mixture, now, elapsed, claims, n.recent)
    n.observed += elapsed
    n.usual_rate += (claims / elapsed - n.usual_rate) * min(elapsed / min(n.observed, _USUAL_S), 1.0)
    observe_pools(s.pools, s.followers, now, elapsed, claims, times, first, known)


@compiled
def _forecast(s: State, now: float) -> None:
    """Demand.forecast."""
    n, m = s.n, s.mixture
    while True:
        rule = s.followers.state[0, RULE]
        nearest = s.followers.state[0, GUESS] if rule >= s.pools.counts[RULES] else rule % A_FAMILY
        mixture.values(m, now, n.horizon, n.length, _QUANTILES[nearest])
        update_levels(s.pools, now, m.values[: n.length - 1], 0)
        for other in range(OTHERS):
            if m.is_fresh[other]:
                update_levels(s.pools, now, m.cached[other, : n.length - 1], other + 1)
        top = _top(s.pools, s.followers)
        if not (top > 0.7 * n.length and n.length < n.largest):
            break
        n.length = min(2 * n.length, n.largest)
    if n.length > _MIN_COUNTS and top < 0.15 * n.length:
        n.length //= 2
    foreseen = max(clocks_review_by(m.clocks, now, n.horizon), now + n.tick)
    quiet = max(now - n.claimed_at, 1.5 * n.horizon)
    n.review_at = min(now + min(quiet, _MAX_REVIEW_INTERVAL_S), foreseen)


@compiled
def _top(p: Pools, f: Followers) -> int:
    """Shadow.top. Nobody is followed before the first choice."""
    if p.numbers[AGE] <= 0.0:
        return int(p.wanted[0, A_FAMILY - 1])
    top = 0
    for i in range(len(f.state)):
        rule = f.state[i, RULE]
        constant = rule >= p.counts[RULES]
        family = 0 if constant else rule // A_FAMILY
        watched = min((f.state[i, GUESS] if constant else rule % A_FAMILY) + 4, A_FAMILY - 1)
        top = max(top, p.wanted[0, watched], p.wanted[family, watched])
    return top
