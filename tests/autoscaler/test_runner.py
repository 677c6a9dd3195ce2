"""The loop over a real store: leads, restores, orders once, survives the death of its leader, explains itself."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.autoscaler.pool import Pool
from gateway.autoscaler.runner import Autoscaler
from gateway.autoscaler.settings import AutoscalerSettings
from gateway.autoscaler.signal import ClaimSignal
from gateway.core.clock import SystemClock
from gateway.core.errors import SandboxStartError, SettingsError, StoreUnavailableError
from gateway.core.model import PoolMode, PoolStatus, Runtime, RuntimeKey, StartKind
from gateway.store import make_store
from gateway.store.sqlite import SqliteStore
from gateway.testing import ManualClock
from tests.support.autoscaler import KEY, Catalog, Pools, claim, runtime
from tests.support.redis_server import RedisServer
from tests.support.waiting import LIMIT_S, eventually


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def store(tmp_path: Path, clock: ManualClock) -> AsyncIterator[SqliteStore]:
    made = SqliteStore(tmp_path / "sessions.db", clock)
    await made.start()
    yield made
    await made.aclose()


class Loop:
    """An autoscaler that a test ticks by hand, and the world around it."""

    def __init__(self, store: SqliteStore, clock: ManualClock, *runtimes: Runtime, **settings: Any) -> None:
        self.clock, self.catalog, self.provider = clock, Catalog(*runtimes), Pools(clock)
        self.store = store
        self.scaler = Autoscaler(
            self.catalog, store, self.provider, clock, AutoscalerSettings(**settings), holder=f"gw-{id(self)}"
        )

    async def begin(self) -> None:
        await self.provider.apply(self.catalog.all())
        await self.tick()
        await eventually(lambda: all(pool.restored for pool in self.scaler.pools.values()), "history restored")

    async def tick(self, seconds: int = 1, claims: int = 0, key: RuntimeKey = KEY, kind: str = "warm") -> None:
        for _ in range(seconds):
            self.clock.advance(1.0)
            for _ in range(claims):
                claim(self.scaler, key, StartKind(kind), self.clock.now() - 0.5)
            await self.scaler.run_once(self.clock.now())

    def pool(self, key: RuntimeKey = KEY) -> dict[str, Any]:
        return next(each for each in self.scaler.explain()["pools"] if each["runtime"] == str(key))


async def test_busy_runtime_gets_a_pool(store: SqliteStore, clock: ManualClock) -> None:
    """Two claims a second for two minutes: the pool is ordered up, and the explanation is whole."""
    loop = Loop(store, clock, runtime())
    await loop.begin()
    await loop.tick(120, claims=2)
    pool = loop.pool()

    assert loop.provider.resizes[-1][1] == pool["target"] >= 2
    assert pool["why"].endswith(".")
    assert pool["changes"][0]["to"] == pool["target"]
    assert {"demand", "quantile", "experts", "target", "why", "changes", "leadTime"} <= pool.keys()
    assert pool["followedRule"]["kind"] == ("constant" if pool["rule"] == "constant" else "forecast")
    for rule in (pool["followedRule"], pool["runnerUp"]):
        assert rule.keys() == {"kind", "level", "quantile", "idleSandboxSecondsPerHour", "missesPerHour", "missRate"}
    assert pool["followedRule"]["kind"] != pool["runnerUp"]["kind"]
    assert (pool["quantile"] is None) == (pool["rule"] == "constant")
    assert abs(sum(pool["experts"].values()) - 1.0) < 0.05
    assert orjson.loads(orjson.dumps(loop.scaler.explain()))["leader"] is True


async def test_same_target_is_ordered_once_while_the_provider_lags(store: SqliteStore, clock: ManualClock) -> None:
    """A provider whose status shows old targets does not get the same order twice within the expiry."""
    loop = Loop(store, clock, runtime(mode=PoolMode.FIXED, size=6))
    await loop.begin()
    loop.provider.resizes.clear()
    loop.catalog.runtimes = [runtime(mode=PoolMode.FIXED, size=9)]
    loop.provider.lags = True
    await loop.tick()
    await eventually(lambda: loop.scaler.pools[KEY].restored, "history restored")
    await loop.tick(40)

    assert loop.provider.resizes == [(KEY, 9)]


async def test_forecast_only_orders_nothing(store: SqliteStore, clock: ManualClock) -> None:
    """Mode forecast-only says what it would do and leaves the pool alone."""
    loop = Loop(store, clock, runtime(mode=PoolMode.FORECAST_ONLY, size=1))
    await loop.begin()
    await loop.tick(120, claims=3)

    assert loop.provider.resizes == []
    assert loop.pool()["wanted"] > 1


async def test_claims_are_written_and_read_back_after_a_restart(store: SqliteStore, clock: ManualClock) -> None:
    """The next leader learns from the recorded claims what the earlier one had learned."""
    first = Loop(store, clock, runtime())
    await first.begin()
    await first.tick(300, claims=1)
    before = first.scaler.pools[KEY].target
    await first.scaler.aclose()

    second = Loop(store, clock, runtime())
    await second.begin()
    await second.tick(2)

    assert sum(n for _, n in await store.claim_history(KEY, 0.0, bucket=60)) == 300
    assert abs(second.scaler.pools[KEY].target - before) <= 2
    assert before >= 1


async def test_claims_of_other_replicas_count(store: SqliteStore, clock: ManualClock) -> None:
    """A follower's claims reach the leader through the store, each once."""
    leader = Loop(store, clock, runtime(), shared=True)
    follower = Loop(store, clock, runtime(), shared=True)
    await leader.begin()
    seen = 0
    for _ in range(60):
        await follower.tick(claims=2)
        before = leader.scaler.pools[KEY].demand.recent.total
        await leader.scaler.run_once(clock.now())
        seen += max(leader.scaler.pools[KEY].demand.recent.total - before, 0)

    assert not follower.scaler.leads
    assert leader.provider.resizes[-1][1] >= 2
    assert follower.provider.resizes == []
    assert leader.scaler.pools[KEY].demand.recent.total <= 2 * 12


