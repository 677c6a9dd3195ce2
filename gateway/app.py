"""The composition root: the one room that names concrete classes. Settings in, a running gateway out."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from gateway.api.agentcube import AgentCubeAPI
from gateway.api.app import make_control_app
from gateway.api.container_files import ContainerFilesAPI
from gateway.api.containers import ContainersAPI
from gateway.api.mcp import MCPEndpoint
from gateway.api.native import NativeAPI
from gateway.api.openapi import http as openapi
from gateway.api.tools.http import ToolsAPI
from gateway.api.tools.service import ToolService
from gateway.autoscaler.runner import Autoscaler
from gateway.autoscaler.sessions import AdviceSettings, Served, SessionAdvisor
from gateway.autoscaler.settings import AutoscalerSettings
from gateway.claims import Claims
from gateway.clock import Clock, SystemClock
from gateway.counters import Counters
from gateway.errors import SettingsError, WakegateError
from gateway.executor import PicodExecutor
from gateway.hibernation import Hibernation
from gateway.interfaces import Executor, RuntimeCatalog, SandboxProvider, SessionStore, WorkspaceKeeper
from gateway.keys import KeyRing
from gateway.lifecycle import HEARTBEAT_S, Lifecycle
from gateway.logs import AccessLog
from gateway.metered import metered
from gateway.metrics import Metrics
from gateway.model import Runtime, SnapshotRef
from gateway.peers import Peers
from gateway.records import Records
from gateway.routing.activator import Activator, HoldLimits
from gateway.routing.caller import Caller
from gateway.routing.exchange import TimeLimits
from gateway.routing.observe import Observer, Observers
from gateway.routing.proxy import Proxy
from gateway.routing.tokens import TokenIssuer
from gateway.runtimes import StaticCatalog, default_runtime, load_runtimes, parse_modules
from gateway.settings import Settings, make_state_dir
from gateway.snapshots.keeper import make_keeper
from gateway.stats import Activity
from gateway.store import make_store
from gateway.store.cached import CachedStore
from gateway.sweeper import Sweeper
from gateway.tracing import Tracing

logger = logging.getLogger(__name__)

ADVISE_S = 5.0  # how often silent sessions are looked at
CHECKPOINT_S = 1.0  # how often it is looked which sessions are due for one
QUIET_S = 2.0  # how often routes are looked at that nobody uses
KEYS_S = 5.0  # how often the folder of signing keys is looked at
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
        seen = CachedStore(store, ttl=SEEN_S) if shared else store
        self.records = Records(store, holder, shared=shared, seen=seen)
        self.peers = Peers(store, clock, me, takeover_after=settings.takeover_after)
        executor = executor or PicodExecutor(self.catalog, self.tokens, connect_timeout=settings.connect_timeout)
        keeper = keeper or make_keeper(settings, provider, executor, clock)
        self.keeper = metered(keeper, self.counters.keeper, self._kept)
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
            AutoscalerSettings(
                tick=settings.autoscaler_tick,
                cold_start_cost=settings.cold_start_cost or None,
                max_warm=settings.max_warm or None,
                joins=settings.engine == "local",
                # Gateways that cannot reach each other's sandboxes each size their own pools; others share one leader.
                shared=shared and not me,
                lease=f"autoscaler:{me}" if me else "autoscaler",
            ),
            holder=holder,
        )
        self.lifecycle.ask_before_sleep(executor.busy)
        self.claims.on_waiting(self.autoscaler.waiting)
        self.claims.on_claim(self.autoscaler.claimed)
        self.advisor = SessionAdvisor(
            self.lifecycle,
            self.catalog,
            self._served,
            AdviceSettings(
                wake_cost=settings.wake_cost, hibernate=settings.advised_hibernation, prewake=settings.prewake
            ),
        )
        self.lifecycle.on_wake(self.advisor.woken)
        self.lifecycle.on_unbound(self.advisor.unbound)
        self.claims.on_claim(self.counters.claimed)
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
        native = NativeAPI(
            self.lifecycle,
            store,
            provider,
            self.catalog,
            lambda: {**self.autoscaler.explain(), "sessions": self.advisor.explain()},
            lambda: self.activator.leaving,
            self.metrics.render,
        )
        caller = Caller(self.activator, clock)
        self.tools = ToolService(self.lifecycle, self.catalog, caller, clock)
        tools = ToolsAPI(self.tools, self.lifecycle, self.catalog, caller, clock)
        self.mcp = MCPEndpoint(self.tools, self.lifecycle, self.catalog, settings.allowed_origins)
        self.control_routes = [
            *AgentCubeAPI(self.lifecycle).routes(),
            *native.routes(),
            *tools.routes(),
            *ContainersAPI(self.lifecycle, store, self.catalog).routes(),
            *ContainerFilesAPI(self.lifecycle, caller).routes(),
            *self.mcp.routes(),
            *openapi.routes(),
        ]
        control = make_control_app(
            self.control_routes,
            self.counters,
            body_idle=settings.request_idle_timeout,
        )
        limits = TimeLimits(
            request_idle=settings.request_idle_timeout,
            response_idle=settings.response_idle_timeout,
            client_read=settings.client_read_timeout,
            total=settings.request_timeout,
        )
        self.proxy = Proxy(self.activator, control, clock, limits, self.counters, self.observer)

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
            stack.push_async_callback(self.lifecycle.rest)
            await self.autoscaler.start()
            stack.push_async_callback(self.autoscaler.aclose)
            stack.push_async_callback(self._last_flush)
            stack.push_async_callback(self.tools.memory.aclose)
            stack.push_async_callback(self.mcp.aclose)
            for name, loop in (
                ("exchanges", self.proxy.run_ticker()),
                ("activity", _every(HEARTBEAT_S, self.lifecycle.flush_activity)),
                ("sweeper", _every(self.settings.sweep_interval, self.sweeper.sweep)),
                ("checkpoints", _every(CHECKPOINT_S, self.sweeper.checkpoint)),
                ("quiet routes", _every(QUIET_S, self._forget_quiet)),
                ("announcements", _every(self.peers.beat, self._announce)),
                ("session advice", _every(ADVISE_S, self._advise)),
                ("sandbox events", self._follow_events()),
                ("loop lag", self.metrics.watch_loop()),
                *self._background(self),
            ):
                stack.push_async_callback(_cancel, asyncio.create_task(loop, name=name))
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


async def build(settings: Settings, clock: Clock | None = None) -> Gateway:
    """A gateway from settings.

    Raises:
        SettingsError: with every problem of runtimes, store URL and engine at once.
    """
    clock = clock or SystemClock()
    problems: list[str] = []
    runtimes: Sequence[Runtime] = ()
    try:
        runtimes = [default_runtime(settings.warm_pool, parse_modules(settings.preload))]
    except ValueError as error:
        problems.append(f"--preload: {error}")
    if settings.runtime:
        try:
            runtimes = load_runtimes(settings.runtime, engine=settings.engine)
        except SettingsError as error:
            problems += error.problems
    shared = settings.store.partition(":")[0].partition("+")[0] not in ("", "sqlite")
    store_url = settings.store or f"sqlite:///{quote(str((settings.state_dir / 'wakegate.db').absolute()))[1:]}"
    try:
        store = make_store(store_url, clock, prefix=settings.store_prefix)
    except SettingsError as error:
        problems += [f"--store {problem.removeprefix('store URL ')}" for problem in error.problems]
    python = _sandbox_python(settings, problems)
    if problems:
        raise SettingsError(problems)
    make_state_dir(settings.state_dir)
    if settings.engine == "kubernetes":
        files = runtimes if settings.runtime else ()
        return await _build_in_cluster(settings, files, store, clock, shared=shared)
    keys = KeyRing(settings.state_dir / "keys", settings.token_algorithm)
    keys.open()

    async def turn_keys() -> None:
        await asyncio.to_thread(keys.turn, clock.now(), settings.key_rotation)

    from gateway.provider.local import LocalProvider, owner_name

    provider = LocalProvider(
        settings.state_dir,
        keys.public_dir,
        clock,
        isolation="process" if settings.isolation == "process" else "bubblewrap",
        sandbox_python=python,
        code_context=settings.code_context,
        disk_reserve=settings.disk_reserve,
    )
    return Gateway(
        settings,
        runtimes=runtimes,
        store=store,
        shared=shared,
        provider=provider,
        keys=keys,
        clock=clock,
        me=owner_name(settings.state_dir) if shared else "",
        engine_summary=lambda: provider.report.summary(),
        background=lambda _: (("signing keys", _every(KEYS_S, turn_keys)),),
    )


async def _build_in_cluster(
    settings: Settings, files: Sequence[Runtime], store: SessionStore, clock: Clock, *, shared: bool
) -> Gateway:
    from gateway.cluster import Remains, join_cluster  # kubernetes_asyncio is 40 MB that the local engine does not need

    cluster = await join_cluster(settings, files, clock)
    executor = PicodExecutor(
        cluster.catalog, TokenIssuer(cluster.keys, clock), connect_timeout=settings.connect_timeout
    )
    gateway = Gateway(
        settings,
        runtimes=(),
        store=store,
        shared=shared,
        provider=cluster.provider,
        keeper=make_keeper(settings, Remains(cluster.provider), executor, clock),
        keys=cluster.keys,
        clock=clock,
        engine_summary=cluster.summary,
        catalog=cluster.catalog,
        background=lambda gateway: (
            ("runtimes of the cluster", cluster.follow()),
            ("signing keys", cluster.sharing.follow(gateway.activator.renew_tokens)),
            ("runtime statuses", cluster.report(gateway.store, gateway.provider, holder_name())),
        ),
    )
    cluster.count_in(gateway.counters.kubernetes)
    return gateway


def holder_name() -> str:
    """This gateway as the holder of leases."""
    return f"{socket.gethostname()}:{os.getpid()}"


def _sandbox_python(settings: Settings, problems: list[str]) -> Path | None:
    """The environment of user code: as set, else `.venv-sandbox` beside our own, else the system's."""
    if settings.sandbox_python != Path():
        if not (settings.sandbox_python / "bin" / "python3").exists():
            problems.append(
                f"--sandbox-python {settings.sandbox_python}: no bin/python3 in it; expected an environment's folder"
            )
        return settings.sandbox_python
    beside = Path(sys.prefix).parent / ".venv-sandbox"
    return beside if (beside / "bin" / "python3").exists() else None


def _observer(settings: Settings, tracing: Tracing | None) -> Observer | None:
    """Who wants to know of each request; None when nobody does, which then costs nothing."""
    wanted: list[Observer] = [] if tracing is None else [tracing]
    if settings.access_log:
        wanted.append(AccessLog("json" if settings.log_format == "json" else "console"))
    return Observers(wanted) if wanted else None


async def _every(interval: float, verb: Callable[[], Awaitable[Any]]) -> None:
    """Run a verb again and again. A part that is away is said once per change, and tried again at the next turn."""
    trouble = ""
    while True:
        await asyncio.sleep(interval)
        try:
            await verb()
            trouble = ""
        except WakegateError as error:
            if str(error) != trouble:
                logger.warning("%s: %s", verb.__name__, error)
            trouble = str(error)


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        pass
    except Exception:
        logger.exception("background task %s had failed", task.get_name())
