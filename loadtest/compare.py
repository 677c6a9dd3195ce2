"""Wakegate compared with other proxies: in one run, in front of the same upstream, each on the same core.

    scripts/bench compare [--seconds 3] [--repeats 3] [--connections 1,32,64] [--rates 500,2000] [--json FILE]

The closed loop uses wrk if it is installed, else loadtest/client.py; the open loop (a constant arrival rate) always
uses the latter. Sides take turns within a repeat, so that a change of the machine's speed affects all of them; figures
are medians over repeats, with the least and the highest rate. CPU is the proxy's own, in ms per 1,000 requests. HAProxy
and nginx (Debian packages of those names) are included if they are installed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtest.processes import cpu_of, find_program, free_port, pss_mb, require_programs, running, wait_for
from loadtest.proxy_bench import PATH, haproxy_conf, nginx_conf, wrk


@dataclass(frozen=True)
class Side:
    """A target of the load: URL, header lines, and the process whose time and memory are measured, if any."""

    url: str
    headers: list[str]
    pid: int | None


@dataclass(frozen=True)
class Run:
    """One run of one side. Times in milliseconds; `cpu` per 1,000 requests; `pss` in MB."""

    rate: float
    p50: float
    p99: float
    errors: int
    cpu: float
    pss: float


def load(side: Side, connections: int, seconds: float, rate: float, core: int) -> Run:
    """Run one load against one side. `rate` 0 is the closed loop."""
    # With all descendants: nginx works in a child of its master.
    before = cpu_of(side.pid)
    # wrk is written in C and uses less of the cores that load and proxy share; it has no open loop.
    if not rate and find_program("wrk"):
        measured = wrk(side.url, connections, int(seconds), core, side.headers, side.pid or os.getpid())
        figures: dict[str, Any] = {
            "rate": measured.rate,
            "p50": measured.p50,
            "p99": measured.p99,
            "errors": measured.errors,
        }
        figures["requests"] = measured.rate * int(seconds)
    else:
        argv = [sys.executable, "-m", "loadtest.client", side.url, "--connections", str(connections)]
        argv += ["--seconds", str(seconds), "--rate", str(rate)]
        for header in side.headers:
            argv += ["--header", header]
        out = subprocess.run(["taskset", "-c", str(core), *argv], capture_output=True, text=True, check=True)
        figures = json.loads(out.stdout)
    # Microseconds per request are milliseconds per 1,000.
    requests = max(1.0, figures["requests"])
    cpu = (cpu_of(side.pid) - before) / requests * 1e6
    return Run(
        figures["rate"], figures["p50"], figures["p99"], figures["errors"], cpu, pss_mb(side.pid) if side.pid else 0.0
    )


def nginx_proxy_conf(folder: Path, port: int, upstream: str) -> Path:
    """nginx as a proxy with one worker and keep-alive on both sides."""
    conf = folder / "nginx-proxy.conf"
    conf.write_text(
        f"daemon off; worker_processes 1; pid {folder}/nginx-proxy.pid; error_log {folder}/proxy-error.log;\n"
        "events { worker_connections 4096; }\n"
        "http { access_log off; keepalive_requests 100000000; keepalive_timeout 75;\n"
        f"  client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};\n"
        f"  uwsgi_temp_path {folder}; scgi_temp_path {folder};\n"
        f"  upstream u {{ server {upstream}; keepalive 256; keepalive_requests 100000000; }}\n"
        f"  server {{ listen 127.0.0.1:{port};\n"
        '    location / { proxy_pass http://u; proxy_http_version 1.1; proxy_set_header Connection ""; } } }\n'
    )
    return conf


def start(stack: contextlib.ExitStack, folder: Path, mine: int, others: int, wanted: set[str]) -> dict[str, Side]:
    """Start the upstream, the wanted proxies that are installed, and a gateway."""
    port = free_port()
    peers = [sys.executable, "-m", "loadtest.peers"]
    # nginx answers faster than the Python upstream, which would take more of the core that it shares with the load.
    if nginx := find_program("nginx"):
        stack.enter_context(running([nginx, "-c", str(nginx_conf(folder, port))], others))
    else:
        process = stack.enter_context(running([*peers, "upstream"], others))
        assert process.stdout is not None
        port = int(process.stdout.readline())
    wait_for(port)
    upstream = f"127.0.0.1:{port}"
    sides = {"direct": Side(f"http://{upstream}/health", [], None)}
    for name, conf, argv in (
        ("HAProxy", haproxy_conf, ["haproxy", "-f"]),
        ("nginx", nginx_proxy_conf, ["nginx", "-c"]),
    ):
        program = find_program(argv[0])
        if program and name in wanted:
            port = free_port()
            process = stack.enter_context(running([program, *argv[1:], str(conf(folder, port, upstream))], mine))
            wait_for(port)
            sides[name] = Side(f"http://127.0.0.1:{port}/health", [], process.pid)
    # As a Python proxy is commonly written, and the fastest client of the common ones.
    for name, peer in (("starlette+httpx", "starlette"), ("aiohttp", "aiohttp")):
        if name in wanted:
            process = stack.enter_context(running([*peers, peer, upstream], mine))
            assert process.stdout is not None
            port = int(process.stdout.readline())
            wait_for(port)
            sides[name] = Side(f"http://127.0.0.1:{port}/health", [], process.pid)
    gateway = stack.enter_context(running([sys.executable, "-m", "loadtest.bench_gateway", upstream], mine))
    assert gateway.stdout is not None
    url, session, _ = gateway.stdout.readline().split()
    sides["Wakegate"] = Side(url + PATH, [f"x-session-id: {session}"], gateway.pid)
    return sides


def median(runs: list[Run]) -> dict[str, float]:
    """Medians; errors are summed; `least` and `most` are the spread of the rate."""
    figures = {
        name: statistics.median(getattr(run, name) for run in runs) for name in ("rate", "p50", "p99", "cpu", "pss")
    }
    rates = [run.rate for run in runs]
    return {**figures, "errors": sum(run.errors for run in runs), "least": min(rates), "most": max(rates)}


def measure(
    sides: dict[str, Side], loads: list[tuple[int, float]], seconds: float, repeats: int, core: int
) -> list[Any]:
    """Rows of (connections, rate, side, figures) for every load and side."""
    rows: list[Any] = []
    for connections, rate in loads:
        runs: dict[str, list[Run]] = {name: [] for name in sides}
        for _ in range(repeats):
            # In turns, so that a change of the machine's speed affects all of them.
            for name, side in sides.items():
                runs[name].append(load(side, connections, seconds, rate, core))
        for name, each in runs.items():
            rows.append({"connections": connections, "arrivals": rate, "side": name, **median(each)})
            show(rows[-1])
    return rows


def show(row: dict[str, Any]) -> None:
    """Print one row of the table."""
    how = f"{row['arrivals']:.0f}/s" if row["arrivals"] else "closed"
    print(
        f"{row['connections']:>4} {how:>7} {row['side']:<16} {row['rate']:>8.0f} ({row['least']:.0f}-{row['most']:.0f})"
        f"  p50 {row['p50']:>7.2f}  p99 {row['p99']:>8.2f}  CPU {row['cpu']:>6.0f}  PSS {row['pss']:>5.0f}"
        f"  errors {row['errors']:.0f}",
        flush=True,
    )


def bars(rows: list[Any]) -> list[dict[str, Any]]:
    """The bars for which the rows have figures: text, figure, bound, held."""

    def cell(connections: int, side: str, name: str) -> float | None:
        for row in rows:
            if (row["connections"], row["side"], row["arrivals"]) == (connections, side, 0):
                return float(row[name])
        return None

    found: list[dict[str, Any]] = []

    def bar(text: str, figure: float | None, low: float | None = None, high: float | None = None) -> None:
        if figure is not None:
            held = (low is None or figure >= low) and (high is None or figure <= high)
            bound = f">= {low:g}" if low is not None else f"<= {high:g}"
            found.append({"text": text, "figure": figure, "bound": bound, "held": held})

    def ratio(connections: int, peer: str, name: str) -> float | None:
        ours, theirs = cell(connections, "Wakegate", name), cell(connections, peer, name)
        return ours / theirs if ours is not None and theirs else None

    # Ratios to a peer of the same run; absolute bars only where a person would feel the difference.
    bar("throughput at c=32 over HAProxy's", ratio(32, "HAProxy", "rate"), low=0.4)
    bar("throughput at c=32 over starlette+httpx's", ratio(32, "starlette+httpx", "rate"), low=20)
    bar("CPU per request at c=32 over HAProxy's", ratio(32, "HAProxy", "cpu"), high=2.5)
    ours, direct = cell(1, "Wakegate", "p50"), cell(1, "direct", "p50")
    bar("p50 added at c=1, ms", ours - direct if ours is not None and direct is not None else None, high=0.5)
    bar("p99 at c=64, ms", cell(64, "Wakegate", "p99"), high=15)
    return found


def main() -> int:
    """Run all loads, print the table and write --json. Returns the exit status, 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--connections", default="1,32,64", help="of the closed loop")
    parser.add_argument("--rates", default="500,2000", help="arrivals a second of the open loop, over 64 connections")
    parser.add_argument("--sides", default="HAProxy,nginx,starlette+httpx,aiohttp")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    require_programs("taskset")
    # The first core is the proxy's; load and upstream share the last.
    cores = sorted(os.sched_getaffinity(0))
    loads = [(int(each), 0.0) for each in args.connections.split(",") if each]
    loads += [(64, float(each)) for each in args.rates.split(",") if each]
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        sides = start(stack, Path(temporary), cores[0], cores[-1], set(args.sides.split(",")))
        print(f"load {os.getloadavg()[0]:.1f}, closed loop by {'wrk' if find_program('wrk') else 'loadtest.client'}")
        rows = measure(sides, loads, args.seconds, args.repeats, cores[-1])
    found = bars(rows)
    for each in found:
        print(f"{'held' if each['held'] else 'MISSED':<6} {each['text']}: {each['figure']:.2f} (bar {each['bound']})")
    if args.json:
        args.json.write_text(json.dumps({"rows": rows, "bars": found}, indent=1))
    return int(not all(each["held"] for each in found))


if __name__ == "__main__":
    raise SystemExit(main())
