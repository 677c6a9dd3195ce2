"""Operations that a store which goes away stops between two steps: the next sweep finishes them, without a request."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from gateway.core.errors import SnapshotError, StoreUnavailableError
from gateway.core.model import HibernationMode, Session, SessionId, SessionState, SnapshotRef, StartKind
from tests.support.scripted import KEY
from tests.support.session_world import World, hibernating

SNAPSHOT = SnapshotRef.of("0" * 32 + "-" + "1" * 32, 5, "2" * 64)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with hibernating(tmp_path, HibernationMode.WORKSPACE) as made:
        yield made


@contextmanager
def store_away(world: World, *states: SessionState, applied: bool = False) -> Iterator[None]:
    """The store fails to write records of these states; `applied`: it has written them, and the answer is lost."""
    real = world.store.put

    async def put(session: Session, **kwargs: Any) -> Session:
        if session.state not in states:
            return await real(session, **kwargs)
        if applied:
            await real(session, **kwargs)
        raise StoreUnavailableError("away")

    with mock.patch.object(world.store, "put", put):
        yield


@contextmanager
def deletions(world: World) -> Iterator[list[str]]:
    """The references that are deleted."""
    deleted: list[str] = []

    async def delete(reference: str) -> None:
        deleted.append(reference)

    with mock.patch.object(world.provider, "delete", delete):
        yield deleted


async def in_use(world: World) -> tuple[SessionId, str]:
    made = await world.lifecycle.create(KEY)
    world.provider.contents[made.sandbox.id] = "precious"
    return made.session.id, made.sandbox.id


async def cannot_keep(sandbox_id: str, session_id: str) -> str:
    raise SnapshotError("the disk fails")


async def left_hibernating(world: World) -> SessionId:
    """A session whose hibernation failed, and whose record could not be set back: its sandbox runs."""
    session, _ = await in_use(world)
    with (
        mock.patch.object(world.provider, "keep", cannot_keep),
        store_away(world, SessionState.ACTIVE),
        pytest.raises(StoreUnavailableError),
    ):
        await world.hibernator.hibernate(session)
    assert (await world.record(session)).state is SessionState.HIBERNATING
    return session


async def test_session_left_hibernating_with_its_sandbox_is_idle_again(world: World) -> None:
    """As `hibernating` it would be neither idle nor expired, and keep a sandbox that nobody uses."""
    session = await left_hibernating(world)
    await world.sweeper.sweep()
    record = await world.record(session)
    assert record.state is SessionState.ACTIVE
    world.clock.advance(record.idle_timeout)
    await world.sweeper.sweep()
    assert (await world.record(session)).state is SessionState.HIBERNATED
    assert await world.sandboxes() == set()


async def test_request_on_a_session_left_hibernating_is_served_by_its_sandbox(world: World) -> None:
    """Another one would have the files and not the variables, of which the record does not say that they were saved."""
    session = await left_hibernating(world)
    before = world.provider.claims
    opened = await world.opener.open(session)
    assert (opened.start, opened.restored) == (StartKind.LIVE, None)
    assert (await world.record(session)).state is SessionState.ACTIVE
    assert world.provider.claims == before


async def test_session_left_hibernating_without_its_sandbox_is_hibernated(world: World) -> None:
    """Its workspace was parked, and the record that says so could not be written."""
    session, _ = await in_use(world)
    with store_away(world, SessionState.HIBERNATED), pytest.raises(StoreUnavailableError):
        await world.hibernator.hibernate(session)
    await world.sweeper.sweep()
    record = await world.record(session)
    assert (record.state, record.sandbox) == (SessionState.HIBERNATED, None)
    assert world.provider.contents[(await world.opener.open(session)).sandbox.id] == "precious"


async def test_session_left_waking_is_hibernated_again(world: World) -> None:
    """As `waking` it would count as one with a sandbox until its retention ends."""
    session, _ = await in_use(world)
    await world.hibernator.hibernate(session)
    with store_away(world, SessionState.ACTIVE, SessionState.HIBERNATED), pytest.raises(StoreUnavailableError):
        await world.opener.open(session)
    assert (await world.record(session)).state is SessionState.WAKING
    await world.sweeper.sweep()
    assert (await world.record(session)).state is SessionState.HIBERNATED
    assert world.provider.contents[(await world.opener.open(session)).sandbox.id] == "precious"


async def test_store_that_stays_away_is_tried_by_each_sweep(world: World) -> None:
    """Until it is there again."""
    session, _ = await in_use(world)
    with store_away(world, SessionState.HIBERNATED):
        with pytest.raises(StoreUnavailableError):
            await world.hibernator.hibernate(session)
        for _ in range(2):
            await world.sweeper.sweep()
            assert (await world.record(session)).state is SessionState.HIBERNATING
    await world.sweeper.sweep()
    assert (await world.record(session)).state is SessionState.HIBERNATED


async def test_session_whose_creation_failed_although_it_was_written_ends(world: World) -> None:
    """Its client was told of a failure and has no id; the record names a sandbox that was given back."""
    with store_away(world, SessionState.ACTIVE, applied=True), pytest.raises(StoreUnavailableError):
        await world.lifecycle.create(KEY)
    (made,) = [each async for each in world.store.sessions()]
    assert made.state is SessionState.ACTIVE
    await world.sweeper.sweep()
    assert (await world.record(made.id)).state is SessionState.TERMINATED


async def test_copy_that_no_record_came_to_name_is_deleted_once_the_store_is_back(world: World) -> None:
    """Each session that was to be hibernated while the store was away would leave one for the whole retention."""
    session, _ = await in_use(world)
    transitions = world.hibernator._transitions
    with deletions(world) as deleted:
        begun = await transitions.begin(await world.record(session))
        with store_away(world, SessionState.HIBERNATED), pytest.raises(StoreUnavailableError):
            await transitions.hibernated(begun, SNAPSHOT)
        assert deleted == []
        await transitions.cancel(begun)
        assert deleted == [SNAPSHOT]


async def test_checkpoint_that_the_record_names_although_its_write_failed_is_kept(world: World) -> None:
    """The answer of the store was lost, not the write: without its sandbox that copy is all that the session has."""
    session, _ = await in_use(world)

    async def checkpoint(sandbox_id: str, session_id: str, *, last: str | None = None) -> str:
        return SNAPSHOT

    with deletions(world) as deleted, mock.patch.object(world.provider, "checkpoint", checkpoint):
        with store_away(world, SessionState.ACTIVE, applied=True), pytest.raises(StoreUnavailableError):
            await world.hibernator.checkpoint(session)
        assert (await world.record(session)).snapshot == SNAPSHOT
        await world.hibernator.checkpoint(session)
        assert deleted == []
