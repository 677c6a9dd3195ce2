"""What every session store promises: one suite over sqlite, Redis, and the cache in front of each."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Mapping
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings

from gateway.core.errors import BadRequestError, FencedOutError, StaleWriteError, StoreUnavailableError
from gateway.core.interfaces import SessionStore
from gateway.core.model import Kind, RuntimeKey, Session, SessionId, SessionState
from gateway.testing import ManualClock
from tests.support.examples import examples
from tests.support.records import RUNTIME, T0, session, sessions

FAR = T0 + 1e9


@pytest.fixture(params=["memory", "sqlite", "redis", "cached-sqlite", "cached-redis"])
def store_kind(request: pytest.FixtureRequest) -> str:
    """All kinds of stores, with the cache before each that has one."""
    return str(request.param)


@pytest.fixture
def redis_options() -> Mapping[str, bool]:
    """Leases and reservations end by the tests' clock."""
    return {"server_time": False}


async def ids(found: AsyncIterator[Session]) -> list[str]:
    return [each.id async for each in found]


# Records


async def test_store_answers_ping(store: SessionStore) -> None:
    """`ping` returns while the store is open."""
    await store.ping()


async def test_closed_store_refuses_calls(store: SessionStore) -> None:
    """After aclose, which may come twice, every call is refused rather than left hanging."""
    await store.aclose()
    await store.aclose()

    with pytest.raises(StoreUnavailableError):
        await store.put(session())
    with pytest.raises(StoreUnavailableError):
        await store.ping()


async def test_unknown_ids_are_no_errors(store: SessionStore) -> None:
    """Reading answers None; deleting and touching what is not there is success and creates nothing."""
    await store.delete(SessionId("nobody"))
    await store.touch_many({SessionId("nobody"): T0})
    await store.touch_many({})

    assert await store.get(SessionId("nobody")) is None
    assert await ids(store.sessions()) == []
    assert await ids(store.idle(FAR)) == []


async def test_put_answers_the_record_with_its_new_version(store: SessionStore) -> None:
    """Versions count the writes, from 1."""
    first = await store.put(session())
    second = await store.put(replace(first, state=SessionState.HIBERNATING))

    assert (first.version, second.version) == (1, 2)
    assert second == replace(session(), state=SessionState.HIBERNATING, version=2)
    assert await store.get(first.id) == second


