"""Makes the parts that sessions are handled with, and joins them. The only module that knows them all."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.core.clock import Clock
from gateway.core.interfaces import Executor, RuntimeCatalog, SandboxProvider, SessionStore, WorkspaceKeeper
from gateway.sessions.activation import SessionOpener
from gateway.sessions.activity import Activity
from gateway.sessions.admission import Admission
from gateway.sessions.bindings import Bindings
from gateway.sessions.durations import Durations
from gateway.sessions.hibernation import Hibernator
from gateway.sessions.idleness import IdleTracker
from gateway.sessions.lifecycle import Lifecycle
from gateway.sessions.membership import Membership
from gateway.sessions.ownership import Ownership
from gateway.sessions.records import Records
from gateway.sessions.recovery import Recovery
from gateway.sessions.strays import StrayCollector
from gateway.sessions.sweeper import Sweeper
from gateway.sessions.transitions import Transitions


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """What an operator chooses. Durations in seconds; each is explained in docs/operations.md."""

    takeover_after: float = 8.0
    max_sandboxes: int = 512
    hibernated_retention: float = 7 * 86400.0
    terminated_retention: float = 3600.0
    sweep_interval: float = 5.0


@dataclass(frozen=True, slots=True)
class Sessions:
    """The parts of one gateway. Callers are given those that they use, not all of this."""

    records: Records
    membership: Membership
    ownership: Ownership
    activity: Activity
    bindings: Bindings
    idleness: IdleTracker
    durations: Durations
    admission: Admission
    recovery: Recovery
    hibernator: Hibernator
    opener: SessionOpener
    lifecycle: Lifecycle
    sweeper: Sweeper


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
) -> Sessions:
    """The parts, over a store and an engine.

    `holder` names this gateway in leases. `shared`: other gateways use the same store. `me`: this gateway's id where
    others cannot reach its sandboxes. `cached_store`: the store behind a short-lived cache, for reads on which nothing
    is decided.
    """
    records = Records(store, holder, shared=shared, seen=cached_store)
    membership = Membership(store, clock, me, takeover_after=settings.takeover_after)
    activity, bindings = Activity(), Bindings()
    transitions = Transitions(records, keeper, executor, clock, settings.hibernated_retention, me)
    admission = Admission(provider, clock, max_sandboxes=settings.max_sandboxes)
    idleness = IdleTracker(
        records,
        activity,
        clock,
        shared_provider=shared and not me,
        hibernated_retention=settings.hibernated_retention,
    )
    ownership = Ownership(
        records=records, membership=membership, admission=admission, idleness=idleness, transitions=transitions
    )
    durations = Durations(records=records, ownership=ownership, bindings=bindings, clock=clock)
    recovery = Recovery(
        records=records, ownership=ownership, provider=provider, transitions=transitions, bindings=bindings
    )
    hibernator = Hibernator(
        records=records,
        ownership=ownership,
        idleness=idleness,
        provider=provider,
        catalog=catalog,
        transitions=transitions,
        bindings=bindings,
    )
    opener = SessionOpener(
        records=records,
        ownership=ownership,
        recovery=recovery,
        provider=provider,
        admission=admission,
        catalog=catalog,
        transitions=transitions,
        bindings=bindings,
        durations=durations,
        clock=clock,
        cancel_copy=hibernator.cancel_copy,
    )
    lifecycle = Lifecycle(
        records=records,
        ownership=ownership,
        provider=provider,
        admission=admission,
        catalog=catalog,
        transitions=transitions,
        bindings=bindings,
        idleness=idleness,
        opener=opener,
        clock=clock,
    )
    strays = StrayCollector(
        records=records,
        bindings=bindings,
        provider=provider,
        keeper=keeper,
        clock=clock,
        me=me,
        interval=settings.sweep_interval,
        retention=settings.hibernated_retention,
    )
    sweeper = Sweeper(
        lifecycle=lifecycle,
        hibernator=hibernator,
        idleness=idleness,
        recovery=recovery,
        durations=durations,
        bindings=bindings,
        records=records,
        ownership=ownership,
        catalog=catalog,
        keeper=keeper,
        strays=strays,
        activity=activity,
        clock=clock,
        interval=settings.sweep_interval,
        terminated_retention=settings.terminated_retention,
        orphan_retention=settings.hibernated_retention,
    )
    return Sessions(
        records=records,
        membership=membership,
        ownership=ownership,
        activity=activity,
        bindings=bindings,
        idleness=idleness,
        durations=durations,
        admission=admission,
        recovery=recovery,
        hibernator=hibernator,
        opener=opener,
        lifecycle=lifecycle,
        sweeper=sweeper,
    )
