"""The life of sessions under random interleavings of requests, sweeps, losses and clock jumps, in virtual time.

Two gateways share a store; each world is one way to run them. What holds whatever happens: a session has at most
one live sandbox, what was answered is there unless the answer says that something was lost, and what a record names is
kept.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

import looptime
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from gateway.core.errors import ConflictError, SessionNotFoundError, StoreUnavailableError, WakegateError
from gateway.core.model import SandboxId, SessionId, SessionState, SnapshotRef, is_snapshot
from gateway.runtimes.catalog import StaticCatalog, default_runtime
from gateway.sessions.activation import Opened
from gateway.sessions.build import SessionSettings, make_sessions
from gateway.sessions.membership import ElsewhereError
from gateway.snapshots.keeper import SnapshotKeeper
from gateway.snapshots.memory import MemorySnapshots
from gateway.store.memory import MemoryStore
from gateway.testing import MemorylessExecutor, ScriptedProvider
from tests.support.examples import examples
from tests.support.scripted import KEY

IDLE_S = 30.0
RUNTIME = replace(default_runtime(2), session_timeout=IDLE_S)


class LoopClock:
    """The loop's virtual time; `jump` sets the wall clock."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.jump = 0.0

    def now(self) -> float:
        return 1_700_000_000.0 + self._loop.time() + self.jump

    def monotonic(self) -> float:
        return self._loop.time()


class GatewayParts:
    """What of one gateway takes part in the life of a session."""

    def __init__(self, name: str, world: World, provider: ScriptedProvider, *, copies: bool) -> None:
        me = "" if world.shared_provider else name
        self.provider = provider
        executor = MemorylessExecutor(provider)
        parking = None if world.shared_provider else provider
        keeper = (
            SnapshotKeeper(world.snapshots, provider, executor, world.clock, parking=parking) if copies else provider
        )
        sessions = make_sessions(
            store=world.store,
            provider=provider,
            keeper=keeper,
            executor=executor,
            catalog=StaticCatalog([RUNTIME]),
            clock=world.clock,
            holder=name,
            settings=SessionSettings(hibernated_retention=1e6),
            shared=True,
            me=me,
        )
        self.activity, self.membership, self.sweeper = sessions.activity, sessions.membership, sessions.sweeper
        self.membership.address = f"http://{name}"
        self.lifecycle, self.opener, self.hibernator = sessions.lifecycle, sessions.opener, sessions.hibernator
        self.recovery, self.idleness = sessions.recovery, sessions.idleness


