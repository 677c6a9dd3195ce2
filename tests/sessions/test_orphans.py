"""A store that lost records, and sandboxes that no record names: nothing in use ends, nothing is deleted early."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from gateway.core.errors import SessionNotFoundError, StoreUnavailableError
from gateway.core.model import HibernationMode, SandboxEvent, SandboxId, Session, SessionId, SessionState, StartKind
from gateway.runtimes.catalog import StaticCatalog, default_runtime
from gateway.sessions.admission import MIN_HOLD_S
from gateway.sessions.build import Sessions, SessionSettings, make_sessions
from gateway.sessions.orphans import MISSING_GRACE_S
from gateway.store.memory import MemoryStore
from gateway.testing import ManualClock, MemorylessExecutor, ScriptedProvider
from tests.support.losses import lose
from tests.support.scripted import KEY

RETENTION_S = 1000.0


class World:
    """Gateways with engines of their own over one store, as over one Redis."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.store = MemoryStore(self.clock)
        self.provider = ScriptedProvider(clock=self.clock)
        self.sessions = self.gateway("one", self.provider)

    def gateway(self, me: str, provider: ScriptedProvider, start_timeout: float = 0.0) -> Sessions:
        runtime = replace(default_runtime(1), hibernation=HibernationMode.WORKSPACE)
        return make_sessions(
            store=self.store,
            provider=provider,
            keeper=provider,
            executor=MemorylessExecutor(provider),
            catalog=StaticCatalog([runtime]),
            clock=self.clock,
            holder=me or "holder",
            settings=SessionSettings(
                hibernated_retention=RETENTION_S,
                terminated_retention=100.0,
                sweep_interval=0.05,
                start_timeout=start_timeout,
            ),
            shared=True,
            me=me,
        )

    async def session(self, content: str = "precious") -> Session:
        """A new one with something in its workspace."""
        opened = await self.sessions.lifecycle.create(KEY, metadata={"a": "b"})
        self.provider.contents[opened.sandbox.id] = content
        return opened.session

    async def sandboxes(self) -> set[SandboxId]:
        return {sandbox.id for sandbox in await self.provider.list()}


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    await made.store.start()
    await made.provider.apply([default_runtime(1)])
    yield made
    await made.sessions.sweeper.aclose()


async def test_lost_record_of_a_live_session_is_written_again(world: World) -> None:
    """By the next sweep, with all it had, tenant included; the sandbox goes on."""
    session = await world.session()
    await world.store.delete(session.id)
    await world.sessions.sweeper.sweep()
    assert await world.store.get(session.id) == replace(session, version=1)
    assert session.sandbox is not None
    assert await world.sandboxes() == {session.sandbox.id}


async def test_missing_record_is_no_proof_of_a_takeover(world: World) -> None:
    """After an outage of the store, which came back empty: live sessions stay live."""
    session = await world.session()
    await world.store.delete(session.id)
    await world.sessions.recovery.release_taken_over()
    assert (await world.sessions.lifecycle.get(session.id)).state is SessionState.ACTIVE
    assert session.sandbox is not None
    assert world.provider.contents[session.sandbox.id] == "precious"


async def test_lost_record_of_a_parked_session_is_written_again(world: World) -> None:
    """Its next request wakes it with its files."""
    session = await world.session()
    await world.sessions.hibernator.hibernate(session.id)
    await world.store.delete(session.id)
    opened = await world.sessions.opener.open(session.id)
    assert world.provider.contents[opened.sandbox.id] == "precious"


async def test_sandbox_without_any_record_is_kept_before_it_ends(world: World) -> None:
    """It does not live on for ever, and its workspace stays for the retention of hibernated sessions."""
    unknown = SessionId("unknown")
    sandbox = await world.provider.claim(KEY, unknown)
    world.provider.contents[sandbox.id] = "precious"
    await world.sessions.sweeper.sweep()
    world.clock.advance(MISSING_GRACE_S - 1)
    await world.sessions.sweeper.sweep()
    assert await world.sandboxes() == {sandbox.id}
    world.clock.advance(1)
    await world.sessions.sweeper.sweep()
    assert await world.sandboxes() == set()
    world.clock.advance(RETENTION_S - 1)
    await world.sessions.sweeper.sweep()
    assert world.provider.parked[unknown][0] == "precious"


async def test_sandbox_that_ends_without_a_record_leaves_its_workspace(world: World) -> None:
    """The record may be what is missing: nothing is deleted with the sandbox."""
    session = await world.session()
    assert session.sandbox is not None
    await world.store.delete(session.id)
    events = world.provider.watch()
    world.provider.end(session.sandbox.id, "out of memory", keeps=True)
    await lose(world.sessions.recovery, await anext(events))
    assert world.provider.parked[session.id][0] == "precious"


