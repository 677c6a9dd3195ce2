"""Whose claim is next when sandboxes are scarce."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.core.identity import Identity, Role, acting_as
from gateway.core.model import RuntimeKey, Sandbox, SessionId
from gateway.sessions.fairness import FairQueue
from tests.support.scripted import KEY
from tests.support.session_world import World

SLOTS = 2


async def turns(queue: FairQueue, *claims: str) -> list[str]:
    """The order in which claims of these tenants get their turn when they all wait for one slot."""
    order: list[str] = []

    async def claim(tenant: str) -> None:
        async with queue.slot(tenant.partition("-")[0]):
            order.append(tenant)
            await asyncio.sleep(0)

    async with queue.slot("first"):
        waiting = [asyncio.create_task(claim(each)) for each in claims]
        await asyncio.sleep(0)
    await asyncio.gather(*waiting)
    return order


async def test_tenant_that_uses_least_of_its_share_is_first_and_its_oldest_claim() -> None:
    """Whenever a slot is free, so that it changes with what they are given."""
    held = Counter({"a": 20, "b": 1})
    shares = {"a": 100, "b": 10, "first": 1}
    queue = FairQueue(1, lambda tenant, more: (held[tenant] + more) / shares[tenant])
    assert await turns(queue, "a-1", "a-2", "b-1", "b-2") == ["b-1", "b-2", "a-1", "a-2"]
    held["b"] = 2
    assert await turns(queue, "b-1", "a-1", "b-2", "a-2") == ["a-1", "a-2", "b-1", "b-2"]


async def test_claims_of_equal_tenants_are_served_by_age() -> None:
    """Nobody has more than another."""
    queue = FairQueue(1, lambda tenant, more: more)
    assert await turns(queue, "a-1", "b-1", "c-1") == ["a-1", "b-1", "c-1"]
    assert await turns(queue, "a-1", "b-1", "b-2", "a-2") == ["a-1", "b-1", "b-2", "a-2"]


async def test_claim_that_is_given_up_leaves_its_place() -> None:
    """While it waits: nothing of it is kept, however long the slots stay taken."""
    queue = FairQueue(1, lambda tenant, more: more)
    async with queue.slot("a"):
        waiting = [asyncio.create_task(queue.slot("b").__aenter__()) for _ in range(3)]
        await asyncio.sleep(0)
        assert len(queue._waiting["b"]) == 3
        for each in waiting:
            each.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert not queue._waiting
        assert queue.is_full
    assert not queue.is_full


async def test_claim_that_is_given_up_as_it_is_let_in_leaves_its_slot() -> None:
    """In the very step: its slot is not lost."""
    queue = FairQueue(1, lambda tenant, more: more)
    go = asyncio.Event()
    waiting: asyncio.Task[None]

    async def hold_and_cancel() -> None:
        async with queue.slot("a"):
            await go.wait()
        assert queue.is_full  # the one that waits has it, and does not know yet
        waiting.cancel()

    holding = asyncio.create_task(hold_and_cancel())
    await asyncio.sleep(0)
    waiting = asyncio.create_task(queue.slot("b").__aenter__())
    await asyncio.sleep(0)
    go.set()
    await holding
    await asyncio.gather(waiting, return_exceptions=True)
    assert not queue.is_full


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path)
    made.restart(claims_at_once=SLOTS)
    await made.store.start()
    await made.provider.apply([made.runtime])
    yield made
    await made.store.aclose()


async def create(world: World, tenant: str) -> SessionId:
    with acting_as(Identity(Role.MEMBER, tenant)):
        return (await world.lifecycle.create(KEY)).session.id


async def test_single_create_goes_before_two_hundred_of_another_tenant(world: World) -> None:
    """Only those that the engine works on already are before it."""
    await world.provider.resize(KEY, 0)  # no sandbox is warm
    world.provider.hold = asyncio.Event()
    order: list[str] = []
    claim = world.provider.claim

    async def noted(runtime: RuntimeKey, session_id: SessionId) -> Sandbox:
        sandbox = await claim(runtime, session_id)
        order.append(owners[asyncio.current_task()])
        return sandbox

    world.provider.claim = noted  # type: ignore[method-assign]
    owners: dict[asyncio.Task[SessionId] | None, str] = {}
    for tenant in ["flood"] * 200 + ["single"]:
        task = asyncio.create_task(create(world, tenant))
        owners[task] = tenant
    while world.admission._claiming < 201:
        await asyncio.sleep(0)
    world.provider.hold.set()
    await asyncio.gather(*filter(None, owners))
    assert order.index("single") == SLOTS
    assert Counter(order) == {"flood": 200, "single": 1}


async def test_warm_sandbox_is_given_out_while_cold_ones_start(world: World) -> None:
    """A create for which one is ready does not wait for the starts of another tenant."""
    await world.provider.resize(KEY, 0)
    world.provider.hold = asyncio.Event()
    flood = [asyncio.create_task(create(world, "flood")) for _ in range(2 * SLOTS)]
    while world.admission._claiming < 2 * SLOTS:
        await asyncio.sleep(0)
    world.provider.hold = None
    await world.provider.resize(KEY, 1)
    assert await create(world, "single")
    assert not any(each.done() for each in flood)
    for each in flood:
        each.cancel()
    await asyncio.gather(*flood, return_exceptions=True)
