"""The loop in virtual time is the runner's, and what is laid beside a real gateway means the same on both sides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gateway.autoscaler.replay.lab import Settings, run_trace
from gateway.autoscaler.replay.leads import RecordedLeads
from gateway.autoscaler.replay.live import LiveLoop
from gateway.autoscaler.replay.pool import Targets, simulate
from gateway.autoscaler.replay.synthetic import make
from gateway.autoscaler.runner import Autoscaler
from gateway.autoscaler.settings import AutoscalerSettings
from gateway.core.model import StartKind
from gateway.store.sqlite import SqliteStore
from gateway.testing import ManualClock
from tests.support.autoscaler import KEY, Catalog, Pools, claim, poisson, runtime
from tests.support.waiting import eventually


@pytest.mark.parametrize("ready", [99, 0], ids=["all hit", "all miss"])
async def test_live_loop_orders_what_the_runner_orders(tmp_path: Path, ready: int) -> None:
    """Told of the same claims at the same ticks, both set the same targets, surges and reductions included."""
    clock = ManualClock()
    store = SqliteStore(tmp_path / "sessions.db", clock)
    await store.start()
    served, settings = runtime(target_miss_rate=0.1), AutoscalerSettings(joins=True)
    provider = Pools(clock)
    provider.lead = 5.0
    await provider.apply([served])
    scaler = Autoscaler(Catalog(served), store, provider, clock, settings, holder="gw")
    await scaler.run_once(clock.now())
    await eventually(lambda: scaler.pools[KEY].restored, "history restored")
    live = LiveLoop(served.pool, settings, 5.0, begins=clock.now(), key=KEY)
    kind, found, expected = StartKind.WARM if ready else StartKind.COLD, [], []
    counts = np.bincount(np.concatenate((poisson(0.5, 200.0), 200.0 + poisson(2.0, 60.0), [459.0])).astype(int))
    for n in counts.tolist():
        clock.advance(1.0)
        for _ in range(n):
            claim(scaler, KEY, kind, clock.now())
            live.claim(clock.now(), ready)
        await scaler.run_once(clock.now())
        expected.append(scaler.pools[KEY].target)
        found.append(live.look(clock.now(), ready, 0)[0])
    await scaler.aclose()
    await store.aclose()

    assert found == expected
    assert len(set(expected)) > 3


def test_live_loop_is_woken_by_a_miss() -> None:
    """A claim that finds nothing ready makes it look at once, but for the shortest gap; one that hits does not."""
    live = LiveLoop(runtime(size=2).pool, AutoscalerSettings(tick=30.0), 5.0, begins=0.0)
    live.look(0.0, 2, 0)

    live.claim(1.0, 2)
    live.look(3.0, 2, 0)

    assert live.claim(6.0, 2) == 33.0
    assert live.claim(7.0, 0) == 7.0
    live.look(7.0, 0, 2)
    assert live.claim(7.01, 0) == pytest.approx(7.05)


def test_quick_replay_agrees_with_the_live_loop() -> None:
    """The quick replay of targets, which sees shadow pools only, idles and misses about as one that sees its pool."""
    trace = make("steps").cut(43200.0)
    settings = Settings(policies=("predictive", "live"), miss_rates=(0.05,))
    quick, live = (point.outcome for point in run_trace(trace, settings, lambda *_: None).points)

    assert live.mean_idle == pytest.approx(quick.mean_idle, rel=0.1)
    assert 1.0 - live.hit_rate == pytest.approx(1.0 - quick.hit_rate, rel=0.2)


def test_recorded_leads_are_those_of_the_time() -> None:
    """An order takes as long as what was ordered then; one is planned with what was ready by then."""
    leads = RecordedLeads(np.array([20.0, 0.0, 10.0, 20.1]), np.array([3.0, 1.0, 2.0, 4.0]))

    assert leads.at(9.0, 1) == [2.0]
    assert leads.at(20.0, 2) == [3.0, 4.0]
    assert leads.at(0.0, 6) == [1.0, 2.0, 3.0, 4.0, 4.0, 4.0]
    assert [leads.planned(now) for now in (0.0, 1.0, 12.0, 30.0)] == [1.0, 1.0, 2.0, 4.0]
    assert leads.median(15.0) == 3.5


def test_simulator_uses_recorded_leads() -> None:
    """A refill that took long makes the next claim wait for as long as it did."""
    leads = RecordedLeads(np.array([-10.0, 0.0, 20.0]), np.array([1.0, 9.0, 1.0]))
    outcome = simulate(
        np.array([0.0, 2.0, 20.0]),
        Targets(np.array([-10.0]), np.array([1.0])),
        lead=1.0,
        scored_from=0.0,
        end=30.0,
        joins=True,
        leads=leads,
    )

    assert outcome.waits.tolist() == [7.0]
    assert (outcome.hits, outcome.orders) == (2, 3)


def test_local_starts_run_on_when_the_target_falls() -> None:
    """The local engine gives up no start: one that is wanted again is used, one that is not was idle while it ran."""
    again = Targets(np.array([0.0, 4.0, 6.0]), np.array([2.0, 0.0, 1.0]))
    outcome = simulate(np.array([50.0]), again, lead=10.0, scored_from=0.0, end=50.5, joins=True)

    assert outcome.hits == 1
    assert outcome.orders == 2 + 1, "two at first; none at 6 s, for they still start; one for the claim"
    assert outcome.idle == pytest.approx(40.0 + 10.0)

    ready = Targets(np.array([-20.0, 0.0, 4.0, 6.0]), np.array([1.0, 3.0, 0.0, 2.0]))
    outcome = simulate(np.zeros(0), ready, lead=10.0, scored_from=0.0, end=20.0, joins=True)

    assert outcome.orders == 2, "the ready one was ended, the two that were started are wanted again"
    assert outcome.idle == pytest.approx(4.0 + 2 * 10.0)