async def test_signals_of_two_replicas_add_up_once(store: SqliteStore, clock: ManualClock) -> None:
    """Own claims come from memory, foreign ones from the store: none is counted twice, late ones are counted."""
    one, other, now = ClaimSignal(store), ClaimSignal(store), clock.now()
    for signal_, n in ((one, 5), (other, 7)):
        for _ in range(n):
            signal_.waiting(KEY, 1, now)
            signal_.waiting(KEY, -1, now)
        await signal_.flush(now)

    assert await one.sync(KEY, now + 1.0) == 7
    assert one.take(KEY)[:2] == (12, 0)
    assert await one.sync(KEY, now + 2.0) == 0
    other.waiting(KEY, 1, now)  # the same second, flushed later
    await other.flush(now + 3.0)
    assert await one.sync(KEY, now + 3.0) == 1


async def test_signal_counts_a_claim_from_its_beginning(store: SqliteStore, clock: ManualClock) -> None:
    """A cold start is demand, and a miss, while it is still waited for; when it is over it is not counted again."""
    signal_, now = ClaimSignal(store), clock.now()
    for change in (1, 1, -1):
        signal_.waiting(KEY, change, now)

    assert signal_.take(KEY)[:2] == (2, 1)
    assert not signal_.claimed(KEY, StartKind.COLD)
    signal_.waiting(KEY, -1, now + 10.0)
    assert signal_.take(KEY)[:2] == (0, 0)
    signal_.waiting(KEY, 1, now + 11.0)
    assert signal_.claimed(KEY, StartKind.WAKE_COLD)  # over before anybody looked
    signal_.waiting(KEY, -1, now + 11.5)
    assert signal_.take(KEY)[:2] == (1, 1)


