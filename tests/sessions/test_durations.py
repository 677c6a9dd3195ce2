"""Time in which the gateway did not run does not count towards a session's maximum duration."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.core.errors import SessionNotFoundError, SnapshotError, StoreUnavailableError
from gateway.core.model import HibernationMode, SandboxId, SessionId, SessionState
from tests.support.scripted import KEY
from tests.support.session_world import World, hibernating

NINE_HOURS_S = 9 * 3600.0


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with hibernating(tmp_path, HibernationMode.STATE) as made:
        yield made


async def test_session_is_hibernated_after_a_night_in_which_nothing_ran(world: World) -> None:
    """Idle timeout and maximum duration have both passed; it was idle first, so it is hibernated, not ended."""
    made = await world.lifecycle.create(KEY)
    world.clock.advance(NINE_HOURS_S)
    assert await world.sweeper.sweep() == 1
    record = await world.record(made.session.id)
    assert record.state is SessionState.HIBERNATED
    assert (await world.opener.open(made.session.id)).session.state is SessionState.ACTIVE


async def test_session_that_is_used_after_a_pause_has_what_was_left_of_its_duration(world: World) -> None:
    """The request comes before any loop; sweeps then leave it alone until the rest has passed while it ran."""
    made = await world.lifecycle.create(KEY)
    await step(world, made.session.id, 3600.0)
    world.clock.advance(NINE_HOURS_S)
    opened = await world.opener.open(made.session.id)
    assert opened.sandbox == made.sandbox
    await step(world, made.session.id, 7 * 3600.0 - 1)
    assert (await world.record(made.session.id)).state is SessionState.ACTIVE
    await step(world, made.session.id, 2)
    assert (await world.record(made.session.id)).reason == "it reached its maximum duration"


async def test_request_under_way_during_a_pause_is_not_cut_off_by_it(world: World) -> None:
    """Its session counts as used throughout, and only the pause is given back."""
    made = await world.lifecycle.create(KEY)
    world.activity.of(made.session.id, world.clock.now()).in_flight = 1
    world.clock.advance(NINE_HOURS_S)
    assert await world.sweeper.sweep() == 0
    record = await world.record(made.session.id)
    assert (record.state, record.expires_at) == (SessionState.ACTIVE, world.clock.now() + 28800.0)


async def test_requested_end_does_not_move_with_pauses(world: World) -> None:
    """A ttl is a point in time."""
    made = await world.lifecycle.create(KEY, ttl=3600.0)
    world.clock.advance(NINE_HOURS_S)
    with pytest.raises(SessionNotFoundError):
        await world.opener.open(made.session.id)
    await world.sweeper.sweep()
    assert (await world.record(made.session.id)).state is SessionState.TERMINATED


async def test_pause_that_the_store_did_not_take_is_written_later(world: World) -> None:
    """A store that is away at the moment of waking up costs no session its time."""
    made = await world.lifecycle.create(KEY)
    await world.store.aclose()
    world.clock.advance(NINE_HOURS_S)
    with pytest.raises(StoreUnavailableError):
        await world.durations.catch_up()
    await world.store.start()
    await world.durations.catch_up()
    assert (await world.record(made.session.id)).expires_at == world.clock.now() + 28800.0


@pytest.mark.parametrize("after", [NINE_HOURS_S, 6 * 86400.0])
async def test_session_of_a_killed_gateway_lives_until_its_retention_is_over(world: World, after: float) -> None:
    """The next process starts long after the maximum duration: lost with its files, for the retention from then on."""
    made = await world.lifecycle.create(KEY)
    world.provider.end(made.sandbox.id, "killed", keeps=True)
    world.clock.advance(after)
    world.restart()
    await world.recovery.recover_all()
    await world.sweeper.sweep()
    record = await world.record(made.session.id)
    assert (record.state, record.expires_at) == (SessionState.LOST, world.clock.now() + 1000.0)
    assert (await world.opener.open(made.session.id)).restored not in (None, "none")


async def test_session_whose_workspace_cannot_be_kept_ends_at_its_maximum_duration(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stays awake, which is its life: nothing is given back for that."""

    async def keep(sandbox_id: SandboxId, session_id: SessionId) -> str | None:
        raise SnapshotError("too large")

    monkeypatch.setattr(world.provider, "keep", keep)
    made = await world.lifecycle.create(KEY)
    await step(world, made.session.id, 28800.0 - 1, used=False)
    assert (await world.record(made.session.id)).state is SessionState.ACTIVE
    await step(world, made.session.id, 2.0, used=False)
    assert (await world.record(made.session.id)).state is SessionState.TERMINATED


