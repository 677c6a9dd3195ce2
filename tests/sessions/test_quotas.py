"""What sessions hold of their tenant's quota, on a manual clock, a real sqlite store and scripted sandboxes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway.core.errors import (
    LimitError,
    QuotaExceededError,
    QuotaForbiddenError,
    RateLimitError,
    SandboxStartError,
    StoreUnavailableError,
)
from gateway.core.identity import Identity, Role, acting_as
from gateway.core.model import HibernationMode, Limits, SessionId, SessionState
from gateway.core.quota import QuotaLedger, Resource
from gateway.identity.tenant_limits import parse_limits
from gateway.runtimes.catalog import default_runtime
from gateway.sessions import refusals
from gateway.sessions.activation import Opened
from gateway.sessions.quotas import RESERVATION_S, gpus_of
from tests.support.scripted import KEY
from tests.support.session_world import World
from tests.support.waiting import LIMIT_S

ACME = Identity(Role.MEMBER, "acme")


class Limited(World):
    """A gateway that follows tenants' limits."""

    async def limit(self, tenant: str = "acme", **limits: Any) -> None:
        await self.tenants.put(tenant, parse_limits(limits))

    async def create(self, tenant: str = "acme", **more: Any) -> Opened:
        self.clock.advance(2 * refusals.MEMORY_S)
        with acting_as(Identity(Role.MEMBER, tenant)):
            return await self.lifecycle.create(KEY, **more)

    async def used(self, tenant: str = "acme") -> dict[str, int]:
        return {each.value: n for each, n in (await self.store.quotas.used(tenant)).items() if n}

    async def refusal(self, tenant: str = "acme", **more: Any) -> LimitError:
        with pytest.raises(LimitError) as raised:
            await self.create(tenant, **more)
        return raised.value


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[Limited]:
    made = Limited(tmp_path)
    made.runtime = replace(made.runtime, hibernation=HibernationMode.STATE, limits=Limits(memory=1 << 30, cpus=0.5))
    made.restart()
    await made.store.start()
    await made.provider.apply([made.runtime])
    yield made
    await made.store.aclose()


AWAKE = {"sessions": 1, "sandboxes": 1, "vcpu": 500, "memory": 1 << 30}


async def test_session_holds_its_quota_from_its_creation_to_its_end(world: Limited) -> None:
    """And another tenant's is not touched."""
    await world.limit(sandboxes=5)
    made = await world.create()
    await world.create("other")
    assert await world.used() == AWAKE
    assert await world.used("other") == {}

    await world.lifecycle.terminate(made.session.id, "test")
    assert await world.used() == {}


@pytest.mark.parametrize(
    ("limits", "limit", "value", "used"),
    [
        ({"sessions": 1}, "sessions", 1, 1),
        ({"sandboxes": 1}, "sandboxes", 1, 1),
        ({"vcpu": "900m"}, "vcpu", 0.9, 0.5),
        ({"memory": "1536Mi"}, "memory", 1536 << 20, 1 << 30),
    ],
)
async def test_session_over_a_limit_is_refused_by_name_before_a_sandbox_is_claimed(
    world: Limited, limits: dict[str, Any], limit: str, value: float, used: float
) -> None:
    """429, with the value and what is used; when the first session ends there is room again."""
    await world.limit(**limits)
    first = await world.create()
    error = await world.refusal()
    assert (error.status, error.limit, error.value, error.used) == (429, limit, value, used)
    assert error.fields["ratelimit-remaining"] == "0"
    assert world.provider.claims == 1

    await world.lifecycle.terminate(first.session.id, "test")
    await world.create()


@pytest.mark.parametrize(
    ("limits", "text"),
    [
        ({"sandboxes": 0}, "sandboxes: this tenant may use 0, and one session needs 1"),
        ({"memory": "512Mi"}, "memory: this tenant may use 512 MiB, and one session needs 1 GiB"),
        ({"runtimes": ["team/other"]}, "runtimes: this tenant may not use default/my-interpreter; it may use team/o"),
        ({"maxDuration": 60}, "maxDuration: sessions of this tenant may last 60 s, not 90 s"),
    ],
)
async def test_request_that_can_never_fit_is_forbidden(world: Limited, limits: dict[str, Any], text: str) -> None:
    """403 without Retry-After, and nothing is held."""
    await world.limit(**limits)
    error = await world.refusal(ttl=90.0)
    assert isinstance(error, QuotaForbiddenError)
    assert text in str(error)
    assert error.retry_after is None
    assert await world.used() == {}


