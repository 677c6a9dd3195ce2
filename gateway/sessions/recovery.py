"""What becomes of a session whose sandbox ended, or went to another gateway, without a verb of this one.

It is found at the start, by an event of the engine, by a request that comes, or by a look at all of them. What is left
is written into the record at once; the next request recovers the session (gateway/sessions/activation.py).
"""

from __future__ import annotations

import logging
from dataclasses import replace

from gateway.core.errors import StaleWriteError, WakegateError
from gateway.core.interfaces import SandboxProvider
from gateway.core.model import SandboxEvent, SandboxId, Session, SessionId, SessionState
from gateway.sessions.bindings import Bindings
from gateway.sessions.ownership import Ownership
from gateway.sessions.records import Records
from gateway.sessions.transitions import Transitions

logger = logging.getLogger(__name__)


class Recovery:
    """Makes records and bindings true again. `salvage` alone wants the session to be held already."""

    def __init__(
        self,
        *,
        records: Records,
        ownership: Ownership,
        provider: SandboxProvider,
        transitions: Transitions,
        bindings: Bindings,
    ) -> None:
        self._records = records
        self._ownership = ownership
        self._provider = provider
        self._transitions = transitions
        self._bindings = bindings

    async def recover_all(self) -> None:
        """At the start: make records true after an earlier process, and delete workspaces that no record names."""
        for state in (SessionState.ACTIVE, SessionState.HIBERNATING, SessionState.WAKING):
            after: SessionId | None = None
            while True:
                page = [s async for s in self._records.store.sessions(state=state, after=after, limit=500)]
                for session in page:
                    if self._ownership.is_named(session) and session.sandbox is not None:
                        await self._recover(session, session.sandbox.id)
                if len(page) < 500:
                    break
                after = page[-1].id
        await self._transitions.retain_abandoned()

    async def _recover(self, listed: Session, sandbox_id: SandboxId) -> None:
        """The session has its sandbox still, or what is left of it is kept."""
        if await self._provider.find(sandbox_id) is not None:
            self._bindings.add(sandbox_id, listed.id)
            return
        async with self._records.holding(listed.id):
            session = await self._records.get(listed.id)
            if session is not None and session.sandbox is not None and session.sandbox.id == sandbox_id:
                await self.salvage(session, "its sandbox ended with the gateway, or without its knowing")

    async def sandbox_ended(self, event: SandboxEvent) -> None:
        """A sandbox ended on its own: say so in the record at once."""
        session_id = self._bindings.remove(event.sandbox_id) or event.session_id
        if session_id is None:
            return
        self._bindings.notify_unbound(session_id, event.sandbox_id)
        async with self._records.holding(session_id):
            session = await self._records.get(session_id)
            if session is None:
                await self._keep_unrecorded(event.sandbox_id, session_id)
            elif session.sandbox is not None and session.sandbox.id == event.sandbox_id:
                await self.salvage(session, event.reason)
        await self._provider.release(event.sandbox_id)

    async def _keep_unrecorded(self, sandbox_id: SandboxId, session_id: SessionId) -> None:
        """Its record is missing, which the store may have lost: keep the workspace for when it comes back."""
        try:
            reference = await self._transitions.keep_unrecorded(sandbox_id, session_id)
        except WakegateError as error:
            logger.error("session %s has no record, and its workspace cannot be kept: %s", session_id, error)
            return
        if reference is not None:
            logger.error("session %s has no record; its workspace is kept as %s", session_id, reference)

    async def salvage(self, session: Session, reason: str) -> Session:
        """Its sandbox ended: write what is left of it. Returns the record as it is then. Lock held."""
        if session.sandbox is not None:
            self._bindings.remove(session.sandbox.id)
            try:
                salvaged = await self._transitions.salvage(session, reason, reachable=self._ownership.is_mine(session))
            except StaleWriteError:
                salvaged = await self._ownership.require(session.id)  # another gateway already recorded it
        else:
            salvaged = await self._records.put(replace(session, state=SessionState.LOST, reason=reason))
        logger.warning("session %s lost its sandbox: %s; it is %s", session.id, reason or "gone", salvaged.state)
        return salvaged

    async def release_taken_over(self) -> None:
        """Release sandboxes whose sessions others took over while this gateway did not announce itself in time."""
        for sandbox_id, session_id in self._bindings.all():
            session = await self._records.get(session_id)
            if session is None:
                continue  # no proof that another gateway has it (gateway/sessions/strays.py)
            if session.sandbox is None or session.sandbox.id != sandbox_id:
                logger.warning("session %s was taken over by another gateway; its sandbox here ends", session_id)
                self._bindings.notify_unbound(session_id, None)
                self._bindings.remove(sandbox_id)
                await self._provider.release(sandbox_id)

    async def forget_ended(self) -> None:
        """Stop counting sandboxes that another gateway, which reaches them too, has ended."""
        if self._ownership.shared_provider:
            for sandbox_id, _ in self._bindings.all():
                if await self._provider.find(sandbox_id) is None:
                    self._bindings.remove(sandbox_id)
