"""The cost of the autoscaler: its share of a core, its memory, a tick by length of history, and what requests notice.

    scripts/bench autoscaler_cost [--runtimes 1 100 1000] [--seconds 120] [--served 8]

The loop runs with its real store (sqlite in a temporary folder) in accelerated time: `run_once` is called for each
second of virtual time, and its processor time is divided by that. A tenth of the runtimes is busy (a claim every two
seconds), the others see one claim a minute: a hundred runtimes with about 400 claims a minute in total. Requests are
those of wrk through a gateway in front of nginx (Debian's packages wrk and nginx-light), on whose event loop so many
runtimes are sized.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gateway.autoscaler.demand import Demand
from gateway.autoscaler.follower import Objective
from gateway.autoscaler.pool import Pool
from gateway.autoscaler.runner import Autoscaler
from gateway.autoscaler.settings import AutoscalerSettings
from gateway.autoscaler.window import times_within
from gateway.core.model import PoolMode, PoolSpec, PoolStatus, Runtime, RuntimeKey, StartKind
from gateway.store.sqlite import SqliteStore
from gateway.testing import ManualClock, ScriptedProvider
from loadtest.processes import free_port, require_programs, running, started, wait_for
from loadtest.proxy_bench import PATH, Load, median, nginx_conf, wrk


class _Catalog:
    def __init__(self, runtimes: Sequence[Runtime]) -> None:
        self._runtimes = runtimes
        self._by_key = {each.key: each for each in runtimes}

    def choose(self, key: RuntimeKey) -> Runtime | None:
        """What `get` finds: these runtimes have no revisions."""
        return self.get(key)

    def get(self, key: RuntimeKey) -> Runtime | None:
        return self._by_key.get(key)

    def all(self) -> Sequence[Runtime]:
        return self._runtimes


def data_path(counts: Sequence[int], seconds: int, rate: float, rounds: int, folder: Path) -> list[Load]:
    """Of each count of runtimes the requests of wrk through a gateway that sizes so many, with `rate` claims a second
    each: the medians of rounds in which the counts take turns. The gateway has one core, nginx and wrk the other.
    """
    port, loads = free_port(), [list[Load]() for _ in counts]
    (nginx,) = require_programs("nginx")
    with running([nginx, "-c", str(nginx_conf(folder, port))], 1):
        wait_for(port)
        for _ in range(rounds):
            for count, found in zip(counts, loads, strict=True):
                argv = [sys.executable, "-m", "loadtest.bench_gateway", f"127.0.0.1:{port}"]
                with started([*argv, "--sized", str(count), "--claims", f"{rate:g}"], core=0) as (gateway, line):
                    url, session, *_ = line.split()
                    found.append(wrk(url + PATH, 16, seconds, 1, [f"x-session-id: {session}"], gateway.pid))
    return [median(each) for each in loads]


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


def memory(count: int, days: float, rate: float) -> list[tuple[float, float]]:
    """(days, MB that a runtime holds) in quarters of the time, of `count` runtimes with `rate` claims a second each:
    all that the loop keeps of one, and what is allocated for it, whatever the allocator keeps besides.
    """
    rng, spec, settings = (
        np.random.default_rng(1),
        PoolSpec(mode=PoolMode.PREDICTIVE, max=50, size=1),
        AutoscalerSettings(),
    )
    tracemalloc.start()
    began = tracemalloc.get_traced_memory()[0]
    pools, found = [], []
    for n in range(count):
        key = RuntimeKey("load", f"r{n:04d}")
        status = PoolStatus(key, 1, 1, 0, 0, failures=0, lead_time_p50=10.0, lead_time_p90=10.0)
        pools.append(Pool.make(Runtime(key=key, pool=spec), settings, status))
        pools[-1].restored = True
    for quarter in range(4):
        for second in range(int(quarter * days * 21_600), int((quarter + 1) * days * 21_600)):
            now = 1_700_006_400.0 + second
            for pool, claims in zip(pools, rng.poisson(rate, count).tolist(), strict=True):
                decision = pool.tick(now, claims, 0, steady=now, times=times_within(now - 1.0, claims))
                if decision is not None:
                    pool.moved(now, decision.target, decision.why)
        gc.collect()
        held = tracemalloc.get_traced_memory()[0] - began
        found.append((days * (quarter + 1) / 4.0, held / count / 1e6))
    tracemalloc.stop()
    return found


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
    """Print the loop's share of a core, the times of requests beside it, its memory, and the table of tick times."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runtimes", type=int, nargs="+", default=[1, 100, 1000])
    parser.add_argument("--seconds", type=int, default=120, help="of virtual time")
    parser.add_argument("--served", type=int, default=8, help="seconds of requests per round; 0: leave them out")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rate", type=float, default=0.1, help="claims a second of each runtime beside requests")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for count in args.runtimes:
            share, slowest = asyncio.run(loop_cost(count, args.seconds, Path(tempfile.mkdtemp(dir=folder))))
            print(
                f"{count} runtimes: {share:.2%} of a core, slowest pass {slowest:.1f} ms of processor time", flush=True
            )
        if args.served > 0:
            loads = data_path(args.runtimes, args.served, args.rate, args.rounds, Path(folder))
            for count, load in zip(args.runtimes, loads, strict=True):
                print(
                    f"requests beside {count} runtimes with {args.rate:g} claims/s each: {load.rate:,.0f}/s, p50 "
                    f"{load.p50:.2f} ms, p99 {load.p99:.2f} ms ({load.p99 / loads[0].p99:.2f} x the first; bar: 1.10), "
                    f"{load.errors} failed",
                    flush=True,
                )
    for count, span, claims in ((2, 1.0, 0.05), (1, 0.25, 2.0)):
        for since, megabytes in memory(count, span, claims):
            print(
                f"memory of a runtime with {claims:g} claims/s after {since:.4g} days: {megabytes:.2f} MB", flush=True
            )
    days = (0.1, 1.0, 7.0, 14.0)
    costs = tick_costs(days)
    for span, cost in zip(days, costs, strict=True):
        print(f"one tick after {span:4g} days of history: {cost:5.0f} us ({cost / costs[0]:.2f} x the first)")


if __name__ == "__main__":
    main()
