"""A gateway: creates its parts, connects them, starts and stops them. build.py passes in the store and the engine."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from gateway import __version__
from gateway.api.app import Surfaces
from gateway.audit.build import make_audit_log
from gateway.audit.event import Actor, AuditEvent
from gateway.audit.log import AuditLog
from gateway.autoscaler.runner import Autoscaler
from gateway.autoscaler.sessions import AdviceSettings, Served, SessionAdvisor
from gateway.autoscaler.settings import AutoscalerSettings
from gateway.core.background import Tasks, cancel, every
from gateway.core.certificates import POLL_S, default_peer_context, make_certificates
from gateway.core.clock import Clock
from gateway.core.errors import StoreUnavailableError, UnavailableError, WakegateError
from gateway.core.identity import SYSTEM
from gateway.core.interfaces import Executor, RuntimeCatalog, SandboxProvider, SessionStore, WorkspaceKeeper
from gateway.core.model import Runtime, SnapshotRef
from gateway.core.settings import Settings, requires_identity
from gateway.identity.authenticator import open_authenticator
from gateway.identity.directory import FOLLOW_INTERVAL_S
from gateway.identity.oidc import make_verifier
from gateway.identity.oidc_keys import REFRESH_INTERVAL_S
from gateway.identity.peers import PeerSigner
from gateway.identity.shared_secret import load_secret
from gateway.identity.tenants import TenantDirectory, read_tenants_file
from gateway.observability.counters import Counters
from gateway.observability.instrument import metered
from gateway.observability.logs import AccessLog
from gateway.observability.metrics import Metrics
from gateway.observability.request_record import Observer, Observers
from gateway.observability.tracing import Tracing
from gateway.routing.access import AccessPolicy
from gateway.routing.activator import TRUSTED_S, Activator
from gateway.routing.audited import AuditObserver
from gateway.routing.exchange import TimeLimits
from gateway.routing.proxy import Proxy
from gateway.routing.route import HoldLimits
from gateway.routing.sandbox_client import Caller
from gateway.runtimes.catalog import StaticCatalog
from gateway.sandbox.picod_client import PicodExecutor
from gateway.sandbox.signing_keys import KeyRing
from gateway.sandbox.tokens import TokenIssuer
from gateway.sessions.build import Sessions, SessionSettings, make_sessions
from gateway.sessions.idleness import HEARTBEAT_INTERVAL_S
from gateway.sessions.restorability import restore_problems
from gateway.snapshots.keeper import make_keeper
from gateway.usage.meter import Meter
from gateway.usage.prices import load_prices
from gateway.usage.recorder import SAMPLE_INTERVAL_S, Place, Requests, UsageRecorder

logger = logging.getLogger(__name__)

ADVISE_INTERVAL_S = 5.0
CHECKPOINT_INTERVAL_S = 1.0  # between checks of which sessions are due for a checkpoint
UNUSED_ROUTES_INTERVAL_S = 2.0
REFILL_INTERVAL_S = 0.1  # of the tokens for tenants' requests: the grain of a rate
GATEWAY_TTL_S = 3.5  # of a gateway among which rates are shared: it may miss two announcements
# Label values of wakegate_keeper_*, a contract with dashboards: they stay when the methods are renamed.
KEEPER_LABELS = {
    "restore": "unpark",
    "rollback": "put_back",
    "delete": "drop_parked",
    "retain_abandoned": "drop_leftovers",
    "delete_orphans": "leftovers",
}
CACHED_RECORD_TTL_S = 2.0  # for reads that no decision depends on


class Gateway:
    """The parts of one gateway. `proxy` is the ASGI app to serve while `running()` is entered."""

    def __init__(
        self,
        settings: Settings,
        *,
        runtimes: Sequence[Runtime],
        store: SessionStore,
        provider: SandboxProvider,
        keeper: WorkspaceKeeper | None = None,
        executor: Executor | None = None,
        keys: KeyRing,
        clock: Clock,
        shared: bool = False,
        me: str = "",
        engine_summary: Callable[[], str] = str,
        catalog: RuntimeCatalog | None = None,
        background: Callable[[Gateway], Sequence[tuple[str, Coroutine[Any, Any, None]]]] = lambda _: (),
    ) -> None:
        """`shared`: other gateways use the same store. `me`: this gateway's id, if they cannot reach its sandboxes.

        `keeper`: None creates the one that the settings ask for; `executor`: None creates a PicodExecutor.
        `catalog` in place of fixed `runtimes`; `background` makes loops to run besides, by name. Raises SettingsError
        for what is wrong with the settings of snapshots.
        """
        self._background = background
        self._notices = Tasks()
        self._holder = me or holder_name()
        self.engine_summary = engine_summary  # the engine's lines of the start banner; complete once it runs
        self.settings = settings
        self.clock = clock
        self.catalog: RuntimeCatalog = catalog or StaticCatalog(runtimes)
        self.peers = PeerSigner(clock)
        self.certificates = make_certificates(settings, clock)
        self._oidc = make_verifier(settings, clock)
        self.counters = Counters()
        self.tracing = Tracing(settings.otlp_endpoint, clock) if settings.otlp_endpoint else None
        self.audit = make_audit_log(settings, clock)
        self.access = _access(settings)
        self.observer = _observer(settings, self.tracing, self.audit, clock, self.access)
        self.store = metered(store, self.counters.store)
        self.tenants = TenantDirectory(self.store.documents, read_tenants_file(settings.tenants))
        self.provider = provider
        self.tokens = TokenIssuer(keys, clock)
        executor = executor or PicodExecutor(self.catalog, self.tokens, connect_timeout=settings.connect_timeout)
        keeper = keeper or make_keeper(settings, provider, executor, clock)
        self.keeper = metered(keeper, self.counters.keeper, self._kept, KEEPER_LABELS)
        self.sessions = self._make_sessions(executor, shared=shared, me=me)
        self.lifecycle = self.sessions.lifecycle
        self.activity = self.sessions.activity
        self.activator = self._make_activator()
        self.usage = self._make_usage(shared=shared, me=me)
        self.autoscaler = self._make_autoscaler(shared=shared, me=me)
        self.advisor = self._make_advisor()
        self.metrics = self._make_metrics()
        self.surfaces = self._make_surfaces()
        if self.sessions.membership.me:
            self.access.peers = self.peers
        self.proxy = Proxy(
            self.activator,
            self.surfaces.app,
            clock,
            _time_limits(settings),
            self.counters,
            self.access,
            self.observer,
        )
        self._connect(executor)

    def _make_sessions(self, executor: Executor, *, shared: bool, me: str) -> Sessions:
        settings = self.settings
        return make_sessions(
            store=self.store,
            cached_store=_cached(self.store) if shared else None,
            provider=self.provider,
            keeper=self.keeper,
            executor=executor,
            catalog=self.catalog,
            clock=self.clock,
            holder=self._holder,
            settings=SessionSettings(
                takeover_after=settings.takeover_after,
                max_sandboxes=settings.max_sandboxes,
                hibernated_retention=settings.hibernated_retention,
                terminated_retention=settings.terminated_retention,
                sweep_interval=settings.sweep_interval,
                claims_at_once=_claims_at_once(settings),
            ),
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
            limits=HoldLimits(settings.hold_per_session, settings.hold_total, settings.slots_per_sandbox),
            connect_timeout=settings.connect_timeout,
            peers=self.peers,
            shared_provider=sessions.ownership.shared_provider,
            peer_tls=self._peer_tls,
        )

    def _make_usage(self, *, shared: bool, me: str) -> UsageRecorder:
        # After `takeover_after` without a heartbeat others may have taken sessions over, and count their time.
        longest_gap = self.settings.takeover_after / 2 if me else float("inf")
        return UsageRecorder(
            Meter(longest_gap=longest_gap),
            self.store,
            self.provider,
            self.catalog,
            self.clock,
            Place(uuid.uuid4().hex, self._holder, me, shared),
            interval=self.settings.usage_interval,
            take_requests=self._take_requests,
            last_used=self.activity.latest,
            on_taken=self.counters.tenants.count,
        )

    def _usage_sample_s(self) -> float:
        return min(SAMPLE_INTERVAL_S, self.settings.takeover_after / 4)

    def _take_requests(self) -> Iterator[Requests]:
        for entry, requests, egress_bytes in self.counters.traffic.take():
            yield Requests(entry.session_id, entry.tenant, entry.runtime, requests, egress_bytes)

    def _peer_tls(self) -> ssl.SSLContext:
        return default_peer_context() if self.certificates is None else self.certificates.peers

    def _make_autoscaler(self, *, shared: bool, me: str) -> Autoscaler:
        settings = _autoscaler_settings(self.settings, shared=shared, me=me)
        return Autoscaler(self.catalog, self.store, self.provider, self.clock, settings, holder=self._holder)

    def _make_advisor(self) -> SessionAdvisor:
        settings, sessions = self.settings, self.sessions
        return SessionAdvisor(
            hibernator=sessions.hibernator,
            opener=sessions.opener,
            idleness=sessions.idleness,
            catalog=self.catalog,
            served=self._served,
            settings=AdviceSettings(
                wake_cost=settings.wake_cost, hibernate=settings.advised_hibernation, prewake=settings.prewake
            ),
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
            engine=self.settings.engine,
        )

    def _make_surfaces(self) -> Surfaces:
        return Surfaces(
            self.settings,
            lifecycle=self.sessions.lifecycle,
            hibernator=self.sessions.hibernator,
            store=self.store,
            provider=self.provider,
            catalog=self.catalog,
            caller=Caller(self.activator, self.clock),
            clock=self.clock,
            counters=self.counters,
            tenants=self.tenants,
            prices=load_prices(self.settings.prices) if self.settings.prices != Path() else None,
            explain_pools=lambda: {**self.autoscaler.explain(), "sessions": self.advisor.explain()},
            is_leaving=lambda: self.activator.leaving,
            render_metrics=self.metrics.render,
            peers=self.peers,
            acknowledge=self.activator.acknowledge,
            audit=self.audit,
        )

    def _connect(self, executor: Executor) -> None:
        """Subscribe the autoscaler, the advisor and the counters to sessions' events, and set the idleness check."""
        sessions = self.sessions
        sessions.idleness.use_work_check(executor.busy)
        sessions.opener.on_wake(self.advisor.woken)
        sessions.bindings.on_unbound(self.advisor.unbound)
        sessions.bindings.on_bound(self.usage.bound)
        sessions.bindings.on_removed(self.usage.removed)
        sessions.lifecycle.on_end(self.advisor.ended)
        sessions.admission.on_waiting(self.autoscaler.waiting)
        sessions.admission.on_claim(self.autoscaler.claimed)
        sessions.admission.on_claim(self.counters.claimed)

    def leave(self) -> None:
        """Announce the shutdown: readiness fails and other gateways are notified; requests are still accepted."""
        self.activator.leaving = True
        if self.sessions.membership.me:
            self._notices.spawn(self._announce_leaving(), name="notice of leaving")

    @property
    def notice_s(self) -> float:
        """Seconds from `leave` to `drain` after which other gateways forward no more requests to this one.

        They cache a session's owner for TRUSTED_S, so a request that was sent on a cached owner must still be served.
        """
        return 2 * TRUSTED_S if self.sessions.membership.me else 0.0

    def drain(self) -> None:
        """Reject requests that need a new sandbox; requests in flight continue."""
        if not self.activator.leaving:
            self.leave()
        self.activator.draining = True

    @asynccontextmanager
    async def running(self, address: str = "") -> AsyncIterator[None]:
        """Start the parts, and stop them in reverse order with the block. `address`: this gateway's URL for other ones.

        Raises WakegateError when a part cannot start.
        """
        sessions, membership = self.sessions, self.sessions.membership
        async with AsyncExitStack() as stack:
            if self.tracing is not None:
                stack.push_async_callback(asyncio.to_thread, self.tracing.close)
            if self.audit is not None:
                await asyncio.to_thread(self.audit.start)
                stack.push_async_callback(self.audit.aclose)
                stack.callback(self._record_system, "gateway.end")
                self._record_system("gateway.start", version=__version__)
            await self.store.start()
            stack.push_async_callback(self.store.aclose)
            for warning in await self.store.warnings():
                logger.warning("%s", warning)
            if membership.me:
                self.peers.open(await load_secret(self.store.documents))
            await self.tenants.follow()
            stack.push_async_callback(
                cancel, asyncio.create_task(every(FOLLOW_INTERVAL_S, self._follow_tenants), name="tenants")
            )
            stack.push_async_callback(
                cancel, asyncio.create_task(every(REFILL_INTERVAL_S, self._refill_budgets), name="request budgets")
            )
            if requires_identity(settings := self.settings):
                authenticator = await open_authenticator(
                    self.store.documents, self.clock, settings.admin_key_file, self.tenants, self._oidc
                )
                self.access.authenticate_with(authenticator)
                self.surfaces.keys.authenticator = self.surfaces.tenants.authenticator = authenticator
                following = asyncio.create_task(every(FOLLOW_INTERVAL_S, authenticator.follow), name="API keys")
                stack.push_async_callback(cancel, following)
            await self.provider.start()
            stack.push_async_callback(self.provider.aclose)
            await self.provider.apply(self.catalog.all())
            stack.push_async_callback(self._last_usage)
            for runtime in self.catalog.all():
                self.counters.of(runtime.key)  # so that failures before its first success count for this runtime
            if membership.me:
                membership.address = address
                await membership.announce()
                stack.push_async_callback(membership.leave)
                stack.push_async_callback(self._notices.wait)
            # Until the last session is hibernated this gateway announces itself: silent, it would be taken for dead and
            # its sessions restored elsewhere from older snapshots.
            announcements = asyncio.create_task(
                every(membership.heartbeat_interval, self._announce), name="announcements"
            )
            stack.push_async_callback(cancel, announcements)
            await sessions.recovery.recover_all()
            stack.push_async_callback(sessions.hibernator.hibernate_all)
            stack.push_async_callback(sessions.lifecycle.aclose)
            stack.push_async_callback(sessions.opener.aclose)
            stack.push_async_callback(self.activator.aclose)
            await self.autoscaler.start()
            stack.push_async_callback(self.autoscaler.aclose)
            stack.push_async_callback(self._last_flush)
            stack.push_async_callback(sessions.sweeper.aclose)
            stack.push_async_callback(self.surfaces.aclose)
            for name, loop in (
                ("exchanges", self.proxy.run_ticker()),
                ("activity", every(HEARTBEAT_INTERVAL_S, sessions.idleness.flush)),
                ("durations", every(HEARTBEAT_INTERVAL_S, sessions.durations.catch_up)),
                ("usage", every(self._usage_sample_s(), self.usage.tick)),
                ("usage records", every(self.settings.usage_interval, self.usage.flush)),
                ("sweeper", every(self.settings.sweep_interval, sessions.sweeper.sweep)),
                ("checkpoints", every(CHECKPOINT_INTERVAL_S, sessions.sweeper.checkpoint)),
                ("quiet routes", every(UNUSED_ROUTES_INTERVAL_S, self._forget_quiet)),
                ("session advice", every(ADVISE_INTERVAL_S, self._advise)),
                ("sandbox events", self._follow_events()),
                ("kept workspaces", self._check_kept()),
                ("loop lag", self.metrics.watch_loop()),
                *self._certificate_loop(),
                *self._issuer_loop(),
                *self._background(self),
            ):
                stack.push_async_callback(cancel, asyncio.create_task(loop, name=name))
            yield

    def _certificate_loop(self) -> Sequence[tuple[str, Coroutine[Any, Any, None]]]:
        if (certificates := self.certificates) is None:
            return ()

        async def reload() -> None:
            await asyncio.to_thread(certificates.reload_if_changed)

        return (("certificates", every(POLL_S, reload)),)

    async def _follow_tenants(self) -> None:
        """Take over limits that were changed anywhere, and this gateway's part of each tenant's rate."""
        try:
            authenticator = self.surfaces.tenants.authenticator
            if await self.tenants.follow() and authenticator is not None:
                authenticator.forget_all()  # identities carry what counts their requests
            if self.tenants.has_rates:
                alive = await self.store.quotas.count_gateways(self._holder, GATEWAY_TTL_S)
                self.tenants.share_among(alive)
        except StoreUnavailableError as error:
            logger.debug("tenants' limits are as they were: %s", error)

    async def _refill_budgets(self) -> None:
        self.tenants.refill(self.clock.monotonic())

    def _issuer_loop(self) -> Sequence[tuple[str, Coroutine[Any, Any, None]]]:
        if (verifier := self._oidc) is None:
            return ()

        async def follow() -> None:
            try:
                await verifier.refresh()
            except UnavailableError as error:  # it may start with the gateway, and later
                logger.warning("%s", error)
            await every(REFRESH_INTERVAL_S, verifier.refresh)

        return (("keys of issuers", follow()),)

    def _record_system(self, action: str, session: str = "", **detail: str) -> None:
        """Put what happened by itself into the audit trail."""
        if self.audit is not None:
            actor = Actor(subject=SYSTEM.subject, role=SYSTEM.role)
            self.audit.record(AuditEvent(self.clock.now(), action, actor, 0, session=session, detail=detail))

    async def _announce_leaving(self) -> None:
        try:
            await self.sessions.membership.announce_leaving()
        except WakegateError as error:
            logger.warning("cannot notify other gateways of this shutdown: %s", error)

    def _served(self) -> Served:
        """Sessions with a live route: id, runtime, last active at, whether requests are under way."""
        for route in self.activator.routes.values():
            yield route.session_id, route.runtime, route.activity.last, route.activity.in_flight > 0

    async def _advise(self) -> None:
        await self.advisor.run_once(self.clock.now())

    async def _forget_quiet(self) -> None:
        if self.sessions.ownership.shared_provider:
            self.activator.forget_quiet()

    async def _announce(self) -> None:
        membership = self.sessions.membership
        if membership.me and not await membership.announce():
            await self.sessions.recovery.release_taken_over()

    async def _check_kept(self) -> None:
        """Log a warning for each reason why hibernated sessions cannot wake with these settings. Runs once."""
        try:
            async for problem in restore_problems(self.store, self.keeper.check, self.sessions.membership.me):
                logger.warning("%s", problem)
        except WakegateError as error:
            logger.warning("cannot check whether hibernated sessions can wake: %s", error)

    async def _follow_events(self) -> None:
        async for event in self.provider.watch():
            self._record_system("sandbox.ended", event.session_id or "", sandbox=event.sandbox_id, reason=event.reason)
            try:
                await self.sessions.recovery.sandbox_ended(event)
            except WakegateError as error:
                # The next request on the session finds its sandbox gone, and corrects the record.
                logger.warning(
                    "sandbox %s ended (%s), cannot write its session's record: %s",
                    event.sandbox_id,
                    event.reason,
                    error,
                )

    def _kept(self, verb: str, answer: object) -> None:
        """Observe the size of a snapshot after `keep` or `checkpoint`; the reference contains it."""
        if verb in ("keep", "checkpoint") and isinstance(answer, str) and "#" in answer:
            self.counters.snapshot_bytes[verb].observe(SnapshotRef(answer).size)

    async def _last_usage(self) -> None:
        try:
            await self.usage.flush()
        except WakegateError as error:
            logger.warning("cannot write the last usage of tenants: %s", error)

    async def _last_flush(self) -> None:
        try:
            await self.sessions.idleness.flush()
        except WakegateError as error:
            logger.warning("cannot write the last activity of sessions: %s", error)