@settings(max_examples=examples(40), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(session(metadata={"città": "Łódź 🦊", "quote": "\"'\\", "nul": "\0", "": ""}))
@given(sessions)
async def test_any_record_comes_back_as_it_was(store: SessionStore, record: Session) -> None:
    """Every field survives: nested dataclasses, absent ones, text of any script, times to the last bit."""
    if (old := await store.get(record.id)) is not None:
        await store.delete(old.id)

    stored = await store.put(record)
    (listed,) = [each async for each in store.sessions(runtime=record.runtime) if each.id == record.id]

    assert stored == replace(record, version=1)
    assert await store.get(record.id) == stored
    for field in fields(Session):
        assert type(getattr(listed, field.name)) is type(getattr(stored, field.name)), field.name
    assert listed == stored


async def test_put_refuses_what_has_no_stored_form(store: SessionStore) -> None:
    """A lone surrogate and a time that is no number raise an error, and nothing is written."""
    with pytest.raises(BadRequestError, match="s1"):
        await store.put(session(metadata={"x": "\ud800"}))
    with pytest.raises(BadRequestError, match="idle_timeout is nan"):
        await store.put(session(idle_timeout=float("nan")))

    assert await store.get(SessionId("s1")) is None


async def test_put_refuses_to_create_twice(store: SessionStore) -> None:
    """Version 0 means that it must not exist yet."""
    await store.put(session())

    with pytest.raises(StaleWriteError):
        await store.put(session(tenant="other"))
    found = await store.get(SessionId("s1"))

    assert found is not None
    assert found.tenant == session().tenant


@pytest.mark.parametrize("version", [1, 3])
async def test_put_refuses_another_version(store: SessionStore, version: int) -> None:
    """Older or newer than the stored one: refused, and nothing moved, in no index either."""
    await store.put(await store.put(session()))

    with pytest.raises(StaleWriteError):
        await store.put(session(version=version, state=SessionState.TERMINATED))

    assert await ids(store.terminated(FAR)) == []
    assert await ids(store.idle(FAR)) == ["s1"]


async def test_put_refuses_a_record_that_was_deleted(store: SessionStore) -> None:
    """A write that began before a deletion does not bring the record back."""
    stored = await store.put(session())
    await store.delete(stored.id)

    with pytest.raises(StaleWriteError):
        await store.put(stored)

    assert await store.get(stored.id) is None
    assert (await store.put(session())).version == 1


async def test_racing_puts_have_one_winner(store: SessionStore) -> None:
    """Fifty writers of one version: one lands, the record is that one's."""
    stored = await store.put(session())
    racers = [replace(stored, tenant=f"t{n}") for n in range(50)]

    outcomes = await asyncio.gather(*(store.put(each) for each in racers), return_exceptions=True)
    winners = [each for each in outcomes if isinstance(each, Session)]

    assert len(winners) == 1
    assert sum(isinstance(each, StaleWriteError) for each in outcomes) == 49
    assert await store.get(stored.id) == winners[0]


async def test_racing_creations_have_one_winner(store: SessionStore) -> None:
    """The same holds for records that are not there yet."""
    outcomes = await asyncio.gather(*(store.put(session(tenant=str(n))) for n in range(20)), return_exceptions=True)

    assert sum(isinstance(each, Session) for each in outcomes) == 1


async def test_refused_puts_do_not_affect_others_in_the_batch(store: SessionStore) -> None:
    """Writes handed in together are answered each on its own: stale, unwritable and good ones side by side."""
    await store.put(session("taken"))
    batch = [session(f"n{n}") for n in range(20)]
    batch[5:5] = [session("taken"), session("bad", metadata={"x": "\ud800"})]

    outcomes = await asyncio.gather(*(store.put(each) for each in batch), return_exceptions=True)

    assert [type(each).__name__ for each in outcomes[5:7]] == ["StaleWriteError", "BadRequestError"]
    assert len(await ids(store.sessions())) == 21


async def test_deleted_record_is_in_no_index(store: SessionStore) -> None:
    """Nothing that lists or sweeps meets it again."""
    for name, state in [("a", SessionState.ACTIVE), ("t", SessionState.TERMINATED)]:
        await store.put(session(name, state=state))
        await store.delete(SessionId(name))

    for found in (store.sessions(), store.idle(FAR), store.expired(FAR), store.terminated(FAR)):
        assert await ids(found) == []
    assert await ids(store.sessions(state=SessionState.ACTIVE, runtime=RUNTIME)) == []


# Activity


async def test_touch_raises_last_activity_and_nothing_else(store: SessionStore) -> None:
    """The version stays, so that writers who read before are not refused."""
    stored = await store.put(session())
    await store.touch_many({stored.id: T0 + 30.123456})

    assert await store.get(stored.id) == replace(stored, last_active_at=T0 + 30.123456)
    assert (await store.put(stored)).version == 2


async def test_touch_never_lowers_last_activity(store: SessionStore) -> None:
    """A batch that arrives late, from a slower gateway, changes nothing."""
    stored = await store.put(session())
    await store.touch_many({stored.id: T0 - 5})

    assert await store.get(stored.id) == stored


async def test_put_keeps_a_later_touch(store: SessionStore) -> None:
    """A record read before a touch and written after it does not undo it, and the writer gets an error."""
    stored = await store.put(session())
    await store.touch_many({stored.id: T0 + 60})

    written = await store.put(replace(stored, tenant="x"))

    assert written.last_active_at == T0 + 60
    assert await store.get(stored.id) == written
    assert await ids(store.idle(T0 + 900)) == []


async def test_put_takes_back_a_touch_that_is_still_to_come(store: SessionStore) -> None:
    """It is of a clock that was wrong: the session would count as used until that time."""
    stored = await store.put(session())
    await store.touch_many({stored.id: 9e12})

    written = await store.put(replace(stored, last_active_at=T0 + 30))

    assert written.last_active_at == T0 + 30
    assert await store.get(stored.id) == written
    assert await ids(store.idle(T0 + 930)) == [stored.id]


async def test_touch_of_many_reaches_each(store: SessionStore) -> None:
    """More than one batch of them, with unknown ids between."""
    await asyncio.gather(*(store.put(session(f"s{n:04}")) for n in range(600)))
    await store.touch_many({SessionId(f"s{n:04}"): T0 + n for n in range(1200)})

    assert [each.last_active_at async for each in store.sessions(limit=1000)] == [T0 + n for n in range(600)]


# Indices


async def test_idle_gives_active_sessions_soonest_first(store: SessionStore) -> None:
    """The order is by idle_at, its own timeout counted; the bound is inclusive."""
    await store.put(session("late", last_active_at=T0 + 500, idle_timeout=500))
    await store.put(session("soon", last_active_at=T0 + 100, idle_timeout=10))
    await store.put(session("middle", last_active_at=T0, idle_timeout=900))
    for state in set(SessionState) - {SessionState.ACTIVE}:
        await store.put(session(f"not-{state}", state=state, idle_timeout=1))

    assert await ids(store.idle(T0 + 1000)) == ["soon", "middle", "late"]
    assert await ids(store.idle(T0 + 900)) == ["soon", "middle"]
    assert await ids(store.idle(T0 + 109)) == []


async def test_idle_follows_touches_states_and_timeouts(store: SessionStore) -> None:
    """Whatever changes the moment, or whether there is one, moves the entry."""
    for name in ("touched", "hibernated", "patient", "same"):
        await store.put(session(name))
    await store.touch_many({SessionId("touched"): T0 + 1})
    await store.put(session("hibernated", version=1, state=SessionState.HIBERNATED))
    await store.put(session("patient", version=1, idle_timeout=1000.0))

    assert await ids(store.idle(T0 + 900)) == ["same"]
    assert await ids(store.idle(T0 + 901)) == ["same", "touched"]

    await store.put(session("hibernated", version=2))
    assert await ids(store.idle(T0 + 900)) == ["hibernated", "same"]


async def test_idle_is_exact_to_the_last_bit(store: SessionStore) -> None:
    """No store rounds the moment: it is due at idle_at, and not one representable instant earlier."""
    stored = await store.put(session(last_active_at=T0 + 0.123456, idle_timeout=0.7))
    await store.touch_many({stored.id: T0 + 0.76548})
    due = T0 + 0.76548 + 0.7

    assert await ids(store.idle(math.nextafter(due, 0))) == []
    assert await ids(store.idle(due)) == ["s1"]


async def test_expired_gives_all_but_terminated_soonest_first(store: SessionStore) -> None:
    """Hibernated, lost and half-made sessions end as well; a terminated one has."""
    for n, state in enumerate(SessionState):
        await store.put(session(f"{state}", state=state, expires_at=T0 + 100 - n))

    expected = [str(state) for state in reversed(SessionState) if state is not SessionState.TERMINATED]
    assert await ids(store.expired(T0 + 100)) == expected
    assert await ids(store.expired(T0 + 98)) == expected[:-2]


async def test_expired_follows_writes(store: SessionStore) -> None:
    """A prolonged session leaves the past; a terminated one leaves for good."""
    for name in ("prolonged", "ended", "same"):
        await store.put(session(name, expires_at=T0))
    await store.put(session("prolonged", version=1, expires_at=T0 + 50))
    await store.put(session("ended", version=1, expires_at=T0, state=SessionState.TERMINATED))

    assert await ids(store.expired(T0)) == ["same"]
    assert await ids(store.expired(FAR)) == ["same", "prolonged"]


async def test_terminated_gives_the_oldest_first(store: SessionStore) -> None:
    """Records that may be forgotten, by when they were last of use; touches count."""
    for n, name in enumerate(("c", "b", "a")):
        await store.put(session(name, state=SessionState.TERMINATED, last_active_at=T0 + n))
    await store.put(session("alive"))
    await store.touch_many({SessionId("c"): T0 + 10})

    assert await ids(store.terminated(T0 + 1)) == ["b"]
    assert await ids(store.terminated(T0 + 10)) == ["b", "a", "c"]


@pytest.mark.parametrize("same_time", [True, False], ids=["all-at-once", "each-its-own"])
async def test_sweeps_give_each_of_many_once(store: SessionStore, same_time: bool) -> None:
    """Several pages of them, also where all share one moment."""
    names = [f"s{n:04}" for n in range(350)]
    step = 0 if same_time else 1
    await asyncio.gather(
        *(
            store.put(session(name, last_active_at=T0 + n * step, expires_at=T0 + n * step))
            for n, name in enumerate(names)
        )
    )

    assert await ids(store.idle(FAR)) == names
    assert await ids(store.expired(FAR)) == names


async def test_sweep_may_change_what_it_is_given(store: SessionStore) -> None:
    """Records that leave the index while it is read make it skip no other record."""
    await asyncio.gather(*(store.put(session(f"s{n:04}")) for n in range(350)))

    seen = []
    async for each in store.idle(FAR):
        seen.append(each.id)
        await store.put(replace(each, state=SessionState.HIBERNATED))

    assert len(seen) == len(set(seen)) == 350
    assert await ids(store.idle(FAR)) == []


# Listing


async def test_listing_pages_by_id(store: SessionStore) -> None:
    """Page after page, each id once, in the order of UTF-8 bytes."""
    names = sorted([*(f"s{n:03}" for n in range(230)), "S", "é", "z", "日本", "🦊", "s1", "s10"], key=str.encode)
    await asyncio.gather(*(store.put(session(name)) for name in names))

    seen: list[str] = []
    while page := await ids(store.sessions(after=SessionId(seen[-1]) if seen else None, limit=7)):
        assert len(page) <= 7
        seen += page

    assert seen == names
    assert await ids(store.sessions(limit=1000)) == names
    assert len(await ids(store.sessions())) == 100
    assert await ids(store.sessions(limit=0)) == []


async def test_listing_filters_by_state_and_runtime(store: SessionStore) -> None:
    """Either, both or neither; a runtime is its whole key, and filters follow the writes."""
    agent = RuntimeKey(RUNTIME.namespace, RUNTIME.name, Kind.AGENT_RUNTIME)
    await store.put(session("a"))
    await store.put(session("b", runtime=agent))
    await store.put(session("c", state=SessionState.HIBERNATED))
    await store.put(session("d", runtime=agent, state=SessionState.HIBERNATED))
    await store.put(session("d", version=1, runtime=agent, state=SessionState.WAKING))

    assert await ids(store.sessions(state=SessionState.ACTIVE)) == ["a", "b"]
    assert await ids(store.sessions(runtime=agent)) == ["b", "d"]
    assert await ids(store.sessions(runtime=agent, state=SessionState.WAKING)) == ["d"]
    assert await ids(store.sessions(runtime=agent, state=SessionState.HIBERNATED)) == []
    assert await ids(store.sessions(state=SessionState.HIBERNATED)) == ["c"]
    assert await ids(store.sessions(runtime=RUNTIME, after=SessionId("a"))) == ["c"]
    assert await ids(store.sessions(runtime=RuntimeKey("default", "my"))) == []


async def test_versions_of_many_are_read_at_once(store: SessionStore) -> None:
    """Of those that exist; a put counts, a touch does not."""
    for number in range(0, 1200, 2):
        await store.put(session(f"s{number}"))
    await store.put(replace(session("s0"), version=1))
    await store.touch_many({SessionId("s2"): T0 + 1})
    found = await store.versions([SessionId(f"s{number}") for number in range(1200)])
    assert found == {f"s{number}": 2 if number == 0 else 1 for number in range(0, 1200, 2)}
    assert await store.versions([]) == {}


# Lists by age


async def page_by_page(store: SessionStore, **wanted: Any) -> list[str]:
    """All ids of a list, two at a time; each record is deleted before the page after it is read."""
    found: list[str] = []
    after: tuple[float, SessionId] | None = None
    while True:
        page = [each async for each in store.by_age(after=after, limit=2, **wanted)]
        found += [each.id for each in page]
        if len(page) < 2:
            return found
        after = (page[-1].created_at, page[-1].id)
        await store.delete(page[-1].id)


async def some_of_each_age(store: SessionStore) -> None:
    """Two tenants' by age: b, then a and c of one moment, then e, which ended, then d; the second's are b and e."""
    ages = {"a": 1.5, "b": -7.0, "c": 1.5, "d": 1e9, "e": 2.25}
    for name, age in ages.items():
        tenant = "other" if name in "be" else ""
        await store.put(session(name, created_at=age, tenant=tenant))
    await store.put(replace(session("e", created_at=2.25, tenant="other"), version=1, state=SessionState.TERMINATED))


@pytest.mark.parametrize("newest_first", [True, False])
@pytest.mark.parametrize(
    ("tenant", "ended", "expected"),
    [(None, True, "baced"), (None, False, "bacd"), ("other", True, "be"), ("other", False, "b"),
     ("default", True, "acd"), ("nobody", True, "")],
)  # fmt: skip
async def test_lists_by_age_page_in_both_orders(
    store: SessionStore, tenant: str | None, ended: bool, newest_first: bool, expected: str
) -> None:
    """Of one tenant or of all, with or without those that have ended; a page's last record may be deleted meanwhile."""
    await some_of_each_age(store)
    found = await page_by_page(store, tenant=tenant, ended=ended, newest_first=newest_first)
    assert "".join(found) == (expected[::-1] if newest_first else expected)


async def test_list_by_age_follows_states(store: SessionStore) -> None:
    """An ended session leaves the list of live ones; a deleted record is in no list."""
    made = await store.put(session("a"))
    assert await ids(store.by_age(ended=False)) == ["a"]
    await store.put(replace(made, state=SessionState.TERMINATED))
    assert await ids(store.by_age(ended=False)) == []
    assert await ids(store.by_age(tenant="default")) == ["a"]
    await store.delete(SessionId("a"))
    assert await ids(store.by_age()) == []


async def test_long_list_by_age_is_whole(store: SessionStore) -> None:
    """More than a store reads at once, many of the same moment."""
    for number in range(230):
        await store.put(session(f"s{number:03}", created_at=T0 + number // 100))
    assert await ids(store.by_age(limit=1000, newest_first=False)) == [f"s{number:03}" for number in range(230)]
    assert await ids(store.by_age(limit=120)) == [f"s{number:03}" for number in range(229, 109, -1)]


async def test_search_gives_every_place_and_the_records_that_have_all_parts(store: SessionStore) -> None:
    """Newest first, of one tenant or of all, on from a place; A to Z in either case, other characters as they are."""
    await some_of_each_age(store)
    await store.put(session("f", created_at=-1e-9, metadata={"Owner": 'Ünal "X"\n', "b": "plan-9"}))

    async def found(*parts: str, **wanted: Any) -> str:
        asked: dict[str, Any] = {"tenant": None, "ended": True, "after": None, "limit": 10} | wanted
        page = await store.search(parts, **asked)
        assert all(each is None or place == (each.created_at, each.id) for place, each in page)
        return "".join(place[1].upper() if each is not None else place[1] for place, each in page)

    assert await found("PLAN-", "owner") == "decaFb"
    assert await found('Ünal "x"\n', ended=False) == "dcaFb"
    assert await found("ünal") == "decafb"
    assert await found("plan-9", "nobody") == "decafb"
    assert await found("plan-9", tenant="other") == "eb"
    assert await found("plan-9", after=(1.5, SessionId("c")), limit=2) == "aF"
    assert await found("plan-9", after=(-1e-9, SessionId("f")), limit=2) == "b"
    assert await found("plan-9", tenant="nobody") == ""


# Leases


async def test_lease_has_one_holder(store: SessionStore, clock: ManualClock) -> None:
    """While it lasts no other gateway gets it; once it expired, the next one does, with a higher fence."""
    first = await store.acquire_lease("leader", "a", 10)
    assert first is not None
    assert (first.name, first.holder, first.expires_at) == ("leader", "a", T0 + 10)
    assert await store.acquire_lease("leader", "b", 10) is None

    clock.advance(9.9)
    assert await store.acquire_lease("leader", "b", 10) is None
    clock.advance(0.1)
    second = await store.acquire_lease("leader", "b", 10)

    assert second is not None
    assert second.fence == first.fence + 1


async def test_racing_acquisitions_have_one_winner(store: SessionStore) -> None:
    """Of 30 concurrent acquisitions of a lease one succeeds."""
    outcomes = await asyncio.gather(*(store.acquire_lease("leader", f"g{n}", 10) for n in range(30)))

    assert sum(each is not None for each in outcomes) == 1


async def test_lease_is_its_holders_again(store: SessionStore, clock: ManualClock) -> None:
    """Asking again while holding it extends it on the same fence; after its end, on a new one."""
    first = await store.acquire_lease("leader", "a", 10)
    clock.advance(5)
    again = await store.acquire_lease("leader", "a", 10)
    clock.advance(10)
    anew = await store.acquire_lease("leader", "a", 10)

    assert first is not None
    assert again == replace(first, expires_at=T0 + 15)
    assert anew is not None
    assert anew.fence == first.fence + 1


async def test_renewed_lease_lasts_longer(store: SessionStore, clock: ManualClock) -> None:
    """Renewal counts from now, keeps the fence, and keeps others out."""
    lease = await store.acquire_lease("leader", "a", 10)
    assert lease is not None
    clock.advance(9)
    renewed = await store.renew_lease(lease, 10)

    assert renewed == replace(lease, expires_at=T0 + 19)
    clock.advance(9)
    assert await store.acquire_lease("leader", "b", 10) is None


async def test_lost_lease_cannot_be_renewed(store: SessionStore, clock: ManualClock) -> None:
    """Once another had it, it is lost, also after that one gave it back; an expired lease that no other took is not."""
    lease = await store.acquire_lease("leader", "a", 10)
    assert lease is not None
    clock.advance(11)
    lease = await store.renew_lease(lease, 10)
    assert lease is not None
    clock.advance(11)
    other = await store.acquire_lease("leader", "b", 10)
    assert other is not None

    assert await store.renew_lease(lease, 10) is None
    await store.release_lease(other)
    assert await store.renew_lease(lease, 10) is None
    assert await store.renew_lease(other, 10) is None


async def test_released_lease_is_free(store: SessionStore) -> None:
    """At once, with a new fence; giving back what is not ours is success and changes nothing."""
    lease = await store.acquire_lease("leader", "a", 10)
    assert lease is not None
    await store.release_lease(replace(lease, holder="b"))
    await store.release_lease(replace(lease, fence=lease.fence + 1))
    await store.release_lease(replace(lease, name="other"))
    assert await store.acquire_lease("leader", "b", 10) is None

    await store.release_lease(lease)
    await store.release_lease(lease)
    taken = await store.acquire_lease("leader", "b", 10)

    assert taken is not None
    assert taken.fence == lease.fence + 1


async def test_lease_can_be_looked_at(store: SessionStore, clock: ManualClock) -> None:
    """Every gateway sees who has a lease and until when, also after its end; a free one has no holder."""
    assert await store.lease("gateway:a") is None
    taken = await store.acquire_lease("gateway:a", "http://127.0.0.1:8080", 10.0)
    assert taken is not None

    assert await store.lease("gateway:a") == taken
    clock.advance(25.0)
    ended = await store.lease("gateway:a")
    assert ended is not None
    assert ended.expires_at == pytest.approx(taken.expires_at)
    assert ended.holder == taken.holder

    await store.release_lease(taken)
    assert await store.lease("gateway:a") is None


async def test_leases_of_different_names_are_independent(store: SessionStore) -> None:
    """Names and holders may be any text, spaces and line ends included."""
    names = ["session:a", "session:b", "a b\nc", "ü"]
    held = [await store.acquire_lease(name, " h 1\n", 10) for name in names]

    assert [each.name for each in held if each] == names
    assert [await store.renew_lease(each, 20) for each in held if each] == [
        replace(each, expires_at=T0 + 20) for each in held if each
    ]


async def test_fence_never_repeats_after_forgotten_leases(store: SessionStore, clock: ManualClock) -> None:
    """Leases that ended long ago are cleared away; their names begin above every fence there was."""
    highest = 0
    for holder in ("a", "b", "c"):
        lease = await store.acquire_lease("session:old", holder, 1)
        assert lease is not None
        highest = lease.fence
        clock.advance(2)
    clock.advance(10 * 86400)
    await store.acquire_lease("session:new", "a", 1)
    anew = await store.acquire_lease("session:old", "a", 1)

    assert anew is not None
    assert anew.fence > highest


async def test_put_under_the_newest_lease_lands(store: SessionStore, clock: ManualClock) -> None:
    """The newest fence may write, also after its time is over, unless another has taken the lease since."""
    lease = await store.acquire_lease("session:s1", "a", 10)
    stored = await store.put(session(), lease=lease)
    clock.advance(60)

    assert (await store.put(stored, lease=lease)).version == 2


async def test_put_under_an_older_lease_is_refused(store: SessionStore, clock: ManualClock) -> None:
    """A paused holder wakes up after another took over: its write is refused where it would have landed."""
    old = await store.acquire_lease("session:s1", "a", 10)
    stored = await store.put(session(), lease=old)
    clock.advance(10)
    new = await store.acquire_lease("session:s1", "b", 10)
    assert new is not None

    with pytest.raises(FencedOutError, match="b has it"):
        await store.put(replace(stored, tenant="old"), lease=old)
    assert await store.get(stored.id) == stored

    await store.release_lease(new)
    for gone in (old, new):
        with pytest.raises(FencedOutError, match="given back"):
            await store.put(stored, lease=gone)


# Claims


async def test_claims_add_up_in_both_widths(store: SessionStore, clock: ManualClock) -> None:
    """A claim counts in its second and in its minute, whichever gateway reports it."""
    minute = int(T0) // 60 * 60
    clock.advance(300)
    await store.record_claims(RUNTIME, {minute: 2, minute + 59: 1, minute + 60: 5, minute + 70: 0})
    await store.record_claims(RUNTIME, {minute + 59: 3})
    await store.record_claims(RUNTIME, {})
    await store.record_claims(RuntimeKey("default", "other"), {minute: 9})

    assert await store.claim_history(RUNTIME, minute, bucket=1) == [(minute, 2), (minute + 59, 4), (minute + 60, 5)]
    assert await store.claim_history(RUNTIME, minute, bucket=60) == [(minute, 6), (minute + 60, 5)]


async def test_claim_history_begins_where_it_is_asked_to(store: SessionStore) -> None:
    """Only buckets that began at `since` or later: none is counted in part."""
    minute = int(T0) // 60 * 60
    await store.record_claims(RUNTIME, {minute - 60: 1, minute - 1: 2, minute: 3})

    assert await store.claim_history(RUNTIME, minute - 1, bucket=1) == [(minute - 1, 2), (minute, 3)]
    assert await store.claim_history(RUNTIME, minute - 0.5, bucket=1) == [(minute, 3)]
    assert await store.claim_history(RUNTIME, minute - 59, bucket=60) == [(minute, 3)]
    assert await store.claim_history(RUNTIME, 0, bucket=60) == [(minute - 60, 3), (minute, 3)]


async def test_claim_history_forgets_seconds_before_minutes(store: SessionStore, clock: ManualClock) -> None:
    """Seconds are kept for six hours, minutes for fourteen days."""
    start = int(T0) // 60 * 60
    await store.record_claims(RUNTIME, {start: 1})
    clock.advance(6 * 3600 + 60)
    await store.record_claims(RUNTIME, {int(clock.now()): 1})

    assert [at for at, _ in await store.claim_history(RUNTIME, 0, bucket=1)] == [int(clock.now())]
    assert [at for at, _ in await store.claim_history(RUNTIME, 0, bucket=60)] == [start, int(clock.now()) // 60 * 60]

    clock.advance(14 * 86400 - 7 * 3600)
    assert len(await store.claim_history(RUNTIME, 0, bucket=60)) == 2
    clock.advance(7 * 3600 + 60)
    assert await store.claim_history(RUNTIME, 0, bucket=60) == []


async def test_claim_history_is_sorted_over_many(store: SessionStore) -> None:
    """Hours of seconds come back in order and complete."""
    seconds = list(range(int(T0) - 5 * 3600, int(T0), 7))
    await store.record_claims(RUNTIME, dict.fromkeys(reversed(seconds), 1))

    assert await store.claim_history(RUNTIME, 0, bucket=1) == [(second, 1) for second in seconds]
    assert sum(n for _, n in await store.claim_history(RUNTIME, 0, bucket=60)) == len(seconds)


async def test_claim_history_knows_two_widths(store: SessionStore) -> None:
    """Another one is a mistake of the caller and raises an error."""
    with pytest.raises(ValueError, match="1 or 60"):
        await store.claim_history(RUNTIME, 0, bucket=5)
