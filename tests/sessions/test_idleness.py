"""Whether another gateway uses a session that all of them reach."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import cast

import pytest

from gateway.core.background import cancel
from gateway.core.interfaces import SessionStore
from gateway.core.model import Session, SessionId
from gateway.identity.tenants import TenantDirectory
from gateway.runtimes.catalog import StaticCatalog, default_runtime
from gateway.sessions.activity import Activity
from gateway.sessions.idleness import GATEWAY_TTL_S, IdleTracker
from gateway.sessions.quotas import Quotas
from gateway.sessions.records import Records
from gateway.store.memory import MemoryStore
from gateway.store.redis import RedisStore
from gateway.store.redis_questions import RedisQuestions
from gateway.testing import ManualClock
from tests.support.records import session
from tests.support.redis_server import RedisServer
from tests.support.waiting import eventually


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


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis")).start()
    yield server
    server.kill()


def tracker_of(store: SessionStore, clock: ManualClock) -> IdleTracker:
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
    await store.quotas.gateways("there", GATEWAY_TTL_S)
    monkeypatch.setattr(asyncio, "sleep", sleep)
    assert await tracker.busy_elsewhere(used)
    assert sum(waited) == 4.0
    clock.advance(GATEWAY_TTL_S)
    assert not await tracker.busy_elsewhere(replace(used, last_active_at=clock.now()))
    assert sum(waited) == 4.0


@asynccontextmanager
async def listening(
    redis: RedisServer, clock: ManualClock, name: str, in_use: Callable[[SessionId], bool], prefix: str
) -> AsyncIterator[RedisStore]:
    """The store of a further gateway, which answers the others."""
    store = RedisStore(redis.url, clock, prefix, deadline=20.0, server_time=False)
    await store.start()
    await store.quotas.gateways(name, GATEWAY_TTL_S)
    task = asyncio.create_task(store.questions.listen(name, in_use))

    await eventually(lambda: cast("RedisQuestions", store.questions)._holder == name, f"{name} listens")
    try:
        yield store
    finally:
        await cancel(task)
        await store.aclose()


async def test_other_gateways_say_at_once_whether_they_use_a_session(
    redis: RedisServer, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No heartbeat is waited for, neither where one uses it nor where none does."""
    used: set[SessionId] = set()
    asked: list[SessionId] = []

    def in_use(session_id: SessionId) -> bool:
        asked.append(session_id)
        return session_id in used

    async with (
        listening(redis, clock, "here", in_use, "asked") as store,
        listening(redis, clock, "there", in_use, "asked"),
        listening(redis, clock, "yonder", lambda session_id: False, "asked"),
    ):
        tracker = tracker_of(store, clock)

        async def sleep(seconds: float) -> None:
            raise AssertionError(f"it waits for {seconds} s")

        monkeypatch.setattr("gateway.sessions.idleness.asyncio.sleep", sleep)
        assert not await tracker.busy_elsewhere(used_now(clock))
        used.add(used_now(clock).id)
        assert await tracker.busy_elsewhere(used_now(clock))
        assert asked == [used_now(clock).id] * 2  # not "here", which knows what it does itself
        monkeypatch.undo()


async def test_gateway_that_gives_no_answer_is_judged_by_its_heartbeats(
    redis: RedisServer, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be paused in the middle of a request."""
    async with listening(redis, clock, "here", lambda session_id: False, "silent") as store:
        await store.quotas.gateways("silent", GATEWAY_TTL_S)
        monkeypatch.setattr("gateway.sessions.idleness._ANSWERS_TIMEOUT_S", 0.05)
        monkeypatch.setattr("gateway.sessions.idleness.HEARTBEAT_INTERVAL_S", 0.01)
        used = await store.put(replace(used_now(clock), version=0))
        assert not await tracker_of(store, clock).busy_elsewhere(used)
        touching = asyncio.create_task(_touch(store, used, clock))
        assert await tracker_of(store, clock).busy_elsewhere(replace(used, last_active_at=clock.now()))
        await cancel(touching)


async def _touch(store: SessionStore, used: Session, clock: ManualClock) -> None:
    while True:
        clock.advance(0.001)
        await asyncio.sleep(0.001)
        await store.touch_many({used.id: clock.now()})
