"""Changes how much of the machine a session's sandbox may use, while it runs; sizes.py says what it may be.

While it changes, the record and the ledger have the larger of both sizes: whatever ends in between, the quota counts
no less than the sandbox may use.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

from gateway.core.background import Tasks
from gateway.core.errors import ConflictError, ResizeError, ResizeUnsupportedError, SandboxGoneError, WakegateError
from gateway.core.interfaces import RuntimeCatalog, SandboxProvider, SandboxResizer
from gateway.core.model import Limits, Resources, Runtime, Sandbox, Session, SessionId, SessionState
from gateway.sessions.bindings import Bindings
from gateway.sessions.ownership import Ownership
from gateway.sessions.quotas import Quotas
from gateway.sessions.records import Records
from gateway.sessions.runtime_choice import require_runtime
from gateway.sessions.sizes import Wish, larger, new_size

logger = logging.getLogger(__name__)


class Resizing:
    """Resizes sessions, and gives a new sandbox the size that its session has."""

    def __init__(
        self,
        *,
        records: Records,
        ownership: Ownership,
        provider: SandboxProvider,
        catalog: RuntimeCatalog,
        bindings: Bindings,
        quotas: Quotas,
    ) -> None:
        self._records = records
        self._ownership = ownership
        self._resizer = provider if isinstance(provider, SandboxResizer) else None
        self._catalog = catalog
        self._bindings = bindings
        self._quotas = quotas
        self._under_way = Tasks()

    async def resize(self, session_id: SessionId, wish: Wish) -> Session:
        """Give the session another size, at once where it has a sandbox, else from its next wake on.

        Cancelling the caller does not stop it half way.
        Raises: BadRequestError for a size that its runtime does not allow, QuotaExceededError, QuotaForbiddenError,
        ResizeError, ConflictError, SessionNotFoundError, ElsewhereError, StoreUnavailableError.
        """
        resizing = self._under_way.spawn(self._resize(session_id, wish))
        # Retrieved here, because the caller may have left, and asyncio would then report it.
        resizing.add_done_callback(lambda done: None if done.cancelled() else done.exception() and None)
        return await asyncio.shield(resizing)

    async def fit(self, session: Session, sandbox: Sandbox, runtime: Runtime) -> Session:
        """Give a sandbox that was claimed for a session the session's size.

        Where that cannot be, the session has its runtime's size from here on, and its files: it wakes all the same.
        """
        if session.resources is None:
            return session
        try:
            await self._set(sandbox, runtime.limits.resized(session.resources))
        except ResizeError as error:
            logger.warning("session %s has its runtime's size again: %s", session.id, error)
            session = replace(session, resources=None)
            self._records.tell("session.resized", session, reason=str(error))
        return session

    async def aclose(self) -> None:
        """Wait for those that are under way."""
        await self._under_way.wait()

    async def _resize(self, session_id: SessionId, wish: Wish) -> Session:
        async with self._ownership.holding(session_id) as session:
            runtime = require_runtime(self._catalog, session.runtime)
            size = new_size(runtime, session.resources, wish)
            if size == session.resources:
                return session
            self._quotas.require_possible(session.tenant, runtime, size)
            if session.sandbox is None:
                return await self._put(session, size)  # its next wake reserves it
            if session.state is not SessionState.ACTIVE:
                raise ConflictError(f"session {session_id} is {session.state}; try again when it is active")
            return await self._change(session, runtime, session.sandbox, size)

    async def _change(self, session: Session, runtime: Runtime, sandbox: Sandbox, size: Resources | None) -> Session:
        between = larger(runtime.limits, session.resources, size)
        await self._quotas.reserve_size(session, runtime, between)
        before = session.resources
        if between != before:
            session = await self._put(session, between)
        try:
            await self._set(sandbox, runtime.limits.resized(size))
        except SandboxGoneError as error:
            await self._undo(session, before)
            raise ConflictError(f"{error}; the next request gives the session another: resize it then") from error
        except BaseException:
            await self._undo(session, before)
            raise
        session = await self._put(session, size)
        self._bindings.notify_resized(session)
        self._records.tell("session.resized", session)
        return session

    async def _undo(self, session: Session, size: Resources | None) -> None:
        try:
            await self._put(session, size)
        except WakegateError as error:
            # The record has the larger size, and its quota counts that, until it is resized or hibernated.
            logger.warning(
                "session %s keeps its size, and its record says %s: %s", session.id, session.resources, error
            )

    async def _set(self, sandbox: Sandbox, limits: Limits) -> None:
        if self._resizer is None:
            raise ResizeUnsupportedError("the engine of this gateway cannot resize a sandbox that runs")
        await self._resizer.resize_sandbox(sandbox.id, limits)

    async def _put(self, session: Session, size: Resources | None) -> Session:
        if session.resources == size:
            await self._quotas.settled(session)
            return session
        return await self._records.put(replace(session, resources=size))
