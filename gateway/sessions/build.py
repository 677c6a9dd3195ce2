"""Wires the parts of sessions together. The only module that imports all of them.

Each part is handed the few others that it uses, by keyword. The lists repeat; one object with all parts would be
shorter, and would let any of them use any other.

In three groups, each built on the ones before: what every operation needs (`_Base`), the operations on one session
(`_Operations`), and the sweeper over all sessions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gateway.core.clock import Clock
from gateway.core.interfaces import (
    Executor,
    LossCounter,
    RuntimeCatalog,
    SandboxProvider,
    SessionStore,
    WorkspaceKeeper,
)
from gateway.core.quota import Resource
from gateway.identity.tenants import TenantDirectory
from gateway.sessions.activation import SessionOpener
from gateway.sessions.activity import Activity
from gateway.sessions.admission import Admission
from gateway.sessions.bindings import Bindings
from gateway.sessions.checkpoints import Checkpointer
from gateway.sessions.completeness import Completeness
from gateway.sessions.durations import Durations
from gateway.sessions.fairness import FairQueue
from gateway.sessions.hibernation import Hibernator
from gateway.sessions.idleness import IdleTracker
from gateway.sessions.lifecycle import Lifecycle
from gateway.sessions.losses import Losses
from gateway.sessions.membership import Membership
from gateway.sessions.orphans import OrphanCollector
from gateway.sessions.ownership import Ownership
from gateway.sessions.quota_audit import QuotaAudit
from gateway.sessions.quotas import Quotas
from gateway.sessions.records import Records
from gateway.sessions.recovery import Recovery
from gateway.sessions.resizing import Resizing
from gateway.sessions.sweeper import Sweeper
from gateway.sessions.transitions import Transitions


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """The operator's settings. Durations in seconds; docs/operations.md explains each."""

    takeover_after: float = 8.0
    max_sandboxes: int = 512
    hibernated_retention: float = 7 * 86400.0
    terminated_retention: float = 3600.0
    sweep_interval: float = 5.0
    # How long a sandbox may take to start where requests wait for all of that, as in a cluster that pulls an image or
    # adds a node; 0: the hold rule alone applies.
    start_timeout: float = 0.0
    checkpoint_interval: float = 0.0  # for runtimes that set none; 0: such sessions are not copied
    claims_at_once: int = 64  # that the engine serves; further ones wait in the order of tenants' shares


@dataclass(frozen=True, slots=True)
class Sessions:
    """The parts of one gateway. Callers are given the parts that they use (docs/adr/0007-parts-of-sessions.md)."""

    records: Records
    completeness: Completeness | None
    membership: Membership
    ownership: Ownership
    activity: Activity
    bindings: Bindings
    idleness: IdleTracker
    durations: Durations
    admission: Admission
    recovery: Recovery
    losses: Losses
    hibernator: Hibernator
    opener: SessionOpener
    lifecycle: Lifecycle
    resizing: Resizing
    sweeper: Sweeper
    checkpointer: Checkpointer
    audit: QuotaAudit


@dataclass(frozen=True, slots=True)
class _Outside:
    """What sessions use and do not make: the Protocols of gateway/core/interfaces."""

    store: SessionStore
    provider: SandboxProvider
    keeper: WorkspaceKeeper
    executor: Executor
    catalog: RuntimeCatalog
    tenants: TenantDirectory
    quotas: Quotas
    clock: Clock


@dataclass(frozen=True, slots=True)
class _Base:
    """Records, and what decides whether an operation on one may run."""

    records: Records
    membership: Membership
    ownership: Ownership
    activity: Activity
    bindings: Bindings
    idleness: IdleTracker
    durations: Durations
    admission: Admission
    transitions: Transitions


@dataclass(frozen=True, slots=True)
class _Operations:
    """Everything that changes one session's record."""

    recovery: Recovery
    hibernator: Hibernator
    opener: SessionOpener
    lifecycle: Lifecycle
    resizing: Resizing


def make_sessions(
    *,
    store: SessionStore,
    provider: SandboxProvider,
    keeper: WorkspaceKeeper,
    executor: Executor,
    catalog: RuntimeCatalog,
    clock: Clock,
    holder: str,
    settings: SessionSettings = SessionSettings(),  # frozen: one default may be shared
    shared: bool = False,
    me: str = "",
    cached_store: SessionStore | None = None,
    tenants: TenantDirectory | None = None,
) -> Sessions:
    """Make all parts over a store and an engine.

    `holder` names this gateway in leases. `shared`: other gateways use the same store. `me`: this gateway's id where
    others cannot reach its sandboxes. `cached_store`: the store behind a short-lived cache, for reads that no decision
    depends on. `tenants`: whose limits apply; None: there are none.
    """
    tenants = tenants or TenantDirectory(store.documents)
    quotas = Quotas(store.quotas, tenants, catalog, clock)
    outside = _Outside(store, provider, keeper, executor, catalog, tenants, quotas, clock)
    completeness = Completeness(store.documents, clock) if shared else None
    records = Records(store, holder, quotas, shared=shared, cached=cached_store, completeness=completeness)
    # Each group is made of those before it, so nothing has to be set afterwards and no part sees a half-made other.
    base = _make_base(outside, records, settings, me)
    operations = _make_operations(outside, base)
    audit = QuotaAudit(store.quotas, tenants, records, catalog, clock)
    return Sessions(
        records=records,
        completeness=completeness,
        membership=base.membership,
        ownership=base.ownership,
        activity=base.activity,
        bindings=base.bindings,
        idleness=base.idleness,
        durations=base.durations,
        admission=base.admission,
        recovery=operations.recovery,
        losses=Losses(operations.recovery),
        hibernator=operations.hibernator,
        opener=operations.opener,
        lifecycle=operations.lifecycle,
        resizing=operations.resizing,
        sweeper=_make_sweeper(outside, base, operations, audit, settings),
        checkpointer=_make_checkpointer(outside, base, operations, settings),
        audit=audit,
    )


