"""What recorded traces do not hold: steps, bursts beyond the maximum, silence after them, set clocks, restarts.

Each runs the whole loop in virtual time (live.py), so the surge guard sees the misses of the very pool that it moved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gateway.autoscaler.forecast import Floats
from gateway.autoscaler.replay.lab import fixed_curve
from gateway.autoscaler.replay.live import LiveLoop
from gateway.autoscaler.replay.pool import Outcome, Targets, simulate
from gateway.autoscaler.replay.trace import Trace
from gateway.autoscaler.settings import AutoscalerSettings
from gateway.core.model import PoolMode, PoolSpec

_HOUR_S = 3600.0
_START_S = 1_700_006_400.0  # a midnight, UTC


@dataclass(frozen=True)
class Scenario:
    """Claims by a law that is known, on one runtime. Times in seconds since the start."""

    name: str
    shows: str  # what ought to happen, a sentence
    phases: tuple[tuple[float, float], ...]  # (seconds, claims a second), one after the other
    scored_from: float
    lead: float = 10.0
    tick: float = 1.0
    miss_rate: float = 0.01
    most: int = 512
    clock: tuple[tuple[float, float], ...] = ()  # (at, step): the wall clock is set
    restart: float = 0.0  # until then another gateway counted the claims, of which this one reads
    seed: int = 1

    @property
    def span(self) -> float:
        """Length of all phases, seconds."""
        return sum(seconds for seconds, _ in self.phases)

    def arrivals(self) -> Floats:
        """A Poisson process whose rate is that of the phase."""
        rng, at, parts = np.random.default_rng(self.seed), 0.0, []
        for seconds, rate in self.phases:
            parts.append(at + np.sort(rng.random(rng.poisson(rate * seconds))) * seconds)
            at += seconds
        return np.concatenate(parts) + _START_S

    def wall(self, now: float) -> float:
        """What the wall clock shows."""
        return now + sum(step for at, step in self.clock if now >= _START_S + at)


@dataclass(frozen=True)
class Played:
    """What came of a scenario, beside what it asks for."""

    scenario: Scenario
    outcome: Outcome
    targets: Targets
    fixed_idle: float  # mean idle of the fixed pools that hit as often, in hindsight

    def target_at(self, seconds: float) -> int:
        """The target so many seconds after the start."""
        at = int(np.searchsorted(self.targets.times, _START_S + seconds, side="right")) - 1
        return int(self.targets.levels[max(at, 0)])

    def mean_target(self, since: float, until: float) -> float:
        """The mean target between two times after the start."""
        times = np.clip(np.append(self.targets.times, np.inf) - _START_S, since, until)
        return float((np.diff(times) * self.targets.levels).sum() / (until - since))

    def released_after(self, seconds: float, level: int) -> float | None:
        """How long after a time the target was at most `level` for the first time; None if it never was."""
        if self.target_at(seconds) <= level:
            return 0.0
        below = np.flatnonzero((self.targets.times > _START_S + seconds) & (self.targets.levels <= level))
        return float(self.targets.times[below[0]] - _START_S - seconds) if len(below) else None


def _recorded(arrivals: Floats, bucket: int) -> list[tuple[int, int]]:
    """The claims as a store has them: (bucket start, claims)."""
    starts, claims = np.unique(arrivals // bucket * bucket, return_counts=True)
    return list(zip(starts.astype(int).tolist(), claims.tolist(), strict=True))


def play(scenario: Scenario) -> Played:
    """Run one scenario in virtual time, through the loop that a gateway runs."""
    arrivals, end = scenario.arrivals(), _START_S + scenario.span
    pool = PoolSpec(size=0, max=scenario.most, mode=PoolMode.PREDICTIVE, target_miss_rate=scenario.miss_rate)
    settings = AutoscalerSettings(tick=scenario.tick)
    begins = _START_S + scenario.restart
    loop = LiveLoop(pool, settings, scenario.lead, begins=begins, wall=scenario.wall)
    loop.restore(*(_recorded(arrivals[arrivals < begins], bucket) for bucket in (60, 1)))
    scored_from = _START_S + scenario.scored_from
    outcome = simulate(arrivals[arrivals >= begins], loop, lead=scenario.lead, scored_from=scored_from, end=end)
    trace = Trace(scenario.name, arrivals, _START_S, end)
    curve = fixed_curve(trace, scenario.lead, scored_from)
    return Played(scenario, outcome, loop.targets(), curve.idle_at(outcome.hit_rate))


BURST_BEYOND_MAX = Scenario(
    "burst-beyond-max",
    "60 claims a second for ten minutes, more than the maximum serves, then nobody: the pool is given up.",
    ((_HOUR_S, 0.05), (600.0, 60.0), (12 * _HOUR_S, 0.0)),
    scored_from=_HOUR_S,
)
STEP = Scenario(
    "step",
    "From one claim in ten seconds to 50 a second: after the first lead times none misses, and none does later.",
    ((_HOUR_S, 0.1), (600.0, 50.0)),
    most=1000,
    scored_from=_HOUR_S + 24.0,
)
QUICK_STARTS = Scenario(
    "quick-starts",
    "Starts quicker than ticks, as of the local engine: no more misses than the target allows.",
    ((6 * _HOUR_S, 3.0),),
    scored_from=2 * _HOUR_S,
    lead=0.25,
    miss_rate=0.05,
)
LOOSE_TARGET = Scenario(
    "loose-target",
    "Steady claims of which one in five may miss: the surge guard does not answer to chance.",
    ((8 * _HOUR_S, 3.4),),
    scored_from=2 * _HOUR_S,
    miss_rate=0.2,
)
STOP = Scenario(
    "stop",
    "20 claims a second for an hour, then none: the pool is given up within minutes.",
    ((_HOUR_S, 20.0), (4 * _HOUR_S, 0.0)),
    scored_from=_HOUR_S,
)
SILENCE = Scenario(
    "silence",
    "One claim in a new runtime's first minute, then a day without: next to nothing is held.",
    ((5.0, 0.0), (1.0, 1.0), (24 * _HOUR_S, 0.0)),
    scored_from=6.0,
    seed=3,
)
CLOCK_BACK = Scenario(
    "clock-back",
    "The wall clock is set back by ten minutes, an hour later forward by half an hour: the pool stays as it was.",
    ((6 * _HOUR_S, 0.2),),
    scored_from=2 * _HOUR_S,
    clock=((2 * _HOUR_S, -600.0), (3 * _HOUR_S, 1800.0)),
)
BATCH = Scenario(
    "batch",
    "10,000 claims within a second, the maximum is 512, then nobody for a day: the pool is given up.",
    ((2 * _HOUR_S, 0.02), (1.0, 10_000.0), (24 * _HOUR_S, 0.0)),
    scored_from=2 * _HOUR_S,
)
RESTART_SILENT = Scenario(
    "restart-silent",
    "20 claims a second for an hour, five hours without, then the gateway starts anew: nothing is held.",
    ((_HOUR_S, 20.0), (6 * _HOUR_S, 0.0)),
    restart=6 * _HOUR_S,
    scored_from=6 * _HOUR_S,
)
RESTART_BUSY = Scenario(
    "restart-busy",
    "The gateway starts anew while two claims a second come: no more misses than the target allows, from the start on.",
    ((3 * _HOUR_S, 2.0),),
    restart=2 * _HOUR_S,
    scored_from=2 * _HOUR_S + 24.0,
)


SCENARIOS = (
    STEP, STOP, SILENCE, BURST_BEYOND_MAX, BATCH, CLOCK_BACK, QUICK_STARTS, LOOSE_TARGET, RESTART_SILENT, RESTART_BUSY,
)  # fmt: skip


def table(played: Sequence[Played]) -> str:
    """The scenarios as a Markdown table."""
    head = ("scenario", "ought to", "claims", "missed", "mean idle", "idle of fixed, equal hits", "highest target",
            "last target")  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join(["---"] * len(head)) + " |"]
    for each in played:
        o, levels = each.outcome, each.targets.levels
        late = levels[each.targets.times >= _START_S + each.scenario.scored_from]
        highest = int(late.max()) if len(late) else each.target_at(each.scenario.scored_from)
        share = f"{each.fixed_idle:.2f}" if o.claims else "-"
        cells = (
            each.scenario.name, each.scenario.shows, str(o.claims), str(o.claims - o.hits), f"{o.mean_idle:.2f}", share,
            str(highest), str(int(levels[-1])),
        )  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
