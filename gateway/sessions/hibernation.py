"""Hibernates sessions: checks whether it may, takes the steps of gateway/sessions/transitions.py, handles failures.

Called for one session by users, for idle ones by the sweeper, and for all of them when the gateway shuts down. A move
of a workspace (parking) must run to its end. A copy (snapshot) leaves the sandbox running, so a request that comes
meanwhile cancels the copy and is served.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace

from gateway.core.errors import ConflictError, LimitError, SnapshotError, StaleWriteError, WakegateError
from gateway.core.interfaces import RuntimeCatalog, SandboxProvider
from gateway.core.model import HibernationMode, RuntimeKey, Sandbox, Session, SessionId, SessionState
from gateway.sessions.bindings import Bindings
from gateway.sessions.idleness import IdleTracker
from gateway.sessions.ownership import Ownership
from gateway.sessions.quotas import Quotas
from gateway.sessions.records import Records
from gateway.sessions.transitions import Transitions

logger = logging.getLogger(__name__)

END_TIMEOUT_S = 40.0  # with the two below and the drain (30 s) under 90 s, after which systemd sends SIGKILL
CANCEL_TIMEOUT_S = 6.0  # of a copy: longer than a snapshot store takes to discard one that was not finished
PARK_TIMEOUT_S = 5.0
_ASLEEP = (SessionState.HIBERNATED, SessionState.LOST)
END_CONCURRENCY = 32  # copies into an object store hold up to 32 MB each


class Hibernator:
    """Hibernates sessions and takes checkpoints. Its state: the copies under way, which a request may cancel."""

    def __init__(
        self,
        *,
        records: Records,
        ownership: Ownership,
        idleness: IdleTracker,
        provider: SandboxProvider,
        catalog: RuntimeCatalog,
        transitions: Transitions,
        bindings: Bindings,
        quotas: Quotas,
    ) -> None:
        self._records = records
        self._ownership = ownership
        self._idleness = idleness
        self._provider = provider
        self._catalog = catalog
        self._transitions = transitions
        self._bindings = bindings
        self._quotas = quotas
        self._keeping: dict[SessionId, asyncio.Task[tuple[Session, str | None]]] = {}
        self._moving: set[SessionId] = set()  # `keep` has begun; a move must not be cancelled from here on

    async def hibernate(
        self,
        session_id: SessionId,
        *,
        only_if: Callable[[Session], bool] | None = None,
        why: str = "",
        discard: bool = False,
    ) -> bool:
        """Keep a session's workspace and release its sandbox. Returns whether the session is hibernated now.

        With `discard` nothing is kept: the session is lost, and its next request gets a new sandbox.

        `only_if` is evaluated on the record read under the lock; if it is False the session stays active. Without it
        a user asked, and gets an error instead.
        Raises: SessionNotFoundError, ElsewhereError, ConflictError while requests are under way or when the session is
        not active, LimitError when its tenant may not keep it, SnapshotError when its workspace cannot be kept: it then
        stays active, and its record says why.
        """
        async with self._ownership.holding(session_id) as session:
            if session.state is SessionState.HIBERNATED:
                return True
            if session.state is not SessionState.ACTIVE or session.sandbox is None:
                raise ConflictError(f"session {session_id} is {session.state}; only an active one can be hibernated")
            if only_if is not None and (not only_if(session) or await self._idleness.has_background_work(session)):
                return False
            # The record is written before the activity is read, the other way round than a gateway that opens the
            # session (SessionOpener._open_live): one of the two sees the other.
            await self._quotas.reserve_hibernation(session, copies=self._transitions.leaves_running)
            session = await self._transitions.begin(session)
            busy = (only_if is None and await self._idleness.busy_elsewhere(session)) or self._idleness.busy(session_id)
            if busy or (only_if is not None and not only_if(session)):
                await self._transitions.cancel(session)
                if only_if is not None:
                    return False
                raise ConflictError(f"session {session_id} has requests under way; try again when they are done")
            if discard:
                assert session.sandbox is not None
                self._bindings.notify_unbound(session.id, None)
                return await self._release(session, None, session.sandbox, why)
            return await self._keep_and_release(session, why)

    async def move(self, session_id: SessionId, to: RuntimeKey, *, discard: bool = False) -> None:
        """Hibernate a session, and have it wake as one of another runtime, with the workspace that it has.

        With `discard`, for an engine that cannot keep it: with an empty one.
        A crash in between leaves a hibernated session of the runtime that it had. Raises as `hibernate`, and
        ConflictError where a request came first.
        """
        session = await self._ownership.require(session_id)
        if session.state not in _ASLEEP:
            kept = await self.hibernate(session_id, why=f"it moves to {to}", discard=discard)
            if not kept and not discard:
                raise ConflictError(f"session {session_id} is in use, or nothing of it could be kept; try again")
        async with self._ownership.holding(session_id) as session:
            if session.state not in _ASLEEP:
                raise ConflictError(f"session {session_id} was woken by a request meanwhile; try again")
            await self._records.put(replace(session, runtime=to))

    async def hibernate_all(self, timeout: float = END_TIMEOUT_S) -> None:
        """Hibernate all sessions bound here, even busy ones, because the gateway shuts down.

        What could not be copied after `timeout` seconds is parked: only this gateway's next start has it then. Left as
        it is, its record would name a dead gateway, and another one would take the session back to its last snapshot.
        """
        if self._ownership.shared_provider:
            return  # the sandboxes run on, and other gateways reach them
        slots = asyncio.Semaphore(END_CONCURRENCY)

        async def one(session_id: SessionId) -> None:
            async with slots:
                await self._hibernate_one(session_id)

        tasks = {asyncio.create_task(one(session_id)): session_id for session_id in self._bindings.sessions}
        if not tasks:
            return
        done, late = await asyncio.wait(tasks, timeout=timeout)
        # Cancelled before they are parked: a copy that goes on would hold the session that is to be parked.
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late)
        failures = {tasks[task]: str(error) for task in done if (error := task.exception()) is not None}
        failures |= {tasks[task]: f"it was not hibernated within {timeout:g} s" for task in late}
        await asyncio.gather(*(self._park(session_id, why) for session_id, why in failures.items()))

    async def _hibernate_one(self, session_id: SessionId) -> None:
        async with self._records.holding(session_id):
            session = await self._awake_here(session_id)
            if session is None:
                return
            if session.state is SessionState.ACTIVE:
                session = await self._transitions.begin(session)
            await self._keep_and_release(session, "its gateway ends")

    async def _awake_here(self, session_id: SessionId) -> Session | None:
        """The record if the session has its sandbox here, also where an earlier hibernation was broken off.

        Another gateway may have taken it over: its record is not this one's to write.
        """
        session = await self._records.get(session_id)
        if session is None or session.state not in (SessionState.ACTIVE, SessionState.HIBERNATING):
            return None
        here = session.sandbox is not None and session.sandbox.id in self._bindings
        return session if here and self._ownership.owns(session) else None

    async def _park(self, session_id: SessionId, why: str) -> None:
        """The gateway ends without a copy of this session: keep its workspace here, have the record say so, and log it.

        Whatever fails, the engine leaves the workspace in the state directory.
        """
        try:
            async with asyncio.timeout(PARK_TIMEOUT_S), self._records.holding(session_id):
                session = await self._awake_here(session_id)
                if session is None:
                    return
                # Whether picod came to write out what is in memory is not known here: it may look.
                session = replace(session, suspended=session.suspended or self._keeps_state(session))
                parked = await self._transitions.park(session, f"{why}; its workspace stayed with its gateway")
                if parked is not None:
                    self._records.tell("session.hibernated", parked, reason=parked.reason)
        except (WakegateError, TimeoutError) as error:
            parked = None
            why += f"; nor could its workspace be parked: {error!r}"
        logger.warning(
            "session %s is not hibernated as this gateway ends: %s; the next start with this state directory finds its "
            "workspace%s", session_id, why,
            ", and other gateways do not wake it before" if parked is not None else "",
        )  # fmt: skip

    def _keeps_state(self, session: Session) -> bool:
        runtime = self._catalog.get(session.runtime)
        return runtime is not None and runtime.hibernation is HibernationMode.STATE

    async def checkpoint(self, session_id: SessionId) -> bool:
        """Copy an active session's workspace, in case its sandbox is lost. Returns whether the session has a copy.

        Raises: SessionNotFoundError, SnapshotError, StoreUnavailableError.
        """
        async with self._records.holding(session_id):
            session = await self._ownership.require(session_id)
            if session.state is not SessionState.ACTIVE or not self._ownership.is_mine(session):
                return False
            return (await self._transitions.checkpoint(session)).snapshot is not None

    def cancel_copy(self, session_id: SessionId) -> None:
        """Stop a hibernation that is copying, because a request came: the session stays active. A move goes on."""
        if (keeping := self._keeping.get(session_id)) is not None:
            keeping.cancel()

    async def _keep_and_release(self, session: Session, why: str) -> bool:
        """Take a session from `hibernating` to `hibernated`. Returns False if a request stopped it.

        Callers must not await between their last check of its activity and this call, or a request could slip in.
        """
        self._bindings.notify_unbound(session.id, None)
        sandbox = session.sandbox
        assert sandbox is not None
        keeping = asyncio.create_task(self._keep(session))
        if self._transitions.leaves_running:
            self._keeping[session.id] = keeping
        try:
            session, reference = await asyncio.shield(keeping)
        except asyncio.CancelledError:
            if not keeping.cancelled():
                # This task was cancelled, not the copy. `suspend` and a copy are cancelled too: a hostile sandbox may
                # never finish them. A move must end while the session is held, or a half of the workspace could be
                # restored. The next open finds the record `hibernating` and continues from there.
                if self._transitions.leaves_running or session.id not in self._moving:
                    keeping.cancel()
                    # Not for ever: a store on a network file system that is away ends no call.
                    await asyncio.wait([keeping], timeout=CANCEL_TIMEOUT_S)
                else:
                    await asyncio.wait([keeping])
                raise
            await self._transitions.cancel(session)
            return False
        except WakegateError as error:
            if await self._provider.find(sandbox.id) is not None:  # it still runs, with its whole workspace
                reason = error.reason if isinstance(error, SnapshotError) else f"cannot be hibernated: {error}"
                await self._transitions.cancel(session, reason)
            raise
        finally:
            self._keeping.pop(session.id, None)
        await self._require_stored(session, reference)
        return await self._release(session, reference, sandbox, why)

    async def _release(self, session: Session, reference: str | None, sandbox: Sandbox, why: str) -> bool:
        """End the sandbox of a session whose workspace was kept, once the record says so. Whether it is hibernated.

        False also for a session that is lost, as nothing was left to keep, and where a request on another gateway came
        first.
        """
        try:
            session = await self._transitions.hibernated(session, reference, "" if reference else why)
        except StaleWriteError:
            if reference is not None and self._transitions.leaves_running:
                # A request on another gateway wrote `active` meanwhile: the session stays awake, the copy is stale.
                await self._transitions.delete_snapshot(reference)
                return False
            raise
        # Last: until the record said `hibernated`, it named this sandbox.
        self._bindings.remove(sandbox.id)
        await self._provider.release(sandbox.id)
        logger.info("session %s hibernated", session.id)
        is_hibernated = session.state is SessionState.HIBERNATED
        self._records.tell(
            "session.hibernated" if is_hibernated else "session.lost", session, reason=session.reason or why
        )
        return is_hibernated

    async def _require_stored(self, session: Session, reference: str | None) -> None:
        """Delete a snapshot that exceeds its tenant's quota, and let the session stay awake: raises LimitError.

        Also one of which the quota cannot be asked: no record names it.
        """
        try:
            await self._quotas.reserve_stored(session, reference)
        except WakegateError as error:
            await self._transitions.delete_snapshot(reference or "")
            if isinstance(error, LimitError):
                await self._transitions.cancel(session, f"cannot hibernate: {error}")
            raise

    async def _keep(self, session: Session) -> tuple[Session, str | None]:
        if self._keeps_state(session):
            session = await self._transitions.suspend(session)
        self._moving.add(session.id)
        try:
            return session, await self._transitions.keep(session)
        finally:
            self._moving.discard(session.id)
