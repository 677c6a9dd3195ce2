"""The quota ledger under two gateways that create, hibernate, wake, end and are killed, in virtual time.

Whatever happens: no tenant ever has more sandboxes, awake or hibernated sessions than its limit, and once all sessions
have ended and the reservations of dead gateways are over, the ledger holds nothing.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

import looptime
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from gateway.core.errors import LimitError, WakegateError
from gateway.core.identity import Identity, Role, acting_as
from gateway.core.interfaces import SessionStore
from gateway.core.model import Limits, SessionId, SessionState
from gateway.core.quota import Resource
from gateway.identity.tenant_limits import parse_limits
from gateway.identity.tenants import TenantDirectory
from gateway.identity.tenants_file import TenantsFile
from gateway.runtimes.catalog import StaticCatalog, default_runtime
from gateway.sessions.build import SessionSettings, make_sessions
from gateway.sessions.quota_audit import AUDIT_INTERVAL_S
from gateway.sessions.quotas import RESERVATION_S
from gateway.store.memory import MemoryStore
from gateway.testing import MemorylessExecutor, ScriptedProvider
from tests.sessions.test_lifecycle_machine import LoopClock
from tests.support.examples import examples
from tests.support.scripted import KEY

LIMITS = {"sessions": 5, "sandboxes": 3, "hibernatedSessions": 2, "vcpu": 2}
RUNTIME = replace(default_runtime(2), session_timeout=1e6, limits=Limits(cpus=0.5))
TENANTS = ("acme", "bolt")


class Killed(BaseException):
    """Ends whatever a killed gateway still runs, clean-up included: it reaches nothing any more."""


class Mortal:
    """A part as one process sees it: each call may be the last, before it takes effect or right after."""

    def __init__(self, part: Any, process: Process) -> None:
        self._part, self._process = part, process

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._part, name)
        if name in ("documents", "quotas"):
            return Mortal(attribute, self._process)
        if not asyncio.iscoroutinefunction(attribute):
            return attribute

        async def call(*args: Any, **kwargs: Any) -> Any:
            self._process.check()
            result = await attribute(*args, **kwargs)
            self._process.check()
            return result

        return call


class Process:
    """One life of a gateway: `kill` is SIGKILL. Sandboxes are in a shared engine and survive it."""

    def __init__(self, name: str, world: World) -> None:
        self.alive = True
        store: SessionStore = Mortal(world.store, self)
        provider: ScriptedProvider = Mortal(world.provider, self)  # type: ignore[assignment]
        sessions = make_sessions(
            store=store,
            provider=provider,
            keeper=provider,
            executor=MemorylessExecutor(),
            catalog=StaticCatalog([RUNTIME]),
            clock=world.clock,
            holder=name,
            settings=SessionSettings(hibernated_retention=1e6, terminated_retention=1e6),
            shared=True,
            tenants=TenantDirectory(world.store.documents, TenantsFile(parse_limits(LIMITS))),
        )
        self.lifecycle, self.opener, self.hibernator = sessions.lifecycle, sessions.opener, sessions.hibernator
        self.sweeper, self.audit = sessions.sweeper, sessions.audit

    def check(self) -> None:
        if not self.alive:
            raise Killed


class World:
    """A store and an engine, both shared."""

    def __init__(self, loop: asyncio.AbstractEventLoop, seed: int) -> None:
        dice = random.Random(seed)
        self.clock = LoopClock(loop)

        async def pause() -> None:
            await asyncio.sleep(dice.choice((0.0, 0.001, 0.003, 0.02)))

        self.store = MemoryStore(self.clock, pause)
        self.provider = ScriptedProvider(clock=self.clock)
        self.lives = 0
        self.processes = [self.start(), self.start()]

    def start(self) -> Process:
        self.lives += 1
        return Process(f"life-{self.lives}", self)


class Quotas(RuleBasedStateMachine):
    """Operations are tasks that live on from rule to rule; time passes only in rules."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = looptime.new_event_loop()
        self.loop.set_exception_handler(lambda *_: None)  # of tasks that a kill ends
        self.tasks: set[asyncio.Task[None]] = set()
        self.wrong: list[str] = []
        self.refusals = 0

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    def spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        async def guarded() -> None:
            try:
                await work
            except LimitError:
                self.refusals += 1
            except (WakegateError, Killed):
                pass

        task = self.loop.create_task(guarded())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    @initialize(seed=st.integers(0, 2**16))
    def begin(self, seed: int) -> None:
        self.world = World(self.loop, seed)
        self.run(self.world.store.start())
        self.run(self.world.provider.apply([RUNTIME]))

    async def _create(self, process: Process, tenant: str) -> None:
        with acting_as(Identity(Role.MEMBER, tenant)):
            await process.lifecycle.create(KEY)

    def _sessions(self, *states: SessionState) -> list[SessionId]:
        records = self.world.store._records.values()
        return sorted(each.id for each in records if each.state in states)

    @rule(gateway=st.integers(0, 1), tenant=st.sampled_from(TENANTS), n=st.integers(1, 6))
    def create(self, gateway: int, tenant: str, n: int) -> None:
        for _ in range(n):
            self.spawn(self._create(self.world.processes[gateway], tenant))

    @rule(tenant=st.sampled_from(TENANTS))
    def burst(self, tenant: str) -> None:
        """200 creations at once through both gateways."""
        for n in range(200):
            self.spawn(self._create(self.world.processes[n % 2], tenant))

    @rule(gateway=st.integers(0, 1), which=st.integers(0, 9))
    def hibernate(self, gateway: int, which: int) -> None:
        if found := self._sessions(SessionState.ACTIVE):
            self.spawn(self.world.processes[gateway].hibernator.hibernate(found[which % len(found)]))

    @rule(gateway=st.integers(0, 1), which=st.integers(0, 9))
    def wake(self, gateway: int, which: int) -> None:
        if found := self._sessions(SessionState.HIBERNATED, SessionState.LOST, SessionState.WAKING):
            self.spawn(self.world.processes[gateway].opener.open(found[which % len(found)]))

    @rule(gateway=st.integers(0, 1), which=st.integers(0, 9))
    def end(self, gateway: int, which: int) -> None:
        if found := self._sessions(*SessionState):
            self.spawn(self.world.processes[gateway].lifecycle.terminate(found[which % len(found)], "test"))

    @rule(gateway=st.integers(0, 1))
    def kill(self, gateway: int) -> None:
        """Wherever it is; another takes its place."""
        self.world.processes[gateway].alive = False
        self.world.processes[gateway] = self.world.start()

    @rule(gateway=st.integers(0, 1))
    def sweep(self, gateway: int) -> None:
        self.spawn(self.world.processes[gateway].sweeper.sweep())

    @rule(tenant=st.sampled_from(TENANTS), takes=st.sampled_from([0.001, 0.003, 0.01, 0.03]), dies=st.booleans())
    def creates_meet_an_audit(self, tenant: str, takes: float, dies: bool) -> None:
        """The moment that matters most: reserved, and not written yet. The gateway may be killed in it."""
        for _ in range(4):
            self.spawn(self._create(self.world.processes[0], tenant))
        self.run(self._pass_time(takes))
        if dies:
            self.kill(0)
        self.spawn(self.world.processes[1].audit.run())
        for _ in range(4):
            self.spawn(self._create(self.world.processes[1], tenant))
        self.run(self._pass_time(0.05))

    @rule(seconds=st.sampled_from([0.001, 0.002, 0.01, 0.05, 1.0, AUDIT_INTERVAL_S, RESERVATION_S]))
    def wait(self, seconds: float) -> None:
        self.run(self._pass_time(seconds))

    async def _pass_time(self, seconds: float) -> None:
        """In steps, after each of which the limits hold."""
        end = self.loop.time() + seconds
        while (left := end - self.loop.time()) > 0:
            step = 0.001 if seconds < 0.1 else seconds / 50
            await asyncio.sleep(max(0.001, min(left, step)))  # virtual time has a grain
            self._look()

    def _look(self) -> None:
        for tenant in TENANTS:
            records = [each for each in self.world.store._records.values() if each.tenant == tenant]
            living = [each for each in records if each.state is not SessionState.TERMINATED]
            counts = {
                "sessions": len(living),
                "sandboxes": sum(each.sandbox is not None for each in living),
                "hibernatedSessions": sum(each.state is SessionState.HIBERNATED for each in living),
                "vcpu": sum(0.5 for each in living if each.sandbox is not None),
            }
            self.wrong += [f"{tenant} has {count} {name}" for name, count in counts.items() if count > LIMITS[name]]

    @invariant()
    def limits_hold(self) -> None:
        assert not self.wrong, self.wrong

    def teardown(self) -> None:
        try:
            if hasattr(self, "world"):
                self.run(self._settle())
                assert not self.wrong, self.wrong
        finally:
            for task in self.tasks:
                task.cancel()
            self.run(asyncio.sleep(0))
            self.loop.close()

    async def _settle(self) -> None:
        """All sessions end, and what dead gateways had reserved; then each tenant may have its whole quota again."""
        while self.tasks:
            await self._pass_time(1.0)
        process = self.world.processes[0]
        for session in self._sessions(*set(SessionState) - {SessionState.TERMINATED}):
            await process.lifecycle.terminate(session, "test")
        for _ in range(2):
            await self._pass_time(RESERVATION_S + AUDIT_INTERVAL_S)
            for each in self.world.processes:
                await each.sweeper.sweep()
        for tenant in TENANTS:
            left = {each.value: n for each, n in (await self.world.store.quotas.used(tenant)).items() if n}
            if left or await self.world.store.quotas.entries(tenant):
                self.wrong.append(f"{tenant} still holds {left}")
            for _ in range(LIMITS["sandboxes"]):
                await self._create(process, tenant)
            used = (await self.world.store.quotas.used(tenant))[Resource.SANDBOXES]
            if used != LIMITS["sandboxes"]:
                self.wrong.append(f"{tenant} holds {used} sandboxes in the ledger")


TestQuotas = Quotas.TestCase
TestQuotas.settings = settings(
    max_examples=examples(40),
    stateful_step_count=25,
    deadline=None,
    phases=(Phase.explicit, Phase.generate),  # shrinking takes minutes
    suppress_health_check=[HealthCheck.too_slow],
)
