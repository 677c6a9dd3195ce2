"""A gateway dies with many live sessions, and another, which has their snapshots, is asked for all of them at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import pytest

from gateway.core.errors import ActivationTimeoutError, OwnerAwayError, QueueFullError
from gateway.core.model import SandboxId, SessionId
from gateway.runtimes.catalog import StaticCatalog, default_runtime
from gateway.sessions.admission import MAX_OWNER_WAIT_S
from gateway.sessions.build import Sessions, SessionSettings, make_sessions
from gateway.sessions.membership import ElsewhereError
from gateway.store.memory import MemoryStore
from gateway.testing import MemorylessExecutor, ScriptedProvider
from tests.support.scripted import KEY

VIRTUAL_TIME = True
SESSIONS = 40
TAKEOVER_S = 8.0


class LoopClock:
    """The loop's time, which is virtual here."""

    def now(self) -> float:
        return 1_700_000_000.0 + self.monotonic()

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()


@dataclass
class World:
    """`heir` has an engine whose cold starts come one after the other; `dead` has live sessions and announced once."""

    heir: Sessions
    dead: Sessions
    provider: ScriptedProvider
    sessions: list[SessionId]

    async def ask(self, session: SessionId, gone: SandboxId | None) -> float | Exception:
        """A request that holds for the session, as the activator does: the seconds that it took, or its error."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with self.heir.admission.held(None, session):
                await self.heir.opener.open(session, unreachable=gone)
        except Exception as error:
            return error
        return loop.time() - began

    async def ask_all(self, gone: SandboxId | None) -> list[float | Exception]:
        return await asyncio.gather(*(self.ask(session, gone) for session in self.sessions))


def gateway(store: MemoryStore, provider: ScriptedProvider, me: str, clock: LoopClock) -> Sessions:
    return make_sessions(
        store=store,
        provider=provider,
        keeper=provider,
        executor=MemorylessExecutor(provider),
        catalog=StaticCatalog([default_runtime(0)]),
        clock=clock,
        holder=me,
        settings=SessionSettings(takeover_after=TAKEOVER_S),
        shared=True,
        me=me,
    )


@pytest.fixture
async def world() -> AsyncIterator[World]:
    clock = LoopClock()
    store = MemoryStore(clock)
    await store.start()
    providers = [ScriptedProvider(clock=clock) for _ in range(2)]
    for provider in providers:
        provider.leaves_running = True
        await provider.apply([default_runtime(0)])
    dead, heir = (gateway(store, provider, name, clock) for name, provider in zip("ab", providers, strict=True))
    dead.membership.address = "http://127.0.0.1:1"
    await dead.membership.announce()
    sessions = []
    for number in range(SESSIONS):
        session = (await dead.lifecycle.create(KEY)).session
        snapshot = f"snapshot-{number}#1-aa"
        await store.put(replace(session, snapshot=snapshot, snapshot_at=clock.now()))
        providers[1].parked[snapshot] = (str(number), clock.now())
        sessions.append(session.id)
    providers[1].cold_seconds = 1.5
    yield World(heir, dead, providers[1], sessions)
    await store.aclose()


@pytest.mark.parametrize("asked", ["before it counts as dead", "afterwards"])
async def test_mass_takeover_makes_answers_slow_and_refuses_none(world: World, asked: str) -> None:
    """Forty starts at 1.5 s each take a minute, of which a request is held all; an ordinary queue is refused sooner."""
    if asked == "afterwards":
        await asyncio.sleep(TAKEOVER_S + 1)
    took = await world.ask_all(SandboxId("gateway:a"))
    assert [each for each in took if not isinstance(each, float)] == []
    assert max(each for each in took if isinstance(each, float)) > 45


async def test_session_that_is_asked_for_late_in_a_takeover_is_not_refused(world: World) -> None:
    """The queue's rate is known by then, and one more would wait for longer than the hold of an ordinary request."""
    await asyncio.sleep(TAKEOVER_S + 1)
    late = world.sessions.pop()
    others = asyncio.ensure_future(world.ask_all(None))
    await asyncio.sleep(12.5)
    assert isinstance(await world.ask(late, None), float)
    await others


@pytest.mark.parametrize("comes_back", [True, False])
async def test_gateway_that_was_stopped_itself_gives_the_others_time_to_come_back(
    world: World, comes_back: bool
) -> None:
    """A machine sleeps, and all announcements expire at once: who wakes first does not take the others' sessions.

    One that does not come back counts as dead as long after that as ever.
    """
    heir, loop = world.heir.membership, asyncio.get_running_loop()
    heir.address = "http://127.0.0.1:2"
    await heir.announce()
    await asyncio.sleep(10 * TAKEOVER_S)
    woken, one = loop.time(), world.sessions[0]
    asking = asyncio.create_task(world.ask(one, None))
    await asyncio.sleep(0.5)
    with pytest.raises(OwnerAwayError):
        await world.heir.lifecycle.terminate(one, "in a sweep", only_if=lambda _: True)
    await heir.announce()
    await asyncio.sleep(0.5)
    assert not asking.done()
    if comes_back:
        await world.dead.membership.announce()
        assert isinstance(await asking, ElsewhereError)
    else:
        announcing = asyncio.create_task(_keep_announcing(world.heir))
        assert isinstance(await asking, float)
        assert TAKEOVER_S <= loop.time() - woken < TAKEOVER_S + 4
        announcing.cancel()


async def test_gateway_that_is_always_late_takes_over_all_the_same(world: World) -> None:
    """An overloaded one, whose announcements come once in the time after which it counts as dead itself."""
    heir = world.heir.membership
    heir.address = "http://127.0.0.1:2"

    async def announce_late() -> None:
        while True:
            await heir.announce()
            await asyncio.sleep(TAKEOVER_S)

    announcing = asyncio.create_task(announce_late())
    await asyncio.sleep(10 * TAKEOVER_S)
    began = asyncio.get_running_loop().time()
    assert isinstance(await world.ask(world.sessions[0], None), float)
    assert asyncio.get_running_loop().time() - began < 3 * TAKEOVER_S
    announcing.cancel()


async def _keep_announcing(gateway: Sessions) -> None:
    while True:
        await asyncio.sleep(gateway.membership.heartbeat_interval)
        await gateway.membership.announce()


async def test_takeover_that_starts_nothing_ends_in_its_time(world: World) -> None:
    """Engines that hang are no queue: nobody is held for the longest time that a takeover may take."""
    await asyncio.sleep(TAKEOVER_S + 1)
    world.provider.hold = asyncio.Event()
    began = asyncio.get_running_loop().time()
    answers = await world.ask_all(None)
    assert {type(each) for each in answers} == {ActivationTimeoutError}
    assert asyncio.get_running_loop().time() - began < 15
    world.provider.hold.set()


async def test_takeover_beyond_its_longest_time_is_overload(world: World) -> None:
    """Two and a half minutes of starts: those that came through were served, the rest hear 429 and when to come."""
    await asyncio.sleep(TAKEOVER_S + 1)
    world.provider.cold_seconds = 4.0
    answers = await world.ask_all(None)
    refused = [each for each in answers if not isinstance(each, float)]
    assert 0 < len(refused) < SESSIONS
    assert {type(each) for each in refused} == {QueueFullError}
    assert max(each for each in answers if isinstance(each, float)) <= MAX_OWNER_WAIT_S
