"""The gain of a second worker: requests/s and CPU per request of `--workers 1` and `--workers 2` on one live session.

    scripts/bench workers_bench [--seconds 5] [--repeats 3] [--connections 64]

Both gateways use one simulated cluster and one Redis, and the session's pod is nginx with a fixed answer. They take
turns within a repeat. Nothing is pinned: load, upstream and workers share the cores, so the figure shows what this
machine has left for a second worker, and `busy` how much of the machine each side used. Needs wrk and nginx.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import statistics
import subprocess
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil

from loadtest.processes import cpu_seconds, require_programs
from loadtest.proxy_bench import PATH, nginx_conf
from tests.support.kube.served import INTERPRETER, flags_for
from tests.support.kube.simulator import Cluster, in_thread
from tests.support.redis_server import RedisServer, free_port
from tests.support.serve import Server, serve
from tests.support.waiting import wait_until

SIDES = (1, 2)


@contextlib.contextmanager
def upstream(folder: Path, address: str, port: int) -> Iterator[None]:
    """Run nginx at the address of the pod's picod."""
    conf = nginx_conf(folder, port)
    # The simulator gives each pod an address of its own in 127/8.
    conf.write_text(conf.read_text().replace(f"127.0.0.1:{port}", f"{address}:{port}"))
    (program,) = require_programs("nginx")
    with subprocess.Popen([program, "-c", str(conf)], stderr=subprocess.DEVNULL) as nginx:
        try:
            yield
        finally:
            nginx.terminate()


def session_of(server: Server, cluster: Cluster) -> tuple[str, str]:
    """Create a session. Returns its id and the address of its pod."""
    session = server.session()
    (pod,) = cluster.call(lambda: cluster.pods(**{"wakegate.io/pool": "claimed"}))
    return session, str(pod["status"]["podIP"])


def processes(server: Server) -> list[int]:
    """The pids of the processes that answer requests: the workers, or the gateway itself."""
    # A supervisor has workers as children; a single gateway has none that answer.
    return [child.pid for child in psutil.Process(server.process.pid).children()] or [server.process.pid]


def load(server: Server, session: str, connections: int, seconds: int) -> tuple[float, float, int, float]:
    """Run wrk. Returns requests/s, CPU microseconds per request of all workers, errors, and percent of CPU in use."""
    pids = processes(server)
    before = sum(map(cpu_seconds, pids))
    psutil.cpu_percent()  # begins the interval that the next call reports on
    (wrk,) = require_programs("wrk")
    argv = [wrk, "-t1", f"-c{connections}", f"-d{seconds}s", "-H", f"x-session-id: {session}", server.url + PATH]
    out = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    # Of the whole machine since the call before the load.
    busy = psutil.cpu_percent()
    used = sum(map(cpu_seconds, pids)) - before
    found = re.search(r"(\d+) requests in", out)
    if found is None:
        raise SystemExit(f"wrk printed no count:\n{out}")
    errors = sum(int(n) for n in re.findall(r"Non-2xx or 3xx responses: (\d+)", out))
    errors += sum(int(n) for line in re.findall(r"Socket errors: (.*)", out) for n in re.findall(r"\d+", line))
    requests = int(found[1])
    return requests / seconds, used / requests * 1e6, errors, busy


def measure(folder: Path, connections: int, seconds: int, repeats: int) -> None:
    """Start everything, measure the sides in turns, and print the medians."""
    redis = RedisServer(folder / "redis").start()
    port = free_port()
    spec: dict[str, Any] = {**INTERPRETER, "warmPoolSize": 1}
    spec["ports"] = [{"port": port, "pathPrefix": "/", "protocol": "HTTP"}]
    with contextlib.ExitStack() as stack:
        stack.callback(redis.kill)
        cluster = stack.enter_context(in_thread(hollow=True))
        cluster.call(lambda: cluster.create("codeinterpreters", "my-interpreter", namespace="default", spec=spec))
        flags = [*flags_for(cluster, folder), "--store", redis.url]
        servers = {
            count: stack.enter_context(serve(folder / f"workers-{count}", *flags, "--workers", str(count)))
            for count in SIDES
        }
        session, address = session_of(servers[1], cluster)
        stack.enter_context(upstream(folder, address, port))
        # Both see the session through Redis, so both serve the same pod.
        for server in servers.values():
            wait_until(partial(answers, server.url, session), "the upstream answers")
        rounds: dict[int, list[tuple[float, float, int, float]]] = {count: [] for count in SIDES}
        for _ in range(repeats):
            for count, server in servers.items():
                rounds[count].append(load(server, session, connections, seconds))
        print("workers  requests/s   least    most  CPU us  busy  errors  ratio")
        base = statistics.median(rate for rate, *_ in rounds[1])
        for count, found in rounds.items():
            rates, cpu, errors, busy = zip(*found, strict=True)
            rate = statistics.median(rates)
            print(
                f"{count:>7} {rate:>11.0f} {min(rates):>7.0f} {max(rates):>7.0f} {statistics.median(cpu):>7.0f} "
                f"{statistics.median(busy):>4.0f}% {sum(errors):>7}  {rate / base:.2f}"
            )


def answers(url: str, session: str) -> bool:
    """Whether the session's pod answers a request through the gateway."""
    return httpx.get(url + PATH, headers={"x-session-id": session}).status_code == 200


def main() -> int:
    """Run the comparison and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--connections", type=int, default=64)
    args = parser.parse_args()
    require_programs("wrk", "nginx")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {args.connections} connections")
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), args.connections, args.seconds, args.repeats)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
