"""A restart: what recorded claims teach, however old, damaged or far in the future they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from gateway.autoscaler import runner
from gateway.autoscaler.demand import Demand
from gateway.autoscaler.follower import Objective
from gateway.autoscaler.history import live_since, replay_history
from gateway.autoscaler.runner import Autoscaler
from gateway.autoscaler.settings import AutoscalerSettings
from gateway.core.errors import StoreUnavailableError
from gateway.store.sqlite import SqliteStore
from gateway.testing import ManualClock
from tests.support.autoscaler import KEY, Catalog, Pools, runtime
from tests.support.waiting import eventually

NOW = 1_700_006_400.0
HOUR = 3600.0
Counts = Sequence[tuple[int, int]]


def taught(minutes: Counts, seconds: Counts) -> Demand:
    """What a gateway that starts now makes of a history."""
    demand = Demand(Objective(0.01), lead=10.0, tick=1.0, most=512)
    for _ in replay_history(demand, minutes, seconds, now=NOW, live_from=live_since(seconds, NOW)):
        pass
    demand.observe(NOW + 1.0, 0)
    demand.forecast(NOW + 1.0)
    return demand


def busy(begins: float, ends: float, bucket: int, rate: int = 20) -> list[tuple[int, int]]:
    """`rate` claims in each second of some hours before now."""
    return [(at, rate * bucket) for at in range(int(NOW - begins * HOUR), int(NOW - ends * HOUR), bucket)]


@pytest.mark.simulation
@pytest.mark.parametrize("ends", [1.0, 3.0, 5.0, 30.0, 300.0], ids="{:g} hours ago".format)
def test_silence_since_the_last_claim_is_learned_too(ends: float) -> None:
    """20 claims a second, of which the last came hours ago: after a restart the rate is not taken to be still that."""
    seconds = busy(ends + 1.0, ends, 1) if ends < 6.0 else []
    demand = taught(busy(ends + 1.0, ends, 60), seconds)

    assert demand.rates.rate() < 0.05
    # The target is measured on the claims of the hour, so a rule that still held a pool for them may be followed; what
    # the first guess asks for is what the forecast says.
    assert demand.follower.alert(demand.mixture.first_values) <= 3


@pytest.mark.simulation
def test_history_that_goes_on_is_what_is_expected() -> None:
    """Two claims a second up to now: the pool is ready for those of the next lead time at once."""
    demand = taught(busy(24.0, 0.0, 60, 2), busy(3.0, 0.0, 1, 2))

    assert demand.rates.rate() == pytest.approx(2.0, rel=0.3)
    assert 20 <= demand.wanted_by(demand.follower)[0] <= 45


@pytest.mark.parametrize(
    "damaged",
    [
        [(int(NOW - 100), -5)],
        [(int(NOW - 100), 0)],
        [(int(NOW + 86400), 20)],
        [(int(NOW + 86400 * 365 * 30), 20)],
    ],
    ids=["less than none", "none", "tomorrow's", "in thirty years"],
)
def test_what_cannot_have_happened_teaches_nothing(damaged: Counts) -> None:
    """Counts below one and claims that are still to come: as if there were no history."""
    demand, fresh = taught(damaged, damaged), taught([], [])

    assert demand.rates.rate() == pytest.approx(fresh.rates.rate())
    assert demand.wanted_by(demand.follower) == fresh.wanted_by(fresh.follower)


def test_ten_thousand_claims_in_a_second_are_read() -> None:
    """And so is a number of them that no memory could hold one by one."""
    for claims in (10_000, 10**15):
        seconds = [(int(NOW - 30), claims)]
        demand = taught(seconds, seconds)
        assert 0 <= demand.wanted_by(demand.follower)[0] <= 513  # `decide` keeps it within the maximum


async def test_history_that_cannot_be_read_at_all_is_said_and_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever goes wrong while a history is read, the pool is sized from what comes, and the log says why."""
    clock = ManualClock()
    store = SqliteStore(tmp_path / "sessions.db", clock)
    await store.start()

    async def unreadable(*_: object, **__: object) -> Sequence[tuple[int, int]]:
        raise ValueError("not a history")

    monkeypatch.setattr(store, "claim_history", unreadable)
    provider = Pools(clock)
    scaler = Autoscaler(Catalog(runtime()), store, provider, clock, AutoscalerSettings(), holder="gw")
    await provider.apply([runtime()])
    await scaler.run_once(clock.now())
    await eventually(lambda: scaler.pools[KEY].restored, "the pool goes on without")
    clock.advance(1.0)
    await scaler.run_once(clock.now())

    assert scaler.pools[KEY].decision is not None
    assert "not a history" in caplog.text
    await scaler.aclose()
    await store.aclose()


async def test_history_is_read_once_the_store_is_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that is away when a pool begins costs it nothing: until it is back, the pool stays as it is."""
    clock = ManualClock(NOW)
    store = SqliteStore(tmp_path / "sessions.db", clock)
    await store.start()
    await store.record_claims(KEY, dict(busy(1, 0, 1)))
    read, tried = store.claim_history, 0

    async def away_at_first(*asked: Any, **named: Any) -> Sequence[tuple[int, int]]:
        nonlocal tried
        tried += 1
        if tried < 3:
            raise StoreUnavailableError("away")
        return await read(*asked, **named)

    monkeypatch.setattr(store, "claim_history", away_at_first)
    monkeypatch.setattr(runner, "_FIRST_RETRY_S", 0.01)
    provider = Pools(clock)
    scaler = Autoscaler(Catalog(runtime()), store, provider, clock, AutoscalerSettings(), holder="gw")
    await provider.apply([runtime()])
    await scaler.run_once(clock.now())
    pool = scaler.pools[KEY]
    assert not pool.restored
    assert pool.decision is None
    await eventually(lambda: pool.restored, "its history is read")
    assert pool.demand.rates.rate() > 1.0
    await scaler.aclose()
    await store.aclose()
