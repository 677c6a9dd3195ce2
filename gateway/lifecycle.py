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
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from gateway.clock import Clock
from gateway.errors import (
    ActivationTimeoutError,
    ConflictError,
    QueueFullError,
    RuntimeNotFoundError,
    SessionNotFoundError,
    SnapshotError,
    StaleWriteError,
    StoreUnavailableError,
    UpstreamBrokenError,
    UpstreamConnectError,
    UpstreamTimeoutError,
    WakegateError,
)
from gateway.hibernation import Hibernation, bounded
from gateway.interfaces import RuntimeCatalog, SandboxProvider, SessionStore
from gateway.model import (
    Runtime,
    RuntimeKey,
    Sandbox,
    SandboxEvent,
    SandboxId,
    Session,
    SessionId,
    SessionState,
    StartKind,
)
from gateway.stats import Activity, Backlog, ClaimListener, GapListener, StartTimes, WaitListener

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

logger = logging.getLogger(__name__)

NOTHING_RESTORED = "none"
MIN_HOLD_S = 10.0
HOLD_FACTOR = 3.5  # times the expected start: room for a queue of starts before it, still an answer while people wait
_LONGEST_RETRY_S = 30.0  # a Retry-After beyond this is a guess about other people
_SWEEP_BATCH = 256  # sessions ended in one sweep of each kind, so that a tick stays short
_WORK_CHECK_S = 2.0  # seconds that a sandbox has to say whether it is at work

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
        store: SessionStore,
        provider: SandboxProvider,
        catalog: RuntimeCatalog,
        hibernation: Hibernation,
        activity: Activity,
        clock: Clock,
        *,
        max_sandboxes: int = 512,
        terminated_retention: float = 3600.0,
    ) -> None:
        self._store = store
        self._provider = provider
        self._catalog = catalog
        self._hibernation = hibernation
        self._activity = activity
        self._clock = clock
        self._max_sandboxes = max_sandboxes
        self._terminated_retention = terminated_retention
        self._locks: dict[SessionId, tuple[asyncio.Lock, int]] = {}
        self._bound: dict[SandboxId, SessionId] = {}
        self._work_check: WorkCheck | None = None
        self._claiming = 0
        self._start_times: dict[RuntimeKey, StartTimes] = {}
        self._backlogs: dict[RuntimeKey, Backlog] = {}
        self._unbound: list[Unbound] = []
        self._claimed: list[ClaimListener] = []
        self._waiting: list[WaitListener] = []
        self._woken: list[GapListener] = []

    def on_unbound(self, listener: Unbound) -> None:
        """Call `listener(session, sandbox)` as soon as a session stops having that sandbox (None: for good)."""
        self._unbound.append(listener)

    def on_claim(self, listener: ClaimListener) -> None:
        """Call `listener(runtime, start, now)` for each claim; the autoscaler learns from it."""
        self._claimed.append(listener)

    def on_waiting(self, listener: WaitListener) -> None:
        """Call `listener(runtime, 1, now)` as a claim begins, and with -1 when it has its sandbox or has failed."""
        self._waiting.append(listener)

    def on_wake(self, listener: GapListener) -> None:
        """Call `listener(session, runtime, seconds)` when a sleeping session is used again, after so long a silence."""
        self._woken.append(listener)

    def ask_before_sleep(self, check: WorkCheck) -> None:
        """Ask `check(sandbox, session)` before an idle session sleeps or ends: is its sandbox at work?"""
        self._work_check = check

    @property
    def bound(self) -> int:
        """Sandboxes that this gateway has bound to sessions."""
        return len(self._bound)

    def hold_time(self, runtime: RuntimeKey | None) -> float:
        """Seconds that a request may be held for a sandbox of this runtime (None: of whichever is slowest)."""
        times = self._start_times.values() if runtime is None else filter(None, [self._start_times.get(runtime)])
        return max(MIN_HOLD_S, HOLD_FACTOR * max((each.expected() for each in times), default=0.0))

    def overdue(self, runtime: RuntimeKey | None, waited: float) -> WakegateError:
        """What to tell a request that no sandbox was ready for within the hold rule (runtime None: of whichever).

        When others who queued were served meanwhile it is overload, so 429 with the time that the queue takes; when
        nobody was, something is wrong with the starts: 504.
        """
        queues = self._backlogs.items()
        moving = [each for key, each in queues if each.moves and (key == runtime or (runtime is None and each.waiting))]
        text = f"no sandbox was ready within {waited:.1f} s; the request was not sent to one"
        if not moving:
            return ActivationTimeoutError(text, retry_after=1)
        expected = max(each.expected_wait(self._clock.monotonic()) or 1.0 for each in moving)
        return QueueFullError(f"{text}: others wait too", retry_after=min(max(1.0, expected), _LONGEST_RETRY_S))

    async def start(self) -> None:
        """Make records true after an earlier life: what sandboxes that ended with it left is kept for its session."""
        for state in (SessionState.ACTIVE, SessionState.HIBERNATING, SessionState.WAKING):
            after: SessionId | None = None
            while True:
                page = [s async for s in self._store.sessions(state=state, after=after, limit=500)]
                for session in page:
                    if session.sandbox is not None and await self._provider.find(session.sandbox.id) is not None:
                        self._bound[session.sandbox.id] = session.id
                    else:
                        await self._salvage(session, "the gateway that ran its sandbox ended")
                if len(page) < 500:
                    break
                after = page[-1].id
        await self._hibernation.settled()

    async def rest(self) -> None:
        """Put every session of this gateway to sleep, whatever it does: the gateway is about to end."""
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
        sandbox, claim_s = await self._claim(runtime, session_id)
        now = self._clock.now()
        longest = runtime.max_session_duration
        session = Session(
            id=session_id,
            runtime=runtime_key,
            state=SessionState.ACTIVE,
            created_at=now,
            last_active_at=now,
            expires_at=now + (longest if ttl is None else min(ttl, longest)),
            ends_at=None if ttl is None else now + ttl,
            idle_timeout=min(idle_timeout or runtime.session_timeout, longest),
            tenant=tenant,
            sandbox=sandbox,
            start=sandbox.start,
            metadata=dict(metadata or {}),
        )
        session = await self._bind(session, sandbox)
        return Opened(session, sandbox, sandbox.start, claim_s=claim_s)

    async def open(self, session_id: SessionId, *, gone: SandboxId | None = None) -> Opened:
        """The session with a live sandbox: woken if it sleeps, recovered if its sandbox ended or is `gone`.

        Raises: SessionNotFoundError, and what `create` raises.
        """
        async with self._locked(session_id):
            session = await self._require(session_id)
            if session.sandbox is not None and session.state is SessionState.ACTIVE:
                alive = await self._provider.find(session.sandbox.id)
                if alive is not None and alive.id != gone:
                    self._bound[alive.id] = session_id
                    return Opened(session, alive, StartKind.LIVE)
                session = await self._salvage(session, "its sandbox does not answer")
            if session.state in (SessionState.HIBERNATING, SessionState.WAKING):
                session = await self._salvage(session, "")  # broken off half-way, by a store that was away for one
            return await self._revive(session)

    async def hibernate(self, session_id: SessionId, *, only_if: Callable[[Session], bool] | None = None) -> bool:
        """Put a session to sleep. Requests that come from now on wait, and wake it.

        `only_if` is asked of the fresh record; False leaves it awake. Returns whether it sleeps now.
        Raises: SessionNotFoundError, ConflictError while requests are under way or when it has nothing to keep.
        """
        async with self._locked(session_id):
            session = await self._require(session_id)
            if session.state is SessionState.HIBERNATED:
                return True
            if session.state is not SessionState.ACTIVE or session.sandbox is None:
                raise ConflictError(f"session {session_id} is {session.state}; only an active one can be put to sleep")
            if only_if is not None and (not only_if(session) or await self._at_work(session)):
                return False
            session = await self._hibernation.begin(session)
            if self._activity.busy(session_id) or (only_if is not None and not only_if(session)):
                await self._hibernation.cancel(session)
                if only_if is not None:
                    return False
                raise ConflictError(f"session {session_id} has requests under way; try again when they are done")
            return await self._put_to_sleep(session)

    async def get(self, session_id: SessionId) -> Session:
        """The record, with this gateway's fresher knowledge of its activity. Raises SessionNotFoundError."""
        session = await self._store.get(session_id)
        if session is None:
            raise SessionNotFoundError(f'sessions.agentcube.volcano.sh "{session_id}" not found')
        latest = self._activity.latest(session_id, self._clock.now())
        return replace(session, last_active_at=max(session.last_active_at, latest or 0.0))

    async def terminate(self, session_id: SessionId, reason: str) -> None:
        """End a session and delete its sandbox. Raises SessionNotFoundError if it is unknown or ended already."""
        async with self._locked(session_id):
            await self._terminate(await self._require(session_id), reason)

    async def sandbox_ended(self, event: SandboxEvent) -> None:
        """A sandbox ended on its own: say so in the record at once. The next request recovers the session."""
        session_id = self._bound.pop(event.sandbox_id, event.session_id)
        if session_id is None:
            return
        self._tell_unbound(session_id, event.sandbox_id)
        async with self._locked(session_id):
            session = await self._store.get(session_id)
            if session is not None and session.sandbox is not None and session.sandbox.id == event.sandbox_id:
                await self._salvage(session, event.reason)
        await self._provider.release(event.sandbox_id)

    async def flush_activity(self) -> None:
        """Write buffered activity to the store in one batch; what it does not take is tried again next time."""
        seen = self._activity.take_unwritten(self._clock.now())
        if not seen:
            return
        try:
            await self._store.touch_many(seen)
        except StoreUnavailableError:
            self._activity.give_back(seen)
            raise

    async def sweep(self) -> int:
        """Let idle sessions sleep (or end), end expired ones, forget records of long ended ones. Returns how many."""
        await self.flush_activity()
        now = self._clock.now()
        ended = 0
        for session in await _take(self._store.expired(now)):
            ended += await self._sweep_one(
                session, "its maximum duration is over", lambda s: s.expires_at <= self._clock.now()
            )
        for session in await _take(self._store.idle(now)):
            ended += await self._sweep_idle(session)
        for session in await _take(self._store.terminated(now - self._terminated_retention)):
            await self._store.delete(session.id)
        return ended

    def is_idle(self, session: Session) -> bool:
        """Whether its idle timeout is over, by the record and by what this gateway saw since."""
        now = self._clock.now()
        latest = self._activity.latest(session.id, now)
        return max(session.last_active_at, latest or 0.0) + session.idle_timeout <= now

    async def _at_work(self, session: Session) -> bool:
        """Whether something runs in its sandbox that no request waits for. Then it counts as used now."""
        if self._work_check is None or session.sandbox is None:
            return False
        try:
            async with asyncio.timeout(_WORK_CHECK_S):
                at_work = await self._work_check(session.sandbox, session.id)
        except (WakegateError, TimeoutError):
            return False  # gone, or an executor of another kind: nothing speaks against its sleep
        if at_work:
            await self._store.touch_many({session.id: self._clock.now()})
        return at_work

    async def _sweep_idle(self, session: Session) -> int:
        runtime = self._catalog.get(session.runtime)
        if runtime is None or not runtime.hibernates:
            if await self._at_work(session):
                return 0
            return await self._sweep_one(session, f"idle for {session.idle_timeout:g} s", self.is_idle)
        try:
            return int(await self.hibernate(session.id, only_if=self.is_idle))
        except (StaleWriteError, ConflictError, SessionNotFoundError):
            return 0  # somebody used or ended it meanwhile; the next sweep looks again
        except (SnapshotError, UpstreamConnectError, UpstreamBrokenError, UpstreamTimeoutError) as error:
            logger.warning("session %s stays awake: %s", session.id, error)
            await self._store.touch_many({session.id: self._clock.now()})  # it is tried again an idle timeout later
            return 0

    async def _put_to_sleep(self, session: Session) -> bool:
        """From `hibernating` to asleep. Nothing is awaited between the last look at its activity and this line."""
        self._tell_unbound(session.id, None)
        sandbox = session.sandbox
        try:
            session = await self._hibernation.park(session)
        except WakegateError as error:
            if isinstance(error, StaleWriteError) or sandbox is None or await self._provider.find(sandbox.id) is None:
                raise
            reason = error.reason if isinstance(error, SnapshotError) else f"cannot sleep: {error}"
            await self._hibernation.cancel(session, reason)  # it is awake, with all it has
            raise
        if sandbox is not None:
            self._bound.pop(sandbox.id, None)
            await self._provider.release(sandbox.id)  # the record does not name it any more
        logger.info("session %s sleeps", session.id)
        return session.state is SessionState.HIBERNATED

    async def _rest_one(self, session_id: SessionId) -> None:
        async with self._locked(session_id):
            session = await self._store.get(session_id)
            if session is not None and session.state is SessionState.ACTIVE and session.sandbox is not None:
                await self._put_to_sleep(await self._hibernation.begin(session))

    async def _sweep_one(self, session: Session, reason: str, still: Callable[[Session], bool]) -> int:
        async with self._locked(session.id):
            fresh = await self._store.get(session.id)
            if fresh is None or fresh.state is SessionState.TERMINATED or not still(fresh):
                return 0
            try:
                await self._terminate(fresh, reason)
            except StaleWriteError:
                return 0  # somebody used or ended it meanwhile; the next sweep looks again
            return 1

    async def _terminate(self, session: Session, reason: str) -> None:
        # Routes go first: a request that comes now waits for the lock and then sees the truth.
        self._tell_unbound(session.id, None)
        await self._store.put(replace(session, state=SessionState.TERMINATED, reason=reason, sandbox=None))
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
        sandbox, claim_s = await self._claim(runtime, session.id)
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
                now = self._clock.now()
                session = await self._store.put(
                    replace(
                        session,
                        state=SessionState.ACTIVE,
                        sandbox=sandbox,
                        start=sandbox.start,
                        last_active_at=now,
                        expires_at=bounded(now + runtime.max_session_duration, session.ends_at),
                        reason="",
                    )
                )
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
            return await self._store.put(session)
        except BaseException:
            self._bound.pop(sandbox.id, None)
            await asyncio.shield(self._provider.release(sandbox.id))
            raise

    async def _claim(self, runtime: Runtime, session_id: SessionId) -> tuple[Sandbox, float]:
        if self.bound + self._claiming >= self._max_sandboxes:
            raise QueueFullError(
                f"all {self._max_sandboxes} sandboxes of this gateway are in use; end a session or try again later",
                retry_after=5,
            )
        began = self._clock.monotonic()
        backlog = self._backlogs.setdefault(runtime.key, Backlog())
        expected, hold = backlog.expected_wait(began), self.hold_time(runtime.key)
        if expected is not None and expected > hold:
            raise QueueFullError(
                f"{backlog.waiting} sessions wait for a sandbox of {runtime.key}, which takes about {expected:.0f} s; "
                f"requests are held for {hold:.0f} s at most",
                retry_after=min(expected - hold / 2, _LONGEST_RETRY_S),
            )
        self._claiming += 1
        self._tell_waiting(runtime.key, 1)
        backlog.joined(began)
        started = False
        try:
            sandbox = await self._provider.claim(runtime.key, session_id)
            started = sandbox.start is StartKind.COLD
        finally:
            self._claiming -= 1
            self._tell_waiting(runtime.key, -1)
            backlog.left(served=started)
        took = self._clock.monotonic() - began
        self._start_times.setdefault(runtime.key, StartTimes()).add(took)
        for listener in self._claimed:
            listener(runtime.key, sandbox.start, self._clock.now())
        return sandbox, took

    def _tell_waiting(self, runtime: RuntimeKey, change: int) -> None:
        for listener in self._waiting:
            listener(runtime, change, self._clock.now())

    async def _salvage(self, session: Session, reason: str) -> Session:
        """Its sandbox ended: write what is left of it. Returns the record as it is then."""
        if session.sandbox is not None:
            self._bound.pop(session.sandbox.id, None)
            try:
                salvaged = await self._hibernation.salvage(session, reason)
            except StaleWriteError:
                salvaged = await self._require(session.id)  # somebody else already wrote what came of it
        else:
            salvaged = await self._store.put(replace(session, state=SessionState.LOST, reason=reason))
        logger.warning("session %s lost its sandbox: %s; it is %s", session.id, reason or "gone", salvaged.state)
        return salvaged

    async def _require(self, session_id: SessionId) -> Session:
        session = await self._store.get(session_id)
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

    @asynccontextmanager
    async def _locked(self, session_id: SessionId) -> AsyncIterator[None]:
        """Serialise verbs on one session. Locks exist only while somebody holds or awaits them."""
        lock, users = self._locks.get(session_id, (None, 0))
        lock = lock or asyncio.Lock()
        self._locks[session_id] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            users = self._locks[session_id][1] - 1
            if users:
                self._locks[session_id] = (lock, users)
            else:
                del self._locks[session_id]


def rfc3339(seconds: float) -> str:
    """An epoch time as text, UTC, to the millisecond."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


async def _take(sessions: AsyncIterator[Session]) -> list[Session]:
    """At most a batch, so that one sweep stays short."""
    batch: list[Session] = []
    async for session in sessions:
        batch.append(session)
        if len(batch) >= _SWEEP_BATCH:
            break
    return batch