async def test_runtime_without_a_limit_is_forbidden_where_that_is_limited(world: Limited) -> None:
    """It could use all of the machine, and count as nothing."""
    world.runtime = replace(world.runtime, limits=Limits(memory=None))
    world.restart()
    await world.limit(memory="64Gi")
    assert "have no limit of that" in str(await world.refusal())
    await world.limit(sandboxes=1)
    await world.create()


async def test_longest_duration_holds_for_sessions_that_ask_for_none(world: Limited) -> None:
    """Also when they wake."""
    await world.limit(maxDuration=60)
    made = await world.create()
    assert made.session.expires_at == world.clock.now() + 60
    await world.hibernator.hibernate(made.session.id)
    world.clock.advance(1000.0 - 60)
    assert (await world.opener.open(made.session.id)).session.expires_at == world.clock.now() + 60


async def test_hibernation_gives_the_sandbox_back_and_a_wake_needs_one_again(world: Limited) -> None:
    """A wake over the quota is refused, and the session stays hibernated with its files."""
    await world.limit(sandboxes=1)
    first = await world.create()
    await world.hibernator.hibernate(first.session.id)
    assert await world.used() == {"sessions": 1, "hibernatedSessions": 1}
    second = await world.create()
    assert await world.used() == {**AWAKE, "sessions": 2, "hibernatedSessions": 1}

    with pytest.raises(QuotaExceededError) as raised:
        await world.opener.open(first.session.id)
    assert raised.value.limit == "sandboxes"
    assert (await world.record(first.session.id)).state is SessionState.HIBERNATED

    await world.lifecycle.terminate(second.session.id, "test")
    assert (await world.opener.open(first.session.id)).session.state is SessionState.ACTIVE
    assert await world.used() == AWAKE


async def test_session_that_may_not_be_hibernated_stays_awake(world: Limited) -> None:
    """Asked for it is 429; the sweeper leaves it until its maximum duration."""
    await world.limit(hibernatedSessions=1)
    first, second = await world.create(), await world.create()
    await world.hibernator.hibernate(first.session.id)
    with pytest.raises(QuotaExceededError):
        await world.hibernator.hibernate(second.session.id)
    world.clock.advance(world.runtime.session_timeout + 1)
    await world.sweeper.sweep()
    assert (await world.record(second.session.id)).state is SessionState.ACTIVE


async def test_failed_claim_and_failed_wake_hold_nothing_more(world: Limited) -> None:
    """What was reserved for the sandbox is given back."""
    await world.limit(sandboxes=2)
    made = await world.create()
    await world.hibernator.hibernate(made.session.id)
    world.provider.fail_with = SandboxStartError("broken")
    with pytest.raises(SandboxStartError):
        await world.create()
    with pytest.raises(SandboxStartError):
        await world.opener.open(made.session.id)
    assert await world.used() == {"sessions": 1, "hibernatedSessions": 1}


async def test_client_that_leaves_while_its_session_is_made_leaves_nothing(world: Limited) -> None:
    """During the claim as well."""
    await world.limit(sandboxes=1)
    world.provider.hold = asyncio.Event()
    creating = asyncio.create_task(world.create())
    while not world.admission._claiming:
        await asyncio.sleep(0)
    creating.cancel()
    await asyncio.gather(creating, return_exceptions=True)
    assert await world.used() == {}


async def test_limit_below_what_is_used_ends_nothing_and_refuses_more(world: Limited) -> None:
    """New sessions are refused until enough have ended; the others go on and may be used."""
    await world.limit(sandboxes=3)
    made = [await world.create() for _ in range(3)]
    await world.limit(sandboxes=1)
    await world.sweeper.sweep()
    assert len(await world.sandboxes()) == 3
    await world.opener.open(made[0].session.id)
    for each in made[:2]:
        assert (await world.refusal()).value == 1
        await world.lifecycle.terminate(each.session.id, "test")
    assert (await world.refusal()).used == 1
    await world.lifecycle.terminate(made[2].session.id, "test")
    await world.create()


async def test_sessions_that_were_there_before_the_limit_count(world: Limited) -> None:
    """After the next sweep; when the limits are lifted, nothing is left in the ledger."""
    made = await world.create()
    await world.limit(sandboxes=1)
    await world.sweeper.sweep()
    assert await world.used() == AWAKE
    assert (await world.refusal()).used == 1

    await world.limit()
    await world.sweeper.sweep()
    assert await world.used() == {}
    await world.lifecycle.terminate(made.session.id, "test")


