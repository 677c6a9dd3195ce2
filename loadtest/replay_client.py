"""An open-loop client: makes sessions on a gateway at the times of a trace, and compares with the laboratory.

    python -m loadtest.replay_client                                 # starts a gateway with real sandboxes of its own
    python -m loadtest.replay_client --url http://127.0.0.1:8080     # or drives one that runs

Each arrival is a request without a session header, so a new session; the answer's `x-wakegate-start` says whether it
found a warm sandbox. The session is deleted at once. Meanwhile target and ready sandboxes are read from
`GET /v1/runtimes`. At the end three columns stand side by side: what was measured; the laboratory's simulator under
the targets that the gateway had set; and the whole laboratory, which is given the trace and the lead time only and
sets targets itself. Exit status 1 if misses or idle differ by more than a fifth. Open loop: a request is sent at its
time whether or not earlier ones were answered.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import re
import subprocess
import sys
import tempfile
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np

from gateway.autoscaler.forecast import Floats
from gateway.autoscaler.replay.pool import Outcome, Targets, simulate
from gateway.autoscaler.replay.predictive import replay_predictive
from gateway.autoscaler.replay.traces import Trace, read_traces
from gateway.autoscaler.scaler import ScalerSpec
from gateway.autoscaler.shadow import Objective
from gateway.errors import BadRequestError
from gateway.model import PoolMode

_MISSES = ("cold", "wake-cold")
_TOLERANCE = 0.2  # of misses and idle
_MANIFEST = """apiVersion: runtime.agentcube.volcano.sh/v1alpha1
kind: CodeInterpreter
metadata: {{name: replayed}}
spec:
  template: {{image: none}}
  warmPoolSize: {size}
  wakegate: {{hibernation: "off", pool: {{min: 0, max: {most}, targetMissRate: {miss_rate}}}}}
