"""SandboxClaims of a cluster as sessions: what the engine's claim controller asks of them, for one tenant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gateway.api.agent_sandbox.reading import read_claim, require_runtime, seconds_until
from gateway.api.sessions import DELETED_BY_USER
from gateway.core.clock import Clock
from gateway.core.errors import SessionNotFoundError
from gateway.core.identity import Identity, Role, acting_as
from gateway.core.interfaces import RuntimeCatalog, SessionStore
from gateway.core.model import Session, SessionId
from gateway.sessions.hibernation import Hibernator
from gateway.sessions.lifecycle import Lifecycle


class ClusterClaims:
    """Acts for `tenant`, whose keys reach these sessions, and whose limits apply to them."""

    def __init__(
        self,
        lifecycle: Lifecycle,
        hibernator: Hibernator,
        store: SessionStore,
        catalog: RuntimeCatalog,
        clock: Clock,
        *,
        tenant: str,
    ) -> None:
        self._lifecycle = lifecycle
        self._hibernator = hibernator
        self._store = store
        self._catalog = catalog
        self._clock = clock
        self._identity = Identity(Role.MEMBER, tenant, subject="SandboxClaims of the cluster")

    async def open(self, session_id: SessionId, namespace: str, manifest: Mapping[str, Any]) -> tuple[Session, str]:
        """Make the session if there is none, and give it a sandbox. Returns its runtime's image as well.

        Raises BadRequestError, NotFoundError, and what Lifecycle.register and Lifecycle.wake raise.
        """
        claim = read_claim(manifest, namespace)
        # No other namespace's: who may make claims in one may not therefore make pods in another.
        runtime = require_runtime(self._catalog, claim, others=())
        ttl = None if claim.shutdown_time is None else seconds_until(claim.shutdown_time, self._clock.now())
        with acting_as(self._identity):
            metadata = {"name": claim.name, **claim.stored()}
            await self._lifecycle.register(runtime.key, metadata=metadata, session_id=session_id, ttl=ttl)
            return (await self._lifecycle.wake(session_id)).session, runtime.image

    async def find(self, session_id: SessionId) -> Session | None:
        """The record; None: there is none (any more)."""
        try:
            with acting_as(self._identity):
                return await self._lifecycle.get(session_id)
        except SessionNotFoundError:
            return None

    async def versions(self, session_ids: Sequence[SessionId]) -> Mapping[SessionId, int]:
        """The versions of the records that exist."""
        return await self._store.versions(session_ids)

    async def end(self, session_id: SessionId) -> None:
        """End it; one that is not there has ended."""
        try:
            with acting_as(self._identity):
                await self._lifecycle.terminate(session_id, DELETED_BY_USER)
        except SessionNotFoundError:
            return

    async def suspend(self, session_id: SessionId) -> None:
        """Hibernate it. Raises what Hibernator.hibernate raises."""
        with acting_as(self._identity):
            await self._hibernator.hibernate(session_id)

    async def resume(self, session_id: SessionId) -> None:
        """Wake it. Raises what Lifecycle.wake raises."""
        with acting_as(self._identity):
            await self._lifecycle.wake(session_id)
