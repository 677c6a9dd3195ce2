"""An open-loop client: creates sessions on a gateway at the times of traces, and compares with the laboratory.

    scripts/bench replay_client                                 # all runs, each on a new gateway with real sandboxes
    scripts/bench replay_client twitter,predictive elb,fixed    # these runs
    scripts/bench replay_client --recorded build/agree/*.json   # compare again, without running

Each arrival is a request without a session header, so it creates a session; the answer's `x-wakegate-start` says
whether a warm sandbox was ready. The session is deleted at once. Meanwhile target and ready sandboxes are read from
`GET /v1/runtimes`, and afterwards starts and orders from the gateway's log. replay_compare.py compares the two. Open
loop: a request is sent at its time whether or not earlier ones were answered.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from gateway.autoscaler.replay.traces import read_traces
from gateway.core.errors import BadRequestError
from loadtest.processes import started, url_in
from loadtest.recording import Recording
from loadtest.replay_compare import report

_RUNTIME = "default/replayed"
_MANIFEST = """apiVersion: runtime.agentcube.volcano.sh/v1alpha1
kind: CodeInterpreter
metadata: {{name: replayed}}
spec:
  template: {{image: none}}
  warmPoolSize: {size}
  wakegate: {{hibernation: "off", pool: {{min: 0, max: {most}, mode: {mode}, targetMissRate: {miss_rate}}}}}
"""


@dataclass(frozen=True)
class Part:
    """A part of a trace that is replayed, and the pool for it.

    It is compressed to nearly one claim a second: a start uses a fifth of a second of CPU and takes half a second here,
    and starts that compete for two cores would make the runs a test of the machine.
    """

    trace: str
    compress: float
    skip: float  # seconds of the compressed trace
    size: int  # of the fixed pool
    miss_rate: float = 0.2  # high enough for a count of misses that chance does not dominate


PARTS = {
    "twitter": Part("loadtest/traces/twitter_volume_goog.csv.gz", 12.0, 2000.0, 1),
    "elb": Part("loadtest/traces/elb_request_count.csv.gz", 4.0, 1000.0, 1),
}
RUNS = tuple(f"{part},{mode}" for part in PARTS for mode in ("fixed", "predictive"))


async def claim(client: httpx.AsyncClient, path: str, began: float, recording: Recording) -> None:
    """Create one session, record its claim, and end it at once."""
    at = time.monotonic()
    try:
        answer = await client.get(path)
    except httpx.HTTPError as error:
        recording.failed(type(error).__name__)
        return
    start = answer.headers.get("x-wakegate-start", "")
    if not start or answer.status_code >= 500:
        recording.failed(f"status {answer.status_code}")
        return
    # The gateway's own measure of the wait: the client's would include connecting.
    stage = re.search(r"\bclaim;dur=([0-9.]+)", answer.headers.get("server-timing", ""))
    wait = float(stage[1]) / 1e3 if stage else 0.0
    recording.claims.append((at - began, start, wait, time.monotonic() - at))
    session = answer.headers.get("x-session-id") or answer.headers.get("x-agentcube-session-id")
    if session:
        # At once: a session that stays would take memory from the starts that are measured.
        await client.delete(f"/v1/sessions/{session}")


async def watch(client: httpx.AsyncClient, began: float, recording: Recording, every: float) -> None:
    """Record the runtime's pool until cancelled."""
    while True:
        # From the provider itself. The autoscaler's metrics are of its last tick, which a claim often triggers, so just
        # when a sandbox has been taken: they showed half of the idle time.
        answer = await client.get("/v1/runtimes")
        now = time.monotonic() - began
        for each in answer.json()["runtimes"]:
            if f"{each['namespace']}/{each['name']}" == _RUNTIME:
                pool = each["pool"]
                leads = (pool["leadTimeP50"] or 0.0, pool["leadTimeP90"] or 0.0)
                recording.pool.append((now, pool["target"], pool["ready"], pool["starting"], *leads))
        await asyncio.sleep(every)


