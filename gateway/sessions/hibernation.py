"""How a session comes to sleep: when it may, what stops it, and the steps of gateway/sessions/transitions.py in their
order.

Asked for by a user, by the sweeper for idle ones, and for all of them when the gateway ends. A workspace that is moved
must arrive; one that is copied leaves the sandbox running, so a request that comes meanwhile breaks the copy off.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from gateway.core.errors import ConflictError, SnapshotError, StaleWriteError, WakegateError
from gateway.core.interfaces import RuntimeCatalog, SandboxProvider
from gateway.core.model import HibernationMode, Session, SessionId, SessionState
from gateway.sessions.bindings import Bindings
from gateway.sessions.idleness import Usage
from gateway.sessions.ownership import Reach
from gateway.sessions.records import Records
from gateway.sessions.transitions import Hibernation

logger = logging.getLogger(__name__)


class Sleeping:
    """Verbs that keep a session's workspace. State: the copies under way, which a request may break off."""

    def __init__(
        self,
        records: Records,
        reach: Reach,
        usage: Usage,
        provider: SandboxProvider,
        catalog: RuntimeCatalog,
        hibernation: Hibernation,
        bindings: Bindings,
    ) -> None:
        self._records = records
        self._reach = reach
        self._usage = usage
        self._provider = provider
        self._catalog = catalog
        self._hibernation = hibernation
        self._bindings = bindings
        self._keeping: dict[SessionId, asyncio.Task[tuple[Session, str | None]]] = {}

    async def hibernate(self, session_id: SessionId, only_if: Callable[[Session], bool] | None) -> bool:
        """What Lifecycle.hibernate promises. Without `only_if` a person asked, who is told what speaks against it."""
        async with self._records.holding(session_id):
            session = await self._reach.require_owned(await self._reach.require(session_id), None)
            if session.state is SessionState.HIBERNATED:
                return True
            if session.state is not SessionState.ACTIVE or session.sandbox is None:
                raise ConflictError(f"session {session_id} is {session.state}; only an active one can be put to sleep")
            if only_if is not None and (not only_if(session) or await self._usage.at_work(session)):
                return False
            session = await self._hibernation.begin(session)
            busy = (only_if is None and await self._usage.busy_elsewhere(session)) or self._usage.busy(session_id)
            if busy or (only_if is not None and not only_if(session)):
                await self._hibernation.cancel(session)
                if only_if is not None:
                    return False
                raise ConflictError(f"session {session_id} has requests under way; try again when they are done")
            return await self._put_to_sleep(session)

    async def hibernate_all(self) -> None:
        """All sessions bound here, side by side; one that cannot sleep holds up no other."""
        if self._reach.shared_provider:
            return  # the sandboxes live on, and other gateways reach them
        results = await asyncio.gather(
            *(self._rest_one(session_id) for session_id in self._bindings.sessions), return_exceptions=True
        )
        for error in results:
            if isinstance(error, BaseException):
                logger.warning("a session could not be put to sleep, the next start finds its workspace: %s", error)

    async def _rest_one(self, session_id: SessionId) -> None:
        async with self._records.holding(session_id):
            session = await self._records.get(session_id)
            if session is not None and session.state is SessionState.ACTIVE and session.sandbox is not None:
                await self._put_to_sleep(await self._hibernation.begin(session))

    async def checkpoint(self, session_id: SessionId) -> bool:
        """What Lifecycle.checkpoint promises."""
        async with self._records.holding(session_id):
            session = await self._reach.require(session_id)
            if session.state is not SessionState.ACTIVE or not self._reach.is_mine(session):
                return False
            return (await self._hibernation.checkpoint(session)).snapshot is not None

    def break_off(self, session_id: SessionId) -> None:
        """Somebody needs it: a copy of its workspace is given up, and it stays awake. Others are not stopped."""
        if (keeping := self._keeping.get(session_id)) is not None:
            keeping.cancel()  # its sandbox is still there

    async def _put_to_sleep(self, session: Session) -> bool:
        """From `hibernating` to asleep. Nothing is awaited between the last look at its activity and this line."""
        self._bindings.tell_unbound(session.id, None)
        sandbox = session.sandbox
        assert sandbox is not None
        keeping = asyncio.create_task(self._keep(session))
        if self._hibernation.leaves_running:
            self._keeping[session.id] = keeping
        try:
            session, reference = await asyncio.shield(keeping)
        except asyncio.CancelledError:
            if not keeping.cancelled():
                # It is this verb that is cancelled. A copy is broken off with it; a move must come to its end while
                # the session is held, and whoever opens it next finds the record `hibernating` and joins up.
                if self._hibernation.leaves_running:
                    keeping.cancel()
                await asyncio.wait([keeping])
                raise
            await self._hibernation.cancel(session)
            return False
        except WakegateError as error:
            if await self._provider.find(sandbox.id) is not None:  # it is awake, with all it has
                reason = error.reason if isinstance(error, SnapshotError) else f"cannot sleep: {error}"
                await self._hibernation.cancel(session, reason)
            raise
        finally:
            self._keeping.pop(session.id, None)
        try:
            session = await self._hibernation.asleep(session, reference)
        except StaleWriteError:
            if reference is not None and self._hibernation.leaves_running:
                await self._hibernation.drop(reference)  # a request on another gateway was quicker: it stays awake
                return False
            raise
        self._bindings.remove(sandbox.id)
        await self._provider.release(sandbox.id)
        logger.info("session %s sleeps", session.id)
        return session.state is SessionState.HIBERNATED

    async def _keep(self, session: Session) -> tuple[Session, str | None]:
        runtime = self._catalog.get(session.runtime)
        if runtime is not None and runtime.hibernation is HibernationMode.STATE:
            session = await self._hibernation.suspend(session)
        return session, await self._hibernation.keep(session)
