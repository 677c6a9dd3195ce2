"""The verbs of a session's life: create, open, hibernate, recover, terminate, sweep.

Each verb writes the record in the store and acts on the provider in the order that never lets a record say more than is
true: a record names a sandbox only once it is bound, and a sandbox is deleted only once no record names it. Verbs on
one session are serialised by a lock here; between gateways the store's version decides who won.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from gateway.claims import Claims
from gateway.clock import Clock
from gateway.errors import (
    ConflictError,
    OwnerAwayError,
    RuntimeNotFoundError,
    SessionNotFoundError,
    SnapshotError,
    StaleWriteError,
    StoreUnavailableError,
    WakegateError,
)
from gateway.hibernation import Hibernation, bounded
from gateway.interfaces import RuntimeCatalog, SandboxProvider
from gateway.model import (
    HibernationMode,
    Runtime,
    RuntimeKey,
    Sandbox,
    SandboxEvent,
    SandboxId,
    Session,
    SessionId,
    SessionState,
    StartKind,
    is_snapshot,
)
from gateway.peers import ElsewhereError, Peer, Peers
from gateway.records import Records
from gateway.stats import Activity, GapListener

logger = logging.getLogger(__name__)

NOTHING_RESTORED = "none"
HEARTBEAT_S = 1.0  # activity is written so often
_WORK_CHECK_S = 2.0  # seconds that a sandbox has to say whether it is at work


class Unset:
    """The type of UNSET: an argument that was not given, where None means something."""


UNSET = Unset()
Unbound = Callable[[SessionId, SandboxId | None], None]
WorkCheck = Callable[[Sandbox, SessionId], Awaitable[bool]]


@dataclass(frozen=True, slots=True)
class Opened:
    """A session with a live sandbox. `restored` is what `x-wakegate-restored` says after a loss; times in seconds."""

    session: Session
    sandbox: Sandbox
    start: StartKind
    restored: str | None = None
    claim_s: float = 0.0
    restore_s: float = 0.0


class Lifecycle:
    """Owns every change of a session's state."""

    def __init__(
        self,
        records: Records,
        peers: Peers,
        provider: SandboxProvider,
        claims: Claims,
        catalog: RuntimeCatalog,
        hibernation: Hibernation,
        activity: Activity,
        clock: Clock,
    ) -> None:
        self._records = records
        self._peers = peers
        self._provider = provider
        self.claims = claims
        self._catalog = catalog
        self._hibernation = hibernation
        self._activity = activity
        self._clock = clock
        self._bound: dict[SandboxId, SessionId] = {}
        self._work_check: WorkCheck | None = None
        self._keeping: dict[SessionId, asyncio.Task[tuple[Session, str | None]]] = {}
        self._opening: set[asyncio.Task[Opened]] = set()
        self._unbound: list[Unbound] = []
        self._woken: list[GapListener] = []

    def on_unbound(self, listener: Unbound) -> None:
        """Call `listener(session, sandbox)` as soon as a session stops having that sandbox (None: for good)."""
        self._unbound.append(listener)

    def on_wake(self, listener: GapListener) -> None:
        """Call `listener(session, runtime, seconds)` when a sleeping session is used again, after so long a silence."""
        self._woken.append(listener)

    def ask_before_sleep(self, check: WorkCheck) -> None:
        """Ask `check(sandbox, session)` before an idle session sleeps or ends: is its sandbox at work?"""
        self._work_check = check

    @property
    def everybodys(self) -> bool:
        """Whether other gateways reach the same sandboxes."""
        return self._records.shared and not self._peers.me

    @property
    def bound(self) -> int:
        """Sandboxes that this gateway has bound to sessions."""
        return len(self._bound)

    @property
    def bound_sessions(self) -> set[SessionId]:
        """Sessions that this gateway gave a sandbox, or found one of."""
        return set(self._bound.values())

    async def start(self) -> None:
        """Make records true after an earlier life: what sandboxes that ended with it left is kept for its session."""
        for state in (SessionState.ACTIVE, SessionState.HIBERNATING, SessionState.WAKING):
            after: SessionId | None = None
            while True:
                page = [s async for s in self._records.store.sessions(state=state, after=after, limit=500)]
                for session in page:
                    if session.owner == self._peers.me and session.sandbox is not None:
                        await self._mend(session, session.sandbox.id)
                if len(page) < 500:
                    break
                after = page[-1].id
        await self._hibernation.settled()

    async def _mend(self, listed: Session, sandbox_id: SandboxId) -> None:
        """At the start: the session has its sandbox still, or what is left of it is kept."""
        if await self._provider.find(sandbox_id) is not None:
            self._bound[sandbox_id] = listed.id
            return
        async with self._records.holding(listed.id):
            session = await self._records.get(listed.id)
            if session is not None and session.sandbox is not None and session.sandbox.id == sandbox_id:
                await self._salvage(session, "its sandbox ended with the gateway, or without its knowing")

    async def rest(self) -> None:
        """Put every session of this gateway to sleep, whatever it does: it is about to end, and its engine with it."""
        if self.everybodys:
            return  # the sandboxes live on, and other gateways reach them
        results = await asyncio.gather(
            *(self._rest_one(session_id) for session_id in set(self._bound.values())), return_exceptions=True
        )
        for error in results:
            if isinstance(error, BaseException):
                logger.warning("a session could not be put to sleep, the next start finds its workspace: %s", error)

    async def create(
        self,
        runtime_key: RuntimeKey,
        *,
        ttl: float | None = None,
        idle_timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
        tenant: str = "",
    ) -> Opened:
        """A new session with a sandbox.

        `ttl` and `idle_timeout` in seconds; both are bounded by the runtime's maximum duration.
        Raises: RuntimeNotFoundError, QueueFullError at the limit, SandboxStartError, StoreUnavailableError.
        """
        runtime = self._require_runtime(runtime_key)
        session_id = SessionId(str(uuid.uuid4()))
        sandbox, claim_s = await self.claims.claim(runtime, session_id, bound=self.bound)
        now = self._clock.now()
        longest = runtime.max_session_duration
        session = Session(
            id=session_id,
            runtime=runtime_key,
            state=SessionState.ACTIVE,
            created_at=now,
            last_active_at=now,
            expires_at=now + (longest if ttl is None else min(ttl, longest)),
            limit_at=now + longest,
            ends_at=None if ttl is None else now + ttl,
            idle_timeout=min(idle_timeout or runtime.session_timeout, longest),
            tenant=tenant,
            owner=self._peers.me,
            sandbox=sandbox,
            start=sandbox.start,
            metadata=dict(metadata or {}),
        )
        session = await self._bind(session, sandbox)
        return Opened(session, sandbox, sandbox.start, claim_s=claim_s)

    async def update(
        self,
        session_id: SessionId,
        *,
        ttl: float | Unset | None = UNSET,
        idle_timeout: float | Unset = UNSET,
        metadata: Mapping[str, str] | None = None,
    ) -> Session:
        """Change what a session was created with. `ttl` counts from now, None: no end but the runtime's own.

        `metadata` replaces what was there. Raises: SessionNotFoundError, StoreUnavailableError.
        """
        async with self._records.holding(session_id):
            session = await self._require(session_id)
            runtime = self._catalog.get(session.runtime)
            longest = runtime.max_session_duration if runtime is not None else float("inf")
            limit = session.limit_at or session.expires_at
            ends_at = session.ends_at
            if not isinstance(ttl, Unset):
                ends_at = None if ttl is None else self._clock.now() + ttl
            timeout = session.idle_timeout if isinstance(idle_timeout, Unset) else min(idle_timeout, longest)
            return await self._records.put(
                replace(
                    session,
                    limit_at=limit,
                    ends_at=ends_at,
                    expires_at=bounded(limit, ends_at),
                    idle_timeout=timeout,
                    metadata=session.metadata if metadata is None else dict(metadata),
                )
            )

    async def open(self, session_id: SessionId, *, gone: SandboxId | None = None) -> Opened:
        """The session with a live sandbox: woken if it sleeps, recovered if its sandbox ended or is `gone`.

        A caller that is cancelled does not stop it: a workspace that is on its way must arrive.
        Raises: SessionNotFoundError, ElsewhereError, OwnerAwayError, and what `create` raises.
        """
        opening = asyncio.create_task(self._open(session_id, gone))
        self._opening.add(opening)
        opening.add_done_callback(self._opened)
        return await asyncio.shield(opening)

    def _opened(self, opening: asyncio.Task[Opened]) -> None:
        self._opening.discard(opening)
        if not opening.cancelled():
            opening.exception()  # seen by whoever waited; nobody may be left, and that is no error of ours

    async def _open(self, session_id: SessionId, gone: SandboxId | None) -> Opened:
        if self._records.shared and (opened := await self._open_live(session_id, gone)) is not None:
            return opened
        if (keeping := self._keeping.get(session_id)) is not None:
            keeping.cancel()  # its sandbox is still there
        async with self._records.holding(session_id):
            session = await self._ours(await self._require(session_id), gone)
            here = self._peers.is_mine(session.owner)
            if session.sandbox is not None and session.state is SessionState.ACTIVE:
                alive = await self._provider.find(session.sandbox.id) if here else None
                if alive is not None and alive.id != gone:
                    self._bound[alive.id] = session_id
                    return Opened(session, alive, StartKind.LIVE)
                reason = "its sandbox does not answer" if here else f"gateway {session.owner}, which had it, is gone"
                session = await self._salvage(session, reason)
            if session.state in (SessionState.HIBERNATING, SessionState.WAKING):
                session = await self._salvage(session, "")  # broken off half-way, by a store that was away for one
            return await self._revive(session)

    async def _open_live(self, session_id: SessionId, gone: SandboxId | None) -> Opened | None:
        """The session if it is awake where every gateway reaches it; None: it takes a change of its record.

        The touch comes before the read. So a gateway that puts it to sleep at this moment sees the touch in what its
        write answers, and leaves it awake; or its write came first, and is what is read here.
        """
        await self._records.store.touch_many({session_id: self._clock.now()})
        session = await self._require(session_id)
        if session.sandbox is None or not self._peers.is_mine(session.owner) or session.sandbox.id == gone:
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

    async def _ours(self, session: Session, gone: SandboxId | None) -> Session:
        """The session, once this gateway may act on it. Its holder waits for an owner that may be coming back.

        Raises ElsewhereError while the owner is alive, OwnerAwayError when it is gone with the only workspace.
        """
        first_seen: float | None = None
        while not self._peers.is_mine(session.owner):
            peer = await self._peers.find(session.owner)
            # Half a beat: the same announcement read twice differs by the time of the readings.
            spoke_again = first_seen is not None and peer.seen > first_seen + self._peers.beat / 2
            if peer.alive and (gone != peer_sandbox(peer) or spoke_again):
                raise ElsewhereError(peer)
            if not peer.alive:
                if is_snapshot(session.snapshot) or (session.sandbox is not None and self._hibernation.leaves_running):
                    return session
                raise OwnerAwayError(
                    f"the workspace of session {session.id} is kept by gateway {peer.id}, which does not run; start it "
                    "again, or keep snapshots where all gateways reach them (--snapshots)"
                )
            first_seen = peer.seen if first_seen is None else first_seen
            await self._peers.wait_beat()
            session = await self._require(session.id)
        return session

    async def hibernate(self, session_id: SessionId, *, only_if: Callable[[Session], bool] | None = None) -> bool:
        """Put a session to sleep. Requests that come from now on wake it, or stop this while it can be stopped.

        `only_if` is asked of the fresh record; False leaves it awake. Returns whether it sleeps now.
        Raises: SessionNotFoundError, ElsewhereError, ConflictError while requests are under way or when it has nothing
        to keep, SnapshotError when its workspace cannot be kept: it then stays awake, and its record says why.
        """
        async with self._records.holding(session_id):
            session = await self._ours(await self._require(session_id), None)
            if session.state is SessionState.HIBERNATED:
                return True
            if session.state is not SessionState.ACTIVE or session.sandbox is None:
                raise ConflictError(f"session {session_id} is {session.state}; only an active one can be put to sleep")
            if only_if is not None and (not only_if(session) or await self.at_work(session)):
                return False
            session = await self._hibernation.begin(session)
            busy = (only_if is None and await self._busy_elsewhere(session)) or self._activity.busy(session_id)
            if busy or (only_if is not None and not only_if(session)):
                await self._hibernation.cancel(session)
                if only_if is not None:
                    return False
                raise ConflictError(f"session {session_id} has requests under way; try again when they are done")
            return await self._put_to_sleep(session)

    async def _busy_elsewhere(self, session: Session) -> bool:
        """Whether another gateway has requests under way on it: their heart-beats reach the record every second."""
        now = self._clock.now()
        if not self.everybodys or session.last_active_at + 3 * HEARTBEAT_S < now:
            return False
        if session.last_active_at > now + HEARTBEAT_S:
            return True  # the clock was set back: heart-beats do not show until it has caught up
        # The first beat may tell of requests that have ended; only one that is under way shows in a later one as well.
        # Beats come late from a gateway that has much to do: there is time for more than two.
        await asyncio.sleep(1.5 * HEARTBEAT_S)
        first = await self._records.get(session.id)
        await asyncio.sleep(2.5 * HEARTBEAT_S)
        second = await self._records.get(session.id)
        return first is not None and second is not None and second.last_active_at > first.last_active_at

    async def checkpoint(self, session_id: SessionId) -> bool:
        """Keep a copy of an active session's workspace, for the case that its sandbox is lost. Returns whether it was.

        Raises: SessionNotFoundError, SnapshotError, StoreUnavailableError.
        """
        async with self._records.holding(session_id):
            session = await self._require(session_id)
            if session.state is not SessionState.ACTIVE or not self._peers.is_mine(session.owner):
                return False
            return (await self._hibernation.checkpoint(session)).snapshot is not None

    async def get(self, session_id: SessionId) -> Session:
        """The record, with this gateway's fresher knowledge of its activity. Raises SessionNotFoundError."""
        session = await self._records.get(session_id)
        if session is None:
            raise SessionNotFoundError(f'sessions.agentcube.volcano.sh "{session_id}" not found')
        latest = self._activity.latest(session_id, self._clock.now())
        return replace(session, last_active_at=max(session.last_active_at, latest or 0.0))

    async def glance(self, session_id: SessionId) -> Session:
        """The record as it was a moment ago, for what never changes in it. Raises SessionNotFoundError."""
        session = await self._records.peek(session_id)
        if session is None:
            raise SessionNotFoundError(f'sessions.agentcube.volcano.sh "{session_id}" not found')
        return session

    async def terminate(
        self, session_id: SessionId, reason: str, *, only_if: Callable[[Session], bool] | None = None
    ) -> bool:
        """End a session and delete its sandbox. `only_if` is asked of the fresh record. Returns whether it ended now.

        Raises: SessionNotFoundError if it is unknown or ended already, ElsewhereError.
        """
        async with self._records.holding(session_id):
            session = await self._records.get(session_id)
            if only_if is not None and (
                session is None or session.state is SessionState.TERMINATED or not only_if(session)
            ):
                return False
            session = session if only_if is not None and session is not None else await self._require(session_id)
            if not self._peers.is_mine(session.owner):
                peer = await self._peers.find(session.owner)
                if peer.alive:
                    raise ElsewhereError(peer)
            await self._terminate(session, reason)
            return True

    async def sandbox_ended(self, event: SandboxEvent) -> None:
        """A sandbox ended on its own: say so in the record at once. The next request recovers the session."""
        session_id = self._bound.pop(event.sandbox_id, event.session_id)
        if session_id is None:
            return
        self._tell_unbound(session_id, event.sandbox_id)
        async with self._records.holding(session_id):
            session = await self._records.get(session_id)
            if session is not None and session.sandbox is not None and session.sandbox.id == event.sandbox_id:
                await self._salvage(session, event.reason)
        await self._provider.release(event.sandbox_id)

    async def flush_activity(self) -> None:
        """Write buffered activity to the store in one batch; what it does not take is tried again next time."""
        seen = self._activity.take_unwritten(self._clock.now())
        if not seen:
            return
        try:
            await self._records.store.touch_many(seen)
        except StoreUnavailableError:
            self._activity.give_back(seen)
            raise

    async def reclaim(self) -> None:
        """This gateway had been silent for long enough to be taken for dead: drop what others took over meanwhile."""
        for sandbox_id, session_id in list(self._bound.items()):
            session = await self._records.store.get(session_id)
            if session is None or session.sandbox is None or session.sandbox.id != sandbox_id:
                logger.warning("session %s was taken over by another gateway; its sandbox here ends", session_id)
                self._tell_unbound(session_id, None)
                self._bound.pop(sandbox_id, None)
                await self._provider.release(sandbox_id)

    async def forget_ended(self) -> None:
        """Stop counting sandboxes that another gateway, which reaches them too, has ended."""
        if self.everybodys:
            for sandbox_id in list(self._bound):
                if await self._provider.find(sandbox_id) is None:
                    self._bound.pop(sandbox_id, None)

    def is_idle(self, session: Session) -> bool:
        """Whether its idle timeout is over, by the record and by what this gateway saw since."""
        now = self._clock.now()
        latest = self._activity.latest(session.id, now)
        return max(session.last_active_at, latest or 0.0) + session.idle_timeout <= now

    async def at_work(self, session: Session) -> bool:
        """Whether something runs in its sandbox that no request waits for. Then it counts as used now."""
        if self._work_check is None or session.sandbox is None:
            return False
        try:
            async with asyncio.timeout(_WORK_CHECK_S):
                at_work = await self._work_check(session.sandbox, session.id)
        except (WakegateError, TimeoutError):
            return False  # gone, or an executor of another kind: nothing speaks against its sleep
        if at_work:
            await self._records.store.touch_many({session.id: self._clock.now()})
        return at_work

    async def _put_to_sleep(self, session: Session) -> bool:
        """From `hibernating` to asleep. Nothing is awaited between the last look at its activity and this line."""
        self._tell_unbound(session.id, None)
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
        self._bound.pop(sandbox.id, None)
        await self._provider.release(sandbox.id)
        logger.info("session %s sleeps", session.id)
        return session.state is SessionState.HIBERNATED

    async def _keep(self, session: Session) -> tuple[Session, str | None]:
        runtime = self._catalog.get(session.runtime)
        if runtime is not None and runtime.hibernation is HibernationMode.STATE:
            session = await self._hibernation.suspend(session)
        return session, await self._hibernation.keep(session)

    async def _rest_one(self, session_id: SessionId) -> None:
        async with self._records.holding(session_id):
            session = await self._records.get(session_id)
            if session is not None and session.state is SessionState.ACTIVE and session.sandbox is not None:
                await self._put_to_sleep(await self._hibernation.begin(session))

    async def _terminate(self, session: Session, reason: str) -> None:
        # Routes go first: a request that comes now waits for the lock and then sees the truth.
        self._tell_unbound(session.id, None)
        await self._records.put(replace(session, state=SessionState.TERMINATED, reason=reason, sandbox=None))
        if session.sandbox is not None:
            self._bound.pop(session.sandbox.id, None)
            await self._provider.release(session.sandbox.id)
        await self._hibernation.forget(session)
        logger.info("session %s ended: %s", session.id, reason)

    async def _revive(self, session: Session) -> Opened:
        """A sandbox for a session that has none: asleep, or lost with or without its workspace. Lock held."""
        runtime = self._require_runtime(session.runtime)
        if session.state is SessionState.HIBERNATED:
            for listener in self._woken:
                listener(session.id, session.runtime, self._clock.now() - session.last_active_at)
        sandbox, claim_s = await self.claims.claim(runtime, session.id, bound=self.bound)
        began = self._clock.monotonic()
        restored = None
        if session.state is SessionState.LOST:
            restored = NOTHING_RESTORED if session.snapshot_at is None else rfc3339(session.snapshot_at)
            logger.warning(
                "session %s lost its sandbox (%s); restored: %s", session.id, session.reason or "gone", restored
            )
        self._bound[sandbox.id] = session.id
        try:
            if session.snapshot is not None:
                session = await self._hibernation.unpark(session, sandbox, runtime)
            else:
                awake = self._hibernation.awake(session, runtime)
                session = await self._records.put(replace(awake, sandbox=sandbox, start=sandbox.start))
        except BaseException:
            self._bound.pop(sandbox.id, None)
            await asyncio.shield(self._provider.release(sandbox.id))
            raise
        restore_s = self._clock.monotonic() - began
        return Opened(session, sandbox, session.start or sandbox.start, restored, claim_s, restore_s)

    async def _bind(self, session: Session, sandbox: Sandbox) -> Session:
        """Write the record that names the sandbox; if that fails the sandbox is nobody's and goes away."""
        self._bound[sandbox.id] = session.id
        try:
            return await self._records.put(session)
        except BaseException:
            self._bound.pop(sandbox.id, None)
            await asyncio.shield(self._provider.release(sandbox.id))
            raise

    async def _salvage(self, session: Session, reason: str) -> Session:
        """Its sandbox ended: write what is left of it. Returns the record as it is then."""
        if session.sandbox is not None:
            self._bound.pop(session.sandbox.id, None)
            try:
                salvaged = await self._hibernation.salvage(
                    session, reason, reachable=self._peers.is_mine(session.owner)
                )
            except StaleWriteError:
                salvaged = await self._require(session.id)  # somebody else already wrote what came of it
        else:
            salvaged = await self._records.put(replace(session, state=SessionState.LOST, reason=reason))
        logger.warning("session %s lost its sandbox: %s; it is %s", session.id, reason or "gone", salvaged.state)
        return salvaged

    async def _require(self, session_id: SessionId) -> Session:
        session = await self._records.get(session_id)
        if session is None or session.state is SessionState.TERMINATED:
            ended = f": it ended ({session.reason})" if session is not None and session.reason else ""
            raise SessionNotFoundError(f'sessions.agentcube.volcano.sh "{session_id}" not found{ended}')
        if session.expires_at <= self._clock.now():
            raise SessionNotFoundError(
                f'sessions.agentcube.volcano.sh "{session_id}" not found: its maximum duration is over'
            )
        return session

    def _require_runtime(self, key: RuntimeKey) -> Runtime:
        runtime = self._catalog.get(key)
        if runtime is None:
            plural = key.kind.lower() + "s"
            raise RuntimeNotFoundError(f'{plural}.agentcube.volcano.sh "{key.namespace}/{key.name}" not found')
        return runtime

    def _tell_unbound(self, session_id: SessionId, sandbox_id: SandboxId | None) -> None:
        for listener in self._unbound:
            listener(session_id, sandbox_id)


def peer_sandbox(peer: Peer) -> SandboxId:
    """What stands for a session's sandbox while another gateway has it."""
    return SandboxId(f"gateway:{peer.id}")


def rfc3339(seconds: float) -> str:
    """An epoch time as text, UTC, to the millisecond."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
