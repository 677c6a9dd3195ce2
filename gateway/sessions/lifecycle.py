"""A session's record from its creation to its end: create, register, wake, update, read, terminate.

Each operation orders its writes to the store and its calls to the provider so that a record is true at every moment: it
names a sandbox only once that is bound, and a sandbox is deleted only once no record names it. Operations on one
session are serialised by a lock and a lease (gateway/sessions/records.py); between gateways, the version that a record
was read with decides which of two writes wins.

The other operations are separate classes that callers are given directly (docs/adr/0007-parts-of-sessions.md):
`SessionOpener` (activation.py), `Hibernator` (hibernation.py) and `Recovery` (recovery.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from gateway.core.background import Tasks
from gateway.core.clock import Clock
from gateway.core.errors import RuntimeNotFoundError, SessionNotFoundError, StoreUnavailableError, WakegateError
from gateway.core.identity import current
from gateway.core.interfaces import RuntimeCatalog, SandboxProvider
from gateway.core.model import (
    PRIVATE_METADATA,
    REUSABLE_UNTIL,
    RuntimeKey,
    Session,
    SessionId,
    SessionState,
    StartKind,
)
from gateway.egress.rule_entries import Entry
from gateway.sessions.activation import Opened, SessionOpener
from gateway.sessions.admission import Admission
from gateway.sessions.bindings import Bindings
from gateway.sessions.first_sandbox import FirstSandbox
from gateway.sessions.idleness import IdleTracker
from gateway.sessions.membership import ElsewhereError
from gateway.sessions.new_session import check_egress, check_public_ports, new_id, new_record, require_creation
from gateway.sessions.ownership import Ownership
from gateway.sessions.quotas import Quotas
from gateway.sessions.records import Records, unknown_session
from gateway.sessions.refusals import Wish
from gateway.sessions.runtime_choice import choose_runtime
from gateway.sessions.transitions import Transitions, bounded

logger = logging.getLogger(__name__)

MAX_UNCLAIMED = 10_000  # the idle timeout ends those beyond it
UNCLAIMED = "its client disconnected before it had the session's id"  # `reason` of a session that no client can name


class Unset:
    """The type of UNSET, the default of an argument for which None has a meaning."""


UNSET = Unset()


class Lifecycle:
    """Creates sessions, reads and changes their records, and ends them."""

    def __init__(
        self,
        *,
        records: Records,
        ownership: Ownership,
        provider: SandboxProvider,
        admission: Admission,
        catalog: RuntimeCatalog,
        transitions: Transitions,
        bindings: Bindings,
        idleness: IdleTracker,
        opener: SessionOpener,
        quotas: Quotas,
        clock: Clock,
    ) -> None:
        self._records = records
        self._ownership = ownership
        self._provider = provider
        self._admission = admission
        self._catalog = catalog
        self._transitions = transitions
        self._bindings = bindings
        self._idleness = idleness
        self._opener = opener
        self._quotas = quotas
        self._clock = clock
        self._first_sandbox = FirstSandbox(records, provider, admission, bindings, quotas)
        self._bindings_under_way = Tasks()
        self._end_listeners: list[Callable[[SessionId], None]] = []
        self._unclaimed: set[SessionId] = set()  # whose id no client has, and which could not be ended yet

    def on_end(self, listener: Callable[[SessionId], None]) -> None:
        """Call `listener(session)` after this gateway has ended a session."""
        self._end_listeners.append(listener)

    async def create(
        self,
        runtime_key: RuntimeKey,
        *,
        ttl: float | None = None,
        idle_timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
        egress: Sequence[Entry] | None = None,
        public_ports: Sequence[int] = (),
    ) -> Opened:
        """Create a session of the current caller's with a sandbox, claimed within the hold rule.

        Cancelling it leaves no session behind.

        `ttl` and `idle_timeout` in seconds; both are bounded by the runtime's maximum duration. `egress`: what it may
        reach, no more than its runtime's sessions may. `public_ports`: that anybody may reach, where its runtime allows
        that.
        Raises: BadRequestError for that, RuntimeNotFoundError, LimitError, QueueFullError at the gateway's limit,
        ActivationTimeoutError, SandboxStartError, StoreUnavailableError.
        """
        runtime = choose_runtime(self._catalog, runtime_key)
        require_creation(runtime.skill_of or runtime_key)
        if egress is not None:
            check_egress(runtime, egress)
        allowed = self._quotas.limits(current().tenant).public_ports is not False
        check_public_ports(runtime, public_ports, allowed=allowed)
        session_id = new_id()
        try:
            sandbox, claim_s = await self._first_sandbox.claim(runtime, session_id, ttl)
        except RuntimeNotFoundError:
            # An agent's revision that was rolled back while this waited for its sandbox: another one serves now.
            before, runtime = runtime.key, choose_runtime(self._catalog, runtime_key)
            if runtime.key == before:
                raise
            sandbox, claim_s = await self._first_sandbox.claim(runtime, session_id, ttl)
        session = new_record(
            session_id,
            runtime,
            now=self._clock.now(),
            longest=self._quotas.longest(current().tenant, runtime),
            ttl=ttl,
            idle_timeout=idle_timeout,
            metadata=metadata,
            egress=egress,
            public_ports=public_ports,
        )
        session = replace(
            session, state=SessionState.ACTIVE, owner=self._ownership.me, sandbox=sandbox, start=sandbox.start
        )
        # In a separate task, because a write that is cancelled may have reached the store or not. So it always runs to
        # its end, and if the caller was cancelled meanwhile, the session is ended again.
        binding = self._bindings_under_way.spawn(self._first_sandbox.bind(session, sandbox))
        try:
            session = await asyncio.shield(binding)
        except asyncio.CancelledError:
            binding.add_done_callback(self._end_unclaimed)
            raise
        except StoreUnavailableError:
            self._note_unclaimed(session.id)  # its record may have been written all the same
            raise
        return Opened(session, sandbox, sandbox.start, claim_s=claim_s)

    async def quota_fields(self) -> dict[str, str]:
        """RateLimit-* of an answer to a create of the current caller's; empty where no quota applies."""
        return await self._quotas.tightest(current().tenant)

    async def register(
        self,
        runtime_key: RuntimeKey,
        *,
        metadata: Mapping[str, str] | None = None,
        session_id: SessionId | None = None,
        ttl: float | None = None,
        reusable_until: float = 0.0,
    ) -> Session:
        """Create a session that claims a sandbox when it is first opened, for clients that may never need one.

        It has no owner, so any gateway may open it. `session_id`: its id, if it was given out before; a session that
        has it already is returned. `ttl` as in `create`. `reusable_until` in epoch seconds: see REUSABLE_UNTIL of
        core/model.
        Raises: RuntimeNotFoundError, SessionNotFoundError if the id is another caller's, LimitError,
        StoreUnavailableError.
        """
        runtime = choose_runtime(self._catalog, runtime_key)
        require_creation(runtime.skill_of or runtime_key)
        longest = self._quotas.longest(current().tenant, runtime)
        session = new_record(
            session_id or new_id(), runtime, now=self._clock.now(), longest=longest, ttl=ttl, metadata=metadata
        )
        if reusable_until:
            session = replace(session, metadata={**session.metadata, REUSABLE_UNTIL: str(reusable_until)})
        async with self._records.holding(session.id):
            if session_id is not None and (known := await self._records.store.get(session_id)) is not None:
                if not current().sees(known):
                    raise unknown_session(session_id)
                return known
            if session_id is not None:
                await self._records.require_complete()  # its gateway may be about to write it again
            await self._quotas.admit(session.tenant, runtime, None, Wish.REGISTER)
            await self._quotas.reserve_session(session.tenant, session.id, runtime)
            return await self._records.put(session)

    async def update(
        self,
        session_id: SessionId,
        *,
        ttl: float | Unset | None = UNSET,
        idle_timeout: float | Unset = UNSET,
        metadata: Mapping[str, str] | None = None,
    ) -> Session:
        """Change what a session was created with. `ttl` counts from now; None: it ends by the runtime's maximum alone.

        `metadata` replaces the present metadata. Raises: SessionNotFoundError, StoreUnavailableError.
        """
        async with self._records.holding(session_id):
            session = await self._ownership.require(session_id)
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
                    metadata=session.metadata if metadata is None else {**_private(session), **metadata},
                )
            )

    async def wake(self, session_id: SessionId) -> Opened:
        """Give the session a live sandbox, within the hold rule. Raises what SessionOpener.open and that rule raise."""
        async with self._admission.held((await self.get_cached(session_id)).runtime, session_id):
            opened = await self._opener.open(session_id)
        if opened.start is not StartKind.LIVE:
            return opened
        # Opening a live session writes no record, but its client is about to use it: restart its idle timeout.
        now = self._clock.now()
        await self._records.store.touch_many({session_id: now})
        return replace(opened, session=replace(opened.session, last_active_at=now))

    async def get(self, session_id: SessionId) -> Session:
        """The record, with this gateway's activity that is not written yet. Raises SessionNotFoundError."""
        session = await self._records.get(session_id)
        if session is None:
            await self._records.require_complete()
            raise unknown_session(session_id)
        return replace(session, last_active_at=self._idleness.last_used(session, self._clock.now()))

    async def exists(self, session_id: SessionId) -> bool:
        """Whether the current caller has a session with this id, or had one that ended not long ago."""
        return await self._records.get(session_id) is not None

    async def get_here(self, session_id: SessionId) -> Session:
        """The record of a session, unless another gateway has it. Raises SessionNotFoundError, ElsewhereError."""
        session = await self.get(session_id)
        await self._ownership.require_no_live_owner(session)
        return session

    async def get_cached(self, session_id: SessionId) -> Session:
        """The cached record, for its fields that never change. Raises SessionNotFoundError."""
        session = await self._records.peek(session_id)
        if session is None:
            await self._records.require_complete()
            raise unknown_session(session_id)
        return session

    async def acknowledge_restored(self, session_id: SessionId, restored: str) -> None:
        """Clear `restored` after an answer with that x-wakegate-restored was delivered.

        Raises StaleWriteError, FencedOutError, StoreUnavailableError; the next answer then carries the header again.
        """
        async with self._records.holding(session_id):
            session = await self._records.get(session_id)
            if session is not None and session.restored == restored:
                await self._records.put(replace(session, restored=None))

    async def terminate(
        self, session_id: SessionId, reason: str, *, only_if: Callable[[Session], bool] | None = None
    ) -> bool:
        """End a session and delete its sandbox. Returns whether this call ended it.

        `only_if` is evaluated on the record read under the lock: it may have changed since the caller read it.
        Raises: SessionNotFoundError if it is unknown or has already ended, ElsewhereError.
        """
        if only_if is None:
            await self._ownership.settle(session_id)
        async with self._records.holding(session_id):
            session = await self._records.get(session_id)
            if only_if is None:
                session = await self._ownership.require(session_id)
            elif session is None or session.state is SessionState.TERMINATED or not only_if(session):
                return False
            await self._ownership.require_no_live_owner(session)
            await self._terminate(session, reason)
            return True

    async def _terminate(self, session: Session, reason: str) -> None:
        # Routes are closed first: a request that comes now waits for the lock and then reads the new record.
        self._bindings.notify_unbound(session.id, None)
        # The retention of a terminated record counts from `last_active_at`. Left as it is, the record of a session that
        # was hibernated for two hours would be deleted in the sweep that ends it, and nobody could see why it ended.
        now = self._clock.now()
        had = None if session.sandbox is None else session.sandbox.id
        ended = replace(
            session, state=SessionState.TERMINATED, reason=reason, sandbox=None, last_sandbox=had, last_active_at=now
        )
        await self._records.put(ended)
        if session.sandbox is not None:
            self._bindings.remove(session.sandbox.id)
            await self._provider.release(session.sandbox.id)
        await self._transitions.delete_kept(session)
        for listener in self._end_listeners:
            listener(session.id)
        self._records.tell("session.ended", ended, reason=reason)
        logger.info("session %s ended: %s", session.id, reason)

    async def end_unclaimed(self, session_id: SessionId) -> None:
        """End a new session whose client left before it received the id, so that no request can ever name it."""
        try:
            await self.terminate(session_id, UNCLAIMED)
        except SessionNotFoundError:
            pass
        except WakegateError as error:
            logger.warning("session %s, whose id no client has, could not be ended yet: %s", session_id, error)
            self._note_unclaimed(session_id)

    async def end_unclaimed_again(self) -> None:
        """End sessions that no client can name and that could not be ended before. Raises StoreUnavailableError."""
        for session_id in list(self._unclaimed):
            with contextlib.suppress(SessionNotFoundError, ElsewhereError):
                await self.terminate(session_id, UNCLAIMED)
            self._unclaimed.discard(session_id)

    def _note_unclaimed(self, session_id: SessionId) -> None:
        if len(self._unclaimed) < MAX_UNCLAIMED:
            self._unclaimed.add(session_id)

    async def aclose(self) -> None:
        """Wait for sessions that are being created, or being ended because their client has left."""
        await self._bindings_under_way.wait()

    def _end_unclaimed(self, binding: asyncio.Task[Session]) -> None:
        if not binding.cancelled() and binding.exception() is None:
            self._bindings_under_way.spawn(self.end_unclaimed(binding.result().id))


def _private(session: Session) -> dict[str, str]:
    """The metadata that no client sets, and so none replaces."""
    return {name: value for name, value in session.metadata.items() if name.startswith(PRIVATE_METADATA)}
