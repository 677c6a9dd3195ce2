"""What each part of the autoscaler is worth: replays with one part changed at a time, as idle time of fixed pools.

    scripts/bench autoscaler_ablation --functions 6 --days 3      # the table of docs/autoscaler.md
    scripts/bench autoscaler_ablation [--functions 3] [--days 4] [--variant NAME ...]

Lead time 10 s (`--lead`), tick 1 s. `functions`: the geometric mean over every third of the 48 functions, at the target
miss rate, each as a share of what the fixed pool with as many hits in hindsight idles; in brackets the misses of all of
them together. Other traces: the share at equal hits of one minus the target.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest import mock

import numpy as np

from gateway.autoscaler import demand, follower, mixture, scaler, shadow
from gateway.autoscaler.empirical import FastSlow
from gateway.autoscaler.replay import lab
from gateway.autoscaler.replay.trace import Trace
from gateway.autoscaler.replay.traces import read_traces

TRACES = "loadtest/traces"
TARGETS = (0.01, 0.1)
Patch = tuple[Any, str, Any]
VARIANTS: dict[str, tuple[Patch, ...]] = {
    "as it is": (),
    "no rules of single experts": ((follower, "_EXPERT_MARGIN", 9.0),),
    "no self-exciting expert": ((demand, "SelfExciting", FastSlow),),  # a second one of its kind adds nothing
    "no handicap": ((follower, "_EXPERT_MARGIN", 0.0), (follower, "_YOUNG_S", 0.0)),
    "a single burst counts whole": ((shadow, "_FEW_MISSES", 1e9),),
    "the price counts all misses": ((follower.Follower, "_missed_again", staticmethod(lambda s: s.claims - s.served)),),
    "no price ceiling": ((lab, "Objective", partial(follower.Objective, price_ceiling=None)),),
    "surge guard at two standard deviations": ((scaler, "_SURGE_SIGMAS", 2.0),),
    "losses remembered for six hours": ((mixture, "_MEMORY_HORIZONS", 180.0),),
}


@contextmanager
def changed(patches: tuple[Patch, ...]) -> Iterator[None]:
    """The autoscaler with parts replaced."""
    with ExitStack() as stack:
        for module, name, value in patches:
            stack.enter_context(mock.patch.object(module, name, value))
        yield


def functions(traces: list[Trace], lead: float) -> list[str]:
    """A cell per target: the geometric mean of the shares, and the misses."""
    settings = lab.Settings(lead=lead, policies=("predictive",), miss_rates=TARGETS)
    scored = [each for each in traces if (each.arrivals >= each.start + settings.warm_up * each.span).any()]
    results = [lab.run_trace(each, settings, lambda *_: None) for each in scored]
    cells = []
    for target in TARGETS:
        points = [point for result in results for point in result.points if point.knob == target]
        shares = [max(point.idle_of_fixed, 1e-3) for point in points if point.idle_of_fixed is not None]
        claims = sum(point.outcome.claims for point in points)
        missed = claims - sum(point.outcome.hits for point in points)
        cells.append(f"{np.exp(np.mean(np.log(shares))):.2f} ({missed / claims:.1%})")
    return cells


def single(trace: Trace, lead: float) -> list[str]:
    """A cell per target: the share at equal hits."""
    result = lab.run_trace(trace, lab.Settings(lead=lead, policies=("predictive",)), lambda *_: None)
    cells = []
    for target in TARGETS:
        idle, fixed = result.idle_at("predictive", 1.0 - target), result.idle_at("fixed", 1.0 - target)
        cells.append("-" if idle is None or not fixed else f"{idle / fixed:.3f}")
    return cells


def main() -> None:
    """Print the table, row by row."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--functions", type=int, default=3, help="every so many-th function (3)")
    parser.add_argument("--days", type=float, default=4.0, help="of the load balancer's trace (4)")
    parser.add_argument("--lead", type=float, default=10.0, help="time of a start, seconds (10)")
    parser.add_argument("--variant", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    args = parser.parse_args()
    columns: dict[str, Callable[[], list[str]]] = {
        "functions": lambda: functions(
            read_traces(f"{TRACES}/azure_functions_48.csv.gz")[:: args.functions], args.lead
        ),
        "azure_llm_code": lambda: single(read_traces(f"{TRACES}/azure_llm_code.csv.gz")[0], args.lead),
        "elb_request_count": lambda: single(
            read_traces(f"{TRACES}/elb_request_count.csv.gz:days={args.days:g}")[0], args.lead
        ),
    }
    print("| part | " + " | ".join(f"{name}, {target:.0%}" for name in columns for target in TARGETS) + " |")
    print("| --- |" + " --- |" * (len(columns) * len(TARGETS)))
    for name in args.variant:
        with changed(VARIANTS[name]):
            cells = [cell for column in columns.values() for cell in column()]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
