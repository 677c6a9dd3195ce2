"""The whole loop in virtual time: `Pool` and `decide` as runner.py calls them, upon a pool in numbers.

replay/predictive.py is quick because it never looks at the pool that its targets make: misses are those of a shadow
pool, and looks come at even ticks. Here each look sees the simulated pool as a gateway sees its own: what is ready now,
who waits, how long the latest starts took; a claim that finds nothing ready wakes the loop. So a run of a gateway can
be laid beside it (loadtest/replay_client.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np

from gateway.autoscaler.history import Buckets, live_since, replay_history
from gateway.autoscaler.pool import Pool
from gateway.autoscaler.replay.pool import Targets
from gateway.autoscaler.runner import MIN_POKE_INTERVAL_S, STATUS_INTERVAL_S
from gateway.autoscaler.settings import AutoscalerSettings
from gateway.core.model import PoolSpec, PoolStatus, Runtime, RuntimeKey

_KEY = RuntimeKey("replay", "replay")
_MAX_LEAD_TIMES = 64  # lead times that the quantiles are of, as in the local engine's book


class LiveLoop:
    """A Control (replay/pool.py) of one runtime. It looks first at `begins`, and knows that starts take
    `lead` seconds, or with None nothing yet, as a gateway that has just started. `wall`: what the wall clock shows at a
    time, where it is set in between.
    """

    def __init__(
        self,
        spec: PoolSpec,
        settings: AutoscalerSettings,
        lead: float | None,
        *,
        begins: float,
        wall: Callable[[float], float] = float,
        key: RuntimeKey = _KEY,
    ) -> None:
        self.begins = begins
        self._key, self._wall = key, wall
        self._settings = settings
        self._leads: deque[float] = deque([] if lead is None else [lead], maxlen=_MAX_LEAD_TIMES)
        self._target = spec.size
        runtime = Runtime(key=key, pool=spec)
        self._pool = Pool.make(runtime, settings, self._status(0, 0))
        self._pool.restored = True
        self._pool.looked_at = self.begins
        self._looked_at = begins
        self._changes: list[tuple[float, int]] = [(begins, spec.size)]
        self._next = self.begins
        self._fresh: list[float] = []  # when the claims since the last look came
        self._missed = 0

    def restore(self, minutes: Buckets, seconds: Buckets) -> None:
        """Learn from recorded claims, as a gateway does that has just started."""
        for _ in replay_history(
            self._pool.demand, minutes, seconds, now=self.begins, live_from=live_since(seconds, self.begins)
        ):
            pass

    def _status(self, ready: int, starting: int) -> PoolStatus:
        leads = sorted(self._leads)
        p50, p90 = (leads[min(len(leads) - 1, int(q * len(leads)))] if leads else None for q in (0.5, 0.9))
        return PoolStatus(self._key, self._target, ready, starting, 0, failures=0, lead_time_p50=p50, lead_time_p90=p90)

    def arrived(self, lead: float) -> None:
        """Its lead time is planned with from the next look on."""
        self._leads.append(lead)

    def claim(self, now: float, ready: int) -> float:
        """One that finds no sandbox ready, by what was seen last, has the loop look at once."""
        self._fresh.append(self._wall(now))
        self._missed += ready == 0
        if self._pool.ready < len(self._fresh) or ready == 0:
            # As Autoscaler.poke does: at once, but no sooner than the interval after the last pass.
            self._next = min(self._next, max(now, self._looked_at + MIN_POKE_INTERVAL_S))
        return self._next

    def look(self, now: float, ready: int, starting: int) -> tuple[int, float]:
        """Run one pass as the runner does. Returns the target and the time of the next pass."""
        pool = self._pool
        # As Autoscaler._decide does; between looks the loop works with an old status, and so must this.
        if self._fresh or now - pool.looked_at >= STATUS_INTERVAL_S:
            pool.status, pool.looked_at = self._status(ready, starting), now
        fresh, self._fresh = self._fresh, []
        decision = pool.tick(self._wall(now), len(fresh), self._missed, steady=now, times=fresh)
        self._missed = 0
        if decision is not None and decision.target != self._target:
            self._changes.append((now, decision.target))
            pool.moved(now, decision.target, decision.why)
            self._target = decision.target
        self._looked_at, self._next = now, now + self._settings.tick
        return self._target, self._next

    def targets(self) -> Targets:
        """The targets that it has ordered so far."""
        return Targets(
            np.array([at for at, _ in self._changes]), np.array([n for _, n in self._changes], dtype=np.float64)
        )
