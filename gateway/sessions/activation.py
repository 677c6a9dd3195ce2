"""How a known session comes to a live sandbox: the one it has, or a new one when it sleeps or lost its own.

The activator asks for it whenever a request has no route (gateway/routing/activator.py). Where gateways share sandboxes
a session that is awake is opened without a change of its record, and so without holding it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from gateway.core.clock import Clock
from gateway.core.errors import RuntimeNotFoundError, StaleWriteError
from gateway.core.interfaces import RuntimeCatalog, SandboxProvider
from gateway.core.model import Runtime, RuntimeKey, Sandbox, SandboxId, Session, SessionId, SessionState, StartKind
from gateway.core.units import rfc3339
from gateway.sessions.activity import GapListener
from gateway.sessions.admission import Claims
from gateway.sessions.bindings import Bindings
from gateway.sessions.ownership import Reach
from gateway.sessions.records import Records
from gateway.sessions.recovery import Losses
from gateway.sessions.transitions import Hibernation

logger = logging.getLogger(__name__)

NOTHING_RESTORED = "none"


@dataclass(frozen=True, slots=True)
class Opened:
    """A session with a live sandbox. `restored` is what `x-wakegate-restored` says after a loss; times in seconds."""

    session: Session
    sandbox: Sandbox
    start: StartKind
    restored: str | None = None
    claim_s: float = 0.0
    restore_s: float = 0.0


class Opening:
    """Opens sessions. `break_off(session)` stops a copy of its workspace that is under way for its sleep."""

    def __init__(
        self,
        records: Records,
        reach: Reach,
        losses: Losses,
        provider: SandboxProvider,
        claims: Claims,
        catalog: RuntimeCatalog,
        hibernation: Hibernation,
        bindings: Bindings,
        clock: Clock,
        break_off: Callable[[SessionId], None],
    ) -> None:
        self._records = records
        self._reach = reach
        self._losses = losses
        self._provider = provider
        self._claims = claims
        self._catalog = catalog
        self._hibernation = hibernation
        self._bindings = bindings
        self._clock = clock
        self._break_off = break_off
        self._under_way: set[asyncio.Task[Opened]] = set()
        self._woken: list[GapListener] = []

    def on_wake(self, listener: GapListener) -> None:
        """Call `listener(session, runtime, seconds)` when a sleeping session is used again, after so long a silence."""
        self._woken.append(listener)

    async def open(self, session_id: SessionId, gone: SandboxId | None) -> Opened:
        """What Lifecycle.open promises: in a task of its own, as the caller may leave."""
        opening = asyncio.create_task(self._open(session_id, gone))
        self._under_way.add(opening)
        opening.add_done_callback(self._opened)
        return await asyncio.shield(opening)

    def _opened(self, opening: asyncio.Task[Opened]) -> None:
        self._under_way.discard(opening)
        if not opening.cancelled():
            opening.exception()  # seen by whoever waited; nobody may be left, and that is no error of ours

    async def _open(self, session_id: SessionId, gone: SandboxId | None) -> Opened:
        if self._records.shared and (opened := await self._open_live(session_id, gone)) is not None:
            return opened
        self._break_off(session_id)
        async with self._records.holding(session_id):
            session = await self._reach.require_owned(await self._reach.require(session_id), gone)
            here = self._reach.is_mine(session)
            if session.sandbox is not None and session.state is SessionState.ACTIVE:
                alive = await self._provider.find(session.sandbox.id) if here else None
                if alive is not None and alive.id != gone:
                    self._bindings.add(alive.id, session_id)
                    return Opened(session, alive, StartKind.LIVE)
                reason = "its sandbox does not answer" if here else f"gateway {session.owner}, which had it, is gone"
                session = await self._losses.salvage(session, reason)
            if session.state in (SessionState.HIBERNATING, SessionState.WAKING):
                # Broken off half-way, by a store that was away for one.
                session = await self._losses.salvage(session, "")
            return await self._revive(session)

    async def _open_live(self, session_id: SessionId, gone: SandboxId | None) -> Opened | None:
        """The session if it is awake where every gateway reaches it; None: it takes a change of its record.

        The touch comes before the read. So a gateway that puts it to sleep at this moment sees the touch in what its
        write answers, and leaves it awake; or its write came first, and is what is read here.
        """
        await self._records.store.touch_many({session_id: self._clock.now()})
        session = await self._reach.require(session_id)
        if session.sandbox is None or not self._reach.is_mine(session) or session.sandbox.id == gone:
            return None
        alive = await self._provider.find(session.sandbox.id)
        if alive is None:
            return None
        if session.state is SessionState.HIBERNATING and self._hibernation.leaves_running:
            try:
                session = await self._hibernation.cancel(session)  # whoever is copying it then finds this record
            except StaleWriteError:
                return None
        if session.state is not SessionState.ACTIVE:
            return None
        return Opened(session, alive, StartKind.LIVE)

    async def _revive(self, session: Session) -> Opened:
        """A sandbox for a session that has none: asleep, or lost with or without its workspace. Lock held."""
        runtime = require_runtime(self._catalog, session.runtime)
        if session.state is SessionState.HIBERNATED:
            for listener in self._woken:
                listener(session.id, session.runtime, self._clock.now() - session.last_active_at)
        sandbox, claim_s = await self._claims.claim(runtime, session.id, bound=len(self._bindings))
        began = self._clock.monotonic()
        restored = None
        if session.state is SessionState.LOST:
            restored = NOTHING_RESTORED if session.snapshot_at is None else rfc3339(session.snapshot_at)
            logger.warning(
                "session %s lost its sandbox (%s); restored: %s", session.id, session.reason or "gone", restored
            )
        self._bindings.add(sandbox.id, session.id)
        try:
            if session.snapshot is not None:
                session = await self._hibernation.restore(session, sandbox, runtime)
            else:
                awake = self._hibernation.awake(session, runtime)
                session = await self._records.put(replace(awake, sandbox=sandbox, start=sandbox.start))
        except BaseException:
            self._bindings.remove(sandbox.id)
            await asyncio.shield(self._provider.release(sandbox.id))
            raise
        restore_s = self._clock.monotonic() - began
        return Opened(session, sandbox, session.start or sandbox.start, restored, claim_s, restore_s)


def require_runtime(catalog: RuntimeCatalog, key: RuntimeKey) -> Runtime:
    """The runtime of that name. Raises RuntimeNotFoundError."""
    runtime = catalog.get(key)
    if runtime is None:
        plural = key.kind.lower() + "s"
        raise RuntimeNotFoundError(f'{plural}.agentcube.volcano.sh "{key.namespace}/{key.name}" not found')
    return runtime
