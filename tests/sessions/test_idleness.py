"""Whether another gateway uses a session that all of them reach."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from gateway.core.model import Session
from gateway.identity.tenants import TenantDirectory
from gateway.runtimes.catalog import StaticCatalog, default_runtime
from gateway.sessions.activity import Activity
from gateway.sessions.idleness import GATEWAY_TTL_S, IdleTracker
from gateway.sessions.quotas import Quotas
from gateway.sessions.records import Records
from gateway.store.memory import MemoryStore
from gateway.testing import ManualClock
from tests.support.records import session


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def store(clock: ManualClock) -> MemoryStore:
    async def at_once() -> None:  # the tests replace asyncio.sleep
        pass

    made = MemoryStore(clock, at_once)
    await made.start()
    return made


def tracker_of(store: MemoryStore, clock: ManualClock) -> IdleTracker:
    runtimes = StaticCatalog([default_runtime(1)])
    quotas = Quotas(store.quotas, TenantDirectory(store.documents), runtimes, clock)
    records = Records(store, "here", quotas, shared=True)
    return IdleTracker(
        records, Activity(), clock, shared_provider=True, hibernated_retention=100.0, holder=records.holder
    )


def used_now(clock: ManualClock) -> Session:
    return session(last_active_at=clock.now())


async def test_single_gateway_does_not_wait_for_the_heartbeats_of_others(
    store: MemoryStore, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def sleep(seconds: float) -> None:
        raise AssertionError(f"it waits for {seconds} s")

    monkeypatch.setattr(asyncio, "sleep", sleep)
    assert not await tracker_of(store, clock).busy_elsewhere(used_now(clock))


async def test_gateway_beside_another_waits_for_heartbeats(
    store: MemoryStore, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one writes meanwhile that the session is in use; a gateway that is gone is not waited for."""
    waited: list[float] = []
    used = await store.put(replace(used_now(clock), version=0))

    async def sleep(seconds: float) -> None:
        waited.append(seconds)
        clock.advance(seconds)
        await store.touch_many({used.id: clock.now()})

    tracker = tracker_of(store, clock)
    await store.quotas.count_gateways("there", GATEWAY_TTL_S)
    monkeypatch.setattr(asyncio, "sleep", sleep)
    assert await tracker.busy_elsewhere(used)
    assert sum(waited) == 4.0
    clock.advance(GATEWAY_TTL_S)
    assert not await tracker.busy_elsewhere(replace(used, last_active_at=clock.now()))
    assert sum(waited) == 4.0