async def test_reservation_of_a_gateway_that_died_ends_by_itself(world: Limited) -> None:
    """And not before a claim may have taken as long."""
    await world.limit(sandboxes=1)
    await world.store.quotas.reserve("acme", SessionId("dead"), {Resource.SANDBOXES: 1}, {}, world.clock.now() + 120)
    world.clock.advance(RESERVATION_S - 1)
    await world.sweeper.sweep()
    assert (await world.refusal()).used == 1
    world.clock.advance(31.0)
    await world.sweeper.sweep()
    assert await world.used() == {}
    await world.create()


async def test_reservation_from_before_the_clock_was_set_back_ends_too(world: Limited) -> None:
    """It would else hold its part for as long as the clock was set back."""
    await world.limit(sandboxes=1)
    ahead = world.clock.now() + RESERVATION_S
    await world.store.quotas.reserve("acme", SessionId("dead"), {Resource.SANDBOXES: 1}, {}, ahead)
    world.clock.advance(-365 * 86400.0)
    await world.sweeper.sweep()
    assert await world.used() == {}
    await world.create()


async def test_claim_that_outlives_its_reservation_is_counted_again(world: Limited) -> None:
    """A create or a wake that took longer than a reservation lasts is refused if another has its place by then."""
    await world.limit(sandboxes=1)
    asleep = await world.create()
    await world.hibernator.hibernate(asleep.session.id)

    async def wake() -> Opened:
        return await world.opener.open(asleep.session.id)

    for slow in (world.create, wake):
        world.provider.hold = starts = asyncio.Event()
        late = asyncio.create_task(slow())
        while not world.admission._claiming:
            await asyncio.sleep(0)
        world.provider.hold = None
        world.clock.advance(RESERVATION_S + 1.0)
        await world.sweeper.sweep()
        other = await world.create()
        starts.set()
        with pytest.raises(QuotaExceededError):
            await late
        assert (await world.record(asleep.session.id)).state is SessionState.HIBERNATED
        assert len(await world.sandboxes()) == 1
        await world.lifecycle.terminate(other.session.id, "test")
    assert await world.used() == {"sessions": 1, "hibernatedSessions": 1}


