"""Session creation through the API on real sandboxes, and the gateway's memory.

    .venv/bin/python -m loadtest.session_bench [--serial 40] [--burst 50]

Prints the time of creates one at a time from a warm pool, beside cold ones in the same run (the baseline); a burst of
concurrent creates on a pool as large as the burst; how long a session takes to sleep and, from request to first byte,
to wake, beside answers of a live one; and the gateway's memory with 1,000 sessions in its store.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx

from gateway.clock import SystemClock
from gateway.model import RuntimeKey
from gateway.server import serving
from gateway.testing import ScriptedProvider, scripted_gateway

_MANIFEST = """
apiVersion: runtime.agentcube.volcano.sh/v1alpha1
kind: CodeInterpreter
metadata: {{name: {name}}}
spec: {{template: {{image: none}}, warmPoolSize: {size}}}
---
"""


def quantile(values: list[float], q: float) -> float:
    """Nearest rank."""
    return sorted(values)[min(len(values) - 1, int(q * len(values)))]


def pss_mb(pid: int) -> float:
    """Proportional set size of one process, MB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


@contextlib.asynccontextmanager
async def gateway(folder: Path, pool: int, *flags: str) -> AsyncIterator[tuple[httpx.AsyncClient, int]]:
    """A real gateway process with the runtimes `warm` and `cold`; yields a client and its pid."""
    manifest = folder / "runtimes.yaml"
    manifest.write_text(_MANIFEST.format(name="warm", size=pool) + _MANIFEST.format(name="cold", size=0))
    argv = [sys.executable, "-m", "gateway", "serve", "--port", "0", "--state-dir", str(folder / "state")]
    process = await asyncio.create_subprocess_exec(
        *argv,
        "--runtime",
        str(manifest),
        *(flags or ("--code-context", "lazy")),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    try:
        url = (await process.stdout.readline()).decode().rsplit(" ", 1)[-1].strip()
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
            yield client, process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        await process.wait()


async def until_full(client: httpx.AsyncClient, pool: int) -> None:
    """Until the warm pool holds that many, and the machine is done with starting them."""
    while True:
        runtimes = (await client.get("/v1/runtimes")).json()["runtimes"]
        if all(each["pool"]["ready"] >= pool for each in runtimes if each["name"] == "warm"):
            return
        await asyncio.sleep(0.1)


async def create(client: httpx.AsyncClient, name: str) -> tuple[float, str, str]:
    """(milliseconds, start kind, session id) of one create."""
    began = time.perf_counter()
    reply = await client.post("/v1/sessions", json={"runtime": f"default/{name}"})
    took = (time.perf_counter() - began) * 1e3
    reply.raise_for_status()
    return took, reply.headers["x-wakegate-start"], reply.json()["id"]


async def measure_creates(folder: Path, serial: int, burst: int) -> int:
    """Print the creates' table; returns how many bars were missed."""
    missed = 0
    async with gateway(folder, burst) as (client, pid):
        await until_full(client, burst)
        rows: dict[str, list[float]] = {"warm": [], "cold": []}
        for _ in range(serial):
            for name in rows:
                took, start, session = await create(client, name)
                if start != name:
                    raise SystemExit(f"expected a {name} start, got {start}")
                rows[name].append(took)
                await client.delete(f"/v1/sessions/{session}")
            await until_full(client, burst)
        cold = quantile(rows["cold"], 0.5)
        for name, bars in (("warm", (5.0, 20.0)), ("cold", (400.0, float("inf")))):
            p50, p99 = quantile(rows[name], 0.5), quantile(rows[name], 0.99)
            print(f"create {name:<5} one at a time  p50 {p50:7.2f} ms  p99 {p99:7.2f} ms  {p50 / cold:5.3f} of cold")
            missed += p50 > bars[0] or p99 > bars[1]
        results = await asyncio.gather(*(create(client, "warm") for _ in range(burst)), return_exceptions=True)
        times = [result[0] for result in results if not isinstance(result, BaseException)]
        starts = [result[1] for result in results if not isinstance(result, BaseException)]
        errors = burst - len(times)
        print(
            f"create warm  {burst} at once       p50 {quantile(times, 0.5):7.2f} ms  "
            f"p99 {quantile(times, 0.99):7.2f} ms  {errors} errors, {starts.count('warm')} warm"
        )
        print(f"gateway with {burst} bound and up to {burst} warm sandboxes: {pss_mb(pid):.1f} MB PSS")
        missed += errors > 0
    return missed


async def measure_sleep(folder: Path, rounds: int) -> int:
    """Print how long a session of 1 MB in 100 files takes to sleep and to answer again; returns the bars missed."""
    fill = "for i in $(seq 100); do head -c 10485 /dev/urandom > f$i; done"
    asleep: list[float] = []
    awake: list[float] = []
    live: list[float] = []
    async with gateway(folder, 3) as (client, _):
        await until_full(client, 3)
        _, _, session = await create(client, "warm")
        header = {"x-session-id": session}
        (await client.post("/api/execute", json={"command": ["sh", "-c", fill]}, headers=header)).raise_for_status()
        for _ in range(rounds):
            began = time.perf_counter()
            (await client.post(f"/v1/sessions/{session}/hibernate")).raise_for_status()
            asleep.append((time.perf_counter() - began) * 1e3)
            await until_full(client, 3)
            for times, kind in ((awake, "wake"), (live, "live")):
                began = time.perf_counter()
                async with client.stream("GET", "/api/files/f100", headers=header) as reply:
                    times.append((time.perf_counter() - began) * 1e3)
                    if reply.status_code != 200 or reply.headers["x-wakegate-start"] != kind:
                        raise SystemExit(f"expected a {kind} answer, got {reply.status_code} {reply.headers}")
                    await reply.aread()
    base = quantile(live, 0.5)
    for name, times in (("hibernate", asleep), ("wake", awake), ("live", live)):
        p50, p95 = quantile(times, 0.5), quantile(times, 0.95)
        print(f"{name:<9} 1 MB in 100 files  p50 {p50:7.2f} ms  p95 {p95:7.2f} ms  {p50 / base:5.1f} x a live answer")
    return (quantile(awake, 0.5) > 25) + (quantile(awake, 0.95) > 65) + (quantile(asleep, 0.5) > 100)


async def measure_memory(folder: Path) -> int:
    """Print the gateway's memory with 1,000 sessions in its store and memory."""
    held = scripted_gateway(folder, ScriptedProvider(), max_sandboxes=1000)
    async with serving(held):
        clock = SystemClock()
        for _ in range(1000):
            opened = await held.lifecycle.create(RuntimeKey("default", "my-interpreter"))
            held.activity.of(opened.session.id, clock.now())
        used = pss_mb(os.getpid())
        print(f"gateway with 1,000 sessions: {used:.1f} MB PSS (this script's client library included)")
    return int(used > 100)


async def main() -> int:
    """Run all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serial", type=int, default=40)
    parser.add_argument("--burst", type=int, default=50)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="wg") as one, tempfile.TemporaryDirectory(prefix="wg") as two:
        missed = await measure_creates(Path(one), args.serial, args.burst)
        missed += await measure_sleep(Path(one), args.serial)
        missed += await measure_memory(Path(two))
    print("all bars held" if not missed else f"{missed} bars missed")
    return int(missed > 0)


if __name__ == "__main__":
    raise SystemExit(asyncio.run(main()))
