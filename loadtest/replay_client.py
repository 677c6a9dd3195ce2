"""An open-loop client: makes sessions on a live gateway at the times of a trace, and compares with the laboratory.

    python loadtest/replay_client.py http://127.0.0.1:8080 synthetic:steps --compress 10 --seconds 120

Each arrival is a request without a session header, so a new session; the answer's `x-wakegate-start` says whether it
found a warm sandbox. The session is deleted at once. Meanwhile the pool's ready sandboxes are read from
`GET /v1/autoscaler`. At the end the targets that the gateway had set are put through the laboratory's simulator, with
the lead time that was measured: misses and idle of both stand side by side. Open loop: a request is sent at its time
whether or not earlier ones were answered.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np

from gateway.autoscaler.replay.pool import Targets, simulate
from gateway.autoscaler.replay.traces import read_traces
from gateway.errors import BadRequestError

_MISSES = ("cold", "wake-cold")


@dataclass
class Measured:
    """What was seen of the gateway; times in seconds since the start of the run."""

    starts: Counter[str] = field(default_factory=Counter)
    sent: list[tuple[float, str]] = field(default_factory=list)  # (time, start kind)
    waits: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    pool: list[tuple[float, int, int]] = field(default_factory=list)  # (time, target, ready)
    leads: list[float] = field(default_factory=list)


async def claim(client: httpx.AsyncClient, path: str, began: float, measured: Measured) -> None:
    """One new session, ended at once."""
    at = time.monotonic()
    try:
        answer = await client.get(path)
    except httpx.HTTPError as error:
        measured.errors[type(error).__name__] += 1
        return
    start = answer.headers.get("x-wakegate-start", "")
    if not start or answer.status_code >= 500:
        measured.errors[f"status {answer.status_code}"] += 1
        return
    measured.starts[start] += 1
    measured.sent.append((at - began, start))
    measured.waits.append(time.monotonic() - at)
    session = answer.headers.get("x-session-id") or answer.headers.get("x-agentcube-session-id")
    if session:
        await client.delete(f"/v1/sessions/{session}")


async def watch(client: httpx.AsyncClient, runtime: str, began: float, measured: Measured, every: float = 0.1) -> None:
    """Write down target and ready sandboxes of the runtime's pool until cancelled."""
    while True:
        answer = await client.get("/v1/autoscaler")
        for pool in answer.json()["pools"]:
            if pool["runtime"] == runtime and pool["pool"]:
                measured.pool.append((time.monotonic() - began, pool["target"], pool["pool"]["ready"]))
                if pool["leadTime"]["p50"]:
                    measured.leads.append(pool["leadTime"]["p50"])
        await asyncio.sleep(every)


async def run(args: argparse.Namespace) -> Measured:
    """Play the trace; arrivals beyond `--seconds` are left out."""
    trace = read_traces(args.trace, args.seed)[0]
    at = (trace.arrivals - trace.start) / args.compress
    at = at[at < args.seconds]
    namespace, name = args.runtime.split("/")
    path = f"/v1/namespaces/{namespace}/code-interpreters/{name}/invocations/health"
    measured = Measured()
    headers = {"Authorization": f"Bearer {args.token}"} if args.token else {}
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=args.url, headers=headers, timeout=60.0, limits=limits) as client:
        began = time.monotonic()
        watcher = asyncio.create_task(watch(client, f"code-interpreters/{args.runtime}", began, measured))
        tasks = []
        for offset in at.tolist():
            await asyncio.sleep(max(began + offset - time.monotonic(), 0.0))
            tasks.append(asyncio.create_task(claim(client, path, began, measured)))
        await asyncio.gather(*tasks)
        await asyncio.sleep(max(began + args.seconds - time.monotonic(), 0.0))
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)
    return measured


def compare(measured: Measured, *, warm_up: float, end: float, joins: bool) -> dict[str, Any]:
    """Measured misses and idle beside those of the simulator under the same targets and lead time."""
    times = np.array([at for at, _, _ in measured.pool])
    ready = np.array([float(ready) for _, _, ready in measured.pool])
    scored = times >= warm_up
    lead = float(np.median(measured.leads)) if measured.leads else 1.0
    targets = Targets(times, np.array([float(target) for _, target, _ in measured.pool]))
    outcome = simulate(
        np.array(sorted(at for at, _ in measured.sent)), targets, lead=lead, scored_from=warm_up, end=end, joins=joins
    )
    scored_starts = [start for at, start in measured.sent if at >= warm_up]
    missed = sum(start in _MISSES for start in scored_starts)
    return {
        "claims": len(measured.sent),
        "starts": dict(measured.starts),
        "errors": dict(measured.errors),
        "lead_s": round(lead, 3),
        "wait_p50_s": round(float(np.quantile(measured.waits, 0.5)), 4) if measured.waits else None,
        "wait_p99_s": round(float(np.quantile(measured.waits, 0.99)), 4) if measured.waits else None,
        "miss_rate": {
            "measured": round(missed / max(len(scored_starts), 1), 4),
            "laboratory": round(1.0 - outcome.hit_rate, 4),
        },
        "mean_idle": {
            "measured": round(float(ready[scored].mean()), 3) if scored.any() else None,
            "laboratory": round(outcome.mean_idle, 3),
        },
    }


def main() -> int:
    """Exit status 0, or 2 when the input is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="base URL of the gateway")
    parser.add_argument("trace", help="as for wakegate replay: a file, or synthetic:NAME")
    parser.add_argument("--runtime", default="default/my-interpreter", help="namespace/name of a code interpreter")
    parser.add_argument("--compress", type=float, default=1.0, help="how many times faster than the trace")
    parser.add_argument("--seconds", type=float, default=120.0, help="length of the run")
    parser.add_argument("--warm-up", type=float, default=20.0, help="seconds that are not compared")
    parser.add_argument("--miss", choices=("cold", "join"), default="join", help="what this gateway's provider does")
    parser.add_argument("--token", help="bearer token, where the gateway asks for one")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    try:
        measured = asyncio.run(run(args))
    except BadRequestError as error:
        print(f"replay_client: {error}", file=sys.stderr)
        return 2
    except httpx.HTTPError as error:
        print(f"replay_client: {args.url} does not answer: {error}", file=sys.stderr)
        return 2
    print(json.dumps(compare(measured, warm_up=args.warm_up, end=args.seconds, joins=args.miss == "join"), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