"""


@dataclass
class Measured:
    """What was seen of the gateway; times in seconds since the start of the run."""

    starts: Counter[str] = field(default_factory=Counter)
    sent: list[tuple[float, str]] = field(default_factory=list)  # (time, start kind)
    waits: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    pool: list[tuple[float, int, int]] = field(default_factory=list)  # (time, target, ready)
    leads: list[tuple[float, tuple[float, float], float]] = field(default_factory=list)  # (time, p50 and p90, planned)


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
        # From the provider itself: what the autoscaler shows of a pool is of its last look, and it looks at claims, so
        # just when a sandbox is missing (that read as half the idle).
        answer = await client.get("/v1/runtimes")
        now = time.monotonic() - began
        for each in answer.json()["runtimes"]:
            if f"{each['namespace']}/{each['name']}" == runtime:
                pool = each["pool"]
                measured.pool.append((now, pool["target"], pool["ready"]))
                p50, p90 = pool["leadTimeP50"], pool["leadTimeP90"]
                if p50:
                    measured.leads.append((now, (p50, p90), max(p90, 0.05)))
        await asyncio.sleep(every)


@contextlib.contextmanager
def gateway(args: argparse.Namespace) -> Iterator[str]:
    """The URL of `--url`, or of a gateway of our own with real local sandboxes, which ends with the block."""
    if args.url:
        yield args.url
        return
    with tempfile.TemporaryDirectory() as folder:
        manifest = Path(folder) / "runtime.yaml"
        manifest.write_text(_MANIFEST.format(size=args.size, most=args.max, miss_rate=args.miss_rate))
        argv = [sys.executable, "-m", "gateway", "serve", "--port", "0", "--state-dir", f"{folder}/state"]
        argv += ["--runtime", str(manifest), "--autoscaler-tick", f"{args.tick}s", "--log-level", "error"]
        with open(Path(folder) / "log", "w+") as log:
            process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=log, text=True)
            try:
                assert process.stdout is not None
                said = process.stdout.readline()
                found = re.search(r"http://\S+", said)
                if found is None:
                    process.wait(10)
                    log.seek(0)
                    raise BadRequestError(f"the gateway does not start: {log.read() or said}")
                yield found[0]
            finally:
                process.terminate()
                process.communicate(timeout=60)


def compressed(args: argparse.Namespace) -> Trace:
    """The part of the trace that is played, from second 0 on."""
    trace = read_traces(args.trace, args.seed)[0]
    at = (trace.arrivals - trace.start) / args.compress - args.skip
    at = at[(at >= 0.0) & (at < args.seconds)]
    if not (at >= args.warm_up).any():
        raise BadRequestError(f"{args.trace}: nobody arrives in the seconds that would be compared; see --skip")
    return Trace(trace.name, at, 0.0, args.seconds)


async def run(args: argparse.Namespace, url: str, arrivals: Floats) -> Measured:
    """Play the arrivals."""
    namespace, name = args.runtime.split("/")
    path = f"/v1/namespaces/{namespace}/code-interpreters/{name}/invocations/health"
    measured = Measured()
    headers = {"Authorization": f"Bearer {args.token}"} if args.token else {}
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60.0, limits=limits, trust_env=False) as client:
        while (await client.get("/readyz")).status_code != 200:
            await asyncio.sleep(0.1)
        began = time.monotonic()
        watcher = asyncio.create_task(watch(client, args.runtime, began, measured))
        tasks = []
        for offset in arrivals.tolist():
            await asyncio.sleep(max(began + offset - time.monotonic(), 0.0))
            tasks.append(asyncio.create_task(claim(client, path, began, measured)))
        await asyncio.gather(*tasks)
        await asyncio.sleep(max(began + args.seconds - time.monotonic(), 0.0))
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)
    return measured


def laboratory(args: argparse.Namespace, trace: Trace, measured: Measured) -> tuple[Outcome, Outcome]:
    """(simulator under the gateway's targets, the whole laboratory), both with the measured lead times."""
    median, spread = lead_times(measured)
    joins = args.miss == "join"

    def outcome(arrivals: Floats, targets: Targets) -> Outcome:
        return simulate(
            arrivals, targets, lead=median, scored_from=args.warm_up, end=args.seconds, joins=joins, spread=spread
        )

    seen = Targets(
        np.array([at for at, _, _ in measured.pool]), np.array([float(target) for _, target, _ in measured.pool])
    )
    spec = ScalerSpec(max=args.max, mode=PoolMode.PREDICTIVE, fixed=args.size)
    times = [at for at, _, _ in measured.leads]

    def planned(now: float) -> float:
        return measured.leads[max(bisect_right(times, now) - 1, 0)][2] if times else median

    (own,), _ = replay_predictive(
        trace, [Objective(args.miss_rate)], lead=planned(0.0), tick=args.tick, spec=spec, joins=joins, planned=planned
    )
    return outcome(np.array(sorted(at for at, _ in measured.sent)), seen), outcome(trace.arrivals, own)


def lead_times(measured: Measured) -> tuple[float, float]:
    """(median, spread of the logarithm) of the starts, from the quantiles that the gateway shows."""
    if not measured.leads:
        return 1.0, 0.0
    median = float(np.median([p50 for _, (p50, _), _ in measured.leads]))
    tail = float(np.median([p90 / p50 for _, (p50, p90), _ in measured.leads]))
    return median, float(np.log(tail)) / 1.2816


def report(args: argparse.Namespace, trace: Trace, measured: Measured) -> bool:
    """Print the three columns; whether they agree."""
    simulated, own = laboratory(args, trace, measured)
    scored = [start for at, start in measured.sent if at >= args.warm_up]
    misses = sum(start in _MISSES for start in scored) / max(len(scored), 1)
    ready = [float(ready) for at, _, ready in measured.pool if at >= args.warm_up]
    target = [float(target) for at, target, _ in measured.pool if at >= args.warm_up]
    idle = float(np.mean(ready)) if ready else 0.0
    median, spread = lead_times(measured)
    planned = float(np.median([each for _, _, each in measured.leads])) if measured.leads else 0.0
    print(
        f"{trace.name}, {args.compress:g} times as fast: {len(measured.sent)} claims in {args.seconds:g} s, "
        f"{len(scored)} of them after the first {args.warm_up:g} s compared"
    )
    print(f"errors {dict(measured.errors)}, starts {dict(measured.starts)}, mean target {np.mean(target):.2f}")
    print(f"lead time {median:.3f} s (median; spread {spread:.2f}), planned with {planned:.3f} s; tick {args.tick:g} s")
    waits = " / ".join(f"{1000.0 * float(np.quantile(measured.waits, q)):.0f}" for q in (0.5, 0.95, 0.99))
    print(f"answers, ms p50 / p95 / p99: {waits}")
    print(f"{'':22}{'measured':>10}{'simulator, same targets':>26}{'laboratory':>13}")
    agree = True
    for name, seen, same, lab in (
        ("claims that miss", misses, 1.0 - simulated.hit_rate, 1.0 - own.hit_rate),
        ("mean idle sandboxes", idle, simulated.mean_idle, own.mean_idle),
    ):
        shares = [each / seen - 1.0 if seen else 0.0 for each in (same, lab)]
        agree &= all(abs(share) <= _TOLERANCE for share in shares)
        print(f"{name:22}{seen:10.3f}{same:17.3f} ({shares[0]:+5.0%}){lab:11.3f} ({shares[1]:+5.0%})")
    print("they agree within a fifth" if agree else "they differ by more than a fifth")
    return agree and not measured.errors


def main() -> int:
    """Exit status 0, 1 when laboratory and gateway differ or requests failed, 2 when the input is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "trace", nargs="?", default="loadtest/traces/elb_request_count.csv.gz", help="as for wakegate replay"
    )
    parser.add_argument("--url", default="", help="a gateway that runs (default: one is started)")
    parser.add_argument("--runtime", default="default/replayed", help="namespace/name of a code interpreter")
    parser.add_argument("--compress", type=float, default=10.0, help="how many times faster than the trace (10)")
    parser.add_argument("--skip", type=float, default=1080.0, help="seconds of the compressed trace to leave out first")
    parser.add_argument("--seconds", type=float, default=240.0, help="length of the run (240)")
    parser.add_argument("--warm-up", type=float, default=60.0, help="seconds that are not compared (60)")
    parser.add_argument("--tick", type=float, default=0.25, help="of the gateway's autoscaler, seconds (0.25)")
    parser.add_argument(
        "--miss-rate", type=float, default=0.2, help="of the runtime's pool (0.2: misses enough to count)"
    )
    parser.add_argument("--size", type=int, default=1, help="warmPoolSize of the runtime (1)")
    parser.add_argument("--max", type=int, default=16, help="of the runtime's pool (16)")
    parser.add_argument("--miss", choices=("cold", "join"), default="join", help="what this gateway's provider does")
    parser.add_argument("--token", help="bearer token, where the gateway asks for one")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    try:
        trace = compressed(args)
        with gateway(args) as url:
            measured = asyncio.run(run(args, url, trace.arrivals))
    except BadRequestError as error:
        print(f"replay_client: {error}", file=sys.stderr)
        return 2
    except httpx.HTTPError as error:
        print(f"replay_client: the gateway does not answer: {error}", file=sys.stderr)
        return 2
    return 0 if report(args, trace, measured) else 1


if __name__ == "__main__":
    sys.exit(main())
