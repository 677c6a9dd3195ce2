"""Schedules of agents, over every store: each firing is one task, whichever gateways look at it and when."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from gateway.core.interfaces import SessionStore
from gateway.core.model import Invocations, Kind, Runtime, RuntimeKey, Schedule
from gateway.core.tasks import TaskStore
from gateway.runtimes.catalog import StaticCatalog
from gateway.tasks.model import Task, from_queued, queue_of
from gateway.tasks.schedules import FiringLimits, Scheduler
from gateway.testing import ManualClock

KEY = RuntimeKey("acme", "greeter", Kind.AGENT_RUNTIME)
BERLIN = ZoneInfo("Europe/Berlin")
# Sunday, the day after which clocks are put forward.
START = datetime(2026, 3, 28, 12, 0, tzinfo=BERLIN).timestamp()
HOURLY = Schedule("hourly", "30 * * * *", path="/report?a=b", body='{"chat": "daily"}')
NIGHTLY = Schedule("nightly", "30 2 * * *", "Europe/Berlin")


@pytest.fixture
def tasks(store: SessionStore) -> TaskStore:
    """The tasks of that store."""
    return store.tasks


def scheduler(tasks: TaskStore, clock: ManualClock, *schedules: Schedule, max_open: int = 100) -> Scheduler:
    """That of one gateway, as it is after its start."""
    runtime = Runtime(KEY, tenant="acme", invocations=Invocations(session=("chat",), schedules=schedules))
    limits = FiringLimits(max_open, 1 << 20, 3600.0)
    return Scheduler(tasks, StaticCatalog([runtime]), clock, limits, lambda: None)


async def fired(tasks: TaskStore) -> list[Task]:
    """The tasks there are, the oldest first."""
    return [from_queued(entry) for entry in reversed(await tasks.newest(queue_of("acme", KEY)))]


async def test_each_firing_is_one_task_over_all_gateways(tasks: TaskStore) -> None:
    """With what its manifest asks for; also when its task was deleted before another gateway looked."""
    clock = ManualClock(START)
    gateways = [scheduler(tasks, clock, HOURLY) for _ in range(3)]
    await asyncio.gather(*(each.tick() for each in gateways))
    assert await fired(tasks) == [], "it begins when it is seen first"
    clock.advance(1800)
    late = gateways.pop()
    await asyncio.gather(*(each.tick() for each in gateways))
    [task] = await fired(tasks)
    assert (task.path, task.schedule, task.tenant, task.created_at) == ("/report?a=b", "hourly", "acme", START + 1800)
    assert await tasks.body(task.id) == b'{"chat": "daily"}'
    assert task.conversation in task.keys
    await tasks.delete(task.id)
    await late.tick()
    assert await fired(tasks) == []
    for _ in range(2):
        clock.advance(1800)
        await asyncio.gather(*(each.tick() for each in gateways))
    [again] = await fired(tasks)
    assert (again.id != task.id, again.conversation) == (True, task.conversation)


async def test_when_it_fires_and_fired_is_shown_by_every_gateway(tasks: TaskStore) -> None:
    """With the task as long as that is there; one that has not fired yet has no last time."""
    clock = ManualClock(START)
    one, other = (scheduler(tasks, clock, HOURLY, NIGHTLY) for _ in range(2))
    runtime = one.agents()[0]
    await one.tick()
    [hourly, nightly] = await other.plans(runtime)
    assert (hourly.next, hourly.last, hourly.task) == (START + 1800, None, None)
    assert (nightly.schedule, nightly.last) == (NIGHTLY, None)
    clock.advance(1805)
    await one.tick()
    [hourly, nightly] = await other.plans(runtime)
    assert (hourly.next, hourly.last, nightly.last) == (START + 5400, START + 1800, None)
    assert hourly.task == (await fired(tasks))[0]
    await tasks.delete((await fired(tasks))[0].id)
    [hourly, _] = await other.plans(runtime)
    assert (hourly.last, hourly.task) == (START + 1800, None)


async def test_of_missed_firings_the_latest_is_made_up(tasks: TaskStore) -> None:
    """By whichever gateway starts first; one whose times were changed has missed nothing."""
    clock = ManualClock(START)
    await scheduler(tasks, clock, HOURLY).tick()
    clock.advance(5 * 3600)
    started = [scheduler(tasks, clock, HOURLY) for _ in range(2)]
    await asyncio.gather(*(each.tick() for each in started))
    assert len(await fired(tasks)) == 1
    clock.advance(1799)
    await asyncio.gather(*(each.tick() for each in started))
    assert len(await fired(tasks)) == 1
    clock.advance(1)
    await asyncio.gather(*(each.tick() for each in started))
    assert len(await fired(tasks)) == 2
    clock.advance(5 * 3600)
    await scheduler(tasks, clock, replace(HOURLY, cron="31 * * * *")).tick()
    assert len(await fired(tasks)) == 2


async def test_a_time_that_a_day_leaves_out_still_comes_once_on_it(tasks: TaskStore) -> None:
    """2:30 in Berlin is not on the day when clocks are put forward."""
    clock = ManualClock(START)
    one = scheduler(tasks, clock, NIGHTLY)
    for _ in range(4 * 48):
        await one.tick()
        clock.advance(900)
    times = [datetime.fromtimestamp(task.created_at, BERLIN) for task in await fired(tasks)]
    assert [time.strftime("%d %H:%M") for time in times] == ["29 03:00", "30 02:30"]


async def test_a_full_queue_misses_a_firing_and_no_more(tasks: TaskStore) -> None:
    """It is not made up in a burst once there is room."""
    clock = ManualClock(START)
    one = scheduler(tasks, clock, HOURLY, max_open=1)
    await one.tick()
    for _ in range(3):
        clock.advance(3600)
        await one.tick()
    [task] = await fired(tasks)
    await tasks.delete(task.id)
    await one.tick()
    assert await fired(tasks) == []


@pytest.mark.parametrize("there", [3600.0, 400 * 86400.0])
async def test_schedule_goes_on_after_a_clock_that_was_ahead(tasks: TaskStore, there: float) -> None:
    """It fired by a clock that was wrong, at the gateway that stays and at one that starts: once an hour again."""
    clock = ManualClock(START)
    stays = scheduler(tasks, clock, HOURLY)
    await stays.tick()
    clock.advance(there)
    await stays.tick()
    before = len(await fired(tasks))
    clock.advance(-there)
    starts = scheduler(tasks, clock, HOURLY)
    for _ in range(2 * 60):
        clock.advance(60.0)
        await stays.tick()
        await starts.tick()
    assert len(await fired(tasks)) - before in (1, 2), "one of them may be that which it made ahead of its time"


async def test_schedule_fires_once_where_the_clock_is_set_by_a_little(tasks: TaskStore) -> None:
    """Back and forth over the time at which it fires, as clocks are kept right."""
    clock = ManualClock(START + 1790)
    one = scheduler(tasks, clock, HOURLY)
    await one.tick()
    for change in (20.0, -20.0, 15.0, -10.0, 60.0, -200.0, 300.0):
        clock.advance(change)
        await one.tick()
    assert len(await fired(tasks)) == 1
