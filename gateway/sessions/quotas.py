"""What each session holds of its tenant's quota, and when that is reserved, moved and released.

Whatever grows is reserved in the ledger before it happens: a sandbox before it is claimed, a hibernated session before
its workspace is kept. Whatever a record says once it is written is settled, also beyond a limit, since it is so
(`Records.put` calls `settled`). What a gateway that died leaves between the two ends by itself: a reservation that no
record has confirmed within RESERVATION_S (gateway/sessions/quota_audit.py).

A tenant without limits costs no call of the store.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from gateway.core.clock import Clock
from gateway.core.errors import (
    QuotaExceededError,
    QuotaForbiddenError,
    RateLimitError,
    WakegateError,
    rate_limit_fields,
)
from gateway.core.interfaces import RuntimeCatalog
from gateway.core.model import Resources, Runtime, Session, SessionId, SessionState, SnapshotRef, is_snapshot
from gateway.core.quota import Amounts, Excess, QuotaLedger, Resource
from gateway.core.units import parse_quantity, readable_size
from gateway.identity.tenant_limits import TenantLimits
from gateway.identity.tenants import TenantDirectory
from gateway.sessions.refusals import Refusals, Wish

logger = logging.getLogger(__name__)

RESERVATION_S = 120.0  # of a claim; one that takes longer reserves again before its record is written
MAX_UNSETTLED = 10_000  # about 2 MB; beyond it an audit corrects what is missing, up to RESERVATION_S later
_ASLEEP = (SessionState.HIBERNATED, SessionState.LOST)
_SIZES = (Resource.MEMORY, Resource.STORED)


class Quotas:
    """Reserves and settles what sessions hold. `tenants` knows the limits, `ledger` what is used."""

    def __init__(self, ledger: QuotaLedger, tenants: TenantDirectory, catalog: RuntimeCatalog, clock: Clock) -> None:
        self._ledger = ledger
        self._tenants = tenants
        self._catalog = catalog
        self._clock = clock
        self._refusals = Refusals(clock)
        # What could not be given back, with the store away or its disk full; tried again by each sweep.
        self._unsettled: set[tuple[str, SessionId]] = set()

    def limits(self, tenant: str) -> TenantLimits:
        """What a tenant may use, as its directory says now."""
        return self._tenants.limits(tenant)

    def longest(self, tenant: str, runtime: Runtime) -> float:
        """Seconds that a session of a tenant may last."""
        return min(runtime.max_session_duration, self.limits(tenant).max_duration or float("inf"))

    async def admit(self, tenant: str, runtime: Runtime, ttl: float | None, wish: Wish) -> None:
        """Check what does not depend on other sessions, and the rate of creations.

        Raises QuotaForbiddenError, RateLimitError, and what the same wish was refused with a moment ago.
        """
        limits = self.limits(tenant)
        if not limits:
            return
        if not limits.allows(runtime.skill_of or runtime.key):
            name = f"{runtime.key.namespace}/{runtime.key.name}"
            allowed = ", ".join(sorted(limits.runtimes))
            raise QuotaForbiddenError(
                f"runtimes: this tenant may not use {name}; it may use {allowed}", limit="runtimes", value=allowed
            )
        if ttl is not None and limits.max_duration is not None and ttl > limits.max_duration:
            raise QuotaForbiddenError(
                f"maxDuration: sessions of this tenant may last {limits.max_duration:g} s, not {ttl:g} s",
                limit="maxDuration", value=limits.max_duration,
            )  # fmt: skip
        asked = (tenant, runtime.key, wish)
        await self._refusals.repeat(asked, limits)
        if limits.creates_per_minute is not None:
            burst = max(1, int(limits.creates_per_minute))
            wait = await self._ledger.take(tenant, 60.0 / limits.creates_per_minute, burst)
            if wait:
                value = limits.creates_per_minute
                raise self._refusals.remember(asked, limits, RateLimitError(
                    f"createsPerMinute: this tenant may create {value:g} sessions per minute; next in {wait:.1f} s",
                    limit="createsPerMinute", value=value, used=value, retry_after=wait,
                ))  # fmt: skip

    async def tightest(self, tenant: str) -> dict[str, str]:
        """RateLimit-* of the limit of which a tenant has the least left; empty where none is counted or known."""
        limits = self.limits(tenant).amounts
        if not limits:
            return {}
        try:
            used = await self._ledger.used(tenant)
        except WakegateError as error:
            logger.debug("what tenant %s uses is not known: %s", tenant, error)
            return {}
        resource = min(limits, key=lambda each: (limits[each] - used.get(each, 0)) / max(1, limits[each]))
        left = limits[resource] - used.get(resource, 0)
        return rate_limit_fields(
            _value(resource, limits[resource]), _value(resource, left), QuotaExceededError.retry_after
        )

    async def reserve_session(self, tenant: str, session_id: SessionId, runtime: Runtime) -> None:
        """For a session that has no sandbox yet. Raises QuotaExceededError, QuotaForbiddenError."""
        await self._reserve(tenant, session_id, runtime, {Resource.SESSIONS: 1}, Wish.REGISTER)

    async def reserve_sandbox(
        self, tenant: str, session_id: SessionId, runtime: Runtime, session: Session | None = None
    ) -> None:
        """For a session that is about to claim a sandbox; `session` is its record, where there is one.

        Raises QuotaExceededError, QuotaForbiddenError.
        """
        wish: Wish | None = Wish.CREATE
        size = None if session is None else session.resources
        if session is not None:
            # What one of another size was refused says nothing of the others.
            wish = Wish.WAKE if size is None else None
            if wish is not None:
                await self._refusals.repeat((tenant, runtime.key, wish), self.limits(tenant))
        amounts = {**awake_amounts(runtime, size), **_stored(session)}
        await self._reserve(tenant, session_id, runtime, amounts, wish, size=size)

    async def reserve_size(self, session: Session, runtime: Runtime, size: Resources | None) -> None:
        """For a session with a sandbox that is about to get another size. Raises as `reserve_sandbox`."""
        amounts = {**awake_amounts(runtime, size), **_stored(session)}
        await self._reserve(session.tenant, session.id, runtime, amounts, size=size)

    def require_possible(self, tenant: str, runtime: Runtime, size: Resources | None) -> None:
        """Raise QuotaForbiddenError for a size that does not fit even when nothing else of the tenant's runs."""
        _require_possible(self.limits(tenant).amounts, runtime, awake_amounts(runtime, size), size)

    async def reserve_hibernation(self, session: Session, *, copies: bool) -> None:
        """For a session that is about to be hibernated: it goes on to hold its sandbox until that is released.

        `copies`: its workspace will be kept as a snapshot. How large that is shows only afterwards (`reserve_stored`),
        so here it is enough that a byte has room. Raises QuotaExceededError.
        """
        runtime = self._catalog.get(session.runtime)
        stored = _stored(session).get(Resource.STORED, 0) + copies
        awake = awake_amounts(runtime, session.resources)
        amounts = {**awake, Resource.HIBERNATED: 1, Resource.STORED: stored}
        await self._reserve(session.tenant, session.id, runtime, amounts, size=session.resources)

    async def reserve_stored(self, session: Session, reference: str | None) -> None:
        """For a snapshot that was taken and that no record names yet. Raises QuotaExceededError."""
        if is_snapshot(reference):
            runtime = self._catalog.get(session.runtime)
            awake = awake_amounts(runtime, session.resources)
            amounts = {**awake, Resource.HIBERNATED: 1, Resource.STORED: SnapshotRef(reference or "").size}
            await self._reserve(session.tenant, session.id, runtime, amounts, size=session.resources)

    async def release(self, tenant: str, session_id: SessionId) -> None:
        """Give back what was reserved for a session of which there will be no record."""
        await self._settle(tenant, session_id, {})

    async def settled(self, session: Session) -> None:
        """Have the ledger say what the record says, which was just written. It never fails for want of the store."""
        await self._settle(session.tenant, session.id, amounts_of(session, self._catalog.get(session.runtime)))

    async def settle_again(self) -> None:
        """Give back what could not be given back before. It never fails for want of the store."""
        for tenant, session_id in list(self._unsettled):
            await self._settle(tenant, session_id, {})
            if (tenant, session_id) in self._unsettled:
                return  # the store is still away: the others would fail as well

    async def _settle(self, tenant: str, session_id: SessionId, amounts: Amounts) -> None:
        if not self.limits(tenant).amounts:
            return
        self._unsettled.discard((tenant, session_id))
        try:
            # Shielded: it is called where a sandbox was just released because the caller was cancelled.
            await asyncio.shield(self._ledger.settle(tenant, session_id, amounts))
        except WakegateError as error:
            logger.warning("session %s: its quota is settled later: %s", session_id, error)
            # Only what was given back: such a session reserves nothing any more, so that nothing newer is overwritten.
            if not amounts and len(self._unsettled) < MAX_UNSETTLED:
                self._unsettled.add((tenant, session_id))
        finally:
            # Not before: whoever waits with a refusal asks the ledger at once, and would be refused again.
            self._refusals.forget(tenant)

    async def _reserve(
        self,
        tenant: str,
        session_id: SessionId,
        runtime: Runtime | None,
        amounts: Amounts,
        wish: Wish | None = None,
        size: Resources | None = None,
    ) -> None:
        limits = self.limits(tenant)
        if not limits.amounts:
            return
        _require_possible(limits.amounts, runtime, amounts, size)
        until = self._clock.now() + RESERVATION_S
        excess = await self._ledger.reserve(tenant, session_id, amounts, limits.amounts, until)
        asked = None if runtime is None or wish is None else (tenant, runtime.key, wish)
        if excess is not None:
            error = _exceeded(excess)
            raise error if asked is None else self._refusals.remember(asked, limits, error)
        if asked is not None:
            self._refusals.granted(asked)