@contextlib.contextmanager
def gateway(recording: Recording, log: Path) -> Iterator[str]:
    """Run a gateway with real local sandboxes for the length of a block. Yields its URL."""
    with tempfile.TemporaryDirectory() as folder:
        manifest = Path(folder) / "runtime.yaml"
        manifest.write_text(
            _MANIFEST.format(
                size=recording.size, most=recording.max, mode=recording.mode, miss_rate=recording.miss_rate
            )
        )
        argv = [sys.executable, "-m", "gateway", "serve", "--port", "0", "--state-dir", f"{folder}/state"]
        argv += ["--runtime", str(manifest), "--no-default-runtime", "--autoscaler-tick", f"{recording.tick}s"]
        # Starts and orders are debug lines, which read_log looks for.
        argv += ["--log-level", "debug", "--log-format", "json"]
        with open(log, "w+") as stream, started(argv, stderr=stream) as (_, line):
            yield url_in(line)


def planned(run: str, args: argparse.Namespace) -> Recording:
    """The recording of a run before it begins. Raises BadRequestError for a name that does not exist."""
    name, _, mode = run.partition(",")
    part = PARTS.get(name)
    if part is None or mode not in ("fixed", "predictive"):
        raise BadRequestError(f"no run {run!r}; there are {' '.join(RUNS)}")
    trace = read_traces(part.trace, args.seed)[0]
    at = (trace.arrivals - trace.start) / part.compress - part.skip
    at = at[(at >= 0.0) & (at < args.seconds)]
    return Recording(
        name=trace.name,
        compress=part.compress,
        arrivals=at.tolist(),
        seconds=args.seconds,
        warm_up=args.warm_up,
        tick=args.tick,
        mode=mode,
        size=part.size if mode == "fixed" else 1,
        max=args.max,
        miss_rate=part.miss_rate,
        joins=True,
    )


async def play(recording: Recording, url: str) -> float:
    """Replay the arrivals on a gateway. Returns the epoch seconds of time 0."""
    namespace, name = _RUNTIME.split("/")
    path = f"/v1/namespaces/{namespace}/code-interpreters/{name}/invocations/health"
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=60.0, limits=limits, trust_env=False) as client:
        # Ready means that each pool has had a sandbox: before, all claims would miss.
        while (await client.get("/readyz")).status_code != 200:
            await asyncio.sleep(0.1)
        epoch, began = time.time(), time.monotonic()
        watcher = asyncio.create_task(watch(client, began, recording, 0.1))
        tasks = []
        for offset in recording.arrivals:
            # By the clock and not by differences, so that delays do not add up over the run.
            await asyncio.sleep(max(began + offset - time.monotonic(), 0.0))
            tasks.append(asyncio.create_task(claim(client, path, began, recording)))
        await asyncio.sleep(max(began + recording.seconds - time.monotonic(), 0.0))
        await asyncio.gather(*tasks)
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)
    recording.claims.sort()
    return epoch


def record(run: str, args: argparse.Namespace) -> Recording:
    """Make a run, and save its recording in the folder `--out`."""
    recording = planned(run, args)
    args.out.mkdir(parents=True, exist_ok=True)
    log = args.out / f"{run.replace(',', '-')}.log"
    with gateway(recording, log) as url:
        epoch = asyncio.run(play(recording, url))
    with log.open() as lines:
        recording.read_log(lines, _RUNTIME, epoch)
    recording.save(log.with_suffix(".json"))
    return recording


def main() -> int:
    """Returns the exit status: 1 if laboratory and gateway differ or requests failed, 2 if the input is not valid."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", default=RUNS, metavar="PART,MODE", help=f"default: {' '.join(RUNS)}")
    parser.add_argument(
        "--recorded",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="compare these again (with the code that ran)",
    )
    parser.add_argument("--out", type=Path, default=Path("build/agree"), help="where runs are kept (build/agree)")
    parser.add_argument("--seconds", type=float, default=420.0, help="length of a run (420)")
    parser.add_argument("--warm-up", type=float, default=90.0, help="seconds that are not compared (90)")
    parser.add_argument("--tick", type=float, default=0.25, help="of the gateway's autoscaler, seconds (0.25)")
    parser.add_argument("--max", type=int, default=6, help="of the runtime's pool (6)")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    agree = True
    try:
        for path in args.recorded:
            agree &= report(Recording.load(path))
        for run in () if args.recorded else args.runs:
            print(f"load average before: {os.getloadavg()[0]:.1f}")
            agree &= report(record(run, args))
    except (BadRequestError, OSError, ValueError, TypeError) as error:
        print(f"replay_client: {error}", file=sys.stderr)
        return 2
    except httpx.HTTPError as error:
        print(f"replay_client: the gateway does not answer: {error}", file=sys.stderr)
        return 2
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
