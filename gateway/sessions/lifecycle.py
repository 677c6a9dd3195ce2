"""The verbs of a session's life: create, register, open, hibernate, recover, terminate, sweep.

Each verb writes the record in the store and acts on the provider in the order that never lets a record say more than is
true: a record names a sandbox only once it is bound, and a sandbox is deleted only once no record names it. Verbs on
one session are serialised by a lock (gateway/sessions/records.py); between gateways the store's version decides who
won.

This is the one name by which the rest of the gateway knows them. Those that create, change and end a session are here;
the others have rooms of their own below: opening, sleeping, and losses, over reach, usage and bindings.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace

from gateway.core.clock import Clock
from gateway.core.errors import SessionNotFoundError
from gateway.core.interfaces import RuntimeCatalog, SandboxProvider
from gateway.core.model import Runtime, RuntimeKey, Sandbox, SandboxEvent, SandboxId, Session, SessionId, SessionState
from gateway.sessions.activation import Opened, Opening, require_runtime
from gateway.sessions.activity import Activity, GapListener
from gateway.sessions.admission import Claims
from gateway.sessions.bindings import Bindings, Unbound
from gateway.sessions.hibernation import Sleeping
from gateway.sessions.idleness import Usage, WorkCheck
from gateway.sessions.membership import ElsewhereError, Peers
from gateway.sessions.ownership import Reach
from gateway.sessions.records import Records
from gateway.sessions.recovery import Losses
from gateway.sessions.transitions import Hibernation, bounded

logger = logging.getLogger(__name__)


class Unset:
    """The type of UNSET: an argument that was not given, where None means something."""


UNSET = Unset()


class Lifecycle:
    """Owns every change of a session's state."""

    def __init__(
        self,
        records: Records,
        peers: Peers,
        provider: SandboxProvider,
        claims: Claims,
        catalog: RuntimeCatalog,
        hibernation: Hibernation,
        activity: Activity,
        clock: Clock,
    ) -> None:
        self._records = records
        self._peers = peers
        self._provider = provider
        self.claims = claims
        self._catalog = catalog
        self._hibernation = hibernation
        self._clock = clock
        self._bindings = bindings = Bindings()
        self._reach = reach = Reach(records, peers, hibernation, clock)
        self._usage = usage = Usage(records, activity, clock, shared_provider=reach.shared_provider)
        self._losses = losses = Losses(records, peers, reach, provider, hibernation, bindings)
        self._sleeping = sleeping = Sleeping(records, reach, usage, provider, catalog, hibernation, bindings)
        self._opening = Opening(
            records,
            reach,
            losses,
            provider,
            claims,
            catalog,
            hibernation,
            bindings,
            clock,
            sleeping.break_off,
        )
        self._end_listeners: list[Callable[[SessionId], None]] = []

    def on_unbound(self, listener: Unbound) -> None:
        """Call `listener(session, sandbox)` as soon as a session stops having that sandbox (None: for good)."""
        self._bindings.on_unbound(listener)

    def on_end(self, listener: Callable[[SessionId], None]) -> None:
        """Call `listener(session)` when this gateway has ended a session."""
        self._end_listeners.append(listener)

    def on_wake(self, listener: GapListener) -> None:
        """Call `listener(session, runtime, seconds)` when a sleeping session is used again, after so long a silence."""
        self._opening.on_wake(listener)

    def ask_before_sleep(self, check: WorkCheck) -> None:
        """Ask `check(sandbox, session)` before an idle session sleeps or ends: is its sandbox at work?"""
        self._usage.ask_before_sleep(check)

    @property
    def shared_provider(self) -> bool:
        """Whether other gateways reach the same sandboxes."""
        return self._reach.shared_provider

    @property
    def bound(self) -> int:
        """Sandboxes that this gateway has bound to sessions."""
        return len(self._bindings)

    @property
    def bound_sessions(self) -> set[SessionId]:
        """Sessions that this gateway gave a sandbox, or found one of."""
        return self._bindings.sessions

    async def start(self) -> None:
        """Make records true after an earlier life: what sandboxes that ended with it left is kept for its session."""
        await self._losses.mend_all()

    async def hibernate_all(self) -> None:
        """Put every session of this gateway to sleep, whatever it does: it is about to end, and its engine with it."""
        await self._sleeping.hibernate_all()

    async def create(
        self,
        runtime_key: RuntimeKey,
        *,
        ttl: float | None = None,
        idle_timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
        tenant: str = "",
    ) -> Opened:
        """A new session with a sandbox.

        `ttl` and `idle_timeout` in seconds; both are bounded by the runtime's maximum duration.
        Raises: RuntimeNotFoundError, QueueFullError at the limit, SandboxStartError, StoreUnavailableError.
        """
        runtime = require_runtime(self._catalog, runtime_key)
        session_id = _new_id()
        sandbox, claim_s = await self.claims.claim(runtime, session_id, bound=self.bound)
        session = self._record(session_id, runtime, ttl, idle_timeout, metadata, tenant)
        session = replace(
            session, state=SessionState.ACTIVE, owner=self._peers.me, sandbox=sandbox, start=sandbox.start
        )
        session = await self._bind(session, sandbox)
        return Opened(session, sandbox, sandbox.start, claim_s=claim_s)

    async def register(self, runtime_key: RuntimeKey, *, metadata: Mapping[str, str] | None = None) -> Session:
        """A new session whose sandbox is claimed when it is first opened: for clients that may never need one.

        Any gateway may open it. Raises: RuntimeNotFoundError, StoreUnavailableError.
        """
        runtime = require_runtime(self._catalog, runtime_key)
        return await self._records.put(self._record(_new_id(), runtime, metadata=metadata))

    async def update(
        self,
        session_id: SessionId,
        *,
        ttl: float | Unset | None = UNSET,
        idle_timeout: float | Unset = UNSET,
        metadata: Mapping[str, str] | None = None,
    ) -> Session:
        """Change what a session was created with. `ttl` counts from now, None: no end but the runtime's own.

        `metadata` replaces what was there. Raises: SessionNotFoundError, StoreUnavailableError.
        """
        async with self._records.holding(session_id):
            session = await self._reach.require(session_id)
            runtime = self._catalog.get(session.runtime)
            longest = runtime.max_session_duration if runtime is not None else float("inf")
            limit = session.limit_at or session.expires_at
            ends_at = session.ends_at
            if not isinstance(ttl, Unset):
                ends_at = None if ttl is None else self._clock.now() + ttl
            timeout = session.idle_timeout if isinstance(idle_timeout, Unset) else min(idle_timeout, longest)
            return await self._records.put(
                replace(
                    session,
                    limit_at=limit,
                    ends_at=ends_at,
                    expires_at=bounded(limit, ends_at),
                    idle_timeout=timeout,
                    metadata=session.metadata if metadata is None else dict(metadata),
                )
            )

    async def open(self, session_id: SessionId, *, gone: SandboxId | None = None) -> Opened:
        """The session with a live sandbox: woken if it sleeps, recovered if its sandbox ended or is `gone`.

        A caller that is cancelled does not stop it: a workspace that is on its way must arrive.
        Raises: SessionNotFoundError, ElsewhereError, OwnerAwayError, and what `create` raises.
        """
        return await self._opening.open(session_id, gone)

    async def hibernate(self, session_id: SessionId, *, only_if: Callable[[Session], bool] | None = None) -> bool:
        """Put a session to sleep. Requests that come from now on wake it, or stop this while it can be stopped.

        `only_if` is asked of the fresh record; False leaves it awake. Returns whether it sleeps now.
        Raises: SessionNotFoundError, ElsewhereError, ConflictError while requests are under way or when it has nothing
        to keep, SnapshotError when its workspace cannot be kept: it then stays awake, and its record says why.
        """
        return await self._sleeping.hibernate(session_id, only_if)

    async def checkpoint(self, session_id: SessionId) -> bool:
        """Keep a copy of an active session's workspace, for the case that its sandbox is lost. Returns whether it was.

        Raises: SessionNotFoundError, SnapshotError, StoreUnavailableError.
        """
        return await self._sleeping.checkpoint(session_id)

    async def get(self, session_id: SessionId) -> Session:
        """The record, with this gateway's fresher knowledge of its activity. Raises SessionNotFoundError."""
        session = await self._records.get(session_id)
        if session is None:
            raise SessionNotFoundError(f'sessions.agentcube.volcano.sh "{session_id}" not found')
        return replace(session, last_active_at=self._usage.last_used(session, self._clock.now()))

    async def get_cached(self, session_id: SessionId) -> Session:
        """The record as it was a moment ago, for what never changes in it. Raises SessionNotFoundError."""
        session = await self._records.peek(session_id)
        if session is None:
            raise SessionNotFoundError(f'sessions.agentcube.volcano.sh "{session_id}" not found')
        return session

    async def terminate(
        self, session_id: SessionId, reason: str, *, only_if: Callable[[Session], bool] | None = None
    ) -> bool:
        """End a session and delete its sandbox. `only_if` is asked of the fresh record. Returns whether it ended now.

        Raises: SessionNotFoundError if it is unknown or ended already, ElsewhereError.
        """
        async with self._records.holding(session_id):
            session = await self._records.get(session_id)
            if only_if is not None and (
                session is None or session.state is SessionState.TERMINATED or not only_if(session)
            ):
                return False
            session = session if only_if is not None and session is not None else await self._reach.require(session_id)
            if not self._reach.is_mine(session):
                peer = await self._peers.find(session.owner)
                if peer.alive:
                    raise ElsewhereError(peer)
            await self._terminate(session, reason)
            return True

    async def sandbox_ended(self, event: SandboxEvent) -> None:
        """A sandbox ended on its own: say so in the record at once. The next request recovers the session."""
        await self._losses.sandbox_ended(event)

    async def flush_activity(self) -> None:
        """Write buffered activity to the store in one batch; what it does not take is tried again next time."""
        await self._usage.flush()

    async def reclaim(self) -> None:
        """This gateway had been silent for long enough to be taken for dead: drop what others took over meanwhile."""
        await self._losses.reclaim()

    async def forget_ended(self) -> None:
        """Stop counting sandboxes that another gateway, which reaches them too, has ended."""
        await self._losses.forget_ended()

    def is_idle(self, session: Session) -> bool:
        """Whether its idle timeout is over, by the record and by what this gateway saw since."""
        return self._usage.is_idle(session)

    async def at_work(self, session: Session) -> bool:
        """Whether something runs in its sandbox that no request waits for. Then it counts as used now."""
        return await self._usage.at_work(session)

    def _record(
        self,
        session_id: SessionId,
        runtime: Runtime,
        ttl: float | None = None,
        idle_timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
        tenant: str = "",
    ) -> Session:
        """Of a session that begins now, without a sandbox yet."""
        now = self._clock.now()
        longest = runtime.max_session_duration
        return Session(
            id=session_id,
            runtime=runtime.key,
            state=SessionState.CREATING,
            created_at=now,
            last_active_at=now,
            expires_at=now + (longest if ttl is None else min(ttl, longest)),
            limit_at=now + longest,
            ends_at=None if ttl is None else now + ttl,
            idle_timeout=min(idle_timeout or runtime.session_timeout, longest),
            tenant=tenant,
            metadata=dict(metadata or {}),
        )

    async def _terminate(self, session: Session, reason: str) -> None:
        # Routes go first: a request that comes now waits for the lock and then sees the truth.
        self._bindings.tell_unbound(session.id, None)
        # The record is kept for a while from its last moment, which is now: else that of a session that had slept for
        # longer would be forgotten in the sweep that ended it, and nobody could see why it ended.
        now = self._clock.now()
        ended = replace(session, state=SessionState.TERMINATED, reason=reason, sandbox=None, last_active_at=now)
        await self._records.put(ended)
        if session.sandbox is not None:
            self._bindings.remove(session.sandbox.id)
            await self._provider.release(session.sandbox.id)
        await self._hibernation.forget(session)
        for listener in self._end_listeners:
            listener(session.id)
        logger.info("session %s ended: %s", session.id, reason)

    async def _bind(self, session: Session, sandbox: Sandbox) -> Session:
        """Write the record that names the sandbox; if that fails the sandbox is nobody's and goes away."""
        self._bindings.add(sandbox.id, session.id)
        try:
            return await self._records.put(session)
        except BaseException:
            self._bindings.remove(sandbox.id)
            await asyncio.shield(self._provider.release(sandbox.id))
            raise


def _new_id() -> SessionId:
    return SessionId(str(uuid.uuid4()))