async def test_signal_forgets_waiting_claims_that_failed(store: SqliteStore, clock: ManualClock) -> None:
    """After ten claims that never got a sandbox, the next miss is counted like the first."""
    signal_, now = ClaimSignal(store), clock.now()
    for _ in range(10):
        signal_.waiting(KEY, 1, now)
    signal_.take(KEY)
    for _ in range(10):
        signal_.waiting(KEY, -1, now + 5.0)
    signal_.take(KEY)
    signal_.waiting(KEY, 1, now + 6.0)

    assert signal_.take(KEY)[:2] == (1, 1)


async def test_deleted_runtime_is_forgotten_and_starts_without_state(store: SqliteStore, clock: ManualClock) -> None:
    """A runtime that goes away is no longer ordered for; made again it starts from its history."""
    loop = Loop(store, clock, runtime())
    await loop.begin()
    await loop.tick(120, claims=2)
    kept, loop.catalog.runtimes = loop.catalog.runtimes, []
    await loop.provider.apply([])
    ordered = len(loop.provider.resizes)
    await loop.tick(5)
    assert loop.scaler.pools == {}
    assert len(loop.provider.resizes) == ordered

    loop.catalog.runtimes = kept
    await loop.begin()
    await loop.tick(3)

    assert loop.provider.resizes[-1][1] >= 1


async def test_runtime_deleted_during_an_order_does_no_harm(store: SqliteStore, clock: ManualClock) -> None:
    """The provider no longer knows a runtime that the catalog still lists: passes go on, the others are served."""
    other = RuntimeKey("default", "other")
    loop = Loop(store, clock, runtime(), runtime(other, mode=PoolMode.FIXED, size=3))
    await loop.begin()
    await loop.provider.apply([runtime(other, mode=PoolMode.FIXED, size=1)])
    await loop.tick(30, claims=5)

    assert (other, 3) in loop.provider.resizes


async def test_failing_creates_are_bounded_and_visible(store: SqliteStore, clock: ManualClock) -> None:
    """Creates that fail in a row: few orders, and the error is in the explanation."""
    loop = Loop(store, clock, runtime())
    await loop.begin()
    loop.provider.failures, loop.provider.last_error = 4, "bwrap: no permission"
    await loop.tick(180, claims=20, kind="cold")
    ups = [warm for _, warm in loop.provider.resizes]
    pool = loop.pool()

    assert len(ups) <= 180 / 30 + 1
    assert pool["rule"] == "breaker"
    assert "bwrap: no permission" in pool["why"]
    assert pool["pool"]["failures"] == 4


def test_misses_and_claims_are_of_the_same_seconds() -> None:
    """When starts turn out to be quicker than was thought, misses from before the shorter horizon no longer count."""
    settings = AutoscalerSettings(default_lead=20.0)
    pool = Pool.make(runtime(size=0), settings, None)
    pool.restored = True
    pool.tick(1000.0, 5, 5)
    pool.status = PoolStatus(KEY, 0, 0, 0, 0, 0, lead_time_p90=1.0)
    pool.tick(1010.0, 1, 1)

    assert (pool.demand.recent.total, pool.misses.total) == (1, 1)


async def test_refused_resize_is_shown_and_tried_again(store: SqliteStore, clock: ManualClock) -> None:
    """A provider that refuses a resize is asked again, and its words are in the explanation meanwhile."""

    class Refusing(Pools):
        refuse = True

        async def resize(self, runtime: RuntimeKey, warm: int) -> None:
            if self.refuse:
                raise SandboxStartError("the API server is away")
            await super().resize(runtime, warm)

    loop = Loop(store, clock, runtime(mode=PoolMode.FIXED, size=2))
    loop.provider = refusing = Refusing(clock)
    loop.scaler = Autoscaler(loop.catalog, store, refusing, clock, AutoscalerSettings(), holder="gw")
    await refusing.apply([runtime(mode=PoolMode.FIXED, size=0)])
    await loop.tick()
    await eventually(lambda: loop.scaler.pools[KEY].restored, "history restored")
    await loop.tick(2)
    assert loop.pool()["error"] == "the API server is away"

    refusing.refuse = False
    await loop.tick(2)

    assert refusing.resizes == [(KEY, 2)]
    assert loop.pool()["error"] == ""


