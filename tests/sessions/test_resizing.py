"""Sessions get another size: what their records, quotas and sandboxes have, on scripted sandboxes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.errors import (
    BadRequestError,
    ConflictError,
    QuotaExceededError,
    QuotaForbiddenError,
    ResizeError,
    SessionNotFoundError,
)
from gateway.core.identity import Identity, Role, acting_as
from gateway.core.model import HibernationMode, Limits, Resources, Runtime, Session
from gateway.identity.tenant_limits import parse_limits
from gateway.sessions.sizes import larger, most, new_size
from tests.support.scripted import KEY
from tests.support.session_world import World

GIB = 1 << 30
ACME = Identity(Role.MEMBER, "acme")
LIMITS = Limits(memory=GIB, cpus=1.0, processes=256)
RUNTIME = Runtime(KEY, limits=LIMITS, max_resources=Resources(cpus=4.0, memory=4 * GIB, processes=1024))


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path)
    made.runtime = replace(RUNTIME, hibernation=HibernationMode.STATE)
    made.restart()
    await made.store.start()
    await made.provider.apply([made.runtime])
    with acting_as(ACME):
        yield made
    await made.store.aclose()


async def held(world: World) -> dict[str, int]:
    return {each.value: n for each, n in (await world.store.quotas.used("acme")).items() if n}


async def create(world: World) -> Session:
    return (await world.lifecycle.create(KEY)).session


def limits_of(world: World, session: Session) -> Limits:
    assert session.sandbox is not None
    return world.provider.sizes[session.sandbox.id]


async def test_resized_session_has_its_size_in_record_quota_and_sandbox(world: World) -> None:
    """And what was not asked for stays as it is."""
    await world.tenants.put("acme", parse_limits({"memory": "8Gi", "vcpu": 8}))
    session = await create(world)
    told: list[Session] = []
    world.bindings.on_resized(told.append)

    await world.resizing.resize(session.id, {"memory": 2 * GIB})
    session = await world.resizing.resize(session.id, {"cpus": 2.0})
    assert session.resources == Resources(memory=2 * GIB, cpus=2.0)
    assert (await world.record(session.id)).resources == session.resources
    assert limits_of(world, session) == replace(LIMITS, memory=2 * GIB, cpus=2.0)
    assert await held(world) == {"sessions": 1, "sandboxes": 1, "vcpu": 2000, "memory": 2 * GIB}
    assert told[-1] == session

    session = await world.resizing.resize(session.id, {"memory": None, "cpus": 1.0})
    assert session.resources is None
    assert limits_of(world, session) == LIMITS
    assert await held(world) == {"sessions": 1, "sandboxes": 1, "vcpu": 1000, "memory": GIB}


async def test_size_outlives_sleep(world: World) -> None:
    """The sandbox of the wake has it, and so has the quota; asleep, the session holds nothing of it."""
    await world.tenants.put("acme", parse_limits({"memory": "3Gi"}))
    session = await create(world)
    await world.resizing.resize(session.id, {"memory": 2 * GIB})
    await world.hibernator.hibernate(session.id)
    assert "memory" not in await held(world)

    woken = (await world.lifecycle.wake(session.id)).session
    assert woken.resources == Resources(memory=2 * GIB)
    assert limits_of(world, woken) == replace(LIMITS, memory=2 * GIB)
    assert (await held(world))["memory"] == 2 * GIB


async def test_session_that_sleeps_is_resized_for_its_next_wake(world: World) -> None:
    """Its wake then needs what it asked for: beside another session there is no room, and it stays asleep."""
    await world.tenants.put("acme", parse_limits({"memory": "3Gi"}))
    session = await create(world)
    await world.hibernator.hibernate(session.id)
    await world.resizing.resize(session.id, {"memory": 3 * GIB})
    other = await create(world)
    with pytest.raises(QuotaExceededError, match="memory"):
        await world.lifecycle.wake(session.id)
    await world.lifecycle.terminate(other.id, "test")
    assert limits_of(world, (await world.lifecycle.wake(session.id)).session).memory == 3 * GIB


async def test_size_beyond_the_quota_changes_nothing(world: World) -> None:
    """429 where others hold it, 403 where it never fits; sandbox, record and quota stay."""
    await world.tenants.put("acme", parse_limits({"memory": "3Gi"}))
    session = await create(world)
    other = await create(world)
    with pytest.raises(QuotaExceededError, match="memory"):
        await world.resizing.resize(session.id, {"memory": 5 * GIB // 2})
    with pytest.raises(QuotaForbiddenError, match="memory"):
        await world.resizing.resize(session.id, {"memory": 4 * GIB})
    assert await world.record(session.id) == session
    assert world.provider.sizes == {}
    assert (await held(world))["memory"] == 2 * GIB
    # What it holds is the session's alone: the rest is another's to have.
    await world.resizing.resize(other.id, {"memory": 2 * GIB})


async def test_size_that_the_engine_refuses_changes_nothing(world: World) -> None:
    """Neither the record nor the quota has it, although both had the larger one meanwhile."""
    await world.tenants.put("acme", parse_limits({"memory": "8Gi"}))
    session = await create(world)
    world.provider.refused_size = ResizeError("the node is full")
    for wish in ({"memory": 2 * GIB}, {"memory": GIB // 2}):
        with pytest.raises(ResizeError, match="the node is full"):
            await world.resizing.resize(session.id, wish)
        assert (await world.record(session.id)).resources is None
        assert (await held(world))["memory"] == GIB


async def test_session_whose_size_is_not_to_be_had_wakes_with_its_runtimes(world: World) -> None:
    """Its files are worth more; record and quota say what it has."""
    await world.tenants.put("acme", parse_limits({"memory": "8Gi"}))
    session = await create(world)
    await world.resizing.resize(session.id, {"memory": 2 * GIB})
    await world.hibernator.hibernate(session.id)
    world.provider.refused_size = ResizeError("the node is full")
    woken = (await world.lifecycle.wake(session.id)).session
    assert woken.resources is None
    assert (await held(world))["memory"] == GIB


async def test_session_without_a_sandbox_that_lives_is_not_resized(world: World) -> None:
    """An ended one is not found; one whose sandbox has just ended keeps what it has."""
    session = await create(world)
    assert session.sandbox is not None
    world.provider.end(session.sandbox.id, "test")
    with pytest.raises(ConflictError, match="ended"):
        await world.resizing.resize(session.id, {"memory": 2 * GIB})
    assert (await world.record(session.id)).resources is None
    await world.lifecycle.terminate(session.id, "test")
    with pytest.raises(SessionNotFoundError):
        await world.resizing.resize(session.id, {"memory": 2 * GIB})


@pytest.mark.parametrize(
    ("wish", "says"),
    [
        ({"memory": 5 * GIB}, "resources.memory: sessions of .* may have 4 GiB at most, got 5 GiB"),
        ({"cpus": 4.5}, "resources.cpu: .* 4 at most"),
        ({"processes": 2000}, "resources.processes: .* 1024 at most"),
        ({"memory": 1 << 20}, "resources.memory: at least 64 MiB"),
        ({"cpus": 0.001}, "resources.cpu: at least 0.01"),
        ({"processes": 2}, "resources.processes: at least 8"),
    ],
)
def test_size_is_bounded(wish: dict[str, Any], says: str) -> None:
    """The runtime says how much, and a sandbox needs some."""
    with pytest.raises(BadRequestError, match=says):
        new_size(RUNTIME, None, wish)


def test_runtime_that_allows_no_growth_allows_less() -> None:
    """Without spec.wakegate.maxResources its own limits are the most; what has no limit needs none."""
    runtime = replace(RUNTIME, max_resources=Resources())
    assert new_size(runtime, None, {"memory": GIB // 2}) == Resources(memory=GIB // 2)
    with pytest.raises(BadRequestError, match="1 GiB at most"):
        new_size(runtime, None, {"memory": GIB + 1})
    assert most(replace(runtime, limits=Limits(memory=None)), "memory") is None


SIZE = st.none() | st.builds(
    Resources,
    cpus=st.none() | st.floats(0.01, 4),
    memory=st.none() | st.integers(64 << 20, 4 * GIB),
    processes=st.none() | st.integers(8, 1024),
)


@given(SIZE, SIZE)
def test_between_two_sizes_is_no_less_than_either(one: Resources | None, other: Resources | None) -> None:
    """And no more than the larger of them in each field, whichever way the session goes."""
    both = LIMITS.resized(larger(LIMITS, one, other))
    for name in ("cpus", "memory", "processes"):
        each = [getattr(LIMITS.resized(size), name) for size in (one, other)]
        assert getattr(both, name) == max(each)
