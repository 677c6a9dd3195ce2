"""What each part of a gateway takes from its settings."""

from __future__ import annotations

import os

from gateway.audit.log import AuditLog
from gateway.autoscaler.settings import AutoscalerSettings
from gateway.core.clock import Clock
from gateway.core.interfaces import SessionStore
from gateway.core.settings import Settings, requires_identity
from gateway.observability.logs import AccessLog
from gateway.observability.request_record import Observer, Observers
from gateway.observability.tracing import Tracing
from gateway.routing.access import AccessPolicy
from gateway.routing.audited import AuditObserver
from gateway.routing.time_limits import TimeLimits

CACHED_RECORD_TTL_S = 2.0  # for reads that no decision depends on


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
    )


def time_limits(settings: Settings) -> TimeLimits:
    """Of each request, in seconds."""
    return TimeLimits(
        request_idle=settings.request_idle_timeout,
        response_idle=settings.response_idle_timeout,
        client_read=settings.client_read_timeout,
        total=settings.request_timeout,
    )
