"""An autoscaler in a separate process, for a test that kills it in the middle of an order.

Usage: python -m tests.support.leader_process REDIS_URL; prints "resizing" when the order hangs.
"""

from __future__ import annotations

import asyncio
import os
import sys

from gateway.autoscaler.runner import Autoscaler
from gateway.autoscaler.settings import AutoscalerSettings
from gateway.core.clock import SystemClock
from gateway.core.model import PoolMode, StartKind
from gateway.store import make_store
from tests.support.autoscaler import KEY, Catalog, Pools, claim, runtime


async def main(url: str) -> None:
    clock = SystemClock()
    store = make_store(url, clock)
    await store.start()
    provider = Pools()
    await provider.apply([runtime(mode=PoolMode.FIXED, size=1)])
    provider.hang = asyncio.Event()
    settings = AutoscalerSettings(tick=0.1, lease_ttl=1.0)
    scaler = Autoscaler(
        Catalog(runtime(mode=PoolMode.FIXED, size=5)), store, provider, clock, settings, holder="doomed"
    )
    for _ in range(3):
        claim(scaler, KEY, StartKind.WARM, clock.now())
    await scaler.start()
    await provider.hang.wait()
    os.write(1, b"resizing\n")
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
