"""The stores that the suites of sessions, documents, quotas and usage run over."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

import pytest

from gateway.core.interfaces import SessionStore
from gateway.store.cached import CachedStore
from gateway.store.memory import MemoryStore
from gateway.store.redis import RedisStore
from gateway.store.sqlite import SqliteStore
from gateway.testing import ManualClock
from tests.support.records import T0
from tests.support.redis_server import RedisServer

_numbers = itertools.count()


@pytest.fixture(scope="module")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One server for the whole suite; each test has a prefix of its own."""
    server = RedisServer(tmp_path_factory.mktemp("redis")).start()
    yield server
    server.kill()


@pytest.fixture
def redis_prefix() -> str:
    """The prefix of this test's keys in the shared server."""
    return f"contract-{next(_numbers)}"


@pytest.fixture
def clock() -> ManualClock:
    """The clock of the stores, which a test advances."""
    return ManualClock(T0)


@pytest.fixture(params=["memory", "sqlite", "redis", "cached-sqlite"])
def store_kind(request: pytest.FixtureRequest) -> str:
    """The kinds of stores that a suite runs over; a suite may override the list."""
    return str(request.param)


@pytest.fixture
def redis_options() -> Mapping[str, bool]:
    """Options of RedisStore. A suite that advances `clock` overrides them: leases end by the server's clock."""
    return {}


@pytest.fixture
async def store(
    store_kind: str,
    redis_options: Mapping[str, bool],
    redis_prefix: str,
    tmp_path: Path,
    shared_redis: RedisServer,
    clock: ManualClock,
) -> AsyncIterator[SessionStore]:
    """An open, empty store of each kind."""
    made: SessionStore
    if "redis" in store_kind:
        made = RedisStore(shared_redis.url, clock, redis_prefix, deadline=20.0, **redis_options)
    elif store_kind == "memory":
        made = MemoryStore(clock)
    else:
        made = SqliteStore(tmp_path / "sessions.db", clock)
    if "cached" in store_kind:
        made = CachedStore(made, ttl=60.0)
    await made.start()
    yield made
    await made.aclose()
