"""The loop: observe -> forecast -> decide -> act, at each tick and when poked, on the gateway that holds the lease.

Every gateway counts its claims and writes them to the store; only the leader resizes pools. When a leader dies, another
takes over after `lease_ttl` and learns from the recorded claims. Orders are levels and not differences, so an order
that a dead leader may or may not have sent can be repeated.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from gateway.autoscaler.expectations import Expectations
from gateway.autoscaler.history import live_since, replay_history
from gateway.autoscaler.money import money_of
from gateway.autoscaler.pace import SHORTEST_S, Pace
from gateway.autoscaler.pool import Pool, phase_of
from gateway.autoscaler.scaler import Decision, share_budget
from gateway.autoscaler.settings import AutoscalerSettings
from gateway.autoscaler.signal import ClaimSignal
from gateway.autoscaler.what_if import saved, what_if
from gateway.core.background import Tasks
from gateway.core.backoff import backoff, jittered
from gateway.core.clock import Clock
from gateway.core.errors import NotFoundError, RuntimeNotFoundError, StoreUnavailableError, WakegateError
from gateway.core.interfaces import RuntimeCatalog, SandboxProvider, SessionStore
from gateway.core.model import Lease, PoolMode, PoolStatus, RuntimeKey, StartKind
from gateway.usage.prices import Prices

logger = logging.getLogger(__name__)

T = TypeVar("T")

_SECOND_BUCKETS_KEPT_S = 6 * 3600.0  # how far back the store has single seconds
STATUS_INTERVAL_S = 5.0  # seconds between looks at a pool that nothing happens to
# Pools of a pass between two yields, at most: a slice ends with the first that had something new, as a look takes a
# hundred times as long as to see that there is no need.
_POOLS_A_SLICE = 24
_SPREAD = 0.75  # share of a tick over which a pass is spread
_FIRST_RETRY_S, _LAST_RETRY_S = 0.2, 5.0  # of reading history from a store that is away
MIN_POKE_INTERVAL_S = 0.05  # seconds, at least, between passes


class Autoscaler:
    """Sizes the warm pools of all runtimes while this gateway holds the lease.

    `waiting` and `claimed` listen to the lifecycle; `start` and `aclose` are the loop; `explain` is GET /v1/autoscaler.
    """

    def __init__(
        self,
        catalog: RuntimeCatalog,
        store: SessionStore,
        provider: SandboxProvider,
        clock: Clock,
        settings: AutoscalerSettings,
        *,
        holder: str,
        prices: Prices | None = None,
    ) -> None:
        self._catalog, self._store, self._provider, self._clock = catalog, store, provider, clock
        self._settings = settings
        self._holder, self._prices = holder, prices
        self.signal = ClaimSignal(store)
        self.pools: dict[RuntimeKey, Pool] = {}
        self._expectations: Expectations[RuntimeKey] = Expectations()
        self._lease: Lease | None = None
        self._listeners: list[Callable[[RuntimeKey, int, int, str], None]] = []
        self._lease_until = 0.0  # on the monotonic clock, so that a step of the wall clock cannot prolong it
        self._renew_at = -1e18
        self._poked = asyncio.Event()
        self._slices = 0  # of the last pass
        self._restoring = asyncio.Lock()
        self._tasks = Tasks()
        self._synced_at = self._flushed_at = -1e18
        self._problem = ""

    def on_resize(self, listener: Callable[[RuntimeKey, int, int, str], None]) -> None:
        """Call `listener(runtime, before, target, why)` for each target that a provider has accepted."""
        self._listeners.append(listener)

    def waiting(self, runtime: RuntimeKey, change: int, at: float) -> None:
        """Count a claim that begins (1) or is over (-1). If more wait than sandboxes are ready, poke the loop."""
        fresh = self.signal.waiting(runtime, change, at)
        if change > 0 and (pool := self.pools.get(runtime)) is not None and pool.ready < fresh:
            self.poke()

    def claimed(self, runtime: RuntimeKey, start: StartKind, at: float) -> None:
        """Count a claim that got its sandbox. A pool miss pokes the loop, unless `waiting` already has."""
        if self.signal.claimed(runtime, start):
            self.poke()

    def poke(self) -> None:
        """Run a pass now, not at the next tick."""
        self._poked.set()

    @property
    def leads(self) -> bool:
        """Whether this gateway may move pools now."""
        return self._lease is not None and self._clock.monotonic() < self._lease_until

    async def start(self) -> None:
        """Start the background task that runs the passes."""
        self._tasks.spawn(self._loop())

    async def aclose(self) -> None:
        """Stop the loop, write counted claims, and release the lease."""
        await self._tasks.aclose()
        try:
            await self.signal.flush(self._clock.now())
            if self._lease is not None:
                await self._store.release_lease(self._lease)
        except StoreUnavailableError as error:
            logger.warning("the last seconds of claims could not be written: %s", error)
        self._lease = None

    async def _loop(self) -> None:
        loop, tick = asyncio.get_running_loop(), self._settings.tick
        while True:
            began = loop.time()
            try:
                await self.run_once(self._clock.now(), spread=_SPREAD * tick)
            except WakegateError as error:
                self._report(str(error))
                began = loop.time()
            except Exception:
                # The loop must outlive a bug in one pass: pools then stay as they are, which is safe, and visible.
                logger.exception("a pass of the autoscaler failed; pools stay as they are")
                self._problem = "a pass failed; see the log"
                began = loop.time()
            # A burst of misses pokes at each of them: they share at most 20 passes a second.
            await asyncio.sleep(min(MIN_POKE_INTERVAL_S, tick))
            # Not wait_for: Python 3.11's swallows a cancellation that comes with a poke, and `aclose` waits for ever.
            with suppress(TimeoutError):
                async with asyncio.timeout_at(began + tick):
                    await self._poked.wait()
            self._poked.clear()

    def _report(self, problem: str) -> None:
        if problem and problem != self._problem:
            logger.warning("the autoscaler cannot work: %s", problem)
        self._problem = problem

    async def run_once(self, now: float, *, spread: float = 0.0) -> None:
        """One pass. Raises StoreUnavailableError when the lease cannot be renewed, or history not be read.

        `spread`: seconds over which its looks are spread, where there are many.

        Counts that cannot be written wait; pools go on being sized from memory as long as the lease lasts.
        """
        try:
            await self._flush(now)
        except StoreUnavailableError as error:
            self._report(str(error))  # counts wait in memory; the pools are sized from memory as well
        await self._lead()
        if not self.leads:
            self.pools.clear()
            self.signal.discard()
            return
        await self._watch_catalog(now)
        if self._settings.shared and not 0.0 <= now - self._synced_at < self._settings.sync_every:
            self._synced_at = now
            for key in self.pools:
                await self.signal.sync(key, now)
        await self._size_pools(now, spread)

    async def _size_pools(self, now: float, spread: float) -> None:
        """Decide on every pool, in slices of a fraction of a millisecond, between which the gateway serves.

        Pools whose claims wait come first, also those whose claims have come since the pass began, and are ordered for
        at once; with a budget over all, the others are ordered for after all were decided on.
        """
        loop, steady = asyncio.get_running_loop(), self._clock.monotonic()
        pace, poked_at, over = Pace(loop.time(), spread, self._slices), -1e18, loop.time() + spread
        urgent, left = self.signal.missing(), dict.fromkeys(self.pools)
        decided: list[tuple[Pool, Decision]] = []
        passed = 0
        while urgent or left:
            key = urgent.pop() if (hurried := bool(urgent)) else next(iter(left))
            left.pop(key, None)
            if (pool := self.pools.get(key)) is None:
                continue
            at = now + self._clock.monotonic() - steady
            before = pool.forecast
            decision = await self._decide(pool, at)
            if decision is not None:
                decided.append((pool, decision))
            passed += 1
            if pool.forecast is before and passed < _POOLS_A_SLICE:
                continue
            if self._settings.max_warm is None or (hurried and not urgent):
                await self._act(decided, at)
                decided = []
            passed = 0
            await asyncio.sleep(pace.pause(loop.time()))
            # Not for longer: while claims of a hundred runtimes wait without an end, a pass would have none either, and
            # the lease is renewed between passes.
            if self._poked.is_set() and poked_at + MIN_POKE_INTERVAL_S <= loop.time() < over:
                urgent, poked_at = self.signal.missing(), loop.time()
        self._slices = pace.slices
        await self._act(decided, now)

    async def _flush(self, now: float) -> None:
        if not 0.0 <= now - self._flushed_at < self._settings.flush_every:
            self._flushed_at = now
            await self.signal.flush(now)
            self._report("")

    async def _lead(self) -> None:
        """Acquire or renew the lease. Its time counts from before the call, so it is never assumed for too long."""
        mono, ttl = self._clock.monotonic(), self._settings.lease_ttl
        if mono < self._renew_at:
            return
        lease = await self._store.renew_lease(self._lease, ttl) if self._lease is not None else None
        if lease is None:
            lease = await self._store.acquire_lease(self._settings.lease, self._holder, ttl)
        if lease is not None and self._lease is None:
            logger.info("leads the autoscaler with fence %d", lease.fence)
        self._lease = lease
        # A third: two renewals may fail before the lease is lost.
        self._lease_until, self._renew_at = mono + ttl, mono + ttl / 3.0

    async def _watch_catalog(self, now: float) -> None:
        """Pools for exactly the runtimes that are served; one whose pool spec changed starts again, from history."""
        served = {runtime.key: runtime for runtime in self._catalog.all()}
        for key in [key for key in self.pools if key not in served]:
            del self.pools[key]
            self.signal.forget(key)
            self._expectations.failed(key)
        for key, runtime in served.items():
            pool = self.pools.get(key)
            if pool is None or (pool.runtime is not runtime and pool.runtime.pool != runtime.pool):
                self.pools[key] = new = Pool.make(
                    runtime,
                    self._settings,
                    await self._status(key),
                    list(self.pools.values()),
                    money_of(self._prices, runtime),
                )
                new.looked_at = now - STATUS_INTERVAL_S * phase_of(key)
                self._tasks.spawn(self._restore(new, now))

    async def _status(self, key: RuntimeKey) -> PoolStatus | None:
        try:
            return await self._provider.status(key)
        except RuntimeNotFoundError:
            return None

    async def _restore(self, pool: Pool, now: float) -> None:
        """Learn from the recorded claims, in slices between which the gateway serves.

        While the store is away it waits, and the pool stays as it is: one that started without its history would
        forecast nothing for the days that it takes to learn it again.
        """
        key = pool.runtime.key
        try:
            since, recent = now - self._settings.restore_days * 86400.0, now - _SECOND_BUCKETS_KEPT_S
            minutes = await self._read(pool, lambda: self._store.claim_history(key, since, bucket=60))
            seconds = await self._read(pool, lambda: self._store.claim_history(key, recent, bucket=1))
            if minutes is None or seconds is None:
                return
            live_from = live_since(seconds, now)
            async with self._restoring:  # one at a time: a hundred slices in one turn of the loop would be felt
                for _ in replay_history(pool.demand, minutes, seconds, now=now, live_from=live_from):
                    await asyncio.sleep(SHORTEST_S)
            await self._read(pool, lambda: self.signal.skip(key, now))
        except Exception:
            # Nobody awaits this task. Left at this, the pool would be "learning" for ever, and nothing would say so.
            logger.exception("%s: starts with what could be read of its history", key)
        pool.restored = True
        self.poke()

    async def _read(self, pool: Pool, read: Callable[[], Awaitable[T]]) -> T | None:
        """Read from the store as soon as it answers. None: the pool is no longer sized here."""
        key, failures = pool.runtime.key, 0
        while self.pools.get(key) is pool:
            try:
                return await read()
            except StoreUnavailableError as error:
                failures += 1
                if failures == 1:
                    logger.warning("%s: its history is read later: %s", key, error)
                await asyncio.sleep(jittered(backoff(failures, first=_FIRST_RETRY_S, longest=_LAST_RETRY_S)))
        return None

    async def _decide(self, pool: Pool, now: float) -> Decision | None:
        if not pool.restored:
            return None
        claims, misses, times = self.signal.take(pool.runtime.key)
        if (
            claims
            or not 0.0 <= now - pool.looked_at < STATUS_INTERVAL_S
            or (pool.status is not None and pool.status.failures)
        ):
            pool.status = await self._status(pool.runtime.key)
            pool.looked_at = now
        decision = pool.tick(now, claims, misses, steady=self._clock.monotonic(), times=times)
        if decision is None and (pool.error or (pool.status is not None and pool.status.target != pool.target)):
            return pool.decision  # an order was refused or lost, or somebody else moved the pool
        return decision

    async def _act(self, decided: Sequence[tuple[Pool, Decision]], now: float) -> None:
        """Send the provider every target that differs from the last one it accepted."""
        targets = {
            pool.runtime.key: decision
            for pool, decision in decided
            if pool.runtime.pool.mode is not PoolMode.FORECAST_ONLY
        }
        allowed = self._within_budget(targets)
        for key, target in allowed.items():
            pool = self.pools[key]
            if (decision := pool.decision) is not None:
                cut = target < decision.target
                pool.cut = (
                    f" The budget of {self._settings.max_warm} over all runtimes leaves it {target}." if cut else ""
                )
                await self._order(pool, target, decision.why + pool.cut, now)

    def _within_budget(self, targets: dict[RuntimeKey, Decision]) -> dict[RuntimeKey, int]:
        budget = self._settings.max_warm
        if budget is None or not targets:
            return {key: decision.target for key, decision in targets.items()}
        wanted = {
            key: pool.decision.target
            for key, pool in self.pools.items()
            if pool.decision is not None and pool.runtime.pool.mode is not PoolMode.FORECAST_ONLY
        }
        minimums = {key: self.pools[key].runtime.pool.min for key in wanted}
        worth = {key: self.pools[key].worth().tolist() for key in wanted} if sum(wanted.values()) > budget else {}
        return share_budget(budget, wanted, minimums, worth)

    async def _order(self, pool: Pool, target: int, why: str, now: float) -> None:
        key = pool.runtime.key
        shown = pool.status.target if pool.status is not None else pool.target
        if not self._expectations.should_order(key, target, shown, now) or not self.leads:
            return
        # Before the call: a status that comes by a watch while `resize` runs must not order a second time.
        self._expectations.ordered(key, target, now)
        try:
            await self._provider.resize(key, target)
        except RuntimeNotFoundError:
            self._expectations.failed(key)  # deleted a moment ago; the catalog will say so at the next pass
        except WakegateError as error:
            self._expectations.failed(key)
            if str(error) != pool.error:
                logger.warning("%s: the pool could not be resized to %d: %s", key, target, error)
            pool.error = str(error)
        else:
            pool.error = ""
            if target != pool.target:
                logger.debug("%s: pool of %d, before it was %d: %s", key, target, pool.target, why)
                for listener in self._listeners:
                    listener(key, pool.target, target, why)
            pool.moved(now, target, why)

    def explain(self) -> dict[str, Any]:
        """The document of GET /v1/autoscaler."""
        return {
            "leader": self.leads,
            "holder": self._holder,
            "fence": self._lease.fence if self._lease is not None else None,
            "tick": self._settings.tick,
            "budget": self._settings.max_warm,
            "problem": self._problem,
            "pools": [{**self.pools[key].explain(), "saved": saved(self.pools[key])} for key in sorted(self.pools)],
        }

    def what_if(self, key: RuntimeKey) -> dict[str, Any]:
        """The document of GET /v1/autoscaler/{runtime}/what-if. Raises RuntimeNotFoundError, and where another gateway
        sizes the pools NotFoundError.
        """
        return what_if(self._pool(key))

    def outcomes(self, key: RuntimeKey) -> dict[str, Any]:
        """The document of GET /v1/autoscaler/{runtime}/forecasts. Raises as `what_if` does."""
        return {"runtime": str(key), **self._pool(key).outcomes.document()}

    def _pool(self, key: RuntimeKey) -> Pool:
        pool = self.pools.get(key)
        if pool is None:
            # Of an agent each revision has a pool; without one named, that of the revision which new sessions get.
            runtime = self._catalog.get(key)
            if runtime is None:
                raise RuntimeNotFoundError(f"there is no runtime {key}")
            pool = self.pools.get(runtime.key)
        if pool is None:
            raise NotFoundError(f"this gateway does not size the pool of {key}: it does not lead, or has just started")
        return pool