async def test_session_whose_record_cannot_be_written_holds_nothing(
    world: Limited, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither of its quota nor a sandbox: there is no session."""
    await world.limit(sandboxes=1)

    async def refuse(*_: object, **__: object) -> None:
        raise StoreUnavailableError("away")

    with monkeypatch.context() as away:
        away.setattr(world.store, "put", refuse)
        with pytest.raises(StoreUnavailableError):
            await world.create()
    assert await world.used() == {}
    assert await world.sandboxes() == set()


async def test_create_that_cannot_be_counted_again_holds_nothing(
    world: Limited, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store goes away during a long start: what was reserved before it is given back, and the sandbox."""
    await world.limit(sandboxes=1)

    async def refuse(*_: object, **__: object) -> None:
        raise StoreUnavailableError("away")

    world.provider.hold = started = asyncio.Event()
    late = asyncio.create_task(world.create())
    while not world.admission._claiming:
        await asyncio.sleep(0)
    world.clock.advance(RESERVATION_S - 1.0)
    with monkeypatch.context() as away:
        away.setattr(world.store.quotas, "reserve", refuse)
        started.set()
        with pytest.raises(StoreUnavailableError):
            await late
    assert await world.used() == {}
    assert await world.sandboxes() == set()


async def test_lost_record_holds_no_quota(world: Limited) -> None:
    """As after a store lost it, or a gateway died between the record's end and its settlement."""
    await world.limit(sandboxes=1)
    made = await world.create()
    await world.store.delete(made.session.id)
    world.restart()  # the gateway before would write it again from memory
    world.clock.advance(31.0)
    await world.sweeper.sweep()
    assert await world.used() == {}


async def test_creations_are_limited_by_the_minute(world: Limited) -> None:
    """The refusal says when the next one may come."""
    await world.limit(createsPerMinute=2)
    await world.create()
    await world.create()
    error = await world.refusal()
    assert isinstance(error, RateLimitError)
    assert error.limit == "createsPerMinute"
    assert error.retry_after is not None
    world.clock.advance(error.retry_after)
    await world.create()


class CountedReserves:
    """A ledger that counts how often it is asked to reserve."""

    def __init__(self, ledger: QuotaLedger) -> None:
        self._ledger = ledger
        self.reserves = 0

    def __getattr__(self, name: str) -> Any:
        self.reserves += name == "reserve"
        return getattr(self._ledger, name)


async def test_flood_of_refused_creates_asks_the_ledger_once_and_is_answered_late(
    world: Limited, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a refusal is remembered no store is asked, and an answer waits for its end: else a tenant that is at its
    limit, and asks in a loop, takes the processor from others."""
    monkeypatch.setattr(refusals, "MEMORY_S", 60.0)
    await world.limit(sandboxes=1)
    ledger = world.store.quotas = CountedReserves(world.store.quotas)
    world.restart()
    first = await world.create()
    await world.refusal()
    ledger.reserves = 0
    with acting_as(ACME):
        flood = [asyncio.create_task(world.lifecycle.create(KEY)) for _ in range(20)]
    await asyncio.wait(flood, timeout=0.05)
    assert not [each for each in flood if each.done()]
    assert ledger.reserves == 0

    for each in flood:
        each.cancel()
    world.clock.advance(61.0)
    with acting_as(ACME):
        again = [asyncio.create_task(world.lifecycle.create(KEY)) for _ in range(20)]
    await asyncio.wait(again, timeout=LIMIT_S, return_when=asyncio.FIRST_COMPLETED)
    assert ledger.reserves == 1
    for each in again:
        each.cancel()
    await asyncio.gather(*flood, *again, return_exceptions=True)
    await world.lifecycle.terminate(first.session.id, "test")
    assert await world.used() == {}


async def test_who_waits_with_a_refusal_is_served_when_the_tenants_session_ends(
    world: Limited, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is given back meanwhile counts: nobody is refused for what was."""
    monkeypatch.setattr(refusals, "MEMORY_S", 60.0)
    await world.limit(sandboxes=1)
    first = await world.create()
    await world.refusal()
    with acting_as(ACME):
        second = asyncio.create_task(world.lifecycle.create(KEY))
    await asyncio.wait([second], timeout=0.05)
    assert not second.done()
    await world.lifecycle.terminate(first.session.id, "test")
    async with asyncio.timeout(LIMIT_S):
        assert (await second).session.state is SessionState.ACTIVE


async def test_limit_that_is_raised_counts_at_once(world: Limited) -> None:
    """Also for a client that was refused a moment ago."""
    await world.limit(sandboxes=1)
    await world.create()
    await world.refusal()
    await world.limit(sandboxes=2)
    with acting_as(ACME):
        assert (await world.lifecycle.create(KEY)).session.state is SessionState.ACTIVE


async def test_refusal_of_one_wish_is_none_of_another(world: Limited) -> None:
    """A tenant with all sandboxes in use may register a session; one with all sessions in use may wake its own."""
    await world.limit(sandboxes=1)
    first = await world.create()
    await world.refusal()
    with acting_as(ACME):
        registered = await world.lifecycle.register(KEY)
    await world.lifecycle.terminate(registered.id, "test")

    await world.limit(sessions=1)
    await world.sweeper.sweep()
    await world.hibernator.hibernate(first.session.id)
    assert (await world.refusal()).limit == "sessions"
    assert (await world.opener.open(first.session.id)).session.state is SessionState.ACTIVE


async def test_flood_of_wakes_over_the_quota_asks_the_ledger_once(
    world: Limited, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one of creates."""
    monkeypatch.setattr(refusals, "MEMORY_S", 60.0)
    await world.limit(sandboxes=1)
    ledger = world.store.quotas = CountedReserves(world.store.quotas)
    world.restart()
    asleep = await world.create()
    await world.hibernator.hibernate(asleep.session.id)
    awake = await world.create()
    with pytest.raises(QuotaExceededError):
        await world.opener.open(asleep.session.id)
    ledger.reserves = 0
    wake = asyncio.create_task(world.opener.open(asleep.session.id))
    await asyncio.wait([wake], timeout=0.05)
    assert (wake.done(), ledger.reserves) == (False, 0)
    await world.lifecycle.terminate(awake.session.id, "test")
    async with asyncio.timeout(LIMIT_S):
        assert (await wake).session.state is SessionState.ACTIVE


async def test_tenant_without_limits_costs_the_store_nothing(world: Limited) -> None:
    """The ledger is not asked once in the life of a session."""
    world.store.quotas = None  # type: ignore[assignment]
    world.restart()
    made = await world.create()
    await world.hibernator.hibernate(made.session.id)
    await world.opener.open(made.session.id)
    await world.lifecycle.terminate(made.session.id, "test")
    await world.sweeper.sweep()


def test_gpus_are_those_of_all_containers() -> None:
    """Whoever makes them."""
    one = {"resources": {"limits": {"nvidia.com/gpu": 1, "memory": "1Gi"}}}
    two = {"resources": {"limits": {"amd.com/gpu": "2"}}}
    pod = {"spec": {"podTemplate": {"spec": {"containers": [one, two]}}}}
    assert gpus_of(replace(default_runtime(1), manifest=pod)) == 3
    assert gpus_of(replace(default_runtime(1), manifest={"spec": {"template": one}})) == 1
    assert gpus_of(default_runtime(1)) == 0
