"""Advice on sessions, acted upon: a real lifecycle and store, idle gaps made by a manual clock."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.app.gateway import Gateway
from gateway.autoscaler.sessions import AdviceSettings, SessionAdvisor
from gateway.core.model import RuntimeKey, SessionId, SessionState
from gateway.runtimes.catalog import default_runtime
from gateway.testing import ManualClock, ScriptedProvider, scripted_gateway


class Sessions:
    """Sessions of one gateway, used and left idle by a test."""

    def __init__(self, gateway: Gateway, clock: ManualClock, **settings: float) -> None:
        self.gateway, self.clock = gateway, clock
        self.last: dict[SessionId, float] = {}
        self.key: RuntimeKey = gateway.catalog.all()[0].key
        self.advisor = SessionAdvisor(
            gateway.sessions.hibernator,
            gateway.sessions.opener,
            gateway.sessions.idleness,
            gateway.catalog,
            lambda: [(session, self.key, at, False) for session, at in self.last.items() if at > 0.0],
            AdviceSettings(**settings),  # type: ignore[arg-type]
        )
        gateway.sessions.opener.on_wake(self.advisor.woken)
        gateway.sessions.bindings.on_unbound(self.advisor.unbound)
        gateway.lifecycle.on_end(self.advisor.ended)
        gateway.sessions.bindings.on_unbound(lambda session, _: self.last.update({session: -1.0}))

    async def new(self) -> SessionId:
        session = (await self.gateway.lifecycle.create(self.key)).session.id
        await self.use(session)
        return session

    async def use(self, session: SessionId) -> None:
        """As a request does: the session is woken if it is hibernated, and its activity is noted."""
        await self.gateway.sessions.opener.open(session)
        self.last[session] = self.clock.now()
        self.gateway.activity.of(session, self.clock.now()).last = self.clock.now()
        await self.gateway.sessions.idleness.flush()
        await self.advisor.run_once(self.clock.now())

    async def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)
        await self.advisor.run_once(self.clock.now())

    async def state(self, session: SessionId) -> SessionState:
        return (await self.gateway.lifecycle.get(session)).state

    async def teach(self, gap: float, times: int = 60) -> None:
        """Another session of the runtime comes back after each `gap` seconds, so many times."""
        teacher = await self.new()
        for _ in range(times):
            self.clock.advance(gap)
            await self.use(teacher)
        await self.gateway.lifecycle.terminate(teacher, "taught")


@pytest.fixture
async def gateway(tmp_path: Path, clock: ManualClock) -> AsyncIterator[Gateway]:
    runtime = replace(default_runtime(1), max_session_duration=1e7)
    made = scripted_gateway(tmp_path, ScriptedProvider(clock=clock), clock=clock, runtimes=[runtime])
    await made.store.start()
    await made.provider.apply([runtime])
    yield made
    await made.store.aclose()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


async def test_idle_session_hibernates_when_its_gaps_advise_it(gateway: Gateway, clock: ManualClock) -> None:
    """Where idle gaps last minutes, a session is hibernated long before its timeout; one just used is not."""
    sessions = Sessions(gateway, clock, hibernate=True, wake_cost=30.0)
    await sessions.teach(600.0)
    silent, used = await sessions.new(), await sessions.new()
    await sessions.wait(60.0)
    assert await sessions.state(silent) is SessionState.HIBERNATED
    await sessions.use(used)
    await sessions.wait(1.0)

    assert await sessions.state(used) is SessionState.ACTIVE
    assert sessions.advisor.explain()["runtimes"][str(sessions.key)]["hibernateAfter"] < 60.0


async def test_advice_is_not_acted_upon_unless_asked_for(gateway: Gateway, clock: ManualClock) -> None:
    """By default sessions keep their timeout, and the advice is only shown."""
    sessions = Sessions(gateway, clock)
    await sessions.teach(600.0)
    session = await sessions.new()
    await sessions.wait(300.0)

    assert await sessions.state(session) is SessionState.ACTIVE
    assert sessions.advisor.advice(session) is not None
    assert sessions.advisor.slept == 0


async def test_hibernated_session_is_woken_ahead_once(gateway: Gateway, clock: ManualClock) -> None:
    """Where requests come an hour later to the second, a session is woken before; unused, it is hibernated again."""
    sessions = Sessions(gateway, clock, hibernate=True, prewake=True, wake_cost=3000.0)
    await sessions.teach(3600.0)
    session = await sessions.new()
    await sessions.wait(899.0)
    assert await sessions.state(session) is SessionState.HIBERNATED
    await sessions.wait(2690.0)
    assert await sessions.state(session) is SessionState.ACTIVE
    await sessions.wait(901.0)
    assert await sessions.state(session) is SessionState.HIBERNATED
    await sessions.wait(10.0)

    assert await sessions.state(session) is SessionState.HIBERNATED
    assert sessions.advisor.woke == 1


async def test_wake_reports_the_whole_idle_gap(gateway: Gateway, clock: ManualClock) -> None:
    """An idle gap with a hibernation in it counts once, from the last use."""
    sessions = Sessions(gateway, clock)
    session = await sessions.new()
    clock.advance(1000.0)
    await gateway.sessions.hibernator.hibernate(session)
    clock.advance(4000.0)
    await sessions.use(session)

    assert sessions.advisor.explain()["runtimes"][str(sessions.key)]["silences"] == 1
    assert [round(gap) for gap in sessions.advisor._sessions[session].gaps] == [5000]


async def test_ended_session_is_forgotten(gateway: Gateway, clock: ManualClock) -> None:
    """Also one that was to be woken ahead: nothing of it stays, and its idle gaps still count."""
    sessions = Sessions(gateway, clock, prewake=True)
    await sessions.teach(900.0)
    session = await sessions.new()
    await gateway.sessions.hibernator.hibernate(session)
    await gateway.lifecycle.terminate(session, "done")
    await sessions.wait(900.0)
    assert sessions.advisor.advice(session) is None
    assert sessions.advisor.woke == 0
    assert sessions.advisor.explain()["runtimes"][str(sessions.key)]["silences"] > 50