def amounts_of(session: Session, runtime: Runtime | None) -> Amounts:
    """What a session holds by its record. `runtime` None: it is not served any more."""
    if session.state is SessionState.TERMINATED:
        return {}
    if session.sandbox is None:
        asleep = session.state in _ASLEEP and session.snapshot is not None
        return {Resource.SESSIONS: 1, **({Resource.HIBERNATED: 1} if asleep else {}), **_stored(session)}
    hibernating = {Resource.HIBERNATED: 1} if session.state is SessionState.HIBERNATING else {}
    return {**awake_amounts(runtime, session.resources), **hibernating, **_stored(session)}


def awake_amounts(runtime: Runtime | None, size: Resources | None = None) -> dict[Resource, int]:
    """What a session with a sandbox of a runtime holds; `size`: its own."""
    amounts = {Resource.SESSIONS: 1, Resource.SANDBOXES: 1}
    if runtime is None:
        return amounts
    limits = runtime.limits.resized(size)
    amounts[Resource.VCPU] = round((limits.cpus or 0.0) * 1000)
    amounts[Resource.MEMORY] = limits.memory or 0
    amounts[Resource.GPUS] = gpus_of(runtime)
    return {resource: amount for resource, amount in amounts.items() if amount}


def gpus_of(runtime: Runtime) -> int:
    """GPUs of one sandbox: the limits named */gpu of the manifest's containers, e.g. nvidia.com/gpu."""
    spec = _mapping(runtime.manifest.get("spec"))
    template = _mapping(spec.get("template"))
    pod = _mapping(_mapping(spec.get("podTemplate")).get("spec"))
    containers = pod.get("containers")
    total = 0.0
    for each in (template, *(containers if isinstance(containers, list) else ())):
        for name, value in _mapping(_mapping(_mapping(each).get("resources")).get("limits")).items():
            if str(name).endswith("/gpu"):
                total += parse_quantity(str(value))
    return int(total)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _stored(session: Session | None) -> dict[Resource, int]:
    if session is None or session.snapshot is None or not is_snapshot(session.snapshot):
        return {}
    return {Resource.STORED: SnapshotRef(session.snapshot).size}


