"""What each part of a gateway takes from its settings."""

from __future__ import annotations

import os

from gateway.audit.log import AuditLog
from gateway.autoscaler.sessions import AdviceSettings
from gateway.autoscaler.settings import AutoscalerSettings
from gateway.core.agent_sandbox import read_router_tenants
from gateway.core.clock import Clock
from gateway.core.interfaces import RoutedSandboxes, SessionStore, WorkspaceKeeper
from gateway.core.model import SnapshotRef
from gateway.core.settings import Settings, requires_identity
from gateway.observability.counters import Counters
from gateway.observability.instrument import metered
from gateway.observability.logs import AccessLog
from gateway.observability.request_record import Observer, Observers
from gateway.observability.tracing import Tracing
from gateway.routing.access import AccessPolicy
from gateway.routing.activator import Activator
from gateway.routing.audited import AuditObserver
from gateway.routing.route import HoldLimits
from gateway.routing.sandbox_router import SandboxRouter
from gateway.routing.ticker import Ticker
from gateway.routing.time_limits import TimeLimits
from gateway.sessions.build import SessionSettings

CACHED_RECORD_TTL_S = 2.0  # for reads that no decision depends on

# Label values of wakegate_keeper_*, a contract with dashboards: they stay when the methods are renamed.
_KEEPER_LABELS = {
    "restore": "unpark",
    "rollback": "put_back",
    "delete": "drop_parked",
    "retain_abandoned": "drop_leftovers",
    "delete_orphans": "leftovers",
}


def claims_at_once(settings: Settings) -> int:
    """Claims that the engine is given at once: on this machine as many as it starts at once, so that none queues there.

    A cluster starts more. Fewer than 256 there, and pods of one broken image would keep those of others waiting.
    """
    # Four per core, as the local engine's StartLimiter grants to claims: further ones would only queue there.
    return 4 * (os.cpu_count() or 1) if settings.engine == "local" else 256


def cached_store(store: SessionStore) -> SessionStore:
    """A store for reads that may be as old as the TTL."""
    from gateway.store.cached import CachedStore  # imports aiocache, which a gateway with its own store does not need

    return CachedStore(store, ttl=CACHED_RECORD_TTL_S)


def session_settings(settings: Settings) -> SessionSettings:
    """What `sessions` takes of the settings; how long a start and a heartbeat may take depends on the engine."""
    # A pod may take minutes to start, and may be evicted; a sandbox of this machine does neither.
    in_cluster = settings.engine == "kubernetes"
    return SessionSettings(
        takeover_after=settings.takeover_after,
        max_sandboxes=settings.max_sandboxes,
        hibernated_retention=settings.hibernated_retention,
        terminated_retention=settings.terminated_retention,
        sweep_interval=settings.sweep_interval,
        start_timeout=settings.sandbox_start_timeout if in_cluster else 0.0,
        checkpoint_interval=settings.checkpoint_interval if in_cluster else 0.0,
        claims_at_once=claims_at_once(settings),
    )


def metered_keeper(keeper: WorkspaceKeeper, counters: Counters) -> WorkspaceKeeper:
    """The keeper, whose calls are timed and whose snapshots are measured."""

    def measure(verb: str, answer: object) -> None:
        # The reference of a snapshot contains its size. References of parked workspaces have no "#": nothing was
        # copied, so there is no size to observe.
        if verb in ("keep", "checkpoint") and isinstance(answer, str) and "#" in answer:
            counters.snapshot_bytes[verb].observe(SnapshotRef(answer).size)

    return metered(keeper, counters.keeper, measure, _KEEPER_LABELS)


def make_observer(
    settings: Settings, tracing: Tracing | None, audit: AuditLog | None, clock: Clock, access: AccessPolicy
) -> Observer | None:
    """What records each request: the audit trail, traces, the access log. None when none is on: then it is free.

    The audit trail is first: it may refuse a request, which the others must then not record.
    """
    wanted: list[Observer] = [] if audit is None else [AuditObserver(audit, clock, access)]
    if tracing is not None:
        wanted.append(tracing)
    if settings.access_log:
        wanted.append(AccessLog("json" if settings.log_format == "json" else "console"))
    return Observers(wanted) if wanted else None


def autoscaler_settings(settings: Settings, *, shared: bool, me: str) -> AutoscalerSettings:
    """Of the autoscaler; `me`: this gateway's id, where others cannot reach its sandboxes."""
    return AutoscalerSettings(
        tick=settings.autoscaler_tick,
        cold_start_cost=settings.cold_start_cost or None,
        price_ceiling=settings.price_ceiling or None,
        max_warm=settings.max_warm or None,
        joins=settings.engine == "local",
        # Gateways that cannot reach each other's sandboxes each size their own pools; others share one leader.
        shared=shared and not me,
        lease=f"autoscaler:{me}" if me else "autoscaler",
    )


def advice_settings(settings: Settings) -> AdviceSettings:
    """Of the advice on single sessions."""
    return AdviceSettings(
        wake_cost=settings.wake_cost, hibernate=settings.advised_hibernation, prewake=settings.prewake
    )


def access_policy(settings: Settings) -> AccessPolicy:
    """Which pages, hosts and identities may use the gateway. Raises SettingsError."""
    return AccessPolicy(
        allowed_origins=settings.allowed_origins,
        allowed_hosts=settings.allowed_hosts,
        listens_on=settings.host,
        advertise=settings.advertise,
        strip_headers=settings.strip_headers,
        trusted_proxies=settings.trusted_proxies,
        authenticated=requires_identity(settings),
        domain=settings.domain,
        unauthenticated_rate=settings.unauthenticated_rate,
        routed=read_router_tenants(settings.kube_router_tenants),
    )


def hold_limits(settings: Settings) -> HoldLimits:
    """Of requests that wait for sandboxes."""
    return HoldLimits(settings.hold_per_session, settings.hold_total, settings.slots_per_sandbox)


def time_limits(settings: Settings) -> TimeLimits:
    """Of each request, in seconds."""
    return TimeLimits(
        request_idle=settings.request_idle_timeout,
        response_idle=settings.response_idle_timeout,
        client_read=settings.client_read_timeout,
        total=settings.request_timeout,
    )


def make_router(
    settings: Settings,
    sandboxes: RoutedSandboxes,
    activator: Activator,
    clock: Clock,
    counters: Counters,
    ticker: Ticker,
) -> SandboxRouter:
    """What routes to the sandboxes of agent-sandbox's controllers, within the limits of the settings."""
    return SandboxRouter(
        sandboxes,
        activator,
        ticker,
        clock,
        counters,
        time_limits(settings),
        start_timeout=settings.sandbox_start_timeout,
        connect_timeout=settings.connect_timeout,
        hold_each=settings.hold_per_session,
        hold_total=settings.hold_total,
    )
