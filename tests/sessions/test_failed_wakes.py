"""A session whose wake fails: nothing of its files is lost, it is kept no longer than before, and tells its loss."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from gateway.core.errors import (
    SandboxGoneError,
    SandboxStartError,
    SessionNotFoundError,
    SnapshotError,
    SnapshotStoreFullError,
    StoreUnavailableError,
)
from gateway.core.model import HibernationMode, SandboxId, Session, SessionId, SessionState
from gateway.sessions.activation import Opened
from tests.support.scripted import KEY
from tests.support.session_world import World, hibernating

RETENTION_S = 1000.0  # of World


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with hibernating(tmp_path, HibernationMode.WORKSPACE) as made:
        yield made


async def asleep(world: World, content: str = "precious") -> Opened:
    """A hibernated session with something in its workspace."""
    made = await world.lifecycle.create(KEY)
    world.provider.contents[made.sandbox.id] = content
    await world.hibernator.hibernate(made.session.id)
    return made


@contextmanager
def failing_restore(world: World) -> Iterator[None]:
    async def restore(reference: str, sandbox_id: str, session_id: str) -> None:
        raise SandboxStartError("no sandbox takes it")

    with mock.patch.object(world.provider, "restore", restore):
        yield


@contextmanager
def store_refusing(world: World, state: SessionState) -> Iterator[None]:
    """The store is full, or away, when a record of that state is to be written."""
    real = world.store.put

    async def put(session: Session, **kwargs: Any) -> Session:
        if session.state is state:
            raise StoreUnavailableError("disk full")
        return await real(session, **kwargs)

    with mock.patch.object(world.store, "put", put):
        yield


async def contents(world: World, session: SessionId) -> str:
    """What the session has in its workspace once it is awake."""
    opened = await world.opener.open(session)
    return world.provider.contents.get(opened.sandbox.id, "")


async def test_wakes_that_fail_again_and_again_do_not_put_off_the_end(world: World) -> None:
    """Its retention counts from its hibernation: a client that asks every so often does not keep it for ever."""
    session = (await asleep(world)).session.id
    end = world.clock.now() + RETENTION_S
    with failing_restore(world):
        for _ in range(9):
            world.clock.advance(RETENTION_S / 10)
            with pytest.raises(SandboxStartError):
                await world.opener.open(session)
            record = await world.record(session)
            assert (record.state, record.expires_at, record.limit_at) == (SessionState.HIBERNATED, end, end)
    world.clock.advance(RETENTION_S / 10)
    await world.sweeper.sweep()
    with pytest.raises(SessionNotFoundError):
        await world.opener.open(session)


async def test_wake_that_a_crash_broke_off_does_not_put_off_the_end(world: World) -> None:
    """The same where the next open, or the next start, finds the record `waking`."""
    session = (await asleep(world)).session.id
    end = world.clock.now() + RETENTION_S
    for again in ("open", "start"):
        record = await world.record(session)
        sandbox = await world.provider.claim(KEY, session)
        await world.store.put(replace(record, state=SessionState.WAKING, sandbox=sandbox))
        world.provider.end(sandbox.id, "killed", keeps=True)
        world.clock.advance(RETENTION_S / 10)
        if again == "start":
            await world.recovery.recover_all()
        else:
            with failing_restore(world), pytest.raises(SandboxStartError):
                await world.opener.open(session)
        record = await world.record(session)
        assert (record.state, record.expires_at) == (SessionState.HIBERNATED, end)
    assert await contents(world, session) == "precious"


async def test_failed_wake_keeps_the_end_that_its_user_asked_for(world: World) -> None:
    """A ttl shorter than the retention stays what bounds it."""
    made = await world.lifecycle.create(KEY, ttl=500.0)
    await world.hibernator.hibernate(made.session.id)
    world.clock.advance(100)
    with failing_restore(world), pytest.raises(SandboxStartError):
        await world.opener.open(made.session.id)
    assert (await world.record(made.session.id)).expires_at == made.session.created_at + 500


async def test_notice_of_a_loss_outlives_a_failed_wake(world: World) -> None:
    """A session lost with its snapshot, whose first wake fails, tells the loss with the wake that succeeds."""
    made = await world.lifecycle.create(KEY)
    world.provider.contents[made.sandbox.id] = "precious"
    world.provider.end(made.sandbox.id, "killed", keeps=True)
    with failing_restore(world), pytest.raises(SandboxStartError):
        await world.opener.open(made.session.id, unreachable=made.sandbox.id)
    told = (await world.record(made.session.id)).restored
    assert told is not None
    assert told != "none"
    world.clock.advance(60)
    assert (await world.opener.open(made.session.id)).restored == told


async def test_wake_whose_last_record_cannot_be_written_loses_no_workspace(world: World) -> None:
    """The sandbox that was given the workspace goes; the workspace must not go with it."""
    session = (await asleep(world)).session.id
    for _ in range(2):
        with store_refusing(world, SessionState.ACTIVE), pytest.raises(StoreUnavailableError):
            await world.opener.open(session)
        assert (await world.record(session)).state is SessionState.HIBERNATED
        assert await world.sandboxes() == set()
    assert await contents(world, session) == "precious"


async def test_wake_that_cannot_be_undone_leaves_the_workspace_where_it_is(world: World) -> None:
    """Neither the record nor the way back works (a full disk): the sandbox has the workspace, and is not released."""
    session = (await asleep(world)).session.id

    async def rollback(reference: str, sandbox_id: str, session_id: str) -> str:
        raise SnapshotStoreFullError("disk full")

    with (
        store_refusing(world, SessionState.ACTIVE),
        mock.patch.object(world.provider, "rollback", rollback),
        pytest.raises(SnapshotError, match="undoing that failed as well") as caught,
    ):
        await world.opener.open(session)
    assert (caught.value.status, caught.value.code) == (507, SnapshotStoreFullError.code)
    assert (await world.record(session)).state is SessionState.WAKING
    assert await contents(world, session) == "precious"


@contextmanager
def sandboxes_ending(world: World, count: int) -> Iterator[None]:
    """The next `count` sandboxes that are claimed end before a workspace is in them."""
    real, left = world.provider.restore, count

    async def restore(reference: str, sandbox_id: SandboxId, session_id: SessionId) -> None:
        nonlocal left
        if left:
            left -= 1
            world.provider.end(sandbox_id, "was killed")
        await real(reference, sandbox_id, session_id)

    with mock.patch.object(world.provider, "restore", restore):
        yield


async def test_wake_takes_another_sandbox_when_one_ends_before_the_workspace_is_in_it(world: World) -> None:
    """A warm sandbox that was killed a moment ago is no reason to refuse a request: nothing of it has been sent."""
    session = (await asleep(world)).session.id
    gaps: list[SessionId] = []
    world.opener.on_wake(lambda name, runtime, seconds: gaps.append(name))
    before = world.provider.claims
    with sandboxes_ending(world, 2):
        opened = await world.opener.open(session)
    assert world.provider.contents[opened.sandbox.id] == "precious"
    assert opened.session.state is SessionState.ACTIVE
    assert world.provider.claims - before == 3
    assert gaps == [session]  # it woke once
    assert [each.id for each in await world.provider.list()] == [opened.sandbox.id]


async def test_wake_gives_up_when_every_sandbox_ends(world: World) -> None:
    """Sandboxes that end one after the other are a broken runtime: the wake is refused, and the files stay."""
    session = (await asleep(world)).session.id
    before = world.provider.claims
    with sandboxes_ending(world, 100), pytest.raises(SandboxGoneError):
        await world.opener.open(session)
    assert world.provider.claims - before == 3
    assert (await world.record(session)).state is SessionState.HIBERNATED
    assert await contents(world, session) == "precious"


async def test_wake_that_fails_for_another_reason_costs_one_sandbox(world: World) -> None:
    """A workspace that cannot be moved could not be moved into the next sandbox either."""
    session = (await asleep(world)).session.id
    before = world.provider.claims
    with failing_restore(world), pytest.raises(SandboxStartError):
        await world.opener.open(session)
    assert world.provider.claims - before == 1
