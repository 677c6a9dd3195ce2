"""A gateway: creates its parts, connects them, starts and stops them. build.py passes in the store and the engine."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from gateway.agents.catalog import AgentCatalog
from gateway.api.app import SurfaceParts, Surfaces
from gateway.api.task_parts import TaskParts
from gateway.app.agent_platform import AgentNeeds, AgentPlatform, make_agents, make_cluster_agents
from gateway.app.agents import make_catalog, make_cluster_catalog
from gateway.app.cluster_skills import PackedSkill
from gateway.app.egress import SessionEgress, audit_line
from gateway.app.events import EventRecorder
from gateway.app.parts import (
    access_policy,
    advice_settings,
    autoscaler_settings,
    cached_store,
    hold_limits,
    make_observer,
    make_router,
    metered_keeper,
    session_settings,
    time_limits,
)
from gateway.app.pod_egress import PodEgress, parts_of
from gateway.app.shutdown import Shutdown
from gateway.app.tasks import make_tasks
from gateway.app.usage import make_usage
from gateway.audit.build import make_audit_log
from gateway.autoscaler.runner import Autoscaler
from gateway.autoscaler.sessions import Served, SessionAdvisor
from gateway.core.agent_objects import AgentObjects
from gateway.core.certificates import default_peer_context, make_certificates
from gateway.core.clock import Clock
from gateway.core.interfaces import (
    Executor,
    RoutedSandboxes,
    RuntimeCatalog,
    SandboxProvider,
    SessionStore,
    SnapshotStore,
    UnreachableWatcher,
    WorkspaceKeeper,
)
from gateway.core.model import Runtime
from gateway.core.settings import Settings
from gateway.egress.gate import EgressGate
from gateway.identity.oidc import make_verifier
from gateway.identity.peers import PeerSigner
from gateway.identity.shared_secret import FollowedSecret, SharedSecret
from gateway.identity.tenants import TenantDirectory
from gateway.identity.tenants_file import read_tenants_file
from gateway.observability.counters import Counters
from gateway.observability.feed import EventFeed
from gateway.observability.instrument import metered
from gateway.observability.metrics import Metrics
from gateway.observability.tracing import Tracing
from gateway.routing.activator import Activator
from gateway.routing.proxy import Proxy
from gateway.routing.sandbox_client import Caller
from gateway.runtimes.catalog import StaticCatalog
from gateway.sandbox.picod_client import PicodExecutor
from gateway.sandbox.signing_keys import KeyRing
from gateway.sandbox.tokens import TokenIssuer
from gateway.sessions.build import Sessions, make_sessions
from gateway.snapshots.keeper import make_keeper
from gateway.tasks.conversations import Conversations
from gateway.tasks.counts import TaskCounts
from gateway.usage.prices import load_prices
from gateway.usage.recorder import UsageRecorder


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """What makes a gateway's sandboxes, and what else depends on where they run.

    `keeper`: None creates the one that the settings ask for; `executor`: None creates a PicodExecutor.
    `summary`: its lines of the start banner; complete once it runs.
    `egress`: through which its sandboxes reach out; None: they do not, or not through here.
    `egress_address`: where sandboxes on other machines reach that, HOST:PORT; empty: they are all on this one.
    `catalog`: in place of the runtimes of manifests; `agents`: the custom resources of agents; `code`: the store of
    the files of those, and of `skills`.
    `sandboxes`: those of agent-sandbox's controllers, whose router this gateway is.
    `background` makes loops to run besides, by name.
    """

    provider: SandboxProvider
    keys: KeyRing
    keeper: WorkspaceKeeper | None = None
    executor: Executor | None = None
    summary: Callable[[], str] = str
    egress: EgressGate | None = None
    egress_address: str = ""
    catalog: RuntimeCatalog | None = None
    agents: AgentObjects | None = None
    code: SnapshotStore | None = None
    skills: Sequence[PackedSkill] = ()
    sandboxes: RoutedSandboxes | None = None
    background: Callable[[Gateway], Sequence[tuple[str, Coroutine[Any, Any, None]]]] = lambda _: ()


class Gateway:
    """The parts of one gateway. `proxy` is the ASGI app to serve while `lifespan.running` is entered."""

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        *,
        runtimes: Sequence[Runtime],
        store: SessionStore,
        clock: Clock,
        shared: bool = False,
        me: str = "",
    ) -> None:
        """`shared`: other gateways use the same store. `me`: this gateway's id, if they cannot reach its sandboxes.

        Raises SettingsError for what is wrong with the settings of snapshots.
        """
        self.engine = engine
        self.holder = me or holder_name()
        self.settings = settings
        self.clock = clock
        agents = self._make_agent_catalog(runtimes)
        self.catalog: RuntimeCatalog = agents or engine.catalog or StaticCatalog(runtimes)
        self.peers = PeerSigner(clock)
        self.certificates = make_certificates(settings, clock)
        self.issuers = make_verifier(settings, clock)
        self.counters = Counters()
        self.tracing = Tracing(settings.otlp_endpoint, clock) if settings.otlp_endpoint else None
        self.audit = make_audit_log(settings, clock)
        self.events = EventRecorder(self.audit, clock)
        self.feed = EventFeed(clock)
        self.access = access_policy(settings)
        self.observer = make_observer(settings, self.tracing, self.audit, clock, self.access)
        # The order matters from here on: each part is made of those above it, and no field is None for a while.
        self.store = metered(store, self.counters.store)
        self.tenants = TenantDirectory(self.store.documents, read_tenants_file(settings.tenants))
        self.provider = engine.provider
        self.tokens = TokenIssuer(engine.keys, clock)
        # Created only if none is passed in: tests and the simulator bring their own, behind the same Protocol.
        executor = engine.executor or PicodExecutor(self.catalog, self.tokens, connect_timeout=settings.connect_timeout)
        keeper = engine.keeper or make_keeper(settings, self.provider, executor, clock)
        self.keeper = metered_keeper(keeper, self.counters)
        self.sessions = self._make_sessions(executor, shared=shared, me=me)
        self.lifecycle = self.sessions.lifecycle
        self.activity = self.sessions.activity
        self.activator = self._make_activator()
        self.sessions.durations.on_set_back(self.activator.ask_again)
        self.shutdown = Shutdown(self.activator, self.sessions.membership)
        self.egress = engine.egress
        self.session_egress = self._make_session_egress()
        self.pod_egress = self._make_pod_egress(shared=shared)
        self.prices = load_prices(self.settings.prices) if self.settings.prices != Path() else None
        self.usage = self._make_usage(shared=shared, me=me)
        self.autoscaler = self._make_autoscaler(shared=shared, me=me)
        self.advisor = self._make_advisor()
        self.task_counts = TaskCounts()
        self.metrics = self._make_metrics()
        self.agents = None if agents is None else self._make_agents(agents)
        self.tasks = self._make_tasks()
        self.surfaces = self._make_surfaces()
        if self.sessions.membership.me:
            self.access.peers = self.peers
        self.secret = FollowedSecret(self.store.documents, self._open)
        self.proxy = self._make_proxy()
        self._connect(executor)

    def _open(self, secret: SharedSecret) -> None:
        self.surfaces.open(secret)
        self.tasks.webhooks.open(secret)
        if self.sessions.membership.me:
            self.peers.open(secret)

    def _make_agent_catalog(self, runtimes: Sequence[Runtime]) -> AgentCatalog | None:
        engine = self.engine
        if engine.catalog is None:
            return make_catalog(self.settings, runtimes)
        if engine.agents is None:
            return None
        skills = [each.runtime for each in engine.skills]
        return make_cluster_catalog(self.settings, engine.catalog, engine.agents, skills)

    def _make_sessions(self, executor: Executor, *, shared: bool, me: str) -> Sessions:
        settings = self.settings
        return make_sessions(
            store=self.store,
            cached_store=cached_store(self.store) if shared else None,
            provider=self.provider,
            keeper=self.keeper,
            executor=executor,
            catalog=self.catalog,
            clock=self.clock,
            holder=self.holder,
            settings=session_settings(settings),
            shared=shared,
            me=me,
            tenants=self.tenants,
        )

    def _make_activator(self) -> Activator:
        settings, sessions = self.settings, self.sessions
        return Activator(
            lifecycle=sessions.lifecycle,
            opener=sessions.opener,
            admission=sessions.admission,
            bindings=sessions.bindings,
            catalog=self.catalog,
            tokens=self.tokens,
            activity=sessions.activity,
            clock=self.clock,
            counters=self.counters,
            limits=hold_limits(settings),
            connect_timeout=settings.connect_timeout,
            peers=self.peers,
            shared_provider=sessions.ownership.shared_provider,
            peer_tls=self._peer_tls,
            on_silent=self.provider.suspect if isinstance(self.provider, UnreachableWatcher) else None,
        )

    def _make_usage(self, *, shared: bool, me: str) -> UsageRecorder:
        return make_usage(
            self.settings,
            self.store,
            self.provider,
            self.catalog,
            self.clock,
            counters=self.counters,
            activity=self.activity,
            prices=self.prices,
            take_moved=tuple if self.session_egress is None else self.session_egress.take_moved,
            holder=self.holder,
            shared=shared,
            me=me,
        )

    def _peer_tls(self) -> ssl.SSLContext:
        return default_peer_context() if self.certificates is None else self.certificates.peers

    def _make_autoscaler(self, *, shared: bool, me: str) -> Autoscaler:
        settings = autoscaler_settings(self.settings, shared=shared, me=me)
        return Autoscaler(
            self.catalog, self.store, self.provider, self.clock, settings, holder=self.holder, prices=self.prices
        )

    def _make_advisor(self) -> SessionAdvisor:
        settings, sessions = self.settings, self.sessions
        return SessionAdvisor(
            hibernator=sessions.hibernator,
            opener=sessions.opener,
            idleness=sessions.idleness,
            catalog=self.catalog,
            served=self._served,
            settings=advice_settings(settings),
        )

    def _make_metrics(self) -> Metrics:
        return Metrics(
            counters=self.counters,
            catalog=self.catalog,
            provider=self.provider,
            bound=self.sessions.bindings,
            routes=self.activator,
            forecasts=self.autoscaler,
            tokens=self.tokens,
            tasks=self.task_counts,
            engine=self.settings.engine,
            audit=self.audit,
        )

    def _make_surfaces(self) -> Surfaces:
        parts = SurfaceParts(
            lifecycle=self.sessions.lifecycle,
            hibernator=self.sessions.hibernator,
            resizing=self.sessions.resizing,
            store=self.store,
            provider=self.provider,
            catalog=self.catalog,
            caller=Caller(self.activator, self.clock),
            clock=self.clock,
            counters=self.counters,
            tenants=self.tenants,
            prices=self.prices,
            explain_pools=lambda: {**self.autoscaler.explain(), "sessions": self.advisor.explain()},
            what_if=self.autoscaler.what_if,
            outcomes=self.autoscaler.outcomes,
            is_leaving=lambda: self.activator.leaving,
            render_metrics=self.metrics.render,
            peers=self.peers,
            acknowledge=self.activator.acknowledge,
            audit=self.audit,
            egress=None if self.egress is None else self.egress.records,
            agents=None if self.agents is None else self.agents.parts,
            tasks=self.tasks,
            feed=self.feed,
        )
        return Surfaces(self.settings, parts)

    def _make_agents(self, catalog: AgentCatalog) -> AgentPlatform:
        needs = AgentNeeds(
            store=self.store,
            provider=self.provider,
            lifecycle=self.lifecycle,
            caller=Caller(self.activator, self.clock),
            counters=self.counters,
            clock=self.clock,
        )
        engine = self.engine
        if engine.agents is None:
            return make_agents(self.settings, catalog, needs)
        assert engine.code is not None, "an engine with custom resources of agents has a store of their files"
        return make_cluster_agents(
            self.settings, catalog, objects=engine.agents, files=engine.code, skills=engine.skills, needs=needs
        )

    async def apply_runtimes(self) -> None:
        """Have the engine serve the catalog's runtimes, and those that only the gateway uses. Raises WakegateError."""
        if self.agents is None:
            await self.provider.apply(self.catalog.all())
        else:
            await self.agents.apply_runtimes()

    def _make_tasks(self) -> TaskParts:
        return make_tasks(
            self.settings,
            self.store.tasks,
            self.catalog,
            self.sessions,
            self.activator,
            self.counters,
            self.clock,
            self.task_counts,
        )

    def _make_proxy(self) -> Proxy:
        sandboxes = self.engine.sandboxes
        return Proxy(
            self.activator,
            self.surfaces.app,
            self.clock,
            time_limits(self.settings),
            self.counters,
            self.access,
            self.observer,
            Conversations(self.store.tasks, self.catalog, self.lifecycle, self.clock),
            None
            if sandboxes is None
            else partial(make_router, self.settings, sandboxes, self.activator, self.clock, self.counters),
        )

    def _connect(self, executor: Executor) -> None:
        """Subscribe the autoscaler, the advisor and the counters to sessions' events, and set the idleness check."""
        sessions = self.sessions
        sessions.idleness.use_work_check(executor.busy)
        sessions.opener.on_wake(self.advisor.woken)
        sessions.bindings.on_unbound(self.advisor.unbound)
        sessions.bindings.on_bound(self.usage.bound)
        sessions.bindings.on_removed(self.usage.removed)
        sessions.bindings.on_resized(self.usage.resized)
        sessions.lifecycle.on_end(self.advisor.ended)
        sessions.records.on_life_event(self.feed.of_session)
        self.autoscaler.on_resize(self.feed.of_pool)
        if self.audit is not None:
            sessions.records.on_life_event(self.events.of_session)
        sessions.admission.on_waiting(self.autoscaler.waiting)
        # Listeners and not references: sessions are a layer below the autoscaler and know nothing of it.
        sessions.admission.on_claim(self.autoscaler.claimed)
        sessions.admission.on_claim(self.counters.claimed)

    def _make_session_egress(self) -> SessionEgress | None:
        if self.egress is None:
            return None
        made = SessionEgress(self.egress, self.catalog, self.tenants, self.counters)
        made.follow(self.sessions.bindings)
        if self.audit is not None:
            self.egress.on_line(audit_line(self.audit))
        return made

    def _make_pod_egress(self, *, shared: bool) -> PodEgress | None:
        gate, sessions = self.egress, self.session_egress
        if gate is None or sessions is None or not self.engine.egress_address:
            return None
        made = PodEgress(
            self.engine.egress_address,
            gate,
            sessions,
            keys=self.engine.keys,
            picod=PicodExecutor(self.catalog, self.tokens, connect_timeout=self.settings.connect_timeout),
            provider=self.provider,
            catalog=self.catalog,
            find=self.store.get,
            clock=self.clock,
        )
        made.follow(self.sessions.bindings)
        if shared:
            gate.on_part(partial(parts_of, self.store, self.holder))
        return made

    def _served(self) -> Served:
        """Sessions with a live route: id, runtime, last active at, whether requests are under way."""
        for route in self.activator.routes.values():
            yield route.session_id, route.runtime, route.activity.last, route.activity.in_flight > 0


def holder_name() -> str:
    """This process's name as a holder of leases: host name and pid."""
    return f"{socket.gethostname()}:{os.getpid()}"