async def test_budget_is_shared_by_worth(store: SqliteStore, clock: ManualClock) -> None:
    """Two runtimes that want more than the budget: the sum stays within it, and the busy one gets more."""
    quiet = RuntimeKey("default", "quiet")
    loop = Loop(store, clock, runtime(), runtime(quiet), max_warm=4, default_lead=10.0)
    loop.provider.lead = 10.0
    await loop.begin()
    for second in range(240):
        await loop.tick(1, claims=1)
        if second % 8 == 0:
            claim(loop.scaler, quiet, StartKind.WARM, clock.now())
    held = {key: pool.target for key, pool in loop.scaler.pools.items()}

    assert sum(held.values()) <= 4
    assert held[KEY] > held[quiet]
    assert any("budget of 4" in loop.pool(key)["why"] for key in held)


@pytest.mark.parametrize("step", [-7200.0, 86400.0], ids=["two hours back", "a day ahead"])
async def test_wall_clock_step_does_not_move_a_pool_much(store: SqliteStore, clock: ManualClock, step: float) -> None:
    """After the wall clock was set, passes go on, the lease is kept, and the pool stays about where it was."""
    loop = Loop(store, clock, runtime())
    await loop.begin()
    await loop.tick(120, claims=1)
    before = loop.scaler.pools[KEY].target
    clock.advance(step)
    await loop.tick(20, claims=1)

    assert loop.scaler.leads
    assert abs(loop.scaler.pools[KEY].target - before) <= 3


async def test_wall_clock_set_back_prolongs_no_lease(store: SqliteStore, clock: ManualClock) -> None:
    """A gateway that did not renew in time leads no more, however far back its wall clock was set meanwhile."""
    loop = Loop(store, clock, runtime(), lease_ttl=10.0)
    await loop.begin()
    clock.advance(-7200.0)
    leads = [loop.scaler.leads]
    clock.advance(11.0)
    leads.append(loop.scaler.leads)
    await loop.tick()

    assert [*leads, loop.scaler.leads] == [True, False, True]


async def test_store_outage_keeps_counts_and_pools(tmp_path: Path, clock: ManualClock) -> None:
    """While the store is unreachable claims are counted in memory, and written once it is back."""
    server = RedisServer(tmp_path / "redis").start()
    real = make_store(server.url, SystemClock())
    await real.start()
    try:
        provider, catalog = Pools(), Catalog(runtime())
        await provider.apply(catalog.all())
        scaler = Autoscaler(catalog, real, provider, SystemClock(), AutoscalerSettings(lease_ttl=2.0), holder="gw")
        now = SystemClock().now()
        await scaler.run_once(now)
        server.kill()
        claim(scaler, KEY, StartKind.WARM, now)
        with pytest.raises(StoreUnavailableError):
            await scaler.signal.flush(now)
        server.start()
        for _ in range(200):
            try:
                await scaler.signal.flush(now)
                break
            except StoreUnavailableError:
                await asyncio.sleep(0.05)
        assert [n for _, n in await real.claim_history(KEY, now - 60.0, bucket=1)] == [1]
        await scaler.aclose()
    finally:
        await real.aclose()
        server.kill()


