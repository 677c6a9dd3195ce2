"""Gives a known session a live sandbox: the one it has, or a new one when it is hibernated or lost its own.

The activator asks for it whenever a request has no route (gateway/routing/activator.py). Where gateways share sandboxes
a session that is awake is opened without a change of its record, and so without holding it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from gateway.core.background import Tasks
from gateway.core.clock import Clock
from gateway.core.errors import DrainingError, RuntimeNotFoundError, StaleWriteError
from gateway.core.interfaces import RuntimeCatalog, SandboxProvider
from gateway.core.model import Runtime, RuntimeKey, Sandbox, SandboxId, Session, SessionId, SessionState, StartKind
from gateway.core.units import rfc3339
from gateway.sessions.activity import GapListener
from gateway.sessions.admission import Admission
from gateway.sessions.bindings import Bindings
from gateway.sessions.durations import Durations
from gateway.sessions.ownership import Ownership
from gateway.sessions.records import Records
from gateway.sessions.recovery import Recovery
from gateway.sessions.transitions import RollbackError, Transitions

logger = logging.getLogger(__name__)

NOTHING_RESTORED = "none"


@dataclass(frozen=True, slots=True)
class Opened:
    """A session with a live sandbox. Times in seconds.

    `restored` is what `x-wakegate-restored` has to say of a loss that no answer has told yet.
    """

    session: Session
    sandbox: Sandbox
    start: StartKind
    restored: str | None = None
    claim_s: float = 0.0
    restore_s: float = 0.0


class SessionOpener:
    """Opens sessions. `cancel_copy(session)` stops a copy of its workspace that is made to hibernate it."""

    def __init__(
        self,
        *,
        records: Records,
        ownership: Ownership,
        recovery: Recovery,
        provider: SandboxProvider,
        admission: Admission,
        catalog: RuntimeCatalog,
        transitions: Transitions,
        bindings: Bindings,
        durations: Durations,
        clock: Clock,
        cancel_copy: Callable[[SessionId], None],
    ) -> None:
        self._records = records
        self._ownership = ownership
        self._recovery = recovery
        self._provider = provider
        self._admission = admission
        self._catalog = catalog
        self._transitions = transitions
        self._bindings = bindings
        self._durations = durations
        self._clock = clock
        self._cancel_copy = cancel_copy
        self._under_way = Tasks()
        self._closed = False
        self._woken: list[GapListener] = []

    def on_wake(self, listener: GapListener) -> None:
        """Call `listener(session, runtime, seconds)` when a hibernated session is used, so long after its last use."""
        self._woken.append(listener)

    async def open(self, session_id: SessionId, *, gone: SandboxId | None = None) -> Opened:
        """The session with a live sandbox: woken if it is hibernated, recovered if its sandbox ended or is `gone`.

        A caller that is cancelled does not stop it once the session is held: a workspace on its way must arrive.
        Raises: SessionNotFoundError, ElsewhereError, OwnerAwayError, DrainingError, and what Lifecycle.create raises.
        """
        await self._durations.catch_up()
        await self._ownership.settle(session_id, gone)
        if self._closed:
            raise DrainingError("this gateway is shutting down; connect again", retry_after=1)
        opening = self._under_way.spawn(self._open(session_id, gone))
        # Retrieved, so that asyncio does not report an error when every waiter has left.
        opening.add_done_callback(lambda done: None if done.cancelled() else done.exception() and None)
        return await asyncio.shield(opening)

    async def aclose(self) -> None:
        """Open no more sessions, and wait for those that are being opened."""
        self._closed = True
        self._ownership.close()
        await self._under_way.wait()

    async def _open(self, session_id: SessionId, gone: SandboxId | None) -> Opened:
        if self._records.shared and (opened := await self._open_live(session_id, gone)) is not None:
            return opened
        self._cancel_copy(session_id)
        async with self._ownership.holding(session_id, gone) as session:
            here = self._ownership.is_mine(session)
            if session.sandbox is not None and session.state is SessionState.ACTIVE:
                alive = await self._provider.find(session.sandbox.id) if here else None
                if alive is not None and alive.id != gone:
                    self._bindings.add(alive.id, session_id)
                    return Opened(session, alive, StartKind.LIVE, session.restored)
                reason = "its sandbox does not answer" if here else f"gateway {session.owner}, which had it, is gone"
                session = await self._recovery.salvage(session, reason)
            if session.state in (SessionState.HIBERNATING, SessionState.WAKING):
                # A verb stopped half-way, because the store was unreachable for example.
                session = await self._recovery.salvage(session, "")
            return await self._revive(session)

    async def _open_live(self, session_id: SessionId, gone: SandboxId | None) -> Opened | None:
        """The session if it is awake where every gateway reaches it; None: it takes a change of its record.

        The touch comes before the read. So a gateway that hibernates it at this moment sees the touch in what its
        write returns, and leaves it awake; or its write came first, and is what is read here.
        """
        await self._records.store.touch_many({session_id: self._clock.now()})
        session = await self._ownership.require(session_id)
        if session.sandbox is None or not self._ownership.is_mine(session) or session.sandbox.id == gone:
            return None
        alive = await self._provider.find(session.sandbox.id)
        if alive is None:
            return None
        if session.state is SessionState.HIBERNATING and self._transitions.leaves_running:
            try:
                session = await self._transitions.cancel(session)  # the gateway that copies it then finds this record
            except StaleWriteError:
                return None
        if session.state is not SessionState.ACTIVE:
            return None
        return Opened(session, alive, StartKind.LIVE, session.restored)

    async def _revive(self, session: Session) -> Opened:
        """A sandbox for a session that has none: hibernated, or lost with or without its workspace. Lock held."""
        runtime = require_runtime(self._catalog, session.runtime)
        if session.state is SessionState.HIBERNATED:
            for listener in self._woken:
                listener(session.id, session.runtime, self._clock.now() - session.last_active_at)
        sandbox, claim_s = await self._admission.claim(runtime, session.id, bound=len(self._bindings))
        began = self._clock.monotonic()
        if session.state is SessionState.LOST:
            restored = NOTHING_RESTORED if session.snapshot_at is None else rfc3339(session.snapshot_at)
            logger.warning(
                "session %s lost its sandbox (%s); restored: %s", session.id, session.reason or "gone", restored
            )
            session = replace(session, restored=restored)  # written with the next step
        self._bindings.add(sandbox.id, session.id)
        try:
            if session.snapshot is not None:
                session = await self._transitions.restore(session, sandbox, runtime)
            else:
                active = self._transitions.activated(session, runtime)
                session = await self._records.put(replace(active, sandbox=sandbox, start=sandbox.start))
        except RollbackError:
            self._bindings.remove(sandbox.id)
            raise
        except BaseException:
            self._bindings.remove(sandbox.id)
            await asyncio.shield(self._provider.release(sandbox.id))
            raise
        restore_s = self._clock.monotonic() - began
        return Opened(session, sandbox, session.start or sandbox.start, session.restored, claim_s, restore_s)


def require_runtime(catalog: RuntimeCatalog, key: RuntimeKey) -> Runtime:
    """The runtime of that name. Raises RuntimeNotFoundError."""
    runtime = catalog.get(key)
    if runtime is None:
        plural = key.kind.lower() + "s"
        raise RuntimeNotFoundError(f'{plural}.agentcube.volcano.sh "{key.namespace}/{key.name}" not found')
    return runtime
