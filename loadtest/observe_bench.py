"""The cost of observing requests: the same gateway without logs, with an access log, and with OpenTelemetry spans.

    scripts/bench observe_bench [--seconds 2] [--repeats 3]

Processor time per request of the gateway's process, compared with a gateway that observes nothing, in the same run.
Spans go to a receiver that drops them. Metrics and request ids are always on, so the first line includes them.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from loadtest.compare import Run, Side, load
from loadtest.processes import find_program, free_port, running, started, wait_for
from loadtest.proxy_bench import PATH, nginx_conf


def start(stack: contextlib.ExitStack, folder: Path, mine: int, others: int) -> dict[str, Side]:
    """Start the upstream, the receiver of spans, and a gateway for each way of observing."""
    peers = [sys.executable, "-m", "loadtest.peers", "upstream"]
    receiver = stack.enter_context(running(peers, others))
    assert receiver.stdout is not None
    sink = int(receiver.stdout.readline())
    port = free_port()
    if nginx := find_program("nginx"):
        stack.enter_context(running([nginx, "-c", str(nginx_conf(folder, port))], others))
        wait_for(port)
    else:
        # Without nginx the receiver of spans is the upstream as well; it answers anything.
        port = sink
    sides: dict[str, Side] = {}
    otlp = ["--otlp-endpoint", f"http://127.0.0.1:{sink}"]
    for name, flags, sampler in (
        ("nothing", [], ""),
        ("access log", ["--access-log"], ""),
        ("1 % of spans", otlp, "0.01"),
        ("all spans", otlp, "1"),
    ):
        # The SDK's own variables: the gateway has no setting for sampling.
        sampling = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": sampler}
        environment = {**os.environ, **(sampling if sampler else {})}
        argv = [sys.executable, "-m", "loadtest.bench_gateway", f"127.0.0.1:{port}", *flags]
        gateway, line = stack.enter_context(started(argv, core=mine, stderr=subprocess.DEVNULL, env=environment))
        url, session, _ = line.split()
        sides[name] = Side(url + PATH, [f"x-session-id: {session}"], gateway.pid)
    return sides


def main() -> int:
    """Run the load against each gateway and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        sides = start(stack, Path(folder), cores[0], cores[-1])
        runs: dict[str, list[Run]] = {name: [] for name in sides}
        for _ in range(args.repeats):
            for name, side in sides.items():
                runs[name].append(load(side, 32, args.seconds, 0.0, cores[-1]))
        print(f"load {os.getloadavg()[0]:.1f}, 32 connections; CPU in us per request, least and most of {args.repeats}")
        # CPU and not throughput: it does not depend on what else the machine does.
        base = statistics.median(run.cpu for run in runs["nothing"])
        for name, each in runs.items():
            cpu = [run.cpu for run in each]
            middle, spread = statistics.median(cpu), f"({min(cpu):.1f}-{max(cpu):.1f})"
            print(f"{name:<14} {middle:6.1f} {spread:<15} {middle / base:5.2f} x nothing")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
