"""What every store promises about the quota ledger: one suite over memory, sqlite and Redis."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping

import pytest

from gateway.core.errors import StoreUnavailableError
from gateway.core.interfaces import SessionStore
from gateway.core.model import SessionId
from gateway.core.quota import WHOLE_RATE, Amounts, Excess, QuotaLedger, Resource, Wish
from gateway.testing import ManualClock
from tests.support.records import T0

ONE, TWO = SessionId("one"), SessionId("two")
AWAKE: Amounts = {Resource.SESSIONS: 1, Resource.SANDBOXES: 1, Resource.MEMORY: 1 << 50}
ASLEEP: Amounts = {Resource.SESSIONS: 1, Resource.HIBERNATED: 1, Resource.STORED: 7}


@pytest.fixture
def redis_options() -> Mapping[str, bool]:
    """Leases and reservations end by the tests' clock."""
    return {"server_time": False}


@pytest.fixture
def ledger(store: SessionStore) -> QuotaLedger:
    """The ledger of that store."""
    return store.quotas


async def used(ledger: QuotaLedger, tenant: str = "acme") -> dict[Resource, int]:
    return {resource: n for resource, n in (await ledger.used(tenant)).items() if n}


async def test_reservation_counts_once_however_often_it_is_made(ledger: QuotaLedger) -> None:
    """Sums and entries say the same, in numbers beyond 32 bits; other tenants have nothing."""
    for _ in range(3):
        assert await ledger.reserve("acme", ONE, AWAKE, {Resource.SANDBOXES: 1}, T0 + 60.5) is None

    assert await used(ledger) == AWAKE
    (entry,) = await ledger.entries("acme")
    assert (entry.session_id, entry.amounts, entry.until) == (ONE, AWAKE, T0 + 60.5)
    assert await ledger.tenants() == ["acme"]
    assert await used(ledger, "other") == {}


async def test_reservation_over_a_limit_changes_nothing_and_says_which(ledger: QuotaLedger) -> None:
    """The first limit in the order of the amounts, its value and what is used."""
    limits = {Resource.SANDBOXES: 1, Resource.MEMORY: 1 << 50}
    await ledger.reserve("acme", ONE, AWAKE, limits, T0)

    assert await ledger.reserve("acme", TWO, AWAKE, limits, T0) == Excess(Resource.SANDBOXES, 1, 1)
    assert await ledger.reserve("acme", TWO, AWAKE, {Resource.MEMORY: 1 << 50}, T0) == Excess(
        Resource.MEMORY, 1 << 50, 1 << 50
    )
    assert [entry.session_id for entry in await ledger.entries("acme")] == [ONE]
    assert await used(ledger) == AWAKE


async def test_session_moves_between_what_it_holds_awake_and_asleep(ledger: QuotaLedger) -> None:
    """What it no longer holds is free at once; waking needs room again."""
    limits = {Resource.SANDBOXES: 1}
    await ledger.reserve("acme", ONE, AWAKE, limits, T0)
    await ledger.settle("acme", ONE, ASLEEP)
    assert await used(ledger) == ASLEEP

    assert await ledger.reserve("acme", TWO, AWAKE, limits, T0) is None
    assert await ledger.reserve("acme", ONE, AWAKE, limits, T0) == Excess(Resource.SANDBOXES, 1, 1)
    await ledger.settle("acme", TWO, {})
    assert await ledger.reserve("acme", ONE, AWAKE, limits, T0) is None
    assert await used(ledger) == AWAKE


async def test_limit_below_what_is_used_takes_nothing_away(ledger: QuotaLedger) -> None:
    """A session keeps what it holds, and may hold less; another one gets nothing."""
    await ledger.reserve("acme", ONE, AWAKE, {}, T0)
    none = dict.fromkeys(Resource, 0)

    assert await ledger.reserve("acme", ONE, AWAKE, none, T0) is None
    assert await ledger.reserve("acme", ONE, {Resource.SESSIONS: 1}, none, T0) is None
    assert await ledger.reserve("acme", TWO, {Resource.SESSIONS: 1}, none, T0) == Excess(Resource.SESSIONS, 0, 1)


async def test_settling_ignores_limits_and_confirms(ledger: QuotaLedger) -> None:
    """It says what is so; emptied, nothing of the session is left."""
    await ledger.reserve("acme", ONE, AWAKE, {}, T0 + 60)
    assert await ledger.settle("acme", ONE, AWAKE)
    (entry,) = await ledger.entries("acme")
    assert entry.until == 0.0

    for _ in range(2):
        assert await ledger.settle("acme", ONE, {})
    assert (await ledger.entries("acme"), await used(ledger), await ledger.tenants()) == ([], {}, [])


async def test_settling_by_an_old_mark_does_nothing(ledger: QuotaLedger) -> None:
    """Also where the entry was forgotten and made anew in between with the same content."""
    await ledger.reserve("acme", ONE, AWAKE, {}, T0)
    (entry,) = await ledger.entries("acme")
    assert not await ledger.settle("acme", ONE, {}, mark=entry.mark + 1)
    assert not await ledger.settle("acme", ONE, {}, mark=0)
    await ledger.settle("acme", ONE, {})
    await ledger.reserve("acme", ONE, AWAKE, {}, T0)

    assert not await ledger.settle("acme", ONE, {}, mark=entry.mark)
    assert await used(ledger) == AWAKE
    (entry,) = await ledger.entries("acme")
    assert await ledger.settle("acme", ONE, {}, mark=entry.mark)
    assert await ledger.settle("acme", ONE, ASLEEP, mark=0)


