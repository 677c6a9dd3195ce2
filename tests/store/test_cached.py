"""What is particular to the cache in front of a store: what it may answer from memory, and for how long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.core.errors import StaleWriteError, StoreUnavailableError
from gateway.core.model import Session, SessionId, SessionState
from gateway.store.cached import CachedStore
from gateway.store.sqlite import SqliteStore
from gateway.testing import ManualClock
from tests.support.records import T0, session


class SlowReads(SqliteStore):
    """A store whose reads have been made, and are held back before they are answered until `let_go` is set."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, ManualClock(T0))
        self.let_go = asyncio.Event()
        self.let_go.set()
        self.reads = 0

    async def get(self, session_id: SessionId) -> Session | None:
        self.reads += 1
        found = await super().get(session_id)
        await self.let_go.wait()
        return found


@pytest.fixture
async def inner(tmp_path: Path) -> AsyncIterator[SlowReads]:
    """The store behind, which another replica would share."""
    store = SlowReads(tmp_path / "sessions.db")
    await store.start()
    yield store
    await store.aclose()


@pytest.fixture
async def cached(inner: SlowReads) -> AsyncIterator[CachedStore]:
    store = CachedStore(inner, ttl=60.0, size=10)
    yield store
    await store.aclose()


async def test_second_read_makes_no_call(cached: CachedStore, inner: SlowReads) -> None:
    """A record that was read, or written here, is answered from memory."""
    await inner.put(session("theirs"))
    await cached.put(session("ours"))
    for _ in range(3):
        assert (await cached.get(SessionId("theirs"))) is not None
        assert (await cached.get(SessionId("ours"))) is not None

    assert inner.reads == 1


async def test_absence_is_not_remembered(cached: CachedStore, inner: SlowReads) -> None:
    """A session that another replica makes a moment later is found."""
    assert await cached.get(SessionId("s1")) is None
    await inner.put(session())

    assert await cached.get(SessionId("s1")) is not None


async def test_record_is_asked_for_again_after_its_time(inner: SlowReads) -> None:
    """Another replica's write is seen after ttl, also in a session that is touched all the time."""
    cached = CachedStore(inner, ttl=0.2)
    stored = await cached.put(session())
    written = await inner.put(replace(stored, state=SessionState.HIBERNATED))
    assert await cached.get(stored.id) == stored

    for n in range(500):
        await cached.touch_many({stored.id: T0 + n})
        found = await cached.get(stored.id)
        if found is not None and found.state is written.state:
            break
        await asyncio.sleep(0.01)
    else:
        pytest.fail("the other replica's write was never seen")
    await cached.aclose()


async def test_invalidated_record_is_asked_for_again(cached: CachedStore, inner: SlowReads) -> None:
    """Whoever found it wrong gets the truth; an unknown id is no error."""
    stored = await cached.put(session())
    written = await inner.put(replace(stored, tenant="theirs"))
    await cached.invalidate(stored.id)
    await cached.invalidate(SessionId("nobody"))

    assert await cached.get(stored.id) == written


async def test_refused_write_drops_the_copy(cached: CachedStore, inner: SlowReads) -> None:
    """Read again, decide anew: the read after a stale write is not the same old copy."""
    stored = await cached.put(session())
    written = await inner.put(replace(stored, tenant="theirs"))

    with pytest.raises(StaleWriteError):
        await cached.put(replace(stored, tenant="ours"))

    assert await cached.get(stored.id) == written


async def test_write_of_unknown_outcome_drops_the_copy(cached: CachedStore, inner: SlowReads) -> None:
    """Where the store failed the write may have landed: memory does not claim to know."""
    stored = await cached.put(session())
    await inner.aclose()
    with pytest.raises(StoreUnavailableError):
        await cached.put(stored)

    with pytest.raises(StoreUnavailableError):
        await cached.get(stored.id)


@pytest.mark.parametrize("what", ["put", "delete", "invalidate"])
async def test_read_in_progress_does_not_restore_an_older_copy(
    cached: CachedStore, inner: SlowReads, what: str
) -> None:
    """A read that was made before a write and answered after it leaves no copy behind."""
    stored = await inner.put(session())
    inner.let_go.clear()
    reading = asyncio.create_task(cached.get(stored.id))
    while not inner.reads:
        await asyncio.sleep(0)
    await inner.ping()  # the store has one thread: the read is made
    expected: Session | None
    if what == "put":
        expected = await cached.put(replace(stored, tenant="new"))
    elif what == "delete":
        await cached.delete(stored.id)
        expected = None
    else:
        expected = await inner.put(replace(stored, tenant="new"))
        await cached.invalidate(stored.id)
    inner.let_go.set()

    assert await reading == stored
    assert await cached.get(stored.id) == expected


async def test_cache_keeps_the_latest_used(cached: CachedStore, inner: SlowReads) -> None:
    """It holds ten: the ones longest unused made room."""
    for n in range(10):
        await cached.put(session(f"s{n}"))
    await cached.get(SessionId("s0"))
    for n in range(10, 19):
        await cached.put(session(f"s{n}"))

    await cached.get(SessionId("s0"))
    assert inner.reads == 0
    await cached.get(SessionId("s1"))
    assert inner.reads == 1
    assert "[10 of 10]" in repr(cached)


async def test_ping_asks_the_store(cached: CachedStore, inner: SlowReads) -> None:
    """Readiness is never answered from memory, while known records still are."""
    stored = await cached.put(session())
    await inner.aclose()

    with pytest.raises(StoreUnavailableError):
        await cached.ping()
    assert await cached.get(stored.id) == stored
