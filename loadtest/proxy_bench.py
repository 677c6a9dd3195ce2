"""Throughput and latency of the data path compared with HAProxy, both in front of the same nginx, in one run.

    scripts/bench proxy_bench [--seconds 5] [--repeats 3] [--sandbox]

With --sandbox the upstream is picod's /health in a real local sandbox, for both proxies. The proxy under test runs on
one core; the load and the upstream share the other. Needs wrk, nginx and haproxy (Debian packages of those names).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from loadtest.processes import cpu_seconds, find_program, free_port, require_programs, running, wait_for

PATH = "/v1/namespaces/default/code-interpreters/my-interpreter/invocations/health"
_UNITS_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}


@dataclass(frozen=True)
class Load:
    """One wrk run: requests/s, milliseconds, and the number of failed requests."""

    rate: float
    p50: float
    p99: float
    errors: int
    cpu_us: float = 0.0  # processor time of the proxy per request, microseconds


def nginx_conf(folder: Path, port: int) -> Path:
    """nginx as an upstream with one fixed answer. Its files have a folder of their own: nginx gives that to nobody."""
    folder = folder / "nginx"
    folder.mkdir(exist_ok=True)
    conf = folder / "nginx.conf"
    conf.write_text(
        f"daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log;\n"
        "events { worker_connections 1024; }\n"
        "http { access_log off; keepalive_requests 100000000; keepalive_timeout 75;\n"
        f"  client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};\n"
        f"  uwsgi_temp_path {folder}; scgi_temp_path {folder};\n"
        f"  server {{ listen 127.0.0.1:{port};\n"
        '    location / { default_type application/json; return 200 \'{"service":"PicoD","status":"ok"}\'; } } }\n'
    )
    return conf


def haproxy_conf(folder: Path, port: int, endpoint: str) -> Path:
    """HAProxy with one thread, keep-alive on both sides."""
    conf = folder / "haproxy.cfg"
    conf.write_text(
        "global\n  nbthread 1\n  maxconn 4096\n"
        "defaults\n  mode http\n  timeout connect 5s\n  timeout client 30s\n  timeout server 30s\n  http-reuse always\n"
        f"  option forwardfor\nfrontend f\n  bind 127.0.0.1:{port}\n  default_backend b\n"
        f"backend b\n  server s {endpoint}\n"
    )
    return conf


def wrk(url: str, connections: int, seconds: int, core: int, headers: list[str], pid: int, script: str = "") -> Load:
    """One run of wrk; `pid` is the process whose processor time is counted, `script` what wrk is to do, in Lua."""
    before = cpu_seconds(pid)
    argv = [
        "taskset",
        "-c",
        str(core),
        find_program("wrk") or "wrk",
        "-t1",
        f"-c{connections}",
        f"-d{seconds}s",
        "--latency",
    ]
    for header in headers:
        argv += ["-H", header]
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        file.write(script)
        file.flush()
        argv += ["-s", file.name] if script else []
        out = subprocess.run([*argv, url], capture_output=True, text=True, check=True).stdout
    errors = sum(int(n) for n in re.findall(r"Non-2xx or 3xx responses: (\d+)", out))
    # connect, read, write and timeout, in one line.
    errors += sum(int(n) for line in re.findall(r"Socket errors: (.*)", out) for n in re.findall(r"\d+", line))
    rate = re.search(r"Requests/sec:\s+([\d.]+)", out)
    if rate is None:
        raise SystemExit(f"wrk printed no rate:\n{out}")
    # Ticks of 10 ms: over 5 s at 10,000 requests/s the rounding is 0.2 us at most.
    cpu = (cpu_seconds(pid) - before) / (float(rate[1]) * seconds) * 1e6
    return Load(float(rate[1]), _quantile(out, "50%"), _quantile(out, "99%"), errors, cpu)


def _quantile(out: str, name: str) -> float:
    found = re.search(rf"^\s+{name}\s+([\d.]+)(us|ms|s|m)\b", out, re.MULTILINE)
    # wrk prints 950.00us, 3.21ms or 1.02s, as it fits.
    return float(found[1]) * _UNITS_MS[found[2]] if found else float("nan")


def median(loads: list[Load]) -> Load:
    """Each figure's median; errors are summed."""
    return Load(
        statistics.median(each.rate for each in loads),
        statistics.median(each.p50 for each in loads),
        statistics.median(each.p99 for each in loads),
        sum(each.errors for each in loads),
        statistics.median(each.cpu_us for each in loads),
    )


