"""How fast a local sandbox starts and is claimed, and how much memory a warm one uses.

    scripts/bench sandbox_bench [--starts 20] [--warm 10]

Prints a table with the bars. Memory is PSS (each shared page divided by the number of processes that share it), summed
over all processes of a sandbox, including the two of bwrap.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import statistics
import tempfile
import time
from pathlib import Path

from gateway.core.clock import SystemClock
from gateway.core.model import Limits, PoolSpec, Runtime, RuntimeKey, SessionId
from gateway.provider.local import LocalProvider
from gateway.sandbox.signing_keys import KeyRing
from loadtest.figures import quantile
from loadtest.processes import pss_mb

KEY = RuntimeKey("default", "bench")
SANDBOX_PYTHON = Path(__file__).resolve().parents[1] / ".venv-sandbox"
COLD_BAR, PSS_BAR, CLAIM_BAR = 400.0, 45.0, 5.0  # ms, MB, ms


async def full(provider: LocalProvider) -> None:
    """Wait until the pool has reached its target. Raises SystemExit if a sandbox fails to start."""
    while (status := await provider.status(KEY)).ready < status.target:
        if status.last_error:
            raise SystemExit(status.last_error)
        await asyncio.sleep(0.005)


async def main(starts: int, warm: int) -> None:
    """Measure cold and warm claims and the memory of warm sandboxes, and print the table."""
    with tempfile.TemporaryDirectory(prefix="wakegate-bench-") as folder:
        keys = KeyRing(Path(folder, "keys"), "EdDSA")
        keys.open()
        python = SANDBOX_PYTHON if SANDBOX_PYTHON.exists() else None
        provider = LocalProvider(Path(folder, "state"), keys.public_dir, SystemClock(), "bubblewrap", python)
        # Empty, so that the first claims are cold.
        await provider.apply([Runtime(KEY, pool=PoolSpec(size=0), limits=Limits(memory=512 << 20))])
        await provider.start()
        try:
            cold = []
            for number in range(starts):
                begun = time.perf_counter()
                sandbox = await provider.claim(KEY, SessionId(f"cold-{number}"))
                cold.append((time.perf_counter() - begun) * 1000)
                await provider.release(sandbox.id)
            begun = time.perf_counter()
            await provider.resize(KEY, warm)
            await full(provider)
            filling = (time.perf_counter() - begun) * 1000
            # While all of them run: pages that they share are divided by their number, as in production.
            memory = [pss_mb(provider.pid(sandbox.id)) for sandbox in await provider.list()]
            claims = []
            for number in range(warm):
                begun = time.perf_counter()
                await provider.claim(KEY, SessionId(f"warm-{number}"))
                claims.append((time.perf_counter() - begun) * 1000)
                await full(provider)  # the refill must not compete with the next claim
        finally:
            await provider.aclose()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {starts} cold starts, {warm} warm sandboxes")
    rows = [
        ("cold claim p50, ms", statistics.median(cold), COLD_BAR),
        ("cold claim p95, ms", quantile(cold, 0.95), COLD_BAR),
        ("warm claim p50, ms", statistics.median(claims), CLAIM_BAR),
        ("warm claim max, ms", max(claims), CLAIM_BAR),
        ("warm sandbox PSS, MB", max(memory), PSS_BAR),
        (f"filling a pool of {warm}, ms", filling, None),
    ]
    for name, value, bar in rows:
        print(
            f"{name:28} {value:9.2f}  {'' if bar is None else f'bar {bar:g}: ' + ('ok' if value <= bar else 'MISSED')}"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measure local sandboxes.")
    parser.add_argument("--starts", type=int, default=20)
    parser.add_argument("--warm", type=int, default=10)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    asyncio.run(main(arguments.starts, arguments.warm))
