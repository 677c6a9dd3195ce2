"""The index of claims follows what any gateway of the store has made."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from gateway.api.agent_sandbox.index import ClaimIndex
from gateway.api.agent_sandbox.records import Claim
from gateway.core.identity import Identity, Role, acting_as
from gateway.core.model import Session, SessionId, SessionState
from gateway.store.memory import MemoryStore
from gateway.testing import ManualClock
from tests.support.records import T0, session


class CountingStore(MemoryStore):
    """Counts the records that are read in lists."""

    read = 0

    async def by_age(self, **wanted: Any) -> AsyncIterator[Session]:
        async for each in super().by_age(**wanted):
            self.read += 1
            yield each


def claimed(number: int, name: str, at: float = T0, **changes: Any) -> Session:
    metadata = Claim("default", name, "my-interpreter").stored()
    return session(f"s{number}", created_at=at, metadata=metadata, **changes)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(T0)


@pytest.fixture
async def store(clock: ManualClock) -> AsyncIterator[CountingStore]:
    opened = CountingStore(clock)
    await opened.start()
    yield opened
    await opened.aclose()


@pytest.fixture
def index(store: CountingStore, clock: ManualClock) -> ClaimIndex:
    return ClaimIndex(store, clock)


async def test_a_claim_is_found_though_there_are_many_and_the_records_are_read_once(
    index: ClaimIndex, store: CountingStore, clock: ManualClock
) -> None:
    """Those of before the gateway's start, and those that other gateways make later."""
    for number in range(500):
        await store.put(claimed(number, f"c{number}", T0 - 1000 + number))
    found = await index.find("default", "c7")
    assert found is not None
    assert found.id == "s7"
    read = store.read
    clock.advance(100)
    await store.put(claimed(900, "late", T0 + 99))
    await store.put(session("other", created_at=T0 + 99))
    for name, expected in (("late", "s900"), ("c499", "s499"), ("none", None), ("other", None)):
        found = await index.find("default", name)
        assert (None if found is None else found.id) == expected
    assert await index.find("elsewhere", "late") is None
    assert store.read - read < 20


async def test_a_claim_that_ended_is_not_found_and_its_name_is_free(index: ClaimIndex, store: CountingStore) -> None:
    """Whoever ended it; of two of one name the newest counts."""
    first = await store.put(claimed(1, "mine"))
    assert await index.find("default", "mine") is not None
    await store.put(replace(first, state=SessionState.TERMINATED))
    assert await index.find("default", "mine") is None
    await store.put(claimed(2, "mine"))
    await store.put(claimed(3, "mine", T0 + 1))
    found = await index.find("default", "mine")
    assert found is not None
    assert found.id == "s3"
    await store.delete(SessionId("s3"))
    found = await index.find("default", "mine")
    assert found is not None
    assert found.id == "s2"


async def test_a_name_of_another_tenant_is_not_seen(index: ClaimIndex, store: CountingStore) -> None:
    """Each has its own of that name."""
    await store.put(claimed(1, "mine", tenant="acme"))
    await store.put(claimed(2, "mine", T0 + 1, tenant="other"))
    for tenant, expected in (("acme", "s1"), ("other", "s2"), ("third", None)):
        with acting_as(Identity(Role.MEMBER, tenant=tenant)):
            found = await index.find("default", "mine")
        assert (None if found is None else found.id) == expected


async def test_a_clock_that_is_ahead_hides_nothing(index: ClaimIndex, store: CountingStore, clock: ManualClock) -> None:
    """Of a gateway that wrote a record of tomorrow."""
    await store.put(claimed(1, "tomorrow", T0 + 86400))
    assert await index.find("default", "tomorrow") is not None
    clock.advance(10)
    await store.put(claimed(2, "today", T0 + 9))
    assert await index.find("default", "today") is not None


async def test_records_that_are_gone_leave_the_index(
    index: ClaimIndex, store: CountingStore, clock: ManualClock
) -> None:
    """Though nobody asks for them by name."""
    for number in range(3):
        await store.put(claimed(number, f"c{number}"))
    await index.refresh()
    await store.delete(SessionId("s1"))
    clock.advance(3600)
    await index.refresh()
    assert set(index.ids("default")) == {"s0", "s2"}
    assert set(index.ids("default", "c1")) == set()
