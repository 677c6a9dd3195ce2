"""Replays with the compiled port and with the product's own code, and says where they differ. A process of its own:

    NUMBA_DISABLE_JIT=1 python -m tests.autoscaler.port TRACE [SECONDS] [LEAD] [join]

runs the port's functions uncompiled, which takes no minute to begin, and a thousand times as long for each look.
"""

from __future__ import annotations

import sys

import numpy as np

from gateway.autoscaler.demand import Demand
from gateway.autoscaler.follower import Objective
from gateway.autoscaler.replay import pool
from gateway.autoscaler.replay.compiled import pool as compiled_pool
from gateway.autoscaler.replay.compiled.demand import Run
from gateway.autoscaler.replay.compiled.pool import served
from gateway.autoscaler.replay.lab import _served
from gateway.autoscaler.replay.predictive import replay_predictive
from gateway.autoscaler.replay.trace import Trace
from gateway.autoscaler.replay.traces import read_traces
from gateway.autoscaler.scaler import ScalerSpec
from gateway.core.model import PoolMode

OBJECTIVES = (
    Objective(0.01),
    Objective(0.2),
    Objective(0.001, price_ceiling=None),
    Objective(cold_start_cost=200.0),
)


def differences(trace: Trace, lead: float, *, joins: bool, most: int = 300) -> list[str]:
    """What the port decides or counts otherwise than the product's code; empty, and so it should be."""
    spec = ScalerSpec(max=most, mode=PoolMode.PREDICTIVE)
    ported, own = (
        replay_predictive(trace, OBJECTIVES, lead=lead, tick=1.0, spec=spec, joins=joins, port=port)
        for port in (True, False)
    )
    out = []
    for objective, ours, theirs in zip(OBJECTIVES, own[0], ported[0], strict=True):
        if not (np.array_equal(ours.times, theirs.times) and np.array_equal(ours.levels, theirs.levels)):
            first = set(zip(ours.times, ours.levels, strict=True)) ^ set(zip(theirs.times, theirs.levels, strict=True))
            out.append(f"{objective}: targets differ first at {min(first)[0] - trace.start:.1f} s")
        expected, got = (
            simulate(trace.arrivals, ours, lead=lead, scored_from=trace.start + 100.0, end=trace.end, joins=joins)
            for simulate in (pool.simulate, compiled_pool.simulate)
        )
        same = np.array_equal(expected.waits, got.waits) and np.array_equal(expected.miss_times, got.miss_times)
        numbers = ("claims", "hits", "idle", "held", "orders", "largest_shortfall")
        out += [
            f"{objective}: {name} {getattr(got, name)}, not {getattr(expected, name)}"
            for name in numbers
            if getattr(expected, name) != getattr(got, name)
        ]
        out += [] if same else [f"{objective}: other misses or waits"]
    if own[1] != ported[1]:
        out.append(f"calibration {ported[1]}, not {own[1]}")
    for size in (1, 3):
        if served(trace.arrivals, size, lead, trace.start) != _served(trace.arrivals, size, lead, trace.start):
            out.append(f"a pool of {size} serves otherwise")
    return out


def forecasts(trace: Trace, lead: float, *, joins: bool, most: int = 300) -> list[str]:
    """In which looks an expert forecasts otherwise: a wrong tail may well choose the right targets for a while."""
    run = Run(trace, OBJECTIVES[:1], lead, 1.0, most, joins=joins, block=1)
    own = Demand(OBJECTIVES[0], lead=lead, tick=1.0, most=most, joins=joins)
    seen = trace.start
    for looks, _ in run.blocks():
        now = float(looks.at[0])
        times = trace.arrivals[(trace.arrivals >= seen) & (trace.arrivals < now)].tolist()
        own.observe(now, len(times), times=times)
        own.forecast(now)
        seen = now
        expected = [own.mixture.first_values, *own.mixture._cached]
        got = [run.state.mixture.first, *run.state.mixture.cached]
        for expert, ours, theirs in zip(own.mixture.all_experts, expected, got, strict=True):
            if not np.allclose(ours, theirs[: len(ours)], rtol=1e-6, atol=1e-8):  # no rule asks for less than 2e-5
                return [f"{expert.name} forecasts otherwise at {now - trace.start:.1f} s"]
    return []


def main() -> None:
    """Print the differences, and how many targets were compared."""
    name, *rest = sys.argv[1:]
    (trace,) = read_traces(name)
    trace, lead = trace.cut(float(rest[0]) if rest else 1e12), float(rest[1]) if len(rest) > 1 else 10.0
    found = differences(trace, lead, joins="join" in rest) + forecasts(trace, lead, joins="join" in rest)
    sys.stdout.write("\n".join(found) + ("\n" if found else ""))


if __name__ == "__main__":
    main()
