"""Runs policies over traces and compares them at equal hit rate with the best fixed pool in hindsight."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from gateway.autoscaler.follower import Objective
from gateway.autoscaler.forecast import Floats
from gateway.autoscaler.replay import baselines
from gateway.autoscaler.replay.live import LiveLoop
from gateway.autoscaler.replay.pool import Outcome, Targets, simulate
from gateway.autoscaler.replay.predictive import Calibration, replay_predictive
from gateway.autoscaler.replay.trace import Trace
from gateway.autoscaler.scaler import ScalerSpec
from gateway.autoscaler.settings import AutoscalerSettings
from gateway.core.errors import BadRequestError
from gateway.core.model import PoolMode, PoolSpec

MISS_RATES = (0.01, 0.4, 0.2, 0.1, 0.05, 0.03, 0.02, 0.005, 0.002, 0.001)  # the first is the one experts are scored at
# Of a cold start, idle sandbox-seconds; as with the miss rates, experts are scored at the first.
PRICES = (1000.0, 20.0, 50.0, 150.0, 400.0, 2000.0, 5000.0, 20000.0)
POLICIES = ("predictive", "priced", "fixed", *baselines.KNOBS, "oracle")
EXTRA = ("live",)  # not in the table unless asked for: predictive again, but looking at its own pool (replay/live.py)
Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Settings:
    """One experiment. Times in seconds, `warm_up` a share of the trace."""

    lead: float = 10.0
    tick: float = 1.0
    warm_up: float = 0.3
    most: int = 512
    joins: bool = False  # see replay.pool
    policies: tuple[str, ...] = POLICIES
    miss_rates: tuple[float, ...] = MISS_RATES
    port: bool = False  # replay with machine code (replay/compiled): the same results, and a minute to compile once


@dataclass(frozen=True)
class Point:
    """One policy at one setting of its knob."""

    policy: str
    knob: float
    outcome: Outcome
    idle_of_fixed: float | None = None  # idle over that of the fixed mixture with the same hit rate
    targets: Targets | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Curve:
    """Fixed pools in hindsight: hit rate and mean idle of sizes 0, 1, 2, ... Between integers a mixture in time."""

    hits: Floats
    idle: Floats

    def idle_at(self, hit_rate: float) -> float:
        """Mean idle sandboxes of the fixed mixture with this hit rate."""
        return float(np.interp(hit_rate, self.hits, self.idle))


@dataclass(frozen=True)
class TraceResult:
    """Everything about one trace."""

    trace: Trace
    settings: Settings
    curve: Curve
    points: list[Point]
    calibration: Calibration | None
    took: dict[str, float] = field(default_factory=dict)  # policy -> seconds of processor time that its run took

    def frontier(self, policy: str) -> tuple[Floats, Floats]:
        """(hit rate, mean idle), rising, of what the policy and mixtures of its knobs reach at the least idle."""
        return lower_hull((p.outcome.hit_rate, p.outcome.mean_idle) for p in self.points if p.policy == policy)

    def idle_at(self, policy: str, hit_rate: float) -> float | None:
        """Mean idle of the policy's frontier at this hit rate; None where it does not reach it."""
        if policy == "fixed":
            return self.curve.idle_at(hit_rate) if hit_rate <= self.curve.hits[-1] else None
        return idle_on(self.frontier(policy), hit_rate)


def lower_hull(points: Iterable[tuple[float, float]]) -> tuple[Floats, Floats]:
    """(hit rates, mean idle), rising, of the lower convex hull of such points and of an empty pool."""
    # Two settings of the knob, used in turns, reach every point on the line between them, so a point on or above that
    # line is no reason to choose its setting.
    hull: list[tuple[float, float]] = [(0.0, 0.0)]
    for hit, idle in sorted(points):
        while len(hull) > 1 and (hull[-1][1] >= idle or _above(hull[-2], hull[-1], (hit, idle))):
            hull.pop()
        if hit > hull[-1][0]:
            hull.append((hit, idle))
    return np.array([h for h, _ in hull]), np.array([i for _, i in hull])


def idle_on(frontier: tuple[Floats, Floats], hit_rate: float) -> float | None:
    """Mean idle of a frontier at a hit rate; None where it does not reach it."""
    hits, idle = frontier
    return float(np.interp(hit_rate, hits, idle)) if len(hits) > 1 and hit_rate <= hits[-1] else None


