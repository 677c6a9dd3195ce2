"""Sandboxes that end while the store is away: each is on record once it is back, and no file is deleted before."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.core.errors import SnapshotError, SnapshotStoreFullError, StoreUnavailableError
from gateway.core.model import SandboxEvent, SandboxId, SessionState
from gateway.sessions import losses as losses_module
from gateway.sessions.activation import Opened
from gateway.sessions.losses import CONCURRENCY, Losses
from gateway.sessions.recovery import Loss, Recovery
from tests.support.scripted import KEY
from tests.support.session_world import World
from tests.support.waiting import eventually


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path)
    await made.store.start()
    await made.provider.apply([made.runtime])
    yield made
    await made.store.aclose()


class Retries:
    """In place of sleeping: tries again at once, and counts."""

    def __init__(self) -> None:
        self.pauses: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        await asyncio.sleep(0.001)


@pytest.fixture
async def retries() -> Retries:
    return Retries()


@pytest.fixture
async def losses(world: World, retries: Retries) -> AsyncIterator[Losses]:
    made = Losses(world.recovery, retries.sleep)
    following = asyncio.create_task(made.follow(world.provider.watch()))
    await asyncio.sleep(0)
    yield made
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


async def lost(world: World, content: str = "precious") -> Opened:
    """A session whose sandbox ends on its own now; the engine keeps its files until it is released."""
    made = await world.lifecycle.create(KEY)
    world.provider.contents[made.sandbox.id] = content
    return made


async def test_loss_is_on_record_once_the_store_is_back(world: World, losses: Losses, retries: Retries) -> None:
    """Tried until then with longer and longer pauses; routes close at once, and the files are the session's."""
    counted: list[SandboxEvent] = []
    world.recovery._on_loss = counted.append
    made = await lost(world)
    await world.store.aclose()
    world.provider.end(made.sandbox.id, "out of memory", keeps=True)
    await eventually(lambda: len(retries.pauses) > 6, "it is tried again and again")
    assert world.unbound == [(made.session.id, made.sandbox.id)]
    assert len(world.bindings) == 0
    assert len(losses) == 1
    assert retries.pauses[0] < retries.pauses[3] < retries.pauses[5]
    await world.store.start()
    await eventually(lambda: not len(losses), "it is written")
    record = await world.record(made.session.id)
    assert (record.state, record.sandbox, record.reason) == (SessionState.LOST, None, "out of memory")
    assert record.snapshot is not None
    assert world.provider.parked[made.session.id][0] == "precious"
    assert [each.sandbox_id for each in counted] == [made.sandbox.id]