def start(
    stack: contextlib.ExitStack, folder: Path, mine: int, others: int, *, sandbox: bool
) -> tuple[dict[str, tuple[str, list[str], int]], subprocess.Popen[str]]:
    """Start upstream and proxies. Returns (URL, headers, pid) of each side, and the gateway's process."""
    upstream, balancer = free_port(), free_port()
    static = f"127.0.0.1:{upstream}"
    sides: dict[str, tuple[str, list[str], int]] = {}
    bench = [sys.executable, "-m", "loadtest.bench_gateway"]
    nginx_path, haproxy_path = require_programs("nginx", "haproxy")
    if not sandbox:
        nginx = stack.enter_context(running([nginx_path, "-c", str(nginx_conf(folder, upstream))], others))
        wait_for(upstream)
        sides["direct"] = (f"http://{static}/health", [], nginx.pid)
    gateway = stack.enter_context(running([*bench, "local" if sandbox else static], mine))
    assert gateway.stdout is not None
    url, session, endpoint = gateway.stdout.readline().split()
    # On the gateway's core: they take turns, and are idle while the other is measured.
    haproxy = stack.enter_context(running([haproxy_path, "-f", str(haproxy_conf(folder, balancer, endpoint))], mine))
    wait_for(balancer)
    sides["HAProxy"] = (f"http://127.0.0.1:{balancer}/health", [], haproxy.pid)
    sides["Wakegate"] = (url + PATH, [f"x-session-id: {session}"], gateway.pid)
    return sides, gateway


def main() -> int:
    """Run everything and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--connections", default="1,32,64")
    parser.add_argument("--sandbox", action="store_true", help="in front of a real sandbox in place of nginx")
    args = parser.parse_args()
    require_programs("wrk", "nginx", "haproxy", "taskset")
    cores = sorted(os.sched_getaffinity(0))
    mine, others = cores[0], cores[-1]
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        sides, gateway = start(stack, Path(temporary), mine, others, sandbox=args.sandbox)
        print(
            f"{'c':>4} {'proxy':<9} {'requests/s':>11} {'p50 ms':>8} {'p99 ms':>8} {'CPU us':>7} {'errors':>7}  ratio"
        )
        served = 0.0
        for connections in map(int, args.connections.split(",")):
            rounds: dict[str, list[Load]] = {name: [] for name in sides}
            for _ in range(args.repeats):  # in turns, so that a change of the machine's speed affects all of them
                for name, (address, sent, pid) in sides.items():
                    rounds[name].append(wrk(address, connections, args.seconds, others, sent, pid))
            base = median(rounds["HAProxy"]).rate
            served += sum(each.rate * args.seconds for each in rounds["Wakegate"])
            for name, loads in rounds.items():
                load = median(loads)
                print(
                    f"{connections:>4} {name:<9} {load.rate:>11.0f} {load.p50:>8.2f} {load.p99:>8.2f} "
                    f"{load.cpu_us:>7.0f} {load.errors:>7}  {load.rate / base:.2f}",
                    flush=True,
                )
        gateway.send_signal(signal.SIGTERM)
        assert gateway.stdout is not None
        counts = json.loads(gateway.stdout.read().splitlines()[-1])
        print(f"about {served:.0f} requests; store calls {counts['store']}, signatures {counts['signed']}")
        # The sweeper reads the record of each live session now and then; a request in a hundred would be no sweeper.
        if counts["store"].get("get", 0) + counts["store"].get("put", 0) > served / 100 or counts["signed"]:
            print("requests reached the store or the signing key: the hot path is broken", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
