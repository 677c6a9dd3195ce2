"""Warm pools: ordering what is missing, handing out what is ready, backing off from what does not start.

The decisions are the books' (pool_state.py), the order of starts the gate's (start_limiter.py); here they are joined to
the event loop. A claim from a warm pool awaits nothing.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

from gateway.core.clock import Clock
from gateway.core.errors import RuntimeNotFoundError, SandboxStartError
from gateway.core.model import PoolStatus, Runtime, RuntimeKey, Sandbox, SessionId, StartKind
from gateway.provider.local.pool_state import Book
from gateway.provider.local.process import StartFailedError
from gateway.provider.local.registry import Fleet
from gateway.provider.local.sandbox import Box
from gateway.provider.local.start_limiter import StartGate
from gateway.provider.tasks import Tasks

log = logging.getLogger(__name__)

# A spawn holds the event loop's thread for 2 to 15 ms (fork, control groups). The claim that makes a refill necessary
# should be answered before that: a create took 5 ms with the refill begun at once and takes 2.7 ms with this pause
# (loadtest/session_bench.py).
_ANSWER_FIRST_S = 0.01


@dataclass(slots=True, eq=False)
class _Pool:
    runtime: Runtime
    book: Book[Box, asyncio.Future[Box]]
    retry: asyncio.TimerHandle | None = field(default=None)

    def cancel_retry(self) -> None:
        if self.retry is not None:
            self.retry.cancel()
            self.retry = None

    def refuse_waiters(self, refusal: Callable[[], Exception]) -> None:
        for waiter in self.book.waiters:
            if not waiter.done():
                waiter.set_exception(refusal())


class Pools:
    """One pool for each runtime that is served. Nothing is started before `open`, nor after `close`."""

    def __init__(self, fleet: Fleet, tasks: Tasks, clock: Clock) -> None:
        """Starts run as `tasks`, whose owner cancels them after `close`."""
        self._fleet, self._tasks, self._clock = fleet, tasks, clock
        self._pools: dict[RuntimeKey, _Pool] = {}
        self._gate = StartGate(refills=2 * (os.cpu_count() or 1))
        self._running = False

    def open(self) -> None:
        """Begin to fill."""
        self._running = True
        for pool in self._pools.values():
            self._fill(pool)

    def close(self) -> None:
        """Order no more. Claims that wait are refused."""
        self._running = False
        for pool in self._pools.values():
            pool.cancel_retry()
            pool.refuse_waiters(partial(SandboxStartError, "this gateway is shutting down"))

    def apply(self, runtimes: Iterable[Runtime]) -> None:
        """Serve these from now on. Warm boxes of a changed runtime are replaced; claimed ones are left alone."""
        wanted = {runtime.key: runtime for runtime in runtimes}
        for key in [key for key in self._pools if key not in wanted]:
            pool = self._pools.pop(key)
            pool.cancel_retry()
            pool.refuse_waiters(partial(RuntimeNotFoundError, f"{key} is no longer served"))
            pool.book.waiters.clear()
            self._fleet.end_soon(pool.book.resize(0))
        for key, runtime in wanted.items():
            old = self._pools.get(key)
            if old is None:
                self._pools[key] = _Pool(runtime, Book(runtime.pool.size))
            elif old.runtime != runtime:
                resized = old.runtime.pool.size != runtime.pool.size
                target = runtime.pool.size if resized else old.book.target
                self._fleet.end_soon(old.book.resize(0))
                old.runtime = runtime
                old.book.resize(target)
            self._fill(self._pools[key])

    async def claim(self, runtime: RuntimeKey, session_id: SessionId) -> Sandbox:
        """A warm sandbox at once, else the next that is ready. Raises RuntimeNotFoundError, SandboxStartError."""
        pool = self._pool(runtime)
        now = self._clock.monotonic()
        box = pool.book.take(lambda box: box.is_alive)
        if box is not None:
            pool.book.proved(now - box.born)
            sandbox = box.claim(session_id, StartKind.WARM)
            self._fill(pool)
            return sandbox
        if not self._running:
            raise SandboxStartError("this gateway is not running sandboxes now")
        pause = pool.book.refusal(now)
        if pause is not None:
            raise _start_error(runtime, pool.book.last_error, pause)
        waiter: asyncio.Future[Box] = asyncio.get_running_loop().create_future()
        pool.book.waiters.append(waiter)
        self._fill(pool, urgent=True)
        try:
            box = await waiter
        except asyncio.CancelledError:
            if waiter in pool.book.waiters:
                pool.book.waiters.remove(waiter)
            elif not waiter.cancelled() and waiter.exception() is None:
                # It was handed over as its caller left: bound to nobody else.
                self._fleet.end_soon([waiter.result()])
            raise
        if not box.is_alive:  # its processes can end in the step between its arrival and here
            raise _start_error(runtime, f"sandbox {box.id} ended as soon as it was ready", 0.0)
        return box.claim(session_id, StartKind.COLD)

    def resize(self, runtime: RuntimeKey, warm: int) -> None:
        """Set the number of warm boxes. Raises RuntimeNotFoundError."""
        pool = self._pool(runtime)
        self._fleet.end_soon(pool.book.resize(max(0, warm)))
        self._fill(pool)

    def status(self, runtime: RuntimeKey) -> PoolStatus:
        """The pool now. Raises RuntimeNotFoundError."""
        book = self._pool(runtime).book
        retry_at = None if book.retry_at is None else self._clock.now() + book.retry_at - self._clock.monotonic()
        return PoolStatus(
            runtime=runtime,
            target=book.target,
            ready=len(book.ready),
            starting=book.starting,
            claimed=self._fleet.claimed(runtime),
            failures=book.failures,
            last_error=book.last_error,
            retry_at=retry_at,
            lead_time_p50=book.lead_time(0.5),
            lead_time_p90=book.lead_time(0.9),
        )

    # What the fleet tells.

    def died(self, box: Box, reason: str) -> None:
        """A warm box ended by itself."""
        now = self._clock.monotonic()
        said = f" ({box.process.said()})" if box.process.said() else ""
        log.warning("a warm sandbox of %s %s%s", box.runtime.key, reason, said)
        pool = self._pools.get(box.runtime.key)
        if pool is not None:
            pool.book.died(box, now - box.born, now, f"a warm sandbox {reason}{said}")
            self._fill(pool)

    def forget(self, box: Box) -> None:
        """A box is being ended: it is no longer warm."""
        pool = self._pools.get(box.runtime.key)
        if pool is not None:
            pool.book.forget(box)

    def refill(self, box: Box) -> None:
        """A box is gone: fill the pool of its runtime."""
        pool = self._pools.get(box.runtime.key)
        if pool is not None:
            self._fill(pool)

    # Starting.

    def _fill(self, pool: _Pool, *, urgent: bool = False) -> None:
        """Order what is missing. The first of an urgent call is for the claim that made it."""
        if not self._running:
            return
        now = self._clock.monotonic()
        count = pool.book.wanted(now)
        pool.book.ordered(count)
        for index in range(count):
            self._tasks.spawn(self._start_one(pool, pool.runtime, now, urgent=urgent and index == 0))
        pool.cancel_retry()
        if pool.book.retry_at is not None and pool.book.retry_at > now:
            pool.retry = asyncio.get_running_loop().call_later(pool.book.retry_at - now, self._fill, pool)

    async def _start_one(self, pool: _Pool, runtime: Runtime, ordered: float, *, urgent: bool) -> None:
        try:
            if not urgent:
                await asyncio.sleep(_ANSWER_FIRST_S)
            async with self._gate.slot(urgent=urgent):
                if pool.book.surplus() or not self._serves(pool, runtime):
                    pool.book.withdrawn()
                else:
                    self._arrived(pool, await self._fleet.start(runtime), ordered)
        except StartFailedError as error:
            self._start_failed(pool, str(error))
        except Exception as error:  # a fault of ours must reach who waits, not hang them
            log.exception("starting a sandbox of %s", runtime.key)
            self._start_failed(pool, f"{type(error).__name__}: {error}")
        self._fill(pool)

    def _arrived(self, pool: _Pool, box: Box, ordered: float) -> None:
        if not self._serves(pool, box.runtime):
            pool.book.withdrawn()  # the runtime changed or went away meanwhile
            self._fleet.end_soon([box])
            return
        lead = self._clock.monotonic() - ordered
        taken = pool.book.arrived(box, lead)
        log.debug(
            "sandbox %s of %s is ready %.4f s after its order%s",
            box.id,
            box.runtime.key,
            lead,
            "; nobody wants it any more" if taken is False else "",
        )
        if taken is False:
            self._fleet.end_soon([box])
        elif taken is not True:
            taken.set_result(box)

    def _start_failed(self, pool: _Pool, reason: str) -> None:
        now = self._clock.monotonic()
        refused = pool.book.failed(now, reason)
        pause = (pool.book.retry_at or now) - now
        log.warning("%s", _start_error(pool.runtime.key, reason, pause))
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