async def test_orphan_on_an_engine_of_its_own_is_released(world: World) -> None:
    """Each gateway with an engine looks for its own: a sandbox whose session has another one by now."""
    session = await world.session()
    assert session.sandbox is not None
    other = replace(session.sandbox, id=SandboxId("sb-elsewhere"))
    await world.store.put(replace(session, owner="two", sandbox=other))
    await world.sessions.sweeper.sweep()
    assert await world.sandboxes() == {session.sandbox.id}
    await world.sessions.sweeper.sweep()
    assert await world.sandboxes() == set()
    assert len(world.sessions.bindings) == 0


async def test_session_that_another_gateway_ended_stays_ended(world: World) -> None:
    """Where gateways share an engine: its record was deleted in order, and its sandbox is gone."""
    first, second = world.gateway("", world.provider), world.gateway("", world.provider)
    opened = await first.lifecycle.create(KEY)
    await second.lifecycle.terminate(opened.session.id, "ended by its user")
    await world.store.delete(opened.session.id)
    with pytest.raises(SessionNotFoundError):
        await first.opener.open(opened.session.id)
    assert await world.store.get(opened.session.id) is None


@pytest.mark.parametrize("asleep", [False, True], ids=["new", "woken"])
async def test_sandbox_that_a_claim_may_still_wait_for_is_spared(world: World, asleep: bool) -> None:
    """Where others' claims are seen, as in a cluster: until a start's time is over, whatever the record says."""
    other = world.gateway("", world.provider, start_timeout=120.0)
    session = (await world.session()).id
    if asleep:
        await world.sessions.hibernator.hibernate(session)
    else:
        await world.sessions.lifecycle.terminate(session, "over")
    await world.provider.resize(KEY, 0)
    for each in await world.provider.list():
        await world.provider.release(each.id)
    starting = await world.provider.claim(KEY, session if asleep else SessionId("not-written-yet"))
    assert starting.start is StartKind.COLD
    for _ in range(3):
        world.clock.advance(MISSING_GRACE_S / 2)
        await other.sweeper.sweep()
    assert await world.sandboxes() == {starting.id}
    for _ in range(4):
        world.clock.advance(MISSING_GRACE_S)
        await other.sweeper.sweep()
    assert await world.sandboxes() == set()
    await other.sweeper.aclose()


async def test_end_of_a_sandbox_is_a_loss_only_while_a_record_needs_it(world: World) -> None:
    """A gateway that shares the engine hears of every end: those of ended and hibernated sessions are none."""
    counted: list[SandboxId] = []
    world.sessions.recovery._on_loss = lambda event: counted.append(event.sandbox_id)
    ended, slept, lost, twice = [await world.session() for _ in range(4)]
    await world.sessions.lifecycle.terminate(ended.id, "deleted by its user")
    await world.sessions.hibernator.hibernate(slept.id)
    for session in (ended, slept, lost, twice, twice):
        assert session.sandbox is not None
        await lose(world.sessions.recovery, SandboxEvent(session.sandbox.id, session.id, "evicted"))
    assert lost.sandbox is not None
    assert twice.sandbox is not None
    assert counted == [lost.sandbox.id, twice.sandbox.id, twice.sandbox.id]
    assert world.sessions.admission.hold_time(KEY) == MIN_HOLD_S


async def test_hold_is_as_long_as_a_start_may_take(world: World) -> None:
    """And a moment longer, so that the engine's own reason is what the client reads."""
    assert world.gateway("two", world.provider, start_timeout=120.0).admission.hold_time(KEY) == 125.0


async def test_creation_while_the_store_is_away_claims_nothing(world: World) -> None:
    """A client that tries again and again would empty the pool."""
    await world.store.aclose()
    for _ in range(3):
        with pytest.raises(StoreUnavailableError):
            await world.sessions.lifecycle.create(KEY)
    assert world.provider.claims == 0
    await world.store.start()


async def test_sweep_reads_no_record_that_has_not_changed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many sessions live: their versions are asked for at once; what changed is read, once."""
    made = [await world.session() for _ in range(5)]
    await world.sessions.sweeper.sweep()
    read: list[str] = []
    get = world.store.get

    async def counting(session_id: SessionId) -> Session | None:
        read.append(session_id)
        return await get(session_id)

    monkeypatch.setattr(world.store, "get", counting)
    await world.sessions.sweeper.sweep()
    assert read == []
    await world.sessions.lifecycle.update(made[0].id, metadata={"k": "v"})
    read.clear()
    await world.sessions.sweeper.sweep()
    await world.sessions.sweeper.sweep()
    assert read == [made[0].id]
