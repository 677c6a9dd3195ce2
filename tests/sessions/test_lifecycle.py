"""A session's life on a manual clock, a real sqlite store and scripted sandboxes; hibernation is off here."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest

from gateway.core.errors import (
    ConflictError,
    QueueFullError,
    RuntimeNotFoundError,
    SandboxStartError,
    SessionNotFoundError,
    StoreUnavailableError,
)
from gateway.core.identity import Identity, Role, acting_as
from gateway.core.model import (
    HibernationMode,
    RuntimeKey,
    Sandbox,
    SandboxEvent,
    SandboxId,
    SessionId,
    SessionState,
    StartKind,
    SuspendReport,
)
from gateway.core.units import rfc3339
from gateway.runtimes.catalog import StaticCatalog
from gateway.testing import MemorylessExecutor, ScriptedProvider
from tests.support.losses import lose
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


async def test_created_session_is_on_record_with_its_sandbox(world: World) -> None:
    """The record names the sandbox, the start kind and both ends of its time; metadata is kept."""
    with acting_as(Identity(Role.MEMBER, "t", user="ann")):
        opened = await world.lifecycle.create(KEY, metadata={"a": "b"})
    record = await world.record(opened.session.id)
    assert record == opened.session
    assert (record.state, record.sandbox, record.start) == (SessionState.ACTIVE, opened.sandbox, StartKind.WARM)
    assert (record.expires_at - world.clock.now(), record.idle_timeout) == (28800.0, 900.0)
    assert (record.metadata, record.tenant, record.user, opened.restored) == ({"a": "b"}, "t", "ann", None)


async def test_session_that_waits_for_a_revision_that_is_rolled_back_gets_the_one_that_serves(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was chosen is withdrawn during the claim; a runtime that is gone for good is still an error."""
    canary = replace(world.runtime, key=replace(KEY, revision=2))
    chosen = iter([canary, world.runtime, canary, canary])
    monkeypatch.setattr(StaticCatalog, "choose", lambda *_: next(chosen))  # the catalog of agents chooses so
    opened = await world.lifecycle.create(KEY)
    assert (opened.session.runtime, opened.sandbox.runtime) == (KEY, KEY)
    with pytest.raises(RuntimeNotFoundError):
        await world.lifecycle.create(KEY)


async def test_cached_record_is_read_from_memory_where_nobody_else_writes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a turn of the store's thread, as it was written last; another tenant's caller does not see it."""
    with acting_as(Identity(Role.MEMBER, "t", user="ann")):
        opened = await world.lifecycle.create(KEY)
        updated = await world.lifecycle.update(opened.session.id, ttl=60.0)

        async def no_read(_: SessionId) -> NoReturn:
            raise AssertionError("the store was asked")

        monkeypatch.setattr(world.store, "get", no_read)
        assert await world.lifecycle.get_cached(opened.session.id) == updated
    with acting_as(Identity(Role.MEMBER, "u", user="bob")), pytest.raises(SessionNotFoundError):
        await world.lifecycle.get_cached(opened.session.id)


@pytest.mark.parametrize(("ttl", "lasts"), [(60.0, 60.0), (10**9, 28800.0)])
async def test_ttl_bounds_a_session_within_its_runtime(world: World, ttl: float, lasts: float) -> None:
    """A shorter life is honoured, a longer one than the runtime's is cut to it; idle time likewise."""
    opened = await world.lifecycle.create(KEY, ttl=ttl, idle_timeout=ttl)
    assert opened.session.expires_at == world.clock.now() + lasts
    assert opened.session.idle_timeout == lasts


class StallingExecutor(MemorylessExecutor):
    """Never answers for one session, as hostile code in a sandbox may choose to."""

    def __init__(self, provider: ScriptedProvider) -> None:
        super().__init__(provider)
        self.stalls = SessionId("")

    async def suspend(self, sandbox: Sandbox, session_id: SessionId) -> SuspendReport:
        if session_id == self.stalls:
            await asyncio.Event().wait()
        return await super().suspend(sandbox, session_id)


@pytest.fixture
async def stalling(world: World) -> StallingExecutor:
    """Sessions of the world hibernate with their state, through this executor; sweeps are short."""
    world.runtime = replace(world.runtime, hibernation=HibernationMode.STATE)
    executor = StallingExecutor(world.provider)
    world.restart(executor, sweep_interval=0.05)
    await world.provider.apply([world.runtime])
    return executor