def _require_possible(limits: Amounts, runtime: Runtime | None, amounts: Amounts, size: Resources | None) -> None:
    """Raise QuotaForbiddenError for what does not fit even when nothing else runs: waiting would not help."""
    for resource, amount in amounts.items():
        limit = limits.get(resource)
        if limit is not None and amount > limit:
            raise QuotaForbiddenError(
                f"{resource}: this tenant may use {_shown(resource, limit)}, and one session needs "
                f"{_shown(resource, amount)}",
                limit=resource.value, value=_value(resource, limit), used=0,
            )  # fmt: skip
    unbounded = {Resource.VCPU: "cpus", Resource.MEMORY: "memory"}
    if runtime is not None and Resource.SANDBOXES in amounts:
        own = runtime.limits.resized(size)
        for resource, name in unbounded.items():
            if resource in limits and getattr(own, name) is None:
                raise QuotaForbiddenError(
                    f"{resource}: this tenant may use {_shown(resource, limits[resource])}, and sandboxes of "
                    f"{runtime.key} have no limit of that",
                    limit=resource.value, value=_value(resource, limits[resource]),
                )  # fmt: skip


def _exceeded(excess: Excess) -> QuotaExceededError:
    resource = excess.resource
    return QuotaExceededError(
        f"{resource}: this tenant may use {_shown(resource, excess.limit)} and uses {_shown(resource, excess.used)}; "
        "end or hibernate a session, or try again later",
        limit=resource.value, value=_value(resource, excess.limit), used=_value(resource, excess.used),
    )  # fmt: skip


def _value(resource: Resource, amount: int) -> float:
    return amount / 1000 if resource is Resource.VCPU else amount


def _shown(resource: Resource, amount: int) -> str:
    return readable_size(amount) if resource in _SIZES else f"{_value(resource, amount):g}"
