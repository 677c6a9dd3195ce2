"""The cost of the autoscaler: its share of a core at 100 runtimes, and the time of a tick by length of history.

    scripts/bench autoscaler_cost [--runtimes 100] [--seconds 120]

The loop runs with its real store (sqlite in a temporary folder) in accelerated time: `run_once` is called for each
second of virtual time, and its processor time is divided by that. A tenth of the runtimes is busy (a claim every two
seconds), the others see one claim a minute: a hundred runtimes with about 400 claims a minute in total.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gateway.autoscaler.demand import Demand
from gateway.autoscaler.follower import Objective
from gateway.autoscaler.runner import Autoscaler
from gateway.autoscaler.settings import AutoscalerSettings
from gateway.core.model import PoolMode, PoolSpec, Runtime, RuntimeKey, StartKind
from gateway.store.sqlite import SqliteStore
from gateway.testing import ManualClock, ScriptedProvider


class _Catalog:
    def __init__(self, runtimes: Sequence[Runtime]) -> None:
        self._runtimes = runtimes

    def get(self, key: RuntimeKey) -> Runtime | None:
        return next((each for each in self._runtimes if each.key == key), None)

    def all(self) -> Sequence[Runtime]:
        return self._runtimes


async def loop_cost(count: int, seconds: int, folder: Path) -> tuple[float, float]:
    """Share of a core, and milliseconds of the slowest pass, with `count` runtimes."""
    rng = np.random.default_rng(1)
    spec = PoolSpec(mode=PoolMode.PREDICTIVE, max=50, size=1)
    runtimes = [Runtime(key=RuntimeKey("load", f"r{n:03d}"), pool=spec) for n in range(count)]
    # 100 runtimes: 10 x 0.5 + 90 / 60 = 6.5 claims a second, 390 a minute.
    rates = np.array([0.5 if n % 10 == 0 else 1 / 60 for n in range(count)])
    clock, provider = ManualClock(), ScriptedProvider()
    await provider.apply(runtimes)
    store = SqliteStore(folder / "cost.db", clock)
    await store.start()
    scaler = Autoscaler(_Catalog(runtimes), store, provider, clock, AutoscalerSettings(), holder="cost")
    # The first minute computes the tables of each horizon (rates.py caches them), which a gateway does once in its
    # life.
    spent, slowest, warm_up = 0.0, 0.0, 60
    for second in range(seconds + warm_up):
        clock.advance(1.0)
        for n, claims in enumerate(rng.poisson(rates).tolist()):
            for _ in range(claims):
                scaler.waiting(runtimes[n].key, 1, clock.now())
                scaler.claimed(runtimes[n].key, StartKind.WARM, clock.now())
                scaler.waiting(runtimes[n].key, -1, clock.now())
        # Processor time: the store's thread and other programs on the machine are not the loop's cost.
        began = time.process_time()
        await scaler.run_once(clock.now())
        took = time.process_time() - began
        if second >= warm_up:
            spent += took
            slowest = max(slowest, took)
        # Tasks that restore a pool from history run here, outside of what is measured.
        await asyncio.sleep(0)
    await scaler.aclose()
    await store.aclose()
    return spent / seconds, 1000.0 * slowest


class DemandWithHistory:
    """A Demand that has learned `days` of history, to be observed and forecast repeatedly."""

    def __init__(self, days: float) -> None:
        self._rng = np.random.default_rng(1)
        self._demand = Demand(Objective(), lead=10.0, tick=1.0, most=100)
        self._now, end = 0.0, days * 86400.0
        while self._now < end:
            self._now += 60.0
            # By the minute, as a gateway learns its history; only the experts learn from these.
            self._demand.learn(self._now, 60.0, int(self._rng.poisson(2.0)))
        self._demand.forecast(self._now)

    def cost(self, ticks: int = 100) -> float:
        """Microseconds of processor time per tick with a claim."""
        began = time.process_time()
        for _ in range(ticks):
            # Up to 20 s apart: ticks of one second only would find everything computed for that length.
            self._now += 1.0 + float(self._rng.integers(0, 20))
            self._demand.observe(self._now, 1)
            self._demand.forecast(self._now)
        return 1e6 * (time.process_time() - began) / ticks


def tick_costs(days: Sequence[float], rounds: int = 15) -> list[float]:
    """Microseconds of one tick of a runtime, for each length of history.

    The lengths take turns, and the least of all rounds counts: other processes' effect on caches and clock rate should
    not.
    """
    demands = [DemandWithHistory(each) for each in days]
    return np.min([[each.cost() for each in demands] for _ in range(rounds)], axis=0).tolist()  # type: ignore[no-any-return]


def main() -> None:
    """Print the loop's share of a core and the table of tick times."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runtimes", type=int, default=100)
    parser.add_argument("--seconds", type=int, default=120)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        share, slowest = asyncio.run(loop_cost(args.runtimes, args.seconds, Path(folder)))
    print(f"{args.runtimes} runtimes: {share:.2%} of a core, slowest pass {slowest:.1f} ms (bar: 1 %)")
    days = (0.1, 1.0, 7.0, 14.0)
    costs = tick_costs(days)
    for span, cost in zip(days, costs, strict=True):
        print(f"one tick after {span:4g} days of history: {cost:5.0f} us ({cost / costs[0]:.2f} x the first)")


if __name__ == "__main__":
    main()
