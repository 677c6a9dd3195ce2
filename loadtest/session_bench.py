"""Creating, hibernating and waking sessions through the API on real sandboxes, and the gateway's memory.

    scripts/bench session_bench [--part create ...] [--serial 40] [--burst 50]

Each part can be run alone (--part, more than once; all by default):

create     one create at a time from a warm pool, with cold ones in the same run as the baseline, and a concurrent burst
hibernate  the time to hibernate a session and, from request to first byte, to wake it, compared with a live answer
memory     the gateway's memory with 1,000 live sessions
herd       --herd 1000 requests at once to one hibernated session, compared with a live one: one wake, no errors
storm      --hibernated 200 sessions that get a request at once, with a pool of --pool 20: no errors, by start kind
many       --records 10000 hibernated sessions in the store: the gateway's memory, a tick of the sweeper (both stores)
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import tempfile
import time
from pathlib import Path

import uvloop

from gateway.core.clock import SystemClock
from gateway.core.model import RuntimeKey
from gateway.serving.server import serving
from gateway.testing import ScriptedProvider, scripted_gateway
from loadtest.figures import quantile
from loadtest.herd import measure_herd, measure_many, measure_storm
from loadtest.local import create, gateway, until_full
from loadtest.processes import own_pss_mb

PARTS = ("create", "hibernate", "memory", "herd", "storm", "many")


async def measure_creates(folder: Path, serial: int, burst: int) -> int:
    """Print the table of creates. Returns how many bars were missed."""
    missed = 0
    async with gateway(folder, burst) as (client, pid):
        await until_full(client, burst)
        rows: dict[str, list[float]] = {"warm": [], "cold": []}
        for _ in range(serial):
            # In turns, so that warm and cold meet the same machine.
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
        # As many as the pool holds: none of them may be cold.
        results = await asyncio.gather(*(create(client, "warm") for _ in range(burst)), return_exceptions=True)
        times = [result[0] for result in results if not isinstance(result, BaseException)]
        starts = [result[1] for result in results if not isinstance(result, BaseException)]
        errors = burst - len(times)
        print(
            f"create warm  {burst} at once       p50 {quantile(times, 0.5):7.2f} ms  "
            f"p99 {quantile(times, 0.99):7.2f} ms  {errors} errors, {starts.count('warm')} warm"
        )
        print(f"gateway with {burst} bound and up to {burst} warm sandboxes: {own_pss_mb(pid):.1f} MB PSS")
        missed += errors > 0
    return missed


async def measure_hibernation(folder: Path, rounds: int) -> int:
    """Print how long a session with 1 MB in 100 files takes to hibernate and to wake. Returns the bars missed."""
    fill = "for i in $(seq 100); do head -c 10485 /dev/urandom > f$i; done"
    hibernated: list[float] = []
    woken: list[float] = []
    live: list[float] = []
    async with gateway(folder, 3) as (client, _):
        await until_full(client, 3)
        _, _, session = await create(client, "warm")
        header = {"x-session-id": session}
        (await client.post("/api/execute", json={"command": ["sh", "-c", fill]}, headers=header)).raise_for_status()
        for _ in range(rounds):
            began = time.perf_counter()
            (await client.post(f"/v1/sessions/{session}/hibernate")).raise_for_status()
            hibernated.append((time.perf_counter() - began) * 1e3)
            await until_full(client, 3)
            # The same request twice: the first wakes the session, the second is its baseline.
            for times, kind in ((woken, "wake"), (live, "live")):
                began = time.perf_counter()
                # Streamed, so that the time is that of the head and not of the body.
                async with client.stream("GET", "/api/files/f100", headers=header) as reply:
                    times.append((time.perf_counter() - began) * 1e3)
                    if reply.status_code != 200 or reply.headers["x-wakegate-start"] != kind:
                        raise SystemExit(f"expected a {kind} answer, got {reply.status_code} {reply.headers}")
                    await reply.aread()
    base = quantile(live, 0.5)
    for name, times in (("hibernate", hibernated), ("wake", woken), ("live", live)):
        p50, p95 = quantile(times, 0.5), quantile(times, 0.95)
        print(f"{name:<9} 1 MB in 100 files  p50 {p50:7.2f} ms  p95 {p95:7.2f} ms  {p50 / base:5.1f} x a live answer")
    # Bars in milliseconds: p50 and p95 of a wake, p50 of a hibernation.
    return (quantile(woken, 0.5) > 25) + (quantile(woken, 0.95) > 65) + (quantile(hibernated, 0.5) > 100)


async def measure_memory(folder: Path) -> int:
    """Print the gateway's memory with 1,000 sessions in its store and memory. Returns the bars missed."""
    held = scripted_gateway(folder, ScriptedProvider(), max_sandboxes=1000)
    async with serving(held):
        clock = SystemClock()
        for _ in range(1000):
            opened = await held.lifecycle.create(RuntimeKey("default", "my-interpreter"))
            held.activity.of(opened.session.id, clock.now())
        used = own_pss_mb(os.getpid())
        print(f"gateway with 1,000 sessions: {used:.1f} MB PSS (this script's client library included)")
    return int(used > 100)


async def measure(part: str, folder: Path, args: argparse.Namespace) -> int:
    """Run one part in its own folder. Returns the bars missed."""
    match part:
        case "create":
            return await measure_creates(folder, args.serial, args.burst)
        case "hibernate":
            return await measure_hibernation(folder, args.serial)
        case "memory":
            return await measure_memory(folder)
        case "herd":
            return await measure_herd(folder, args.herd)
        case "storm":
            return await measure_storm(folder, args.hibernated, args.pool)
        case _:
            return await measure_many(folder, args.records)


async def main() -> int:
    """Run the parts that --part names. Returns the exit status, 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=PARTS)
    for name, default in (
        ("serial", 40), ("burst", 50), ("herd", 1000), ("hibernated", 200), ("pool", 20), ("records", 10_000)
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    # A thousand clients need a thousand descriptors here, as many at the gateway, which inherits the limit.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    missed = 0
    for part in args.part or PARTS:
        with tempfile.TemporaryDirectory(prefix="wg") as folder:
            print(f"-- {part} (load {os.getloadavg()[0]:.1f})", flush=True)
            missed += await measure(part, Path(folder), args)
    print("all bars held" if not missed else f"{missed} bars missed")
    return int(missed > 0)


if __name__ == "__main__":
    raise SystemExit(uvloop.run(main()))
