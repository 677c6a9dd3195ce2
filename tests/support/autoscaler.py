"""What the autoscaler's tests are made of: known claim processes, and a provider whose pools are slow or fail."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from gateway.autoscaler.forecast import Floats
from gateway.core.clock import Clock
from gateway.core.model import PoolMode, PoolSpec, PoolStatus, Runtime, RuntimeKey, StartKind
from gateway.testing import ScriptedProvider

KEY = RuntimeKey("default", "interpreter")


def runtime(key: RuntimeKey = KEY, **pool: object) -> Runtime:
    """A predictive runtime with at most 50 warm sandboxes, unless told otherwise."""
    spec = {"mode": PoolMode.PREDICTIVE, "max": 50, **pool}
    return Runtime(key=key, pool=PoolSpec(**spec))  # type: ignore[arg-type]


def poisson(rate: float, span: float, seed: int = 3) -> Floats:
    """Arrivals of a Poisson process with `rate` a second."""
    rng = np.random.default_rng(seed)
    return np.sort(rng.random(rng.poisson(rate * span)) * span)


class HearsClaims(Protocol):
    """What the lifecycle tells of claims."""

    def waiting(self, runtime: RuntimeKey, change: int, at: float) -> object: ...

    def claimed(self, runtime: RuntimeKey, start: StartKind, at: float) -> object: ...


def claim(scaler: HearsClaims, key: RuntimeKey, start: StartKind, at: float) -> None:
    """One claim from begin to end, as the lifecycle tells it."""
    scaler.waiting(key, 1, at)
    scaler.claimed(key, start, at)
    scaler.waiting(key, -1, at)


class Catalog:
    """A RuntimeCatalog that a test changes."""

    def __init__(self, *runtimes: Runtime) -> None:
        self.runtimes = list(runtimes)

    def choose(self, key: RuntimeKey) -> Runtime | None:
        """What `get` finds: these runtimes have no revisions."""
        return self.get(key)

    def get(self, key: RuntimeKey) -> Runtime | None:
        return next((each for each in self.runtimes if each.key == key), None)

    def all(self) -> Sequence[Runtime]:
        return sorted(self.runtimes, key=lambda each: each.key)


class Pools(ScriptedProvider):
    """Writes down every resize; may show old targets for a while, fail, or hang in the middle of one."""

    def __init__(self, clock: Clock | None = None) -> None:
        super().__init__(clock=clock)
        self.resizes: list[tuple[RuntimeKey, int]] = []
        self.failures = 0
        self.last_error = ""
        self.lead = 1.0
        self.lags = False  # status goes on showing the target from before
        self.hang: asyncio.Event | None = None
        self._shown: dict[RuntimeKey, int] = {}

    async def apply(self, runtimes: Iterable[Runtime]) -> None:
        await super().apply(runtimes)
        self._shown = dict(self._targets)

    async def resize(self, runtime: RuntimeKey, warm: int) -> None:
        self.resizes.append((runtime, warm))
        if self.hang is not None:
            self.hang.set()
            await asyncio.Event().wait()
        await super().resize(runtime, warm)
        if not self.lags:
            self._shown[runtime] = warm

    async def status(self, runtime: RuntimeKey) -> PoolStatus:
        status = await super().status(runtime)
        return replace(
            status,
            target=self._shown.get(runtime, status.target),
            failures=self.failures,
            last_error=self.last_error,
            lead_time_p90=self.lead,
        )