@pytest.mark.processes
async def test_killed_leader_is_followed(tmp_path: Path) -> None:
    """A leader that is killed in the middle of an order: the next takes over after the lease and orders it again."""
    server = RedisServer(tmp_path / "redis").start()
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.support.leader_process", server.url, stdout=asyncio.subprocess.PIPE
    )
    assert child.stdout is not None
    store = make_store(server.url, SystemClock())
    await store.start()
    scaler = None
    try:
        assert await asyncio.wait_for(child.stdout.readline(), 20.0) == b"resizing\n"
        os.kill(child.pid, signal.SIGKILL)
        await child.wait()
        provider, catalog = Pools(), Catalog(runtime(mode=PoolMode.FIXED, size=5))
        await provider.apply([runtime(mode=PoolMode.FIXED, size=1)])
        settings = AutoscalerSettings(tick=0.1, lease_ttl=1.0)
        scaler = Autoscaler(catalog, store, provider, SystemClock(), settings, holder="successor")
        await scaler.start()
        await eventually(lambda: provider.resizes == [(KEY, 5)], "the successor orders what the dead leader had begun")
        fence = scaler.explain()["fence"]

        assert fence >= 2
        assert sum(n for _, n in await store.claim_history(KEY, 0.0, bucket=60)) == 3
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
        if scaler is not None:
            await scaler.aclose()
        await store.aclose()
        server.kill()


async def test_miss_wakes_the_loop_at_once(store: SqliteStore, clock: ManualClock) -> None:
    """With a tick of an hour, a claim that finds no sandbox leads to a pass now, before it has one."""
    loop = Loop(store, clock, runtime(), tick=3600.0, lease_ttl=36000.0)
    await loop.provider.apply(loop.catalog.all())
    await loop.scaler.start()
    try:
        await eventually(
            lambda: KEY in loop.scaler.pools and loop.scaler.pools[KEY].decision is not None, "the pool was looked at"
        )
        clock.advance(100.0)
        loop.scaler.waiting(KEY, 1, clock.now())
        await eventually(lambda: loop.scaler.pools[KEY].demand.recent.total == 1, "the miss was seen")
    finally:
        await loop.scaler.aclose()


def test_invalid_settings_are_reported_all_at_once() -> None:
    """Every wrong setting is named with its value."""
    with pytest.raises(SettingsError) as caught:
        AutoscalerSettings(tick=0.0, lease_ttl=-1.0, max_warm=-2)

    assert len(caught.value.problems) == 3


async def test_closing_ends_the_loop_at_the_moment_of_a_pool_miss(store: SqliteStore, clock: ManualClock) -> None:
    """The gateway does not end before the loop does. In Python 3.11 asyncio.wait_for swallows this cancellation."""
    scaler = Loop(store, clock, runtime(), tick=3600.0).scaler
    await scaler.start()
    await eventually(lambda: scaler._poked._waiters, "the loop waits for its tick")
    scaler.poke()
    closing = asyncio.create_task(scaler.aclose())
    ended, _ = await asyncio.wait([closing], timeout=LIMIT_S)
    assert ended


async def test_pass_over_many_runtimes_lets_the_gateway_serve(store: SqliteStore, clock: ManualClock) -> None:
    """Between slices of a pass the event loop runs, a pool whose claim waits comes first, and none is left out."""
    keys = [RuntimeKey("default", f"r{n:03d}") for n in range(200)]
    loop = Loop(store, clock, *(runtime(key, size=1) for key in keys))
    await loop.begin()
    await loop.tick(60)
    loop.scaler.waiting(keys[-1], 1, clock.now())
    for key in keys[:-1]:
        claim(loop.scaler, key, StartKind.WARM, clock.now())
    clock.advance(1.0)
    ran: list[int] = []

    async def serve() -> None:
        while True:
            ran.append(sum(pool.demand.recent.total > 0 for pool in loop.scaler.pools.values()))
            await asyncio.sleep(0)

    serving = asyncio.create_task(serve())
    await asyncio.sleep(0)
    await loop.scaler.run_once(clock.now())
    serving.cancel()
    steps = [after - before for before, after in itertools.pairwise(sorted(set(ran)))]

    assert set(steps) == {1}
    assert len(steps) == 200
    assert all(pool.demand.recent.total == 1 for pool in loop.scaler.pools.values())