def _make_base(outside: _Outside, records: Records, settings: SessionSettings, me: str) -> _Base:
    clock, retention = outside.clock, settings.hibernated_retention
    activity, bindings = Activity(), Bindings()
    membership = Membership(
        outside.store, clock, me, takeover_after=settings.takeover_after, require_complete=records.require_complete
    )
    queue = FairQueue(settings.claims_at_once, _load_of(outside.tenants, bindings, settings.max_sandboxes))
    admission = Admission(
        outside.provider, clock, queue, max_sandboxes=settings.max_sandboxes, start_timeout=settings.start_timeout
    )
    transitions = Transitions(records, outside.keeper, outside.executor, clock, retention, outside.quotas, me)
    idleness = IdleTracker(
        records,
        activity,
        clock,
        shared_provider=records.shared and not me,
        hibernated_retention=retention,
        holder=records.holder,
    )
    ownership = Ownership(
        records=records, membership=membership, admission=admission, idleness=idleness, transitions=transitions
    )
    return _Base(
        records=records,
        membership=membership,
        ownership=ownership,
        activity=activity,
        bindings=bindings,
        idleness=idleness,
        durations=Durations(records=records, ownership=ownership, bindings=bindings, activity=activity, clock=clock),
        admission=admission,
        transitions=transitions,
    )


def _load_of(tenants: TenantDirectory, bindings: Bindings, max_sandboxes: int) -> Callable[[str, int], float]:
    """The part of its share that a tenant uses here, with a number of sandboxes more than it has."""

    def load(tenant: str, more: int) -> float:
        share = tenants.limits(tenant).amounts.get(Resource.SANDBOXES, max_sandboxes)
        return (bindings.count(tenant) + more) / max(1, share)

    return load


def _make_operations(outside: _Outside, base: _Base) -> _Operations:
    recovery = Recovery(
        records=base.records,
        ownership=base.ownership,
        provider=outside.provider,
        transitions=base.transitions,
        bindings=base.bindings,
        on_loss=outside.provider.count_loss if isinstance(outside.provider, LossCounter) else None,
    )
    hibernator = Hibernator(
        records=base.records,
        ownership=base.ownership,
        idleness=base.idleness,
        provider=outside.provider,
        catalog=outside.catalog,
        transitions=base.transitions,
        bindings=base.bindings,
        quotas=outside.quotas,
    )
    resizing = Resizing(
        records=base.records,
        ownership=base.ownership,
        provider=outside.provider,
        catalog=outside.catalog,
        bindings=base.bindings,
        quotas=outside.quotas,
    )
    opener = SessionOpener(
        records=base.records,
        ownership=base.ownership,
        recovery=recovery,
        provider=outside.provider,
        admission=base.admission,
        catalog=outside.catalog,
        transitions=base.transitions,
        bindings=base.bindings,
        durations=base.durations,
        quotas=outside.quotas,
        resizing=resizing,
        clock=outside.clock,
        cancel_copy=hibernator.cancel_copy,
    )
    lifecycle = Lifecycle(
        records=base.records,
        ownership=base.ownership,
        provider=outside.provider,
        admission=base.admission,
        catalog=outside.catalog,
        transitions=base.transitions,
        bindings=base.bindings,
        idleness=base.idleness,
        opener=opener,
        quotas=outside.quotas,
        clock=outside.clock,
    )
    return _Operations(recovery, hibernator, opener, lifecycle, resizing)


def _make_checkpointer(
    outside: _Outside, base: _Base, operations: _Operations, settings: SessionSettings
) -> Checkpointer:
    return Checkpointer(
        hibernator=operations.hibernator,
        bindings=base.bindings,
        records=base.records,
        catalog=outside.catalog,
        activity=base.activity,
        clock=outside.clock,
        usual_interval=settings.checkpoint_interval,
        longest_wait=settings.sweep_interval,
    )


def _make_sweeper(
    outside: _Outside, base: _Base, operations: _Operations, audit: QuotaAudit, settings: SessionSettings
) -> Sweeper:
    orphans = OrphanCollector(
        records=base.records,
        bindings=base.bindings,
        provider=outside.provider,
        keeper=outside.keeper,
        clock=outside.clock,
        me=base.membership.me,
        interval=settings.sweep_interval,
        retention=settings.hibernated_retention,
        start_timeout=settings.start_timeout,
    )
    return Sweeper(
        lifecycle=operations.lifecycle,
        hibernator=operations.hibernator,
        idleness=base.idleness,
        recovery=operations.recovery,
        durations=base.durations,
        records=base.records,
        ownership=base.ownership,
        catalog=outside.catalog,
        transitions=base.transitions,
        keeper=outside.keeper,
        orphans=orphans,
        audit=audit,
        quotas=outside.quotas,
        clock=outside.clock,
        interval=settings.sweep_interval,
        terminated_retention=settings.terminated_retention,
        orphan_retention=settings.hibernated_retention,
    )