async def test_sandbox_is_not_released_before_its_record_says_what_is_kept(
    world: World, losses: Losses, retries: Retries, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A release deletes the files, and a loss counts once: also where the read succeeds and only the write fails."""
    released: list[SandboxId] = []
    counted: list[SandboxEvent] = []
    world.recovery._on_loss = counted.append
    made = await lost(world)
    put, release = world.store.put, world.provider.release
    full = True

    async def failing_put(*args: object, **named: object) -> object:
        if full:
            raise StoreUnavailableError("the disk is full")
        return await put(*args, **named)  # type: ignore[arg-type]

    async def watched_release(sandbox_id: SandboxId) -> None:
        released.append(sandbox_id)
        await release(sandbox_id)

    monkeypatch.setattr(world.records._cached, "put", failing_put)
    monkeypatch.setattr(world.provider, "release", watched_release)
    world.provider.end(made.sandbox.id, "filled the disk", keeps=True)
    await eventually(lambda: len(retries.pauses) > 3, "it is tried again and again")
    assert released == []
    full = False
    await eventually(lambda: not len(losses), "it is written")
    assert released == [made.sandbox.id]
    assert len(counted) == 1
    assert (await world.record(made.session.id)).state is SessionState.LOST


async def test_loss_that_a_request_has_settled_meanwhile_changes_nothing(
    world: World, losses: Losses, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request gave the session another sandbox: that one stays, and what waits ends."""
    made = await lost(world)
    await world.store.aclose()
    world.provider.end(made.sandbox.id, "out of memory", keeps=True)
    await eventually(lambda: len(losses) == 1, "it waits")
    monkeypatch.setattr(
        losses, "_sleep", lambda _: asyncio.Event().wait()
    )  # the next tries come later than the request
    await eventually(lambda: len(losses) == 1, "it waits")
    await world.store.start()
    opened = await world.opener.open(made.session.id)
    assert opened.sandbox.id != made.sandbox.id
    losses.add(SandboxEvent(made.sandbox.id, made.session.id, "out of memory"))
    await losses._recovery.settle(Loss(SandboxEvent(made.sandbox.id, made.session.id, "late"), made.session.id))
    assert (await world.record(made.session.id)).sandbox == opened.sandbox
    assert await world.sandboxes() == {opened.sandbox.id}


class Stuck(Recovery):
    """Every settling waits until it is let go; at most so many were under way at once."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.now = self.most = self.done = 0

    def unbind(self, event: SandboxEvent) -> Loss | None:
        return None if event.session_id is None else Loss(event, event.session_id)

    async def settle(self, loss: Loss) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        await self.go.wait()
        self.now -= 1
        self.done += 1
        if loss.event.reason == "a bug" and self.done < 3:
            raise RuntimeError("bug")


async def test_a_few_are_tried_at_a_time_and_so_many_wait_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node goes with all its sandboxes: bounded in tasks, and in what they ask of the store; a bug ends none."""
    monkeypatch.setattr(losses_module, "MAX_PENDING", 20)
    stuck = Stuck()
    losses = Losses(stuck, Retries().sleep)
    for index in range(50):
        losses.add(SandboxEvent(f"sb-{index}", f"s-{index}", "a bug"))  # type: ignore[arg-type]
    losses.add(SandboxEvent("sb-0", "s-0", "told twice"))  # type: ignore[arg-type]
    losses.add(SandboxEvent("warm", None, "no session's"))  # type: ignore[arg-type]
    assert len(losses) == 20
    await eventually(lambda: stuck.now == CONCURRENCY, "as many as may are tried")
    stuck.go.set()
    await eventually(lambda: not len(losses), "all are settled")
    assert (stuck.most, stuck.done) == (CONCURRENCY, 22)


async def test_what_waits_ends_with_the_gateway(world: World) -> None:
    """The next start finds the record, which still names the sandbox."""
    losses = Losses(world.recovery)
    following = asyncio.create_task(losses.follow(world.provider.watch()))
    await asyncio.sleep(0)
    made = await lost(world)
    await world.store.aclose()
    world.provider.end(made.sandbox.id, "out of memory", keeps=True)
    await eventually(lambda: len(losses) == 1, "it waits")
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    assert len(losses) == 0
    await world.store.start()
    assert (await world.record(made.session.id)).sandbox == made.sandbox


@pytest.mark.parametrize("recorded", [True, False])
async def test_workspace_on_a_full_disk_is_kept_later(
    world: World, losses: Losses, retries: Retries, monkeypatch: pytest.MonkeyPatch, recorded: bool
) -> None:
    """And neither deleted nor given up for an older snapshot, whether the session has a record or the store lost it."""
    made = await lost(world)
    if not recorded:
        await world.store.delete(made.session.id)

    async def full(*_: object) -> str | None:
        raise SnapshotStoreFullError("the disk is full")

    with monkeypatch.context() as disk:
        disk.setattr(world.provider, "keep", full)
        world.provider.end(made.sandbox.id, "its disk is full", keeps=True)
        await eventually(lambda: len(retries.pauses) > 3, "it is tried again and again")
        assert len(losses) == 1
        if recorded:
            assert (await world.record(made.session.id)).state is SessionState.ACTIVE
    await eventually(lambda: not len(losses), "it is kept")
    assert world.provider.parked[made.session.id][0] == "precious"
    if recorded:
        assert (await world.record(made.session.id)).snapshot == made.session.id


async def test_start_goes_on_without_a_session_whose_workspace_cannot_be_kept_yet(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stays as it was on record, and the next request on it recovers it."""
    made = await lost(world)
    world.provider.end(made.sandbox.id, "ended", keeps=True)

    async def full(*_: object) -> str | None:
        raise SnapshotStoreFullError("the disk is full")

    with monkeypatch.context() as disk:
        disk.setattr(world.provider, "keep", full)
        await world.recovery.recover_all()
        assert (await world.record(made.session.id)).state is SessionState.ACTIVE
        with pytest.raises(SnapshotError, match="the disk is full"):
            await world.opener.open(made.session.id)
    opened = await world.opener.open(made.session.id)
    assert world.provider.contents[opened.sandbox.id] == "precious"
