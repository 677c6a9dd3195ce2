"""Gives a session a live sandbox: the one that it has, or a new one if it is hibernated or has lost its sandbox.

The activator calls this when a request finds no route (gateway/routing/activator.py). Where gateways share sandboxes, a
session that is awake is opened without writing its record, and therefore without taking its lease.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from gateway.core.background import Tasks
from gateway.core.clock import Clock
from gateway.core.errors import DrainingError, FencedOutError, SandboxGoneError, StaleWriteError
from gateway.core.interfaces import RuntimeCatalog, SandboxProvider
from gateway.core.model import Runtime, Sandbox, SandboxId, Session, SessionId, SessionState, StartKind
from gateway.core.units import rfc3339
from gateway.sessions.activity import GapListener
from gateway.sessions.admission import Admission
from gateway.sessions.bindings import Bindings
from gateway.sessions.durations import Durations
from gateway.sessions.ownership import Ownership
from gateway.sessions.quotas import RESERVATION_S, Quotas
from gateway.sessions.records import Records
from gateway.sessions.recovery import Recovery
from gateway.sessions.resizing import Resizing
from gateway.sessions.runtime_choice import require_runtime
from gateway.sessions.transitions import RollbackError, Transitions

logger = logging.getLogger(__name__)

NOTHING_RESTORED = "none"
# A wake takes so many sandboxes one after the other that end while they are given its workspace. Of an ordinary pool no
# two do; where all do, a runtime is broken, and each further try would cost other sessions a warm sandbox.
_MAX_SANDBOXES_PER_WAKE = 3


@dataclass(frozen=True, slots=True)
class Opened:
    """A session with a live sandbox. Times in seconds.

    `restored` is the value of `x-wakegate-restored`, until an answer that carries it has been delivered.
    """

    session: Session
    sandbox: Sandbox
    start: StartKind
    restored: str | None = None
    claim_s: float = 0.0
    restore_s: float = 0.0


class SessionOpener:
    """Opens sessions. `cancel_copy(session)` stops a hibernation that is still copying the workspace."""

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
        quotas: Quotas,
        resizing: Resizing,
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
        self._quotas = quotas
        self._resizing = resizing
        self._clock = clock
        self._cancel_copy = cancel_copy
        self._under_way = Tasks()
        self._closed = False
        self._woken: list[GapListener] = []

    def on_wake(self, listener: GapListener) -> None:
        """Call `listener(session, runtime, seconds)` when a hibernated session wakes; `seconds` since its last use."""
        self._woken.append(listener)

    async def open(self, session_id: SessionId, *, unreachable: SandboxId | None = None) -> Opened:
        """Return the session with a live sandbox: woken if hibernated, recovered if its sandbox ended.

        `unreachable` is a sandbox that refused a connection, which counts as ended. Cancelling the caller does not stop
        an opening that holds the session: a workspace that is being moved must arrive.
        Raises: SessionNotFoundError, ElsewhereError, OwnerAwayError, DrainingError, and what Lifecycle.create raises.
        """
        # First, as it moves deadlines: after the machine slept, sessions would otherwise be found expired.
        await self._durations.catch_up()
        await self._ownership.settle(session_id, unreachable)
        if self._closed:
            raise DrainingError("this gateway is shutting down; connect again", retry_after=1)
        opening = self._under_way.spawn(self._open(session_id, unreachable))
        # The exception is retrieved here because every waiter may have left, and asyncio would then report it.
        opening.add_done_callback(lambda done: None if done.cancelled() else done.exception() and None)
        return await asyncio.shield(opening)

    async def aclose(self) -> None:
        """Refuse further calls of `open`, and wait for those under way."""
        self._closed = True
        self._ownership.close()
        await self._under_way.wait()

    async def _open(self, session_id: SessionId, unreachable: SandboxId | None) -> Opened:
        if self._records.shared and (opened := await self._open_live(session_id, unreachable)) is not None:
            return opened
        # Before waiting for the session: the copy holds it, and only its end lets this request go on.
        self._cancel_copy(session_id)
        async with self._ownership.holding(session_id, unreachable) as session:
            here = self._ownership.is_mine(session)
            if session.sandbox is not None and session.state in (SessionState.ACTIVE, SessionState.HIBERNATING):
                alive = await self._provider.find(session.sandbox.id) if here else None
                if alive is not None and alive.id != unreachable:
                    if session.state is SessionState.HIBERNATING:
                        # It stopped before the sandbox ended, for example because the store was unreachable. To go on
                        # with it would cost the variables in memory, which the record does not say were saved.
                        session = await self._transitions.cancel(session)
                    self._bindings.add(alive.id, session)
                    return Opened(session, alive, StartKind.LIVE, session.restored)
            if session.state is SessionState.ACTIVE and session.sandbox is not None:
                reason = "its sandbox does not answer" if here else f"its gateway {session.owner} is not running"
                session = await self._recovery.salvage(session, reason)
            if session.state in (SessionState.HIBERNATING, SessionState.WAKING):
                # The same, later: the workspace is on its way, and `salvage` knows from where to where.
                session = await self._recovery.salvage(session, "")
            return await self._revive(session)

    async def _open_live(self, session_id: SessionId, unreachable: SandboxId | None) -> Opened | None:
        """The session if it is awake and every gateway reaches its sandbox; None: opening it has to write its record.

        The record is touched first and read second; a gateway that hibernates the session writes first and looks at the
        touch in the result of its write second. So at least one of the two sees the other: either that gateway finds
        the touch and leaves the session awake, or its write came first and is read here. With the order reversed on
        either side, both could miss each other and a request would reach a sandbox that is being copied.
        """
        await self._records.store.touch_many({session_id: self._clock.now()})
        session = await self._ownership.require(session_id)
        if session.sandbox is None or not self._ownership.is_mine(session) or session.sandbox.id == unreachable:
            return None
        alive = await self._provider.find(session.sandbox.id)
        if alive is None:
            return None
        if session.state is SessionState.HIBERNATING and self._transitions.leaves_running:
            try:
                session = await self._transitions.cancel(
                    session
                )  # the write of the gateway that copies it is then stale
            except StaleWriteError:
                return None
        if session.state is not SessionState.ACTIVE:
            return None
        return Opened(session, alive, StartKind.LIVE, session.restored)

    async def _revive(self, session: Session) -> Opened:
        """Claim a sandbox for a session without one, and restore its workspace if there is one. Lock held."""
        runtime = require_runtime(self._catalog, session.runtime)
        event = "session.started" if session.state is SessionState.CREATING else "session.woken"
        if session.state is SessionState.HIBERNATED:
            gap = self._clock.now() - session.last_active_at
            woken = self._woken
        else:
            gap, woken = 0.0, []
        for tried in range(1, _MAX_SANDBOXES_PER_WAKE + 1):
            sandbox, claim_s = await self._claim(session, runtime, gap, woken)
            try:
                opened = await self._bind(session, sandbox, runtime, claim_s)
            except SandboxGoneError:
                # No request has reached it, and the workspace is whole again where it was kept.
                if tried == _MAX_SANDBOXES_PER_WAKE:
                    raise
                logger.info("session %s: sandbox %s ended while it was woken; trying another", session.id, sandbox.id)
                session, woken = await self._ownership.require(session.id), []
            else:
                break
        self._records.tell(
            event, opened.session, start=opened.start, sandbox=sandbox.id, restored=opened.session.restored or ""
        )
        return opened

    async def _bind(self, session: Session, sandbox: Sandbox, runtime: Runtime, claim_s: float) -> Opened:
        """Give a session the sandbox that was claimed for it; if that fails, nothing of it is left bound.

        Raises SandboxGoneError where only this sandbox is at fault, and what else Transitions.restore raises.
        """
        began = self._clock.monotonic()
        if session.state is SessionState.LOST:
            restored = NOTHING_RESTORED if session.snapshot_at is None else rfc3339(session.snapshot_at)
            logger.warning(
                "session %s lost its sandbox (%s); restored: %s", session.id, session.reason or "unknown", restored
            )
            session = replace(session, restored=restored)  # written by the next transition
        try:
            session = await self._resizing.fit(session, sandbox, runtime)
            # Bound before the record is written: between the two, a sandbox that ends must be found to be this
            # session's.
            self._bindings.add(sandbox.id, session, _start_of(session, sandbox))
            if session.snapshot is not None:
                session = await self._transitions.restore(session, sandbox, runtime)
            else:
                active = self._transitions.activated(session, runtime)
                session = await self._records.put(replace(active, sandbox=sandbox, start=sandbox.start))
        except RollbackError:
            # The sandbox stays: its record still names it, and a part of the workspace may be in it.
            self._bindings.remove(sandbox.id)
            raise
        except BaseException as error:
            self._bindings.remove(sandbox.id)
            await asyncio.shield(self._provider.release(sandbox.id))
            if not isinstance(error, StaleWriteError | FencedOutError):
                # Else another gateway wrote the record, and has reserved what that says.
                await self._quotas.settled(session)
            raise
        restore_s = self._clock.monotonic() - began
        return Opened(session, sandbox, session.start or sandbox.start, session.restored, claim_s, restore_s)

    async def _claim(
        self, session: Session, runtime: Runtime, gap: float, woken: Sequence[GapListener]
    ) -> tuple[Sandbox, float]:
        """A sandbox for a session without one, within its tenant's quota. A refusal leaves it as it was.

        `woken` are told that it wakes `gap` seconds after its last use.
        """
        if not self._records.shared:
            # As in Lifecycle.create; where gateways share the store, taking the session's lease was such a write.
            await self._records.require_writable()
        await self._quotas.reserve_sandbox(session.tenant, session.id, runtime, session)
        for listener in woken:
            listener(session.id, session.runtime, gap)
        try:
            sandbox, took = await self._admission.claim(
                runtime, session.id, tenant=session.tenant, bound=len(self._bindings)
            )
            if took > RESERVATION_S / 2:
                # The first reservation lapses 120 s after it was made: after a claim of 60 s or more it is made anew.
                try:
                    await self._quotas.reserve_sandbox(session.tenant, session.id, runtime, session)
                except BaseException:
                    await asyncio.shield(self._provider.release(sandbox.id))
                    raise
        except BaseException:
            await self._quotas.settled(session)
            raise
        return sandbox, took


def _start_of(session: Session, sandbox: Sandbox) -> StartKind:
    if session.snapshot is None:
        return sandbox.start
    return StartKind.WAKE if sandbox.start is StartKind.WARM else StartKind.WAKE_COLD