def holder_name() -> str:
    """This process's name as a holder of leases: host name and pid."""
    return f"{socket.gethostname()}:{os.getpid()}"


def _claims_at_once(settings: Settings) -> int:
    """Claims that the engine is given at once: on this machine as many as it starts at once, so that none queues there.

    A cluster starts more. Fewer than 256 there, and pods of one broken image would keep those of others waiting.
    """
    return 4 * (os.cpu_count() or 1) if settings.engine == "local" else 256


def _cached(store: SessionStore) -> SessionStore:
    """A store for reads that may be as old as the TTL."""
    from gateway.store.cached import CachedStore  # imports aiocache, which a gateway with its own store does not need

    return CachedStore(store, ttl=CACHED_RECORD_TTL_S)


def _observer(
    settings: Settings, tracing: Tracing | None, audit: AuditLog | None, clock: Clock, access: AccessPolicy
) -> Observer | None:
    """What records each request: the audit trail, traces, the access log. None when none is on: then it is free.

    The audit trail is first, as it may refuse a request, of which the others must not have heard then.
    """
    wanted: list[Observer] = [] if audit is None else [AuditObserver(audit, clock, access)]
    if tracing is not None:
        wanted.append(tracing)
    if settings.access_log:
        wanted.append(AccessLog("json" if settings.log_format == "json" else "console"))
    return Observers(wanted) if wanted else None


def _autoscaler_settings(settings: Settings, *, shared: bool, me: str) -> AutoscalerSettings:
    return AutoscalerSettings(
        tick=settings.autoscaler_tick,
        cold_start_cost=settings.cold_start_cost or None,
        max_warm=settings.max_warm or None,
        joins=settings.engine == "local",
        # Gateways that cannot reach each other's sandboxes each size their own pools; others share one leader.
        shared=shared and not me,
        lease=f"autoscaler:{me}" if me else "autoscaler",
    )


def _access(settings: Settings) -> AccessPolicy:
    return AccessPolicy(
        allowed_origins=settings.allowed_origins,
        allowed_hosts=settings.allowed_hosts,
        listens_on=settings.host,
        advertise=settings.advertise,
        strip_headers=settings.strip_headers,
        trusted_proxies=settings.trusted_proxies,
        authenticated=requires_identity(settings),
        domain=settings.domain,
    )


def _time_limits(settings: Settings) -> TimeLimits:
    return TimeLimits(
        request_idle=settings.request_idle_timeout,
        response_idle=settings.response_idle_timeout,
        client_read=settings.client_read_timeout,
        total=settings.request_timeout,
    )
