"""The secret of all gateways of a store: one, also after the store has lost everything."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.identity.shared_secret import FollowedSecret, SharedSecret
from gateway.store.sqlite import SqliteStore
from gateway.testing import ManualClock


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    made = SqliteStore(tmp_path / "wakegate.db", ManualClock())
    await made.start()
    yield made
    await made.aclose()


class Follower(FollowedSecret):
    """Remembers the secrets that it was opened with."""

    def __init__(self, store: SqliteStore) -> None:
        self.seen: list[SharedSecret] = []
        super().__init__(store.documents, self.seen.append)


async def test_gateways_of_one_store_have_one_secret(store: SqliteStore) -> None:
    """It is opened once."""
    one, other = Follower(store), Follower(store)
    await one.follow()
    await other.follow()
    await one.follow()
    assert len(one.seen) == 1
    assert one.seen == other.seen


async def test_store_that_lost_it_gets_it_back(store: SqliteStore) -> None:
    """So a gateway that starts afterwards has it too."""
    running, starting = Follower(store), Follower(store)
    await running.follow()
    await store.documents.delete("secret", "gateways")
    await running.follow()
    await starting.follow()
    assert running.seen == starting.seen
    assert len(running.seen) == 1


async def test_secret_that_a_starting_gateway_made_first_is_everybodys(store: SqliteStore) -> None:
    """Rather than two that refuse each other."""
    running, starting = Follower(store), Follower(store)
    await running.follow()
    await store.documents.delete("secret", "gateways")
    await starting.follow()
    await running.follow()
    assert running.seen[1:] == starting.seen
    assert running.seen[0] != running.seen[1]