async def test_of_a_burst_exactly_as_many_are_let_in_as_fit(ledger: QuotaLedger) -> None:
    """200 at once, 7 places."""
    results = await asyncio.gather(
        *(ledger.reserve("acme", SessionId(f"s{n}"), AWAKE, {Resource.SANDBOXES: 7}, T0) for n in range(200))
    )

    assert results.count(None) == 7
    assert (await ledger.used("acme"))[Resource.SANDBOXES] == 7


async def test_bucket_gives_its_burst_and_then_one_per_interval(ledger: QuotaLedger, clock: ManualClock) -> None:
    """The wait is exact, asking for nothing costs nothing, and tenants do not share."""
    assert [await ledger.take("acme", 10.0, 2) for _ in range(4)] == [0.0, 0.0, 10.0, 10.0]
    assert await ledger.take("other", 10.0, 2) == 0.0
    clock.advance(9.0)
    assert await ledger.take("acme", 10.0, 2) == pytest.approx(1.0)
    clock.advance(1.0)
    assert await ledger.take("acme", 10.0, 2) == 0.0
    clock.advance(1000.0)
    assert [await ledger.take("acme", 10.0, 2) for _ in range(3)] == [0.0, 0.0, 10.0]


async def test_gateways_without_heartbeats_are_not_counted(ledger: QuotaLedger, clock: ManualClock) -> None:
    """Each counts itself."""
    assert await ledger.gateways("a", 3.0) == {"a"}
    assert await ledger.gateways("b", 3.0) == {"a", "b"}
    assert await ledger.gateways("a", 3.0) == {"a", "b"}
    clock.advance(2.0)
    await ledger.gateways("a", 3.0)
    clock.advance(2.0)
    assert await ledger.gateways("a", 3.0) == {"a"}


async def test_clock_that_is_set_back_refuses_nobody_for_as_long(store: SessionStore, clock: ManualClock) -> None:
    """Neither a bucket of creates nor a heartbeat reaches further ahead than one of now."""
    ledger = store.quotas
    assert [await ledger.take("acme", 10.0, 2) for _ in range(2)] == [0.0, 0.0]
    assert await ledger.gateways("gone", 5.0) == {"gone"}
    clock.advance(-365 * 86400.0)
    assert [await ledger.take("acme", 10.0, 2) for _ in range(3)] == [0.0, 0.0, pytest.approx(10.0)]
    assert await ledger.gateways("here", 5.0) == {"here"}


async def test_closed_store_refuses(store: SessionStore) -> None:
    """The ledger is open while its store is."""
    await store.aclose()

    with pytest.raises(StoreUnavailableError):
        await store.quotas.used("acme")


async def test_parts_of_a_limit_never_add_up_to_more_than_it(ledger: QuotaLedger, clock: ManualClock) -> None:
    """Each gateway gets what the others leave; units end with their time, or when they are given back."""

    async def part(holder: str, units: int, name: str = "one") -> tuple[int, int, int]:
        made = await ledger.part(name, holder, Wish(units, 10, 0, 1 << 50), 10.0)
        return made.units, made.amount, made.holders

    assert await part("a", 6) == (6, 0, 1)
    assert await part("b", 6) == (4, 0, 2)
    assert await part("c", 1) == (0, 0, 3)
    assert await part("a", 3) == (3, 0, 3)
    assert await part("c", 9) == (3, 0, 3)
    assert await part("b", 0) == (0, 0, 2)
    clock.advance(5)
    assert await part("a", 4) == (4, 0, 2)
    clock.advance(6)
    assert await part("a", 20) == (10, 0, 1), "c has not asked for 10 s"
    assert await part("b", 6, "two") == (6, 0, 1), "each name has limits of its own"


async def test_shares_of_a_rate_never_add_up_to_more_than_it(ledger: QuotaLedger, clock: ManualClock) -> None:
    """Who joins has nothing until the others have asked again, and then as much as they; also after one was killed."""
    shares: dict[str, int] = {}

    async def ask(holder: str, units: int = 1) -> int:
        part = await ledger.part("one", holder, Wish(units, 10, 0, 0), 10.0)
        shares[holder] = part.share
        assert sum(shares.values()) <= WHOLE_RATE
        assert not units or part.is_behind == (part.share < WHOLE_RATE // part.holders)
        return part.share

    assert await ask("a") == WHOLE_RATE
    assert [await ask(each) for each in "bab"] == [0, WHOLE_RATE // 2, WHOLE_RATE // 2]
    assert await ask("c") == 0
    assert [await ask(each) for each in "abc"] == [WHOLE_RATE // 3] * 3
    assert await ask("b", 0) == 0
    assert [await ask(each) for each in "ac"] == [WHOLE_RATE // 2] * 2
    clock.advance(6)
    assert await ask("a") == WHOLE_RATE // 2
    clock.advance(6)
    del shares["c"]  # it was killed, and its time is over
    assert await ask("a") == WHOLE_RATE
    chance = random.Random(1)
    for _ in range(60):
        await ask(chance.choice("abcde"), chance.choice((0, 1, 1, 1)))


async def test_amounts_are_taken_once(ledger: QuotaLedger) -> None:
    """Over all gateways; what one gives back another may take, and a limit that is lowered takes nothing back."""

    async def amount(holder: str, more: int, of: int = 1 << 50) -> int:
        return (await ledger.part("one", holder, Wish(0, 1, more, of), 10.0)).amount

    assert await amount("a", (1 << 50) - 5) == (1 << 50) - 5
    assert [await amount(each, 3) for each in "bcb"] == [3, 2, 0]
    assert await amount("b", -4) == -4
    assert await amount("c", 9) == 4
    assert await amount("c", 9, 1000) == 0
    assert await amount("a", -(1 << 60)) == -(1 << 50)
