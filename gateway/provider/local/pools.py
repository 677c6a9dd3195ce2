"""Warm pools: ordering what is missing, handing out what is ready, backing off from what does not start.

pool_state.py makes the decisions, start_limiter.py orders the starts; here they are joined to the event loop. A claim
from a warm pool awaits nothing.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

from gateway.core.background import Tasks
from gateway.core.clock import Clock
from gateway.core.errors import NeverFitsError, NoCapacityError, RuntimeNotFoundError, SandboxStartError
from gateway.core.model import PoolStatus, Requests, Runtime, RuntimeKey, Sandbox, SessionId, StartKind
from gateway.provider.local.booking import Booking, Ledger, victims
from gateway.provider.local.pool_state import MAX_FAILED_STARTS, PoolState
from gateway.provider.local.process import StartFailedError
from gateway.provider.local.registry import SandboxRegistry
from gateway.provider.local.sandbox import LocalSandbox
from gateway.provider.local.start_limiter import StartLimiter

logger = logging.getLogger(__name__)

# A spawn holds the event loop's thread for 2 to 15 ms (fork, control groups). The claim that makes a refill necessary
# should be answered before that: a create took 5 ms with the refill begun at once and takes 2.7 ms with this pause
# (loadtest/session_bench.py).
_REFILL_DELAY_S = 0.01
# How long a claim waits for room on the machine: less than requests are held (sessions/admission.py), so that its
# client reads what is short.
ROOM_WAIT_S = 5.0


@dataclass(slots=True, eq=False)
class _Pool:
    runtime: Runtime
    state: PoolState[LocalSandbox, asyncio.Future[LocalSandbox]]
    retry: asyncio.TimerHandle | None = field(default=None)

    def cancel_retry(self) -> None:
        if self.retry is not None:
            self.retry.cancel()
            self.retry = None

    def refuse_waiters(self, refusal: Callable[[], Exception]) -> None:
        for waiter in self.state.waiters:
            if not waiter.done():
                waiter.set_exception(refusal())


class Pools:
    """One warm pool per runtime. Nothing is started before `open`, nor after `close`."""

    def __init__(self, registry: SandboxRegistry, tasks: Tasks, clock: Clock, ledger: Ledger) -> None:
        """Starts run as `tasks`, whose owner cancels them after `close`. `ledger`: what sandboxes have booked."""
        self._registry, self._tasks, self._clock = registry, tasks, clock
        self._ledger = ledger
        self._pools: dict[RuntimeKey, _Pool] = {}
        # Two per core: while one start waits for its process, or for the disk, the other computes.
        self._limiter = StartLimiter(refills=2 * (os.cpu_count() or 1))
        self._measuring = asyncio.Semaphore(1)
        self._running = False

    def open(self) -> None:
        """Start to fill every pool to its target."""
        self._running = True
        for pool in self._pools.values():
            self._fill(pool)

    def close(self) -> None:
        """Stop starting sandboxes. Waiting claims are refused."""
        self._running = False
        for pool in self._pools.values():
            pool.cancel_retry()
            pool.refuse_waiters(partial(SandboxStartError, "this gateway is shutting down"))

    def apply(self, runtimes: Iterable[Runtime]) -> None:
        """Serve these from now on. Warm sandboxes of a changed runtime are replaced; claimed ones are left alone."""
        wanted = {runtime.key: runtime for runtime in runtimes}
        for key in [key for key in self._pools if key not in wanted]:
            pool = self._pools.pop(key)
            pool.cancel_retry()
            pool.refuse_waiters(partial(RuntimeNotFoundError, f"{key} is no longer served"))
            pool.state.waiters.clear()
            self._registry.end_soon(pool.state.resize(0))
        for key, runtime in wanted.items():
            old = self._pools.get(key)
            if old is None:
                self._pools[key] = _Pool(runtime, PoolState(runtime.pool.size))
            elif old.runtime != runtime:
                # The autoscaler's target stays unless the manifest changed the size itself: applying a manifest with a
                # new image must not shrink a pool that was sized for the traffic of now.
                resized = old.runtime.pool.size != runtime.pool.size
                target = runtime.pool.size if resized else old.state.target
                self._registry.end_soon(old.state.resize(0))
                old.runtime = runtime
                old.state.resize(target)
            self._fill(self._pools[key])

    async def claim(self, runtime: RuntimeKey, session_id: SessionId) -> Sandbox:
        """A warm sandbox at once, else the next that is ready. Raises RuntimeNotFoundError, SandboxStartError."""
        # One whose processes end in the step between its arrival and here is no reason to refuse: another is claimed.
        # Three in a row are no accident.
        for _ in range(MAX_FAILED_STARTS):
            sandbox, start = await self._next(self._pool(runtime), runtime)
            if not sandbox.workspace.exists():
                # Somebody has deleted the state directory: what the session writes would be lost with its sandbox.
                self._registry.end_soon([sandbox])
                raise _start_error(
                    runtime, "the workspaces' folder was removed while this gateway ran; restart it", 0.0
                )
            if sandbox.is_alive:
                claimed = sandbox.claim(session_id, start)
                self._tasks.spawn(self._begin_cpu_count(sandbox))
                return claimed
        raise _start_error(runtime, f"sandbox {sandbox.id} ended as soon as it was ready", 0.0)

    async def _begin_cpu_count(self, sandbox: LocalSandbox) -> None:
        """Measure what it used while it was warm."""
        # Not in the claim: without a control group it takes 15 reads of /proc, 1.3 ms on the event loop, a third of
        # what a wake costs there, and in a storm each wake waits for those of all before it. One at a time, as restores
        # need the same threads. What user code computes until then, some milliseconds of it, is not counted; counting
        # what a kernel computed while it was warm (0.65 s) would be the larger error.
        async with self._measuring:
            await asyncio.to_thread(sandbox.begin_cpu_count)

    async def _next(self, pool: _Pool, runtime: RuntimeKey) -> tuple[LocalSandbox, StartKind]:
        """The sandbox that has been warm longest, else the next that is ready, which may have ended already."""
        now = self._clock.monotonic()
        sandbox = pool.state.take(lambda sandbox: sandbox.is_alive)
        if sandbox is not None:
            pool.state.confirm_healthy(now - sandbox.born)
            self._fill(pool)
            return sandbox, StartKind.WARM
        if not self._running:
            raise SandboxStartError("this gateway is not running sandboxes now")
        pause = pool.state.refusal(now)
        if pause is not None:
            raise _start_error(runtime, pool.state.last_error, pause)
        if lacking := self._ledger.never_fits(pool.runtime.requests):
            raise NeverFitsError(f"{runtime} requests more than this machine has: {lacking}")
        waiter: asyncio.Future[LocalSandbox] = asyncio.get_running_loop().create_future()
        pool.state.waiters.append(waiter)
        self._fill(pool, urgent=True)
        refusal = asyncio.get_running_loop().call_later(ROOM_WAIT_S, self._refuse_for_room, pool, waiter)
        try:
            return await waiter, StartKind.COLD
        except asyncio.CancelledError:
            if waiter in pool.state.waiters:
                pool.state.waiters.remove(waiter)
            elif not waiter.cancelled() and waiter.exception() is None:
                # It was handed over as its caller was cancelled; a sandbox is never bound twice.
                self._registry.end_soon([waiter.result()])
            raise
        finally:
            refusal.cancel()

    def _refuse_for_room(self, pool: _Pool, waiter: asyncio.Future[LocalSandbox]) -> None:
        """Refuse a claim that no start is under way for, as others have booked what it needs."""
        state, short = pool.state, self._ledger.short_of(pool.runtime.requests)
        if waiter.done() or waiter not in state.waiters or not short or state.waiters.index(waiter) < state.starting:
            return
        state.waiters.remove(waiter)
        waiter.set_exception(
            NoCapacityError(
                f"no room for a sandbox of {pool.runtime.key} within {ROOM_WAIT_S:g} s: {short}; end or hibernate a "
                "session, or try again later"
            )
        )
        self._fill_all()

    def resize(self, runtime: RuntimeKey, warm: int) -> None:
        """Set the number of warm sandboxes. Raises RuntimeNotFoundError."""
        pool = self._pool(runtime)
        self._registry.end_soon(pool.state.resize(max(0, warm)))
        self._fill(pool)

    def status(self, runtime: RuntimeKey) -> PoolStatus:
        """The pool now. Raises RuntimeNotFoundError."""
        pool = self._pool(runtime)
        state = pool.state
        missing = state.target + len(state.waiters) > len(state.ready) + state.starting
        short = self._ledger.short_of(pool.runtime.requests) if missing else ""
        retry_at = None if state.retry_at is None else self._clock.now() + state.retry_at - self._clock.monotonic()
        return PoolStatus(
            runtime=runtime,
            target=state.target,
            ready=len(state.ready),
            starting=state.starting,
            claimed=self._registry.claimed(runtime),
            # As for a pod that fits on no node: nothing starts until something ends.
            failures=max(state.failures, MAX_FAILED_STARTS) if short else state.failures,
            last_error=f"no room: {short}" if short else state.last_error or self._registry.hint(runtime),
            retry_at=retry_at,
            lead_time_p50=state.lead_time(0.5),
            lead_time_p90=state.lead_time(0.9),
        )

    # Callbacks of the registry.

    def died(self, sandbox: LocalSandbox, reason: str) -> None:
        """A warm sandbox exited unasked."""
        now = self._clock.monotonic()
        detail = f" ({sandbox.process.error_output()})" if sandbox.process.error_output() else ""
        logger.warning("a warm sandbox of %s %s%s", sandbox.runtime.key, reason, detail)
        pool = self._pools.get(sandbox.runtime.key)
        if pool is not None:
            pool.state.exited(sandbox, now - sandbox.born, now, f"a warm sandbox {reason}{detail}")
            self._fill(pool)

    def forget(self, sandbox: LocalSandbox) -> None:
        """A sandbox is being ended: take it out of its pool."""
        self._ledger.ends(sandbox.booking)
        pool = self._pools.get(sandbox.runtime.key)
        if pool is not None:
            pool.state.forget(sandbox)

    def refill(self, sandbox: LocalSandbox) -> None:
        """A sandbox is gone: replace it if its pool is short, or start what waited for its room."""
        if sandbox.booking is not None:
            self._ledger.release(sandbox.booking)
            self._fill_all()
            return
        pool = self._pools.get(sandbox.runtime.key)
        if pool is not None:
            self._fill(pool)

    # Starting.

    def _fill(self, pool: _Pool, *, urgent: bool = False) -> None:
        """Order what is missing. The first start of an urgent call is for the claim that made it."""
        if not self._running:
            return
        now = self._clock.monotonic()
        bookings = self._book(pool, pool.state.wanted(now))
        pool.state.start_ordered(len(bookings))
        for index, booking in enumerate(bookings):
            self._tasks.spawn(self._start_one(pool, pool.runtime, booking, now, urgent=urgent and index == 0))
        pool.cancel_retry()
        if pool.state.retry_at is not None and pool.state.retry_at > now:
            pool.retry = asyncio.get_running_loop().call_later(pool.state.retry_at - now, self._fill, pool)

    def _fill_all(self) -> None:
        """Order what is missing in all pools, as room has become free: those whose claims wait come first."""
        for pool in sorted(self._pools.values(), key=lambda pool: len(pool.state.waiters) <= pool.state.starting):
            self._fill(pool)

    def _book(self, pool: _Pool, count: int) -> list[Booking | None]:
        """Book room for up to `count` starts; as many as there is room for, and all where nothing is requested."""
        requests, state = pool.runtime.requests, pool.state
        if not requests:
            return [None] * count
        bookings: list[Booking | None] = []
        claims = len(state.waiters) - state.starting  # of claims that no start is under way for
        for index in range(count):
            # A warm sandbox takes no room that a claim of any runtime waits for.
            if index >= claims and any(each is not pool and self._lacks_room(each) for each in self._pools.values()):
                break
            booking = self._ledger.book(requests)
            if booking is None:
                if index < claims:
                    self._make_room(requests)
                break
            bookings.append(booking)
        return bookings

    def _lacks_room(self, pool: _Pool) -> bool:
        """Whether a claim waits that no start is under way for, as there is no room."""
        waits = len(pool.state.waiters) > pool.state.starting
        return waits and bool(self._ledger.short_of(pool.runtime.requests))

    def _make_room(self, requests: Requests) -> None:
        """End warm sandboxes for a claim that does not fit: of the fullest pools first, and of each the newest."""
        pools = sorted(self._pools.values(), key=lambda pool: -len(pool.state.ready))
        warm = [each for pool in pools for each in reversed(pool.state.ready)]
        held = {each.booking.id: each for each in warm if each.booking is not None}
        chosen = victims(self._ledger, requests, [each.booking for each in warm if each.booking is not None])
        if chosen:
            logger.debug("%d warm sandboxes end for a claim", len(chosen))
        self._registry.end_soon([held[booking.id] for booking in chosen])

    async def _start_one(
        self, pool: _Pool, runtime: Runtime, booking: Booking | None, ordered: float, *, urgent: bool
    ) -> None:
        started = False
        try:
            if not urgent:
                await asyncio.sleep(_REFILL_DELAY_S)
            async with self._limiter.slot(urgent=urgent):
                # Asked again when its turn comes: a shrink, or a released claim, may have made the start needless.
                if pool.state.surplus() or not self._serves(pool, runtime):
                    pool.state.start_withdrawn()
                else:
                    sandbox = await self._registry.start(runtime, booking)
                    started = True
                    self._arrived(pool, sandbox, ordered)
        except StartFailedError as error:
            self._start_failed(pool, str(error))
        except Exception as error:  # a bug must reach the waiting claim, not hang it
            logger.exception("starting a sandbox of %s", runtime.key)
            self._start_failed(pool, f"{type(error).__name__}: {error}")
        finally:
            if not started:
                self._ledger.release(booking)
        if booking is not None and not started:
            self._fill_all()
        else:
            self._fill(pool)

    def _arrived(self, pool: _Pool, sandbox: LocalSandbox, ordered: float) -> None:
        if not self._serves(pool, sandbox.runtime):
            pool.state.start_withdrawn()  # the runtime changed or went away meanwhile
            self._registry.end_soon([sandbox])
            return
        lead = self._clock.monotonic() - ordered
        taken = pool.state.start_succeeded(sandbox, lead)
        logger.debug(
            "sandbox %s of %s is ready %.4f s after its order%s",
            sandbox.id,
            sandbox.runtime.key,
            lead,
            "; surplus" if taken is False else "",
        )
        if taken is False:
            self._registry.end_soon([sandbox])
        elif taken is not True:
            taken.set_result(sandbox)

    def _start_failed(self, pool: _Pool, reason: str) -> None:
        now = self._clock.monotonic()
        refused = pool.state.start_failed(now, reason)
        pause = (pool.state.retry_at or now) - now
        logger.warning("%s", _start_error(pool.runtime.key, reason, pause))
        for waiter in refused:
            waiter.set_exception(_start_error(pool.runtime.key, reason, pause))

    def _pool(self, key: RuntimeKey) -> _Pool:
        try:
            return self._pools[key]
        except KeyError:
            raise RuntimeNotFoundError(f"{key} not found") from None

    def _serves(self, pool: _Pool, runtime: Runtime) -> bool:
        return self._pools.get(runtime.key) is pool and pool.runtime is runtime


def _start_error(runtime: RuntimeKey, reason: str, pause: float) -> SandboxStartError:
    return SandboxStartError(f"a sandbox of {runtime} could not be started: {reason}", retry_after=max(0.1, pause))