async def test_claim_that_waits_is_seen_in_the_middle_of_a_pass(store: SqliteStore, clock: ManualClock) -> None:
    """Also of a pool that the pass has looked at already: it is not left to the next one."""
    keys = [RuntimeKey("default", f"r{n:03d}") for n in range(60)]
    loop = Loop(store, clock, *(runtime(key, size=1) for key in keys))
    await loop.begin()
    await loop.tick(60)

    def claim_all() -> None:
        for key in keys:
            claim(loop.scaler, key, StartKind.WARM, clock.now())
        clock.advance(1.0)

    claim_all()
    await loop.scaler.run_once(clock.now())  # the next pass is spread over as many slices
    claim_all()
    first, last = loop.scaler.pools[keys[0]], loop.scaler.pools[keys[-1]]
    before = first.forecast, last.forecast
    running = asyncio.create_task(loop.scaler.run_once(clock.now(), spread=60.0))
    await eventually(lambda: first.forecast is not before[0], "the first pool was looked at")
    once = first.forecast
    clock.advance(1.0)
    loop.scaler.waiting(keys[0], 1, clock.now())
    loop.scaler.poke()
    await eventually(lambda: first.forecast is not once, "it was looked at again")
    assert last.forecast is before[1]
    running.cancel()


async def test_pass_ends_while_claims_of_many_runtimes_wait_without_an_end(
    store: SqliteStore, clock: ManualClock
) -> None:
    """The lease is renewed between passes: without it no order would be sent, and the claims would wait for ever."""
    keys = [RuntimeKey("default", f"r{n:03d}") for n in range(100)]
    loop = Loop(store, clock, *(runtime(key, size=1) for key in keys))
    await loop.begin()
    await loop.tick(60)

    async def claim_all() -> None:
        while True:
            clock.advance(0.001)
            for key in keys:
                loop.scaler.waiting(key, 1, clock.now())
            await asyncio.sleep(0.001)

    claiming = asyncio.create_task(claim_all())
    async with asyncio.timeout(LIMIT_S):
        await loop.scaler.run_once(clock.now(), spread=0.1)
    claiming.cancel()


async def test_silent_runtimes_are_not_all_reviewed_at_once(store: SqliteStore, clock: ManualClock) -> None:
    """A hundred runtimes without claims: once they are some minutes old no pass looks at many."""
    loop = Loop(store, clock, *(runtime(RuntimeKey("default", f"r{n:03d}")) for n in range(100)))
    await loop.begin()
    await loop.tick(300)
    reviewed = []
    for _ in range(60):
        before = [pool.forecast for pool in loop.scaler.pools.values()]
        await loop.tick()
        after = [pool.forecast for pool in loop.scaler.pools.values()]
        reviewed.append(sum(a is not b for a, b in zip(before, after, strict=True)))

    assert 100 <= sum(reviewed) <= 150
    assert max(reviewed) <= 15


async def test_gateway_that_does_not_lead_keeps_no_claims_for_later(store: SqliteStore, clock: ManualClock) -> None:
    """Nobody takes the counts of a gateway that follows; it would keep the times of all claims for ever."""
    leader, follower = Loop(store, clock, runtime(), shared=True), Loop(store, clock, runtime(), shared=True)
    await leader.begin()
    await follower.tick(10, claims=5)

    assert follower.scaler.signal.take(KEY).times == []


async def test_why_names_the_rule_that_decides_and_its_price(store: SqliteStore, clock: ManualClock) -> None:
    """The sentence has the followed rule, what the pool costs an hour, and what a miss is worth to that rule."""
    loop = Loop(store, clock, runtime(target_miss_rate=0.02), default_lead=10.0)
    loop.provider.lead = 10.0
    await loop.begin()
    rules = set()
    for _ in range(150):
        await loop.tick(4)
        await loop.tick(1, claims=1)
        pool = loop.pool()
        if pool["rule"] not in ("forecast", "constant"):
            continue
        rules.add(pool["rule"])
        rule = f"constant pool of {pool['wanted']}" if pool["rule"] == "constant" else pool["stocking"]
        assert rule in pool["why"]
        assert f"Holding {pool['target']} costs {3600 * pool['target']:,}" in pool["why"]
        if pool["missWorth"] is not None:
            assert f"is worth {pool['missWorth']:,.1f} of them" in pool["why"]
    assert rules
