"""A gateway: all its parts, wired, started and ended. The store and the engine are handed in (build.py)."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from gateway.api.app import Surfaces
from gateway.autoscaler.runner import Autoscaler
from gateway.autoscaler.sessions import AdviceSettings, Served, SessionAdvisor
from gateway.autoscaler.settings import AutoscalerSettings
from gateway.core.background import cancel, every
from gateway.core.clock import Clock
from gateway.core.errors import WakegateError
from gateway.core.interfaces import Executor, RuntimeCatalog, SandboxProvider, SessionStore, WorkspaceKeeper
from gateway.core.model import Runtime, SnapshotRef
from gateway.core.settings import Settings
from gateway.observability.counters import Counters
from gateway.observability.instrument import metered
from gateway.observability.logs import AccessLog
from gateway.observability.metrics import Metrics
from gateway.observability.request_record import Observer, Observers
from gateway.observability.tracing import Tracing
from gateway.routing.activator import Activator
from gateway.routing.exchange import TimeLimits
from gateway.routing.proxy import Proxy
from gateway.routing.route import HoldLimits
from gateway.routing.sandbox_client import Caller
from gateway.runtimes.manifest import StaticCatalog
from gateway.sandbox.picod_client import PicodExecutor
from gateway.sandbox.signing_keys import KeyRing
from gateway.sandbox.tokens import TokenIssuer
from gateway.sessions.activity import Activity
from gateway.sessions.admission import Claims
from gateway.sessions.idleness import HEARTBEAT_S
from gateway.sessions.lifecycle import Lifecycle
from gateway.sessions.membership import Peers
from gateway.sessions.records import Records
from gateway.sessions.sweeper import Sweeper
from gateway.sessions.transitions import Hibernation
from gateway.snapshots.keeper import make_keeper

logger = logging.getLogger(__name__)

ADVISE_S = 5.0  # how often silent sessions are looked at
CHECKPOINT_S = 1.0  # how often it is looked which sessions are due for one
QUIET_S = 2.0  # how often routes are looked at that nobody uses
# Label values of wakegate_keeper_* from before these methods had their present names.
KEEPER_LABELS = {
    "restore": "unpark",
    "rollback": "put_back",
    "delete": "drop_parked",
    "delete_abandoned": "drop_leftovers",
    "delete_orphans": "leftovers",
}
SEEN_S = 2.0  # a record that is only looked at may be so old


class Gateway:
    """All parts of one gateway, wired. `proxy` is the ASGI app to serve while `running()` is entered."""

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
        """`shared`: other gateways use the same store. `me`: this gateway's id, where they cannot reach its sandboxes.

        `keeper`: None makes the one that the settings ask for; `executor`: None makes the one over picod's API.
        `catalog` in place of fixed `runtimes`; `background` makes loops to run besides, by name. Raises SettingsError
        for what is wrong with the settings of snapshots.
        """
        self._background = background
        self.engine_summary = engine_summary  # what the start banner says of the engine; true once it runs
        self.settings = settings
        self.clock = clock
        self.catalog: RuntimeCatalog = catalog or StaticCatalog(runtimes)
        self.counters = Counters()
        self.tracing = Tracing(settings.otlp_endpoint, clock) if settings.otlp_endpoint else None
        self.observer = _observer(settings, self.tracing)
        self.store = store = metered(store, self.counters.store)
        self.provider = provider
        self.activity = Activity()
        self.tokens = TokenIssuer(keys, clock)
        holder = me or holder_name()
        self.records = Records(store, holder, shared=shared, seen=_seen(store) if shared else store)
        self.peers = Peers(store, clock, me, takeover_after=settings.takeover_after)
        executor = executor or PicodExecutor(self.catalog, self.tokens, connect_timeout=settings.connect_timeout)
        keeper = keeper or make_keeper(settings, provider, executor, clock)
        self.keeper = metered(keeper, self.counters.keeper, self._kept, KEEPER_LABELS)
        hibernation = Hibernation(self.records, self.keeper, executor, clock, settings.hibernated_retention, me)
        self.claims = Claims(provider, clock, max_sandboxes=settings.max_sandboxes)
        self.lifecycle = Lifecycle(
            self.records,
            self.peers,
            provider,
            self.claims,
            self.catalog,
            hibernation,
            self.activity,
            clock,
        )
        self.sweeper = Sweeper(
            self.lifecycle,
            self.records,
            self.peers,
            provider,
            self.catalog,
            self.keeper,
            self.activity,
            clock,
            interval=settings.sweep_interval,
            terminated_retention=settings.terminated_retention,
        )
        self.activator = Activator(
            self.lifecycle,
            self.catalog,
            self.tokens,
            self.activity,
            clock,
            self.counters,
            limits=HoldLimits(settings.hold_per_session, settings.hold_total, settings.slots_per_sandbox),
            connect_timeout=settings.connect_timeout,
        )
        self.autoscaler = Autoscaler(
            self.catalog,
            store,
            provider,
            clock,
            _autoscaler_settings(settings, shared=shared, me=me),
            holder=holder,
        )
        self.advisor = SessionAdvisor(
            self.lifecycle,
            self.catalog,
            self._served,
            AdviceSettings(
                wake_cost=settings.wake_cost, hibernate=settings.advised_hibernation, prewake=settings.prewake
            ),
        )
        self.metrics = Metrics(
            self.counters,
            self.catalog,
            provider,
            self.lifecycle,
            self.activator,
            self.autoscaler,
            self.tokens,
            engine=settings.engine,
        )
        self.surfaces = Surfaces(
            settings,
            self.lifecycle,
            store,
            provider,
            self.catalog,
            Caller(self.activator, clock),
            clock,
            self.counters,
            explain_pools=lambda: {**self.autoscaler.explain(), "sessions": self.advisor.explain()},
            is_leaving=lambda: self.activator.leaving,
            render_metrics=self.metrics.render,
        )
        self.proxy = Proxy(
            self.activator, self.surfaces.app, clock, _time_limits(settings), self.counters, self.observer
        )
        self._connect(executor)

    def _connect(self, executor: Executor) -> None:
        """Who is asked, and who is told, when something happens to a session."""
        self.lifecycle.ask_before_sleep(executor.busy)
        self.lifecycle.on_wake(self.advisor.woken)
        self.lifecycle.on_unbound(self.advisor.unbound)
        self.lifecycle.on_end(self.advisor.ended)
        self.claims.on_waiting(self.autoscaler.waiting)
        self.claims.on_claim(self.autoscaler.claimed)
        self.claims.on_claim(self.counters.claimed)

    def leave(self) -> None:
        """Say that this gateway will end: readiness fails, all else goes on."""
        self.activator.leaving = True

    def drain(self) -> None:
        """Take no new work that needs a sandbox to be made; running requests go on."""
        self.activator.leaving = self.activator.draining = True

    @asynccontextmanager
    async def running(self, address: str = "") -> AsyncIterator[None]:
        """Start the parts, and end them with the block. `address`: the URL at which other gateways reach this one.

        Raises WakegateError when a part cannot start.
        """
        async with AsyncExitStack() as stack:
            if self.tracing is not None:
                stack.push_async_callback(asyncio.to_thread, self.tracing.close)
            await self.store.start()
            stack.push_async_callback(self.store.aclose)
            await self.provider.start()
            stack.push_async_callback(self.provider.aclose)
            await self.provider.apply(self.catalog.all())
            for runtime in self.catalog.all():
                self.counters.of(runtime.key)  # known from now on, so that even its first failures count as its own
            if self.peers.me:
                self.peers.address = address
                await self.peers.announce()
                stack.push_async_callback(self.peers.leave)
            await self.lifecycle.start()
            stack.push_async_callback(self.lifecycle.hibernate_all)
            await self.autoscaler.start()
            stack.push_async_callback(self.autoscaler.aclose)
            stack.push_async_callback(self._last_flush)
            stack.push_async_callback(self.surfaces.aclose)
            for name, loop in (
                ("exchanges", self.proxy.run_ticker()),
                ("activity", every(HEARTBEAT_S, self.lifecycle.flush_activity)),
                ("sweeper", every(self.settings.sweep_interval, self.sweeper.sweep)),
                ("checkpoints", every(CHECKPOINT_S, self.sweeper.checkpoint)),
                ("quiet routes", every(QUIET_S, self._forget_quiet)),
                ("announcements", every(self.peers.beat, self._announce)),
                ("session advice", every(ADVISE_S, self._advise)),
                ("sandbox events", self._follow_events()),
                ("loop lag", self.metrics.watch_loop()),
                *self._background(self),
            ):
                stack.push_async_callback(cancel, asyncio.create_task(loop, name=name))
            yield

    def _served(self) -> Served:
        """Sessions with a live route: id, runtime, last active at, whether requests are under way."""
        for route in self.activator.routes.values():
            yield route.session_id, route.runtime, route.activity.last, route.activity.in_flight > 0

    async def _advise(self) -> None:
        await self.advisor.run_once(self.clock.now())

    async def _forget_quiet(self) -> None:
        if self.records.shared and not self.peers.me:
            self.activator.forget_quiet()

    async def _announce(self) -> None:
        if self.peers.me and not await self.peers.announce():
            await self.lifecycle.reclaim()

    async def _follow_events(self) -> None:
        async for event in self.provider.watch():
            try:
                await self.lifecycle.sandbox_ended(event)
            except WakegateError as error:
                # The record is mended by the next request on the session, which finds its sandbox gone.
                logger.warning(
                    "sandbox %s ended (%s), its record could not be written: %s", event.sandbox_id, event.reason, error
                )

    def _kept(self, verb: str, answer: object) -> None:
        """The keeper did something; where it made a snapshot, its reference says how large."""
        if verb in ("keep", "checkpoint") and isinstance(answer, str) and "#" in answer:
            self.counters.snapshot_bytes[verb].observe(SnapshotRef(answer).size)

    async def _last_flush(self) -> None:
        try:
            await self.lifecycle.flush_activity()
        except WakegateError as error:
            logger.warning("the last activity could not be written: %s", error)


def holder_name() -> str:
    """This gateway as the holder of leases."""
    return f"{socket.gethostname()}:{os.getpid()}"


def _seen(store: SessionStore) -> SessionStore:
    """What others write is seen a moment later."""
    from gateway.store.cached import CachedStore  # it brings Redis's driver along, which one machine does without

    return CachedStore(store, ttl=SEEN_S)


def _observer(settings: Settings, tracing: Tracing | None) -> Observer | None:
    """Who wants to know of each request; None when nobody does, which then costs nothing."""
    wanted: list[Observer] = [] if tracing is None else [tracing]
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


def _time_limits(settings: Settings) -> TimeLimits:
    return TimeLimits(
        request_idle=settings.request_idle_timeout,
        response_idle=settings.response_idle_timeout,
        client_read=settings.client_read_timeout,
        total=settings.request_timeout,
    )
