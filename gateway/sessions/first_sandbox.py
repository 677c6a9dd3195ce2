"""The first sandbox of a new session: claimed within quotas and the hold rule, then bound by the session's record."""

from __future__ import annotations

import asyncio

from gateway.core.identity import current
from gateway.core.interfaces import SandboxProvider
from gateway.core.model import Runtime, Sandbox, Session, SessionId
from gateway.sessions.admission import Admission
from gateway.sessions.bindings import Bindings
from gateway.sessions.quotas import RESERVATION_S, Quotas
from gateway.sessions.records import Records
from gateway.sessions.refusals import Wish


class FirstSandbox:
    """Claims and binds. What fails in between gives the sandbox and the quota back."""

    def __init__(
        self, records: Records, provider: SandboxProvider, admission: Admission, bindings: Bindings, quotas: Quotas
    ) -> None:
        self._records = records
        self._provider = provider
        self._admission = admission
        self._bindings = bindings
        self._quotas = quotas

    async def claim(self, runtime: Runtime, session_id: SessionId, ttl: float | None) -> tuple[Sandbox, float]:
        """A sandbox for a new session of the current caller's, and the seconds that it took."""
        # First of all: while the store is away, or its disk full, each refused creation would cost a warm sandbox, and
        # a client that tries again and again the whole pool.
        await self._records.require_writable()
        tenant = current().tenant
        await self._quotas.admit(tenant, runtime, ttl, Wish.CREATE)
        await self._quotas.reserve_sandbox(tenant, session_id, runtime)
        try:
            async with self._admission.held(runtime.key):
                sandbox, took = await self._admission.claim(
                    runtime, session_id, tenant=tenant, bound=len(self._bindings)
                )
        except BaseException:
            await self._quotas.release(tenant, session_id)
            raise
        if took > RESERVATION_S / 2:  # the first reservation lapses after RESERVATION_S
            try:
                await self._quotas.reserve_sandbox(tenant, session_id, runtime)
            except BaseException:
                await asyncio.shield(self._give_back(tenant, session_id, sandbox))
                raise
        return sandbox, took

    async def bind(self, session: Session, sandbox: Sandbox) -> Session:
        """Write the record that names the sandbox, or release the sandbox if that fails."""
        self._bindings.add(sandbox.id, session, sandbox.start)
        try:
            written = await self._records.put(session)
        except BaseException:
            self._bindings.remove(sandbox.id)
            await asyncio.shield(self._give_back(session.tenant, session.id, sandbox))
            raise
        self._records.tell("session.started", written, start=sandbox.start, sandbox=sandbox.id)
        return written

    async def _give_back(self, tenant: str, session_id: SessionId, sandbox: Sandbox) -> None:
        """Of a session of which there will be no record: its sandbox, and what was reserved for it."""
        try:
            await self._provider.release(sandbox.id)
        finally:
            await self._quotas.release(tenant, session_id)
