"""What every store promises about usage: one suite over memory, sqlite and Redis."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import redis

from gateway.core.errors import StoreUnavailableError
from gateway.core.interfaces import SessionStore
from gateway.core.usage import HOUR_S, Quantity, Retention, UsageKey, UsageStore
from gateway.store.redis import RedisStore
from gateway.testing import ManualClock
from tests.support.records import T0
from tests.support.redis_server import RedisServer

HOUR = int(T0 // HOUR_S) * HOUR_S
KEPT = Retention(sessions=10.0 * HOUR_S, totals=50.0 * HOUR_S)


@pytest.fixture
def usage(store: SessionStore) -> UsageStore:
    """The usage of that store."""
    return store.usage


def key(hour: int = HOUR, tenant: str = "acme", **changes: str) -> UsageKey:
    """A row of one runtime's totals."""
    return UsageKey(hour, tenant, changes.pop("runtime", "code-interpreters/default/r"), "1cpu-1024Mi", **changes)


async def rows(
    usage: UsageStore, since: int = HOUR - 100 * HOUR_S, until: int = HOUR + HOUR_S, **how: Any
) -> dict[UsageKey, Any]:
    """All rows of these hours. Not since 1970: Redis looks at each hour, of which there are half a million by now."""
    how.setdefault("sessions", False)
    return {row: amounts async for row, amounts in usage.read(since, until, **how)}


async def test_amounts_of_one_row_add_up(usage: UsageStore) -> None:
    """Batches add to what is there, quantity by quantity, whoever wrote them."""
    assert await usage.add("a", 1, {key(): {Quantity.REQUESTS: 2.0, Quantity.CPU_SECONDS: 0.25}})
    assert await usage.add("b", 1, {key(): {"requests": 3.0, "idle_seconds": 1.5}})

    assert await rows(usage) == {key(): {"requests": 5.0, "cpu_seconds": 0.25, "idle_seconds": 1.5}}


async def test_batch_sent_again_counts_once(usage: UsageStore) -> None:
    """A batch whose outcome was unknown may be repeated; so may an earlier one that arrives late."""
    first, second = {key(): {"requests": 1.0}}, {key(): {"requests": 10.0}}
    assert await usage.add("a", 1, first)
    assert not await usage.add("a", 1, first)
    assert await usage.add("a", 2, second)
    assert not await usage.add("a", 1, first)
    assert not await usage.add("a", 2, second)

    assert await rows(usage) == {key(): {"requests": 11.0}}


async def test_of_one_batch_sent_ten_times_at_once_one_counts(usage: UsageStore) -> None:
    """The store, not the writer, recognises retries that overlap."""
    batch = {key(): {"requests": 1.0}, key(session="s"): {"requests": 1.0}}
    results = await asyncio.gather(*(usage.add("a", 1, batch) for _ in range(10)))

    assert sum(results) == 1
    assert await rows(usage) == {key(): {"requests": 1.0}}


async def test_hours_tenants_and_sessions_are_read_apart(usage: UsageStore) -> None:
    """`since` is included and `until` is not; totals and sessions are two sets; a tenant reads its own."""
    later = HOUR + HOUR_S
    every = [key(), key(later), key(tenant="zeta"), key(session="s1"), key(later, session="s1"), key(tenant="")]
    await usage.add("a", 1, {each: {"requests": 1.0} for each in every})

    assert set(await rows(usage, HOUR, later)) == {key(), key(tenant="zeta"), key(tenant="")}
    assert set(await rows(usage, HOUR + 1, later + 1)) == {key(later)}
    assert set(await rows(usage, HOUR, later + 1, tenant="acme")) == {key(), key(later)}
    assert set(await rows(usage, HOUR, later + 1, sessions=True)) == {key(session="s1"), key(later, session="s1")}
    assert await rows(usage, HOUR, HOUR) == {}


async def test_many_rows_are_read_in_the_order_of_hours(usage: UsageStore) -> None:
    """More rows than fit a page of any store."""
    hours = [HOUR - n * HOUR_S for n in range(30)]
    for sequence, hour in enumerate(hours, 1):
        batch = {key(hour, session=f"s{n}"): {"requests": 1.0} for n in range(50)}
        await usage.add("a", sequence, batch)

    found = [row.hour async for row, _ in usage.read(hours[-1], HOUR + 1, sessions=True)]

    assert len(found) == 30 * 50
    assert found == sorted(found)


async def test_names_and_amounts_read_back_exactly(usage: UsageStore) -> None:
    """Any text in a name, and amounts from a fraction of a second to an exabyte."""
    strange = UsageKey(HOUR, "a-b", 'x"\x00ü/[1,"y"]', "", "s|\n")
    amounts = {"requests": 1.0, "egress_bytes": float(1 << 60), "cpu_seconds": 0.123456789012345}
    await usage.add("a", 1, {strange: amounts})

    assert await rows(usage, sessions=True) == {strange: pytest.approx(amounts, rel=1e-14)}


async def test_rows_end_after_their_retention(store: SessionStore, clock: ManualClock) -> None:
    """Rows of sessions and totals go after a time of their own, so the store does not grow for ever."""
    if isinstance(store, RedisStore):
        pytest.skip("its server's clock decides; test_redis_rows_expire looks at the keys")
    usage = store.usage
    await usage.add("a", 1, {key(): {"requests": 1.0}, key(session="s"): {"requests": 1.0}}, KEPT)
    clock.advance(KEPT.sessions - HOUR_S)
    await usage.add("a", 2, {}, KEPT)
    assert list(await rows(usage, sessions=True)) == [key(session="s")]

    clock.advance(2 * HOUR_S)
    await usage.add("a", 3, {}, KEPT)

    assert await rows(usage, sessions=True) == {}
    assert list(await rows(usage)) == [key()]

    clock.advance(KEPT.totals - KEPT.sessions)
    await usage.add("a", 4, {}, KEPT)
    assert await rows(usage) == {}


async def test_redis_rows_expire(shared_redis: RedisServer, redis_prefix: str, clock: ManualClock) -> None:
    """Every key of usage has a time to live, the one of its kind."""
    store = RedisStore(shared_redis.url, clock, redis_prefix, deadline=20.0)
    await store.start()
    await store.usage.add("a", 1, {key(): {"requests": 1.0}, key(session="s"): {"requests": 1.0}}, KEPT)
    await store.aclose()
    lives: dict[str, int] = {}
    with redis.Redis("127.0.0.1", shared_redis.port) as client:
        for name in client.scan_iter("{" + redis_prefix + "}:usage*"):
            lives[name.decode().split(":")[1]] = client.ttl(name)

    assert set(lives) == {"usage", "usage-sessions", "usage-writer"}
    assert KEPT.sessions < lives["usage-sessions"] <= KEPT.sessions + HOUR_S
    assert KEPT.totals < lives["usage"] <= KEPT.totals + HOUR_S
    assert lives["usage-writer"] > 0


async def test_closed_store_refuses(store: SessionStore) -> None:
    """Usage is open while its store is."""
    await store.aclose()

    with pytest.raises(StoreUnavailableError):
        await store.usage.add("a", 1, {key(): {"requests": 1.0}})
    with pytest.raises(StoreUnavailableError):
        await rows(store.usage)