DAY_S = 86400.0


@pytest.mark.parametrize("back", [5.0, 600.0, DAY_S, 400 * DAY_S, 1.6e9])
async def test_clock_that_is_set_back_prolongs_no_session(world: World, back: float) -> None:
    """Used before and after, it is hibernated when it has been idle for as long as it may, and ends in its time."""
    made = await world.lifecycle.create(KEY)
    await step(world, made.session.id, 3600.0)
    world.clock.advance(-back)
    await world.sweeper.sweep()
    record = await world.record(made.session.id)
    assert record.expires_at == pytest.approx(world.clock.now() + 7 * 3600.0)
    await step(world, made.session.id, made.session.idle_timeout - 10, used=False)
    assert (await world.record(made.session.id)).state is SessionState.ACTIVE
    await step(world, made.session.id, 320.0, used=False)
    assert (await world.record(made.session.id)).state is SessionState.HIBERNATED


@pytest.mark.parametrize("there", [2 * 3600.0, DAY_S, 400 * DAY_S])
async def test_clock_that_is_wrong_for_minutes_costs_no_files(world: World, there: float) -> None:
    """As of a machine that has no clock until it has asked the network; whatever it is set to, and back."""
    asleep = await world.lifecycle.create(KEY)
    await world.hibernator.hibernate(asleep.session.id)
    lost = await world.lifecycle.create(KEY)
    world.provider.end(lost.sandbox.id, "killed", keeps=True)
    await world.recovery.recover_all()
    awake = await world.lifecycle.create(KEY)
    for way in (there, -there):
        world.clock.advance(way)
        for _ in range(3):
            await world.sweeper.sweep()
            world.clock.advance(60.0)
    for made in (asleep, lost, awake):
        assert (await world.opener.open(made.session.id)).session.state is SessionState.ACTIVE


async def test_sessions_that_sleep_too_long_end_once_the_clock_has_settled(world: World) -> None:
    """What was asleep through a night of the machine and past its retention is kept for ten minutes more."""
    made = await world.lifecycle.create(KEY)
    await world.hibernator.hibernate(made.session.id)
    world.clock.advance(DAY_S)
    await world.sweeper.sweep()
    assert (await world.record(made.session.id)).state is SessionState.HIBERNATED
    await step(world, made.session.id, 605.0, used=False)
    assert (await world.record(made.session.id)).state is SessionState.TERMINATED


async def test_hibernation_is_tried_again_after_its_time_whatever_the_clock_is_set_to(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pause between two tries is no point in time."""
    made = await world.lifecycle.create(KEY)
    tries = 0
    keep = world.provider.keep

    async def fail(sandbox_id: SandboxId, session_id: SessionId) -> str | None:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise SnapshotError("the store is away")
        return await keep(sandbox_id, session_id)

    monkeypatch.setattr(world.provider, "keep", fail)
    await step(world, made.session.id, made.session.idle_timeout + 1, used=False)
    assert tries == 1
    world.clock.advance(-DAY_S)
    await step(world, made.session.id, made.session.idle_timeout + 310.0, used=False)
    assert (tries, (await world.record(made.session.id)).state) == (2, SessionState.HIBERNATED)


async def step(world: World, session: SessionId, seconds: float, *, used: bool = True) -> None:
    """So much time passes while the gateway runs: its loops look at the clock more often than a pause lasts."""
    end = world.clock.now() + seconds
    swept = 0.0
    while (left := end - world.clock.now()) > 0:
        world.clock.advance(min(2.0, left))
        await world.durations.catch_up()
        if world.clock.now() - swept >= 300.0 or world.clock.now() >= end:
            swept = world.clock.now()
            if used:
                world.activity.of(session, swept).last = swept
            await world.sweeper.sweep()