async def test_sandbox_that_stalls_holds_up_no_other_session(world: World, stalling: StallingExecutor) -> None:
    """Sweeps go on: others hibernate and end in their time, while one never answers."""
    hostile = (await world.lifecycle.create(KEY)).session.id
    other = (await world.lifecycle.create(KEY)).session.id
    stalling.stalls = hostile
    world.clock.advance(901)
    assert await world.sweeper.sweep() == 1
    assert (await world.record(other)).state is SessionState.HIBERNATED
    third = (await world.lifecycle.create(KEY)).session.id
    world.clock.advance(901)
    assert await world.sweeper.sweep() == 1
    assert (await world.record(third)).state is SessionState.HIBERNATED
    assert (await world.record(hostile)).state is SessionState.HIBERNATING
    await world.sweeper.aclose()


async def test_gateway_ends_while_a_sandbox_stalls(
    world: World, stalling: StallingExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    """The others hibernate; of the one that stalls the log says where its workspace is."""
    hostile = (await world.lifecycle.create(KEY)).session.id
    other = (await world.lifecycle.create(KEY)).session.id
    stalling.stalls = hostile
    await world.hibernator.hibernate_all(timeout=0.05)
    assert (await world.record(other)).state is SessionState.HIBERNATED
    assert (
        f"session {hostile} is not hibernated as this gateway ends: it was not hibernated within 0.05 s" in caplog.text
    )


async def test_registered_session_gets_its_sandbox_with_its_first_use(world: World) -> None:
    """Not before, however long it is idle, and no loss or wake is reported."""
    woken: list[SessionId] = []
    world.opener.on_wake(lambda session, runtime, idle_s: woken.append(session))
    made = await world.lifecycle.register(KEY, metadata={"a": "b"})
    assert (made.state, made.sandbox, made.owner, made.metadata) == (SessionState.CREATING, None, "", {"a": "b"})
    world.clock.advance(20000)
    assert await world.sweeper.sweep() == 0
    with pytest.raises(ConflictError, match="creating; only an active one"):
        await world.hibernator.hibernate(made.id)
    assert world.provider.claims == 0
    opened, again = await asyncio.gather(world.opener.open(made.id), world.opener.open(made.id))
    assert (opened.start, opened.restored, again.start) == (StartKind.WARM, None, StartKind.LIVE)
    assert (world.provider.claims, woken) == (1, [])
    record = await world.record(made.id)
    assert (record.state, record.sandbox, record.metadata) == (SessionState.ACTIVE, opened.sandbox, {"a": "b"})
    assert record.expires_at == world.clock.now() + 28800


async def test_id_that_was_given_out_makes_one_session_and_none_once_that_has_ended(world: World) -> None:
    """Its record is kept for as long as the id could make another, and then goes like any."""
    given, until = SessionId("given-out"), world.clock.now() + 8 * 3600
    register = functools.partial(world.lifecycle.register, KEY, session_id=given, reusable_until=until)
    one, other = await asyncio.gather(register(), register())
    assert (one.id, one.version) == (other.id, other.version) == (given, 1)
    await world.lifecycle.update(given, metadata={"mine": "1"})
    assert await world.lifecycle.terminate(given, "enough")
    for _ in range(7):
        world.clock.advance(3601)
        await world.sweeper.sweep()
        assert (await world.record(given)).state is SessionState.TERMINATED
    for _ in range(2):
        world.clock.advance(3601)
        await world.sweeper.sweep()
    assert not await world.lifecycle.exists(given)


async def test_registered_session_ends_without_ever_having_a_sandbox(world: World) -> None:
    """By its user, and when its time is over; a start that fails leaves it as it was."""
    ended, forgotten = [await world.lifecycle.register(KEY) for _ in range(2)]
    world.provider.fail_with = SandboxStartError("no memory left")
    with pytest.raises(SandboxStartError):
        await world.opener.open(ended.id)
    assert (await world.record(ended.id)).state is SessionState.CREATING
    assert await world.lifecycle.terminate(ended.id, "enough")
    world.clock.advance(28799)
    assert await world.sweeper.sweep() == 0
    world.clock.advance(1)
    assert await world.sweeper.sweep() == 1
    with pytest.raises(SessionNotFoundError):
        await world.opener.open(forgotten.id)
    assert len(world.bindings) == 0


@pytest.mark.parametrize("verb", ["create", "register"])
async def test_unknown_runtime_makes_nothing(world: World, verb: str) -> None:
    """No sandbox is claimed for it, and nothing is on record."""
    with pytest.raises(RuntimeNotFoundError, match='"default/nope" not found'):
        await getattr(world.lifecycle, verb)(RuntimeKey("default", "nope"))
    assert world.provider.claims == 0
    assert [session async for session in world.store.sessions()] == []


async def test_failed_start_leaves_no_record(world: World) -> None:
    """The caller sees the reason; nothing counts as bound."""
    world.provider.fail_with = SandboxStartError("no memory left")
    with pytest.raises(SandboxStartError, match="no memory left"):
        await world.lifecycle.create(KEY)
    assert [session async for session in world.store.sessions()] == []
    assert len(world.bindings) == 0


async def test_sandbox_whose_record_cannot_be_written_is_released(world: World) -> None:
    """A store that goes away during the claim causes an error, and never leaks a sandbox."""
    world.provider.hold = asyncio.Event()
    claiming = asyncio.Event()
    world.admission.on_waiting(lambda *_: claiming.set())
    creating = asyncio.create_task(world.lifecycle.create(KEY))
    await claiming.wait()
    await world.store.aclose()
    world.provider.hold.set()
    with pytest.raises(StoreUnavailableError):
        await creating
    assert await world.sandboxes() == set()
    assert len(world.bindings) == 0
    await world.store.start()


async def test_open_finds_the_live_sandbox(world: World) -> None:
    """The same sandbox, reported as live, without another claim."""
    made = await world.lifecycle.create(KEY)
    opened = await world.opener.open(made.session.id)
    assert (opened.sandbox, opened.start, opened.restored) == (made.sandbox, StartKind.LIVE, None)
    assert world.provider.claims == 1


async def test_open_refuses_unknown_ended_and_expired_sessions(world: World) -> None:
    """Each says which session, and why where that is known."""
    with pytest.raises(SessionNotFoundError, match='"nobody" not found'):
        await world.opener.open(SessionId("nobody"))
    ended = (await world.lifecycle.create(KEY)).session.id
    await world.lifecycle.terminate(ended, "deleted by its user")
    with pytest.raises(SessionNotFoundError, match="it ended \\(deleted by its user\\)"):
        await world.opener.open(ended)
    expired = (await world.lifecycle.create(KEY, ttl=10)).session.id
    world.clock.advance(10)
    with pytest.raises(SessionNotFoundError, match="it reached its maximum duration"):
        await world.opener.open(expired)


async def test_terminate_writes_the_record_before_it_deletes_the_sandbox(world: World) -> None:
    """Routes are closed, the record has the reason, the sandbox is deleted; a second call raises not found."""
    made = await world.lifecycle.create(KEY)
    await world.lifecycle.terminate(made.session.id, "enough")
    record = await world.record(made.session.id)
    assert (record.state, record.sandbox, record.reason) == (SessionState.TERMINATED, None, "enough")
    assert await world.sandboxes() == set()
    assert world.unbound == [(made.session.id, None)]
    assert len(world.bindings) == 0
    with pytest.raises(SessionNotFoundError):
        await world.lifecycle.terminate(made.session.id, "again")


async def test_lost_sandbox_is_on_record_and_replaced_once(world: World) -> None:
    """From the event on the record says lost; the next open gets a fresh sandbox, and each hears of the loss until one
    says that it was told.
    """
    made = await world.lifecycle.create(KEY)
    world.provider.end(made.sandbox.id, "exited with status 137")
    await lose(world.recovery, SandboxEvent(made.sandbox.id, made.session.id, "exited with status 137"))
    record = await world.record(made.session.id)
    assert (record.state, record.sandbox, record.reason) == (SessionState.LOST, None, "exited with status 137")
    assert world.unbound == [(made.session.id, made.sandbox.id)]
    assert len(world.bindings) == 0
    fresh = await world.opener.open(made.session.id)
    assert fresh.sandbox.id != made.sandbox.id
    assert (fresh.start, fresh.restored) == (StartKind.WARM, "none")
    record = await world.record(made.session.id)
    assert (record.state, record.sandbox, record.reason) == (SessionState.ACTIVE, fresh.sandbox, "")
    assert (await world.opener.open(made.session.id)).restored == "none"
    await world.lifecycle.acknowledge_restored(made.session.id, "2020-01-01T00:00:00Z")  # of an earlier loss
    assert (await world.opener.open(made.session.id)).restored == "none"
    await world.lifecycle.acknowledge_restored(made.session.id, "none")
    assert (await world.opener.open(made.session.id)).restored is None


async def test_unacknowledged_loss_outlives_hibernation(world: World) -> None:
    """It is reported until acknowledged, also when the session hibernates and wakes in between."""
    world.runtime = replace(world.runtime, hibernation=HibernationMode.STATE)
    world.restart()
    made = await world.lifecycle.create(KEY)
    lost_at = rfc3339(world.clock.now())
    await world.opener.open(made.session.id, unreachable=made.sandbox.id)
    await world.hibernator.hibernate(made.session.id)
    world.clock.advance(60)
    opened = await world.opener.open(made.session.id)
    assert (opened.start, opened.restored) == (StartKind.WAKE, lost_at)


async def test_end_of_an_earlier_sandbox_does_not_touch_its_successor(world: World) -> None:
    """An event that comes late, after the session was given another one, changes nothing."""
    made = await world.lifecycle.create(KEY)
    fresh = await world.opener.open(made.session.id, unreachable=made.sandbox.id)
    await lose(world.recovery, SandboxEvent(made.sandbox.id, made.session.id, "late"))
    assert (await world.record(made.session.id)).sandbox == fresh.sandbox
    assert await world.sandboxes() == {fresh.sandbox.id}


async def test_sandbox_that_refuses_is_replaced_and_released(world: World) -> None:
    """`unreachable` names a sandbox that refuses connections; it ends, and the loss has the time of its snapshot."""
    made = await world.lifecycle.create(KEY)
    fresh = await world.opener.open(made.session.id, unreachable=made.sandbox.id)
    assert fresh.restored == rfc3339(world.clock.now())
    assert await world.sandboxes() == {fresh.sandbox.id}
    again = await world.opener.open(made.session.id, unreachable=made.sandbox.id)
    assert (again.sandbox, again.start) == (fresh.sandbox, StartKind.LIVE)


async def test_sandbox_limit_refuses_claims_until_a_session_ends(world: World) -> None:
    """At the limit 429 with Retry-After, also while claims are under way; an ended session makes room."""
    world.restart(max_sandboxes=2)
    first = await world.lifecycle.create(KEY)
    world.provider.hold = asyncio.Event()
    pending = asyncio.create_task(world.lifecycle.create(KEY))
    await asyncio.sleep(0)
    with pytest.raises(QueueFullError, match="all 2 sandboxes") as full:
        await world.lifecycle.create(KEY)
    assert full.value.retry_after is not None
    world.provider.hold.set()
    await pending
    await world.lifecycle.terminate(first.session.id, "room")
    await world.lifecycle.create(KEY)


async def test_replacing_a_sandbox_needs_no_room_for_two(world: World) -> None:
    """At the limit a session whose own sandbox is gone still gets its fresh one."""
    world.restart(max_sandboxes=1)
    made = await world.lifecycle.create(KEY)
    fresh = await world.opener.open(made.session.id, unreachable=made.sandbox.id)
    assert fresh.sandbox.id != made.sandbox.id
    assert len(world.bindings) == 1


async def test_idle_session_is_ended(world: World) -> None:
    """After its idle time and not a second before; the reason says so."""
    made = await world.lifecycle.create(KEY, idle_timeout=60)
    world.clock.advance(59)
    assert await world.sweeper.sweep() == 0
    world.clock.advance(1)
    assert await world.sweeper.sweep() == 1
    record = await world.record(made.session.id)
    assert (record.state, record.reason) == (SessionState.TERMINATED, "idle for 60 s")
    assert await world.sandboxes() == set()


async def test_request_in_flight_keeps_a_session(world: World) -> None:
    """However long it lasts without a byte; idle time counts from its end."""
    made = await world.lifecycle.create(KEY, idle_timeout=60)
    activity = world.activity.of(made.session.id, world.clock.now())
    activity.in_flight = 1
    for _ in range(3):
        world.clock.advance(100)
        assert await world.sweeper.sweep() == 0
    activity.in_flight = 0
    world.clock.advance(59)
    assert await world.sweeper.sweep() == 0
    world.clock.advance(1)
    assert await world.sweeper.sweep() == 1


async def test_checkpoint_reads_no_session_without_an_interval(world: World) -> None:
    """A look for sessions to copy costs the store nothing where no runtime asks for it, however many are in use."""
    made = await world.lifecycle.create(KEY)
    assert await world.checkpointer.run_once() == 0
    world.clock.advance(10)
    world.activity.of(made.session.id, world.clock.now()).in_flight = 1
    await world.store.aclose()  # whoever reads now fails
    assert await world.checkpointer.run_once() == 0


async def test_store_that_has_just_taken_a_record_is_not_asked_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it can be written to is asked before a sandbox is claimed, unless that is known; a failure ends that."""
    asked: list[bool] = []
    ping = world.store.ping

    async def counting() -> None:
        asked.append(True)
        await ping()

    monkeypatch.setattr(world.store, "ping", counting)
    for _ in range(3):
        await world.lifecycle.create(KEY)
    assert len(asked) == 1
    put = world.store.put

    async def full(*_: object, **__: object) -> NoReturn:
        raise StoreUnavailableError("its disk is full")

    monkeypatch.setattr(world.store, "put", full)
    with pytest.raises(StoreUnavailableError):
        await world.lifecycle.create(KEY)
    monkeypatch.setattr(world.store, "put", put)
    await world.lifecycle.create(KEY)
    assert len(asked) == 2


async def test_activity_reaches_the_record(world: World) -> None:
    """Flushed once; a store that is away loses none of it."""
    made = await world.lifecycle.create(KEY)
    world.clock.advance(10)
    world.activity.of(made.session.id, world.clock.now()).last = world.clock.now()
    await world.store.aclose()
    with pytest.raises(StoreUnavailableError):
        await world.idleness.flush()
    await world.store.start()
    await world.idleness.flush()
    assert (await world.record(made.session.id)).last_active_at == world.clock.now()


async def test_expired_session_is_ended_even_when_busy(world: World) -> None:
    """The maximum duration is a maximum."""
    made = await world.lifecycle.create(KEY, ttl=100)
    world.activity.of(made.session.id, world.clock.now()).in_flight = 1
    world.clock.advance(100)
    assert await world.sweeper.sweep() == 1
    assert (await world.record(made.session.id)).reason == "it reached its maximum duration"


async def test_ended_record_is_kept_for_a_while_and_then_forgotten(world: World) -> None:
    """Long enough to say why it ended, not for ever."""
    made = await world.lifecycle.create(KEY)
    await world.lifecycle.terminate(made.session.id, "done")
    world.clock.advance(99)
    await world.sweeper.sweep()
    assert (await world.record(made.session.id)).reason == "done"
    world.clock.advance(1)
    await world.sweeper.sweep()
    assert await world.store.get(made.session.id) is None


async def test_end_of_a_session_that_was_long_unused_can_be_seen(world: World) -> None:
    """The record is kept from its end on, not from its last use."""
    made = await world.lifecycle.register(KEY)
    world.clock.advance(28800)
    assert await world.sweeper.sweep() == 1
    assert (await world.record(made.id)).reason == "it reached its maximum duration"
    world.clock.advance(99)
    await world.sweeper.sweep()
    with pytest.raises(SessionNotFoundError, match=r"it ended \(it reached its maximum duration\)"):
        await world.opener.open(made.id)
    world.clock.advance(1)
    await world.sweeper.sweep()
    assert await world.store.get(made.id) is None


async def test_restart_marks_sessions_lost_whose_sandbox_is_gone(world: World) -> None:
    """Those whose sandbox is still there stay; all 600 of several pages are looked at."""
    world.restart(max_sandboxes=2000)
    kept = await world.lifecycle.create(KEY)
    ended = await world.lifecycle.create(KEY)
    await world.lifecycle.terminate(ended.session.id, "before")
    lost = [await world.lifecycle.create(KEY) for _ in range(600)]
    world.provider._sandboxes = {kept.sandbox.id: kept.sandbox}
    world.restart(max_sandboxes=2000)
    await world.recovery.recover_all()
    states = {session.id: session.state async for session in world.store.sessions(limit=1000)}
    assert states.pop(kept.session.id) is SessionState.ACTIVE
    assert states.pop(ended.session.id) is SessionState.TERMINATED
    assert set(states) == {opened.session.id for opened in lost}
    assert set(states.values()) == {SessionState.LOST}
    assert len(world.bindings) == 1
    assert (await world.opener.open(lost[0].session.id)).restored == "none"


async def test_waiting_listeners_are_called_when_a_claim_begins(world: World) -> None:
    """Whoever listens hears of a claim while it waits, and again when it has its sandbox or has failed."""
    heard: list[int] = []
    world.admission.on_waiting(lambda _, change, __: heard.append(change))
    world.provider.hold = asyncio.Event()
    waiting = asyncio.create_task(world.lifecycle.create(KEY))
    await eventually(lambda: heard == [1], "the claim was told while it waits")
    world.provider.hold.set()
    await waiting
    assert heard == [1, -1]

    world.provider.fail_with = SandboxStartError("no room")
    with pytest.raises(SandboxStartError):
        await world.lifecycle.create(KEY)
    assert heard == [1, -1, 1, -1]


async def test_sweep_spares_a_session_that_somebody_else_wrote(world: World) -> None:
    """A record that was used since it was listed is judged by what it says now."""
    made = await world.lifecycle.create(KEY, idle_timeout=60)
    world.clock.advance(60)
    record = await world.record(made.session.id)
    await world.store.put(replace(record, last_active_at=world.clock.now()))
    assert await world.sweeper.sweep() == 0


async def test_verbs_on_one_session_take_turns(world: World) -> None:
    """Twenty opens of a lost session at once make one claim, and no lock is left behind."""
    made = await world.lifecycle.create(KEY)
    world.provider.end(made.sandbox.id, "gone")
    opened = await asyncio.gather(*(world.opener.open(made.session.id) for _ in range(20)))
    assert len({each.sandbox.id for each in opened}) == 1
    assert world.provider.claims == 2
    assert world.records._locks == {}


async def test_claims_are_reported_to_listeners_and_lengthen_the_hold(world: World) -> None:
    """Who learns from claims hears each; slow starts make requests wait longer before they are given up."""
    heard: list[tuple[RuntimeKey, StartKind, float]] = []
    world.admission.on_claim(lambda *claim: heard.append(claim))
    assert world.admission.hold_time(KEY) == 10.0
    world.provider.hold = asyncio.Event()
    claiming = asyncio.Event()
    world.admission.on_waiting(lambda *_: claiming.set())
    pending = asyncio.create_task(world.lifecycle.create(KEY))
    await claiming.wait()
    world.clock.advance(20)
    world.provider.hold.set()
    await pending
    assert heard == [(KEY, StartKind.WARM, world.clock.now())]
    assert world.admission.hold_time(KEY) == world.admission.hold_time(None) == 70.0


@pytest.mark.parametrize("mode", [HibernationMode.OFF, HibernationMode.STATE])
async def test_session_with_background_work_is_not_hibernated(world: World, mode: HibernationMode) -> None:
    """While its sandbox says that something runs there; afterwards a whole idle timeout passes first."""
    world.runtime = replace(world.runtime, hibernation=mode)
    world.restart()
    asked: list[SandboxId] = []
    at_work = True

    async def check(sandbox: Sandbox, session_id: SessionId) -> bool:
        asked.append(sandbox.id)
        return at_work

    world.idleness.use_work_check(check)
    opened = await world.lifecycle.create(KEY)
    assert await world.sweeper.sweep() == 0
    assert not asked  # only when it would sleep
    world.clock.advance(901)
    assert await world.sweeper.sweep() == 0
    assert asked == [opened.sandbox.id]
    at_work = False
    world.clock.advance(899)
    assert await world.sweeper.sweep() == 0
    world.clock.advance(2)
    assert await world.sweeper.sweep() == 1


@pytest.mark.parametrize("error", [SandboxStartError("away"), TimeoutError()])
async def test_failed_work_check_does_not_prevent_hibernation(world: World, error: Exception) -> None:
    """It may be gone."""

    async def check(sandbox: Sandbox, session_id: SessionId) -> bool:
        raise error

    world.idleness.use_work_check(check)
    await world.lifecycle.create(KEY)
    world.clock.advance(901)
    assert await world.sweeper.sweep() == 1
