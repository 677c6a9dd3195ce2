"""A gateway ends in order while its snapshots cannot be stored: no other gateway takes its sessions back in time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from gateway.core.errors import OwnerAwayError, SnapshotStoreFullError, StoreUnavailableError
from gateway.core.model import HibernationMode, Session, SessionId, SessionState, SnapshotRef, is_snapshot
from gateway.runtimes.catalog import StaticCatalog, default_runtime
from gateway.sessions.build import Sessions, SessionSettings, make_sessions
from gateway.sessions.hibernation import Hibernator
from gateway.snapshots.keeper import SnapshotKeeper
from gateway.snapshots.memory import MemorySnapshots
from gateway.store.memory import MemoryStore
from gateway.testing import ManualClock, MemorylessExecutor, ScriptedProvider
from tests.support.scripted import KEY
from tests.support.waiting import LIMIT_S

SHORT_S = 0.05


class TroubledSnapshots(MemorySnapshots):
    """Stalls, or fails, when told to."""

    stalled = False
    full = False
    unbounded = False  # a stall that no cancellation ends, as of a thread in a system call

    async def put(self, session_id: SessionId, chunks: AsyncIterator[bytes]) -> SnapshotRef:
        if self.full:
            raise SnapshotStoreFullError("no room")
        while self.stalled:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if not self.unbounded:
                    raise
        return await super().put(session_id, chunks)


class World:
    """Two gateways over one store of records and one of snapshots; the sandboxes of each are its own."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.store = MemoryStore(self.clock)
        self.snapshots = TroubledSnapshots(self.clock)
        self.engine = ScriptedProvider(clock=self.clock)  # of the gateway that ends; it outlives its restart
        self.ending = self.gateway("a", self.engine)
        self.other = self.gateway("b", ScriptedProvider(clock=self.clock))

    def gateway(self, me: str, engine: ScriptedProvider) -> Sessions:
        runtime = replace(default_runtime(1), hibernation=HibernationMode.WORKSPACE)
        engine._targets = engine._warm = {runtime.key: 1}
        executor = MemorylessExecutor(engine)
        sessions = make_sessions(
            store=self.store,
            provider=engine,
            keeper=SnapshotKeeper(self.snapshots, engine, executor, self.clock, parking=engine),
            executor=executor,
            catalog=StaticCatalog([runtime]),
            clock=self.clock,
            holder=me,
            settings=SessionSettings(hibernated_retention=1000.0, sweep_interval=SHORT_S),
            shared=True,
            me=me,
        )
        sessions.membership.address = f"http://{me}"
        return sessions

    async def session(self) -> SessionId:
        """One that is awake at the ending gateway, has a snapshot of "older", and "newer" in its workspace."""
        made = await self.ending.lifecycle.create(KEY)
        self.engine.contents[made.sandbox.id] = "older"
        await self.ending.hibernator.hibernate(made.session.id)
        woken = await self.ending.opener.open(made.session.id)
        self.engine.contents[woken.sandbox.id] = "newer"
        return made.session.id

    async def record(self, session: SessionId) -> Session:
        found = await self.store.get(session)
        assert found is not None
        return found

    async def end(self) -> None:
        """The rest of an orderly end, as gateway/app/lifespan.py has it."""
        # The time is short only where it must run out: a busy machine needs longer for a copy that is to finish.
        await self.ending.hibernator.hibernate_all(timeout=SHORT_S if self.snapshots.stalled else LIMIT_S)
        await self.ending.membership.leave()

    async def restarted(self, session: SessionId) -> str:
        """What is in the session's workspace once the gateway that ended runs again."""
        again = self.gateway("a", self.engine)
        await again.membership.announce()
        await again.recovery.recover_all()
        opened = await again.opener.open(session)
        assert opened.restored is None
        return self.engine.contents[opened.sandbox.id]


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    await made.store.start()
    await made.ending.membership.announce()
    yield made
    await made.store.aclose()


@pytest.mark.parametrize("trouble", ["stalled", "full"])
async def test_workspace_that_could_not_be_stored_waits_for_its_gateway(
    world: World, trouble: str, caplog: pytest.LogCaptureFixture
) -> None:
    """At the deadline it is parked, and the record says so: others wait for the next start, which has all of it."""
    session = await world.session()
    setattr(world.snapshots, trouble, True)
    await world.end()
    record = await world.record(session)
    assert (record.state, record.owner, is_snapshot(record.snapshot)) == (SessionState.HIBERNATED, "a", False)
    assert f"session {session} is not hibernated as this gateway ends" in caplog.text
    assert "other gateways do not wake it before" in caplog.text
    with pytest.raises(OwnerAwayError, match="its workspace stayed with its gateway"):
        await world.other.opener.open(session)
    assert await world.restarted(session) == "newer"


async def test_snapshot_that_was_finished_is_what_the_other_gateway_wakes(world: World) -> None:
    """Beside one that stalls: what the store has whole goes on elsewhere, without a notice."""
    session = await world.session()
    await world.end()
    opened = await world.other.opener.open(session)
    assert opened.restored is None
    assert (await world.record(session)).owner == "b"


async def test_hibernation_that_the_end_broke_off_is_done_again(world: World) -> None:
    """A sweep was copying it when the gateway began to end, and left its record `hibernating`."""
    session = await world.session()
    world.snapshots.stalled = True
    world.clock.advance(901)
    await world.ending.sweeper.sweep()
    await world.ending.sweeper.aclose()
    assert (await world.record(session)).state is SessionState.HIBERNATING
    world.snapshots.stalled = False
    await world.end()
    record = await world.record(session)
    assert (record.state, record.owner, is_snapshot(record.snapshot)) == (SessionState.HIBERNATED, "", True)


async def test_store_whose_calls_never_end_does_not_hold_up_the_end(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy that cannot be cancelled is left; its session is parked like others."""
    monkeypatch.setattr("gateway.sessions.hibernation.CANCEL_TIMEOUT_S", SHORT_S)
    session = await world.session()
    world.snapshots.stalled = world.snapshots.unbounded = True
    await world.end()
    assert not is_snapshot((await world.record(session)).snapshot)
    world.snapshots.stalled = False
    stuck = [task for task in asyncio.all_tasks() if Hibernator._keep.__qualname__ in repr(task)]
    for task in stuck:
        task.cancel()
    await asyncio.wait(stuck)
    assert await world.restarted(session) == "newer"


async def test_workspace_stays_whatever_fails(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Store of snapshots and store of records are both away: the log says so, and the next start finds it."""
    session = await world.session()
    world.snapshots.full = True

    async def put(*_: object, **__: object) -> Session:
        raise StoreUnavailableError("Redis is away")

    with monkeypatch.context() as patch:
        patch.setattr(world.store, "put", put)
        await world.end()
    assert "nor could its workspace be parked: StoreUnavailableError('Redis is away')" in caplog.text
    assert "the next start with this state directory finds its workspace" in caplog.text
    assert "do not wake it before" not in caplog.text
    sandbox = (await world.record(session)).sandbox
    assert sandbox is not None
    assert session in world.engine.parked
    again = world.gateway("a", world.engine)
    await again.membership.announce()
    await again.recovery.recover_all()
    opened = await again.opener.open(session)
    assert world.engine.contents[opened.sandbox.id] == "newer"
