"""Handles sandboxes that ended on their own, and sessions that another gateway took over.

They are found at the start, by an event of the engine, by a request, or by comparing bindings with records. What is
left of the workspace is written into the record at once; the next request gives the session a new sandbox
(gateway/sessions/activation.py).
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace

from gateway.core.errors import SnapshotStoreFullError, SnapshotStoreUnavailableError, StaleWriteError, WakegateError
from gateway.core.interfaces import SandboxProvider
from gateway.core.model import SandboxEvent, SandboxId, Session, SessionId, SessionState, is_snapshot
from gateway.sessions.bindings import Bindings
from gateway.sessions.ownership import Ownership
from gateway.sessions.records import Records
from gateway.sessions.transitions import Transitions

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Loss:
    """A sandbox that ended on its own, and the session that had it. `counted`: the engine has been told of the loss."""

    event: SandboxEvent
    session_id: SessionId
    counted: bool = False


class Recovery:
    """Brings records and bindings in line with the sandboxes that exist.

    `salvage` must be called while the session is held; the other methods hold it themselves.
    """

    def __init__(
        self,
        *,
        records: Records,
        ownership: Ownership,
        provider: SandboxProvider,
        transitions: Transitions,
        bindings: Bindings,
        on_loss: Callable[[SandboxEvent], None] | None = None,
    ) -> None:
        """`on_loss` is called for each sandbox that ended although its session had not been ended or hibernated."""
        self._records = records
        self._ownership = ownership
        self._provider = provider
        self._transitions = transitions
        self._bindings = bindings
        self._on_loss = on_loss

    async def recover_all(self) -> None:
        """Correct the records that an earlier process left; called once, at the start.

        Workspaces that no record names are set aside afterwards, and deleted after the retention. Those of sessions
        that their users ended are deleted now: a gateway that was killed after it had written that has left them.
        """
        for state in (SessionState.ACTIVE, SessionState.HIBERNATING, SessionState.WAKING, SessionState.TERMINATED):
            async for session in self._in_state(state):
                if not self._ownership.owns(session):
                    continue
                if state is SessionState.TERMINATED:
                    await self._finish_end(session)
                elif session.sandbox is not None:
                    await self._recover(session, session.sandbox.id)
        await self._transitions.retain_abandoned()

    async def _in_state(self, state: SessionState) -> AsyncIterator[Session]:
        after: SessionId | None = None
        while True:
            page = [s async for s in self._records.store.sessions(state=state, after=after, limit=500)]
            for session in page:
                yield session
            if len(page) < 500:
                return
            after = page[-1].id

    async def _finish_end(self, session: Session) -> None:
        """Delete what is left of an ended session on this gateway. A snapshot is deleted when its record is."""
        if session.last_sandbox is not None:
            await self._provider.release(session.last_sandbox)
        if not is_snapshot(session.snapshot):
            await self._transitions.delete_kept(session)

    async def _recover(self, listed: Session, sandbox_id: SandboxId) -> None:
        """Bind the sandbox again if it still runs, or keep what is left of its workspace."""
        if await self._provider.find(sandbox_id) is not None:
            self._bindings.add(sandbox_id, listed)
            return
        async with self._records.holding(listed.id):
            session = await self._records.get(listed.id)
            if session is not None and session.sandbox is not None and session.sandbox.id == sandbox_id:
                try:
                    await self.salvage(session, "its sandbox ended with the gateway, or while no gateway ran")
                except (SnapshotStoreFullError, SnapshotStoreUnavailableError) as error:
                    # The next request on it tries again; other sessions can be used meanwhile.
                    logger.error("session %s cannot be recovered yet: %s", session.id, error)

    async def finish(self, session_id: SessionId) -> None:
        """Take a session on which an operation was broken off to a state that the sweeps know.

        Without a request it would stay between two states: neither idle, so that it keeps its sandbox, nor hibernated.
        Raises what `salvage` raises.
        """
        async with self._records.holding(session_id):
            session = await self._records.get(session_id)
            if session is None or session.sandbox is None or not self._ownership.is_mine(session):
                return
            if await self._provider.find(session.sandbox.id) is None or session.state is SessionState.WAKING:
                await self.salvage(session, "")
            elif session.state is SessionState.HIBERNATING:
                await self._transitions.cancel(session)

    def unbind(self, event: SandboxEvent) -> Loss | None:
        """Close the routes to a sandbox that ended on its own. None: it was no session's."""
        session_id = self._bindings.remove(event.sandbox_id) or event.session_id
        if session_id is None:
            return None
        self._bindings.notify_unbound(session_id, event.sandbox_id)
        return Loss(event, session_id)

    async def settle(self, loss: Loss) -> None:
        """Record that the sandbox ended, and keep what is left of its workspace. Called again if it raises.

        The sandbox is released last, and with it its files are deleted: until its record names what is kept of them,
        they are all that there is. Raises WakegateError.
        """
        event, session_id = loss.event, loss.session_id
        async with self._records.holding(session_id):
            session = await self._records.get(session_id)
            if not loss.counted and self._on_loss is not None and _is_loss(session, event.sandbox_id):
                self._on_loss(event)
            loss.counted = True
            if session is None:
                await self._keep_unrecorded(event.sandbox_id, session_id)
            elif session.sandbox is not None and session.sandbox.id == event.sandbox_id:
                await self.salvage(session, event.reason)
        await self._provider.release(event.sandbox_id)

    async def _keep_unrecorded(self, sandbox_id: SandboxId, session_id: SessionId) -> None:
        """Keep the workspace of a session without a record: the store may have lost it and get it back."""
        try:
            reference = await self._transitions.keep_unrecorded(sandbox_id, session_id)
        except (SnapshotStoreFullError, SnapshotStoreUnavailableError):
            raise
        except WakegateError as error:
            logger.error("session %s has no record, and its workspace cannot be kept: %s", session_id, error)
            return
        if reference is not None:
            logger.error("session %s has no record; its workspace is kept as %s", session_id, reference)

    async def salvage(self, session: Session, reason: str) -> Session:
        """Keep what is left after the sandbox ended, and return the new record. Called while the session is held."""
        if session.sandbox is not None:
            self._bindings.remove(session.sandbox.id)
            try:
                salvaged = await self._transitions.salvage(session, reason, reachable=self._ownership.is_mine(session))
            except StaleWriteError:
                salvaged = await self._ownership.require(session.id)  # another gateway already recorded it
        else:
            salvaged = await self._records.put(replace(session, state=SessionState.LOST, reason=reason))
        event = "session.hibernated" if salvaged.state is SessionState.HIBERNATED else "session.lost"
        self._records.tell(event, salvaged, reason=reason or "its sandbox is gone")
        logger.warning("session %s lost its sandbox: %s; it is %s", session.id, reason or "unknown", salvaged.state)
        return salvaged

    async def release_taken_over(self) -> None:
        """Release sandboxes whose sessions others took over because this gateway's announcement had expired."""
        for sandbox_id, session_id in self._bindings.all():
            session = await self._records.get(session_id)
            if session is None:
                continue  # the store may have lost it, which does not prove a takeover (gateway/sessions/orphans.py)
            if session.sandbox is None or session.sandbox.id != sandbox_id:
                logger.warning("session %s was taken over by another gateway; releasing its sandbox here", session_id)
                self._bindings.notify_unbound(session_id, None)
                self._bindings.remove(sandbox_id)
                await self._provider.release(sandbox_id)

    async def forget_ended(self) -> None:
        """Drop bindings of sandboxes that another gateway of the same engine has ended."""
        if self._ownership.shared_provider:
            for sandbox_id, _ in self._bindings.all():
                if await self._provider.find(sandbox_id) is None:
                    self._bindings.remove(sandbox_id)


def _is_loss(session: Session | None, sandbox_id: SandboxId) -> bool:
    """Whether a sandbox that ended was still needed."""
    # LOST: another gateway, which was notified of the same end, has written it already.
    if session is None or session.state is SessionState.LOST:
        return True
    return session.sandbox is not None and session.sandbox.id == sandbox_id