def _above(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    """Whether b lies on or above the line from a to c."""
    return (b[1] - a[1]) * (c[0] - a[0]) >= (c[1] - a[1]) * (b[0] - a[0])


def fixed_curve(
    trace: Trace, lead: float, scored_from: float, *, joins: bool = False, most: int = 4096, port: bool = False
) -> Curve:
    """Hindsight: every size up to `most` until all but one in 20,000 claims are served."""
    hits, idle, size = [0.0], [0.0], 0
    span = trace.end - scored_from
    serve = _joined if joins else _served
    if port and not joins:
        from gateway.autoscaler.replay.compiled.pool import served as serve
    # Sizes are tried one by one, as the hit rate has no formula for arrivals that are given; each is one pass.
    while hits[-1] < 0.99995 and size < most:
        size += 1
        served, waited, claims = serve(trace.arrivals, size, lead, scored_from)
        hits.append(served / max(claims, 1))
        # Size = idle + starting - waiting; each order for a claim starts for one lead time.
        idle.append(max(size + (waited - (claims if joins else served) * lead) / span, 0.0))
        if claims == 0:
            break
    return Curve(np.array(hits), np.array(idle))


def _joined(arrivals: Floats, size: int, lead: float, scored_from: float) -> tuple[int, float, int]:
    """(claims served warm, seconds waited, claims): a claim takes what was ordered `size` claims before it."""
    # With size 2, claim 0 and 1 take what is there at the start, claim 2 what claim 0 ordered, and so on.
    ready_at = np.concatenate((np.full(min(size, len(arrivals)), -np.inf), arrivals[:-size] + lead))
    scored = arrivals >= scored_from
    waits = np.maximum(ready_at - arrivals, 0.0)[scored]
    return int(np.count_nonzero(waits <= 0.0)), float(waits.sum()), len(waits)


def _served(arrivals: Floats, size: int, lead: float, scored_from: float) -> tuple[int, float, int]:
    """(claims served warm, 0, claims): warm if the oldest order is ready again, else a sandbox of its own."""
    ring, at, served, claims = [-1e18] * size, 0, 0, 0
    for now in arrivals.tolist():
        counted = now >= scored_from
        claims += counted
        # The ring holds when each sandbox is ready, in the order of the orders. Lead times are equal, so the next entry
        # is always the one that is ready first, and no heap is needed.
        if ring[at] <= now:
            ring[at] = now + lead
            at = at + 1 if at + 1 < size else 0
            served += counted
    return served, 0.0, claims


def run_trace(trace: Trace, settings: Settings, progress: Progress) -> TraceResult:
    """All policies over one trace. The first `warm_up` of it teaches, the rest is scored."""
    scored_from = trace.start + settings.warm_up * trace.span
    if not (trace.arrivals >= scored_from).any():
        raise BadRequestError(
            f"{trace.name}: no arrivals after the warm-up ({settings.warm_up:.0%} of the trace); nothing can be scored"
        )
    curve = fixed_curve(trace, settings.lead, scored_from, joins=settings.joins, most=settings.most, port=settings.port)
    points: list[Point] = []
    calibration = None
    took: dict[str, float] = {}

    def add(policy: str, knob: float, targets: Targets | LiveLoop) -> None:
        outcome = _play(trace, targets, settings, scored_from)
        base = curve.idle_at(outcome.hit_rate)
        shown = targets if isinstance(targets, Targets) else targets.targets()
        points.append(Point(policy, knob, outcome, outcome.mean_idle / base if base > 0 else None, shown))

    for policy in settings.policies:
        # Processor time: with --jobs, wall time would count what the other traces take.
        began = time.process_time()
        if policy in ("predictive", "priced"):
            spec = ScalerSpec(max=settings.most, mode=PoolMode.PREDICTIVE)
            by_rate = {rate: Objective(rate) for rate in settings.miss_rates}
            by_price = {price: Objective(cold_start_cost=price) for price in PRICES}
            objectives = by_rate if policy == "predictive" else by_price
            all_targets, scores = replay_predictive(
                trace,
                list(objectives.values()),
                lead=settings.lead,
                tick=settings.tick,
                spec=spec,
                joins=settings.joins,
                port=settings.port,
                progress=lambda done: progress(trace.name, done),
            )
            calibration = scores if policy == "predictive" else calibration
            for knob, targets in zip(objectives, all_targets, strict=True):
                add(policy, knob, targets)
        elif policy == "live":
            for rate in settings.miss_rates:
                add(policy, rate, _live(settings, rate, trace.start))
        elif policy == "oracle":
            add(policy, 0.0, baselines.oracle(trace, settings.lead, 0.0))
        elif policy.startswith("fixed"):
            for size in _sizes(policy, curve):
                add("fixed", size, baselines.fixed(trace, settings.lead, size))
        else:
            make, knobs = baselines.KNOBS[policy]
            for knob in knobs:
                add(policy, knob, make(trace, settings.lead, knob).capped(settings.most))
        took[policy] = time.process_time() - began
    progress(trace.name, 1.0)
    return TraceResult(trace, settings, curve, points, calibration, took)


def _play(trace: Trace, targets: Targets | LiveLoop, settings: Settings, scored_from: float) -> Outcome:
    if settings.port and isinstance(targets, Targets):
        from gateway.autoscaler.replay.compiled.pool import simulate as quick

        return quick(
            trace.arrivals, targets, lead=settings.lead, scored_from=scored_from, end=trace.end, joins=settings.joins
        )
    return simulate(
        trace.arrivals, targets, lead=settings.lead, scored_from=scored_from, end=trace.end, joins=settings.joins
    )


def _live(settings: Settings, miss_rate: float, start: float) -> LiveLoop:
    pool = PoolSpec(size=0, max=settings.most, mode=PoolMode.PREDICTIVE, target_miss_rate=miss_rate)
    loop = AutoscalerSettings(tick=settings.tick, joins=settings.joins)
    return LiveLoop(pool, loop, settings.lead, begins=start)


def _sizes(policy: str, curve: Curve) -> Sequence[float]:
    """The sizes of `fixed:N`; of `fixed` and `fixed:*` those around the hit rates that tables are read at."""
    _, _, size = policy.partition(":")
    if size not in ("", "*"):
        return (float(size),)
    # The curve already has every size; these are simulated for the columns that it lacks, such as the waits.
    found = {int(np.searchsorted(curve.hits, rate)) for rate in (0.9, 0.95, 0.98, 0.99, 0.995, 0.999)}
    return sorted(float(min(n, len(curve.hits) - 1)) for n in found)


def parse_policies(text: str) -> tuple[str, ...]:
    """`predictive,fixed:*,keda` to names. Raises BadRequestError that lists what exists."""
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in names:
        base, _, size = name.partition(":")
        if base not in (*POLICIES, *EXTRA) or (size and (base != "fixed" or not (size == "*" or size.isdigit()))):
            raise BadRequestError(
                f"--policy {name!r} is not known; there are {', '.join((*POLICIES, *EXTRA))} and fixed:N"
            )
    if not names:
        raise BadRequestError(f"--policy names none; there are {', '.join(POLICIES)}")
    return names