class World:
    """Two gateways over one store: `shared_provider` engine with snapshots, or one engine each, parking or copying."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, shared_provider: bool, copies: bool, seed: int) -> None:
        dice = random.Random(seed)
        self.clock = LoopClock(loop)

        async def pause() -> None:
            await asyncio.sleep(dice.choice((0.0, 0.001, 0.003, 0.02)))

        self.store = MemoryStore(self.clock, pause)
        self.snapshots = MemorySnapshots(self.clock)
        self.shared_provider = shared_provider
        shared = ScriptedProvider(clock=self.clock)
        self.gateways = [
            GatewayParts(name, self, shared if shared_provider else ScriptedProvider(clock=self.clock), copies=copies)
            for name in ("a", "b")
        ]

    async def start(self) -> None:
        await self.store.start()
        for gateway in self.gateways:
            await gateway.provider.apply([RUNTIME])
            if not self.shared_provider:
                await gateway.membership.announce()

    def reach(self, sandbox: SandboxId) -> ScriptedProvider | None:
        """The engine in which that sandbox lives."""
        for gateway in self.gateways:
            if sandbox in gateway.provider._sandboxes:
                return gateway.provider
        return None


class Sessions(RuleBasedStateMachine):
    """Requests are tasks that live on from rule to rule; time passes only in rules."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = looptime.new_event_loop()
        self.world: World | None = None
        self.ids: list[SessionId] = []
        self.possible: dict[SessionId, list[str]] = {}  # what the workspace may hold: the last answered write first
        self.killed: set[SessionId] = set()  # lost a sandbox since the last answer that reported it
        self.tasks: set[asyncio.Task[None]] = set()
        self.wrong: list[str] = []
        self.writes = 0
        self.jumped = False
        self.losses: Counter[SessionId] = Counter()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self.loop.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    @initialize(kind=st.sampled_from(["shared", "parked", "copied"]), seed=st.integers(0, 2**16))
    def begin(self, kind: str, seed: int) -> None:
        self.world = World(self.loop, shared_provider=kind == "shared", copies=kind != "parked", seed=seed)
        self.run(self.world.start())

    @rule(gateway=st.integers(0, 1), at_once=st.booleans())
    def create(self, gateway: int, at_once: bool) -> None:
        """With a sandbox at once, or with the first request, through whichever gateway that comes."""
        assert self.world is not None
        if len(self.ids) >= 2:
            return
        lifecycle = self.world.gateways[gateway].lifecycle
        try:
            if at_once:
                opened: Opened = self.run(lifecycle.create(KEY))
                session = opened.session.id
            else:
                session = self.run(lifecycle.register(KEY)).id
        except StoreUnavailableError:
            return
        self.ids.append(session)
        self.possible[session] = [""]

    @rule(gateway=st.integers(0, 1), which=st.integers(0, 1), takes=st.sampled_from([0.0, 0.05, 5.0, 45.0]))
    def request(self, gateway: int, which: int, takes: float) -> None:
        if self.ids:
            self.spawn(self._request(gateway, self.ids[which % len(self.ids)], takes))

    @rule(gateway=st.integers(0, 1), which=st.integers(0, 1), after=st.sampled_from([0.0, 0.005, 0.02, 1.0]))
    def hibernate(self, gateway: int, which: int, after: float) -> None:
        """Hibernate it, a moment after all other actions."""
        if self.ids:
            self.spawn(self._hibernate(gateway, self.ids[which % len(self.ids)], after))

    @rule(which=st.integers(0, 1), takes=st.sampled_from([0.05, 5.0]), after=st.sampled_from([0.0, 0.01, 0.3]))
    def request_and_hibernate(self, which: int, takes: float, after: float) -> None:
        """The race that matters most, from both gateways."""
        if self.ids:
            session = self.ids[which % len(self.ids)]
            for gateway in (0, 1):
                self.spawn(self._request(gateway, session, takes))
                self.spawn(self._hibernate(1 - gateway, session, after))
            self.run(self._pass_time(takes))

    @rule(gateway=st.integers(0, 1), which=st.integers(0, 1), after=st.sampled_from([0.0, 0.005, 0.02, 0.05]))
    def idle_request_and_sweep(self, gateway: int, which: int, after: float) -> None:
        """Somebody comes back in the very moment in which the other gateway lets the session sleep."""
        assert self.world is not None
        if self.ids:
            self.run(self._pass_time(IDLE_S + 1.0))
            self.spawn(self._quietly(self.world.gateways[1 - gateway].sweeper.sweep()))
            self.run(asyncio.sleep(after))
            self.spawn(self._request(gateway, self.ids[which % len(self.ids)], 5.0))
            self.run(self._pass_time(6.0))

    @rule(gateway=st.integers(0, 1))
    def sweep(self, gateway: int) -> None:
        assert self.world is not None
        self.spawn(self._quietly(self.world.gateways[gateway].sweeper.sweep()))

    @rule(which=st.integers(0, 1), keeps=st.booleans())
    def lose_sandbox(self, which: int, keeps: bool) -> None:
        """A sandbox ends on its own; whether its workspace can still be had is the engine's matter."""
        assert self.world is not None
        for gateway in self.world.gateways:
            for sandbox in self.run(gateway.provider.list()):
                if self.ids and sandbox.session_id == self.ids[which % len(self.ids)]:
                    keeps = keeps and not self.world.shared_provider
                    gateway.provider.end(sandbox.id, "killed", keeps=keeps)
                    self.losses[sandbox.session_id] += 1
                    if not keeps:
                        self.killed.add(sandbox.session_id)
                    return

    @rule(seconds=st.sampled_from([0.002, 0.02, 0.3, 10.0, 40.0]))
    def wait(self, seconds: float) -> None:
        self.run(self._pass_time(seconds))

    @rule(seconds=st.sampled_from([-100.0, -3.0, 3.0, 6.0]))
    def clock_jumps(self, seconds: float) -> None:
        """The wall clock is set; all gateways of the world share it."""
        assert self.world is not None
        self.world.clock.jump += seconds
        # A gateway that seems to have sent no heartbeat for long counts as dead, and its sessions are taken over.
        self.jumped = self.jumped or (seconds > 8.0 and not self.world.shared_provider)
        self.run(self._announce())

    @rule(seconds=st.sampled_from([0.01, 0.1, 3.0]))
    def lose_store(self, seconds: float) -> None:
        """The store does not answer for a while, wherever the others are in their steps."""
        self.spawn(self._store_away(seconds))

    @invariant()
    def nothing_is_wrong(self) -> None:
        assert not self.wrong, self.wrong

    def teardown(self) -> None:
        try:
            if self.world is not None:
                self.run(self._settle())
                assert not self.wrong, self.wrong
        finally:
            for task in self.tasks:
                task.cancel()
            self.run(asyncio.sleep(0))
            self.loop.close()

    async def _announce(self) -> None:
        assert self.world is not None
        if not self.world.shared_provider:
            for gateway in self.world.gateways:
                await self._quietly(self._announce_one(gateway))

    async def _announce_one(self, gateway: GatewayParts) -> None:
        if not await gateway.membership.announce():
            await gateway.recovery.release_taken_over()

    async def _pass_time(self, seconds: float) -> None:
        """What the gateways do every second, they do."""
        assert self.world is not None
        end = self.loop.time() + seconds
        while (left := end - self.loop.time()) > 0:
            await self._announce()
            for gateway in self.world.gateways:
                await self._quietly(gateway.idleness.flush())
            await asyncio.sleep(min(1.0, max(0.001, left)))  # virtual time has a grain

    async def _store_away(self, seconds: float) -> None:
        assert self.world is not None
        await self.world.store.aclose()
        await asyncio.sleep(seconds)
        await self.world.store.start()

    async def _quietly(self, work: Coroutine[Any, Any, Any]) -> None:
        try:
            await work
        except WakegateError as error:
            if error.status >= 500 and error.status not in (502, 503, 504):
                self.wrong.append(f"{type(error).__name__}: {error}")

    async def _hibernate(self, gateway: int, session: SessionId, after: float = 0.0) -> None:
        assert self.world is not None
        await asyncio.sleep(after)
        try:
            await self.world.gateways[gateway].hibernator.hibernate(session)
        except ElsewhereError as elsewhere:
            await self._hibernate("ab".index(elsewhere.peer.id), session)
        except (ConflictError, SessionNotFoundError, StoreUnavailableError, WakegateError):
            pass

    async def _request(self, gateway: int, session: SessionId, takes: float) -> None:
        """What a request through a gateway does: open, hold the session busy, see the workspace, write to it."""
        assert self.world is not None
        parts = self.world.gateways[gateway]
        losses = self.losses[session]  # a loss while it opens may be of the very sandbox that it is given
        try:
            with parts.activity.arriving(session):  # as routing's activator does
                opened = await parts.opener.open(session)
                activity = parts.activity.of(session, self.world.clock.now())
                activity.in_flight += 1
        except ElsewhereError as elsewhere:
            await self._request("ab".index(elsewhere.peer.id), session, takes)
            return
        except WakegateError as error:
            if error.status == 404:
                self.wrong.append(f"{session} was forgotten: {error}")
            return
        try:
            self._look(session, opened)
            if opened.restored is not None:
                await self._quietly(parts.lifecycle.acknowledge_restored(session, opened.restored))
            await asyncio.sleep(takes)
            engine = self.world.reach(opened.sandbox.id)
            if engine is None and losses == self.losses[session] and not self.jumped:
                self.wrong.append(f"a request of {takes} s on {session} was cut off")
            if engine is not None:
                self.writes += 1
                text = f"w{self.writes}"
                self.possible[session].insert(0, text)
                engine.contents[opened.sandbox.id] = text
        finally:
            activity.in_flight -= 1
            activity.last = self.world.clock.now()

    def _look(self, session: SessionId, opened: Opened) -> None:
        """What is in the workspace is the last write that was answered, or a loss was possible and is reported."""
        assert self.world is not None
        engine = self.world.reach(opened.sandbox.id)
        if engine is None:
            return  # it ended under way: the client gets an error, and nothing was promised
        content = engine.contents.get(opened.sandbox.id, "")
        if opened.restored is not None and (self.jumped or session in self.killed):
            if content not in self.possible[session] and content:
                self.wrong.append(f"{session} holds {content!r}, which nobody wrote")
            self.possible[session] = [content]
            self.killed.discard(session)
        elif content != self.possible[session][0] and session not in self.killed:
            self.wrong.append(f"{session} holds {content!r} after {self.possible[session][0]!r} (state {opened.start})")

    async def _settle(self) -> None:
        """All that is under way ends; then each session is asked once more, and what is kept is looked at."""
        assert self.world is not None
        while self.tasks:
            await self._pass_time(1.0)
        for session in self.ids:
            record = await self.world.store.get(session)
            if record is None or record.state is SessionState.TERMINATED:
                self.wrong.append(f"{session} ended by itself")
            elif is_snapshot(record.snapshot) and SnapshotRef(record.snapshot).key not in self.world.snapshots.kept:
                self.wrong.append(f"{session} names a snapshot that is gone")
            self.spawn(self._request(0, session, 0.0))
            while self.tasks:
                await self._pass_time(1.0)
            living = [
                sandbox.id
                for engine in {id(g.provider): g.provider for g in self.world.gateways}.values()
                for sandbox in await engine.list()
                if sandbox.session_id == session
            ]
            if len(living) != 1:
                self.wrong.append(f"{session} has {len(living)} sandboxes")


TestSessions = Sessions.TestCase
TestSessions.settings = settings(
    max_examples=examples(50),
    stateful_step_count=25,
    deadline=None,
    phases=(
        Phase.explicit,
        Phase.generate,
    ),  # to shrink takes minutes, and the steps of a failure read well as they are
    suppress_health_check=[HealthCheck.too_slow],
)
