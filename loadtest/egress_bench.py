"""Egress compared with direct connections, to hosts in a network namespace; and what it costs the data path.

    scripts/bench egress_bench [--rounds 300] [--megabytes 2000] [--connections 500] [--seconds 8]

Prints p50 of a connection made directly and through the proxy, MB/s of one download each way, how many connections
are open at once and echo, how much memory the service takes, and p99 of requests to a sandbox at c=64 while egress
runs at full rate as a ratio to that without, in one run, also with the service at a lower priority; then
requests over HTTPS directly and where TLS is ended, and a package from its host and from the cache. Needs wrk, nginx,
user namespaces and, for the priorities, root.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from gateway.core.model import Secret
from gateway.egress.gate import EgressGate
from loadtest.figures import quantile
from loadtest.processes import require_programs
from loadtest.proxy_bench import PATH, nginx_conf
from tests.support.egress import Proxy, open_proxy
from tests.support.internet import PUBLIC, Internet, internet

ORIGIN = "origin.example.com"


def measure(address: str, port: int, target: str, rounds: int, megabytes: int) -> None:
    """Print p50 ms of connections and MB/s of a download: to `target`, or to an address if that is empty."""

    def connect(to: int) -> socket.socket:
        if not target:
            return socket.create_connection((address, to))
        made = socket.create_connection((address, port))
        made.sendall(f"CONNECT {target}:{to} HTTP/1.1\r\n\r\n".encode())
        assert b" 200 " in made.recv(4096)
        return made

    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        connect(22).close()
        times.append((time.perf_counter() - began) * 1000)
    buffer, left = bytearray(1 << 20), megabytes * 1_000_000
    with connect(80) as made:
        made.sendall(f"GET /bytes/{left} HTTP/1.1\r\nHost: {target or address}\r\n\r\n".encode())
        began = time.perf_counter()
        while left > 0 and (count := made.recv_into(buffer)):
            left -= count
        took = time.perf_counter() - began
    print(json.dumps({"p50_ms": quantile(times, 0.5), "p99_ms": quantile(times, 0.99), "mb_s": megabytes / took}))


def pass_on(port: int) -> None:
    """Pass what comes at a port on to the origin, after a line that names it: no policy, no log, no limits."""
    listener = socket.create_server(("127.0.0.1", port))
    print("ready", flush=True)
    buffer = memoryview(bytearray(256 << 10))
    while True:
        client, _ = listener.accept()
        with client, contextlib.suppress(OSError):
            to = 22 if b":22 " in client.recv(4096) else 80
            with socket.create_connection((PUBLIC, to)) as upstream:
                client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                if to == 80:
                    upstream.sendall(client.recv(4096))
                    while count := upstream.recv_into(buffer):
                        client.sendall(buffer[:count])


def measured(wrapper: list[str], *arguments: str) -> dict[str, float]:
    """`measure` in a process of its own."""
    command = [*wrapper, sys.executable, "-m", "loadtest.egress_bench", "--measure", *arguments]
    answer: dict[str, float] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return answer


async def at_once(proxy: Proxy, count: int) -> int:
    """Open so many connections; how many answer an echo while all are open."""

    async def one() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await proxy.connect()
        writer.write(f"CONNECT {ORIGIN}:22 HTTP/1.1\r\n\r\n".encode())
        await reader.readuntil(b"\r\n\r\n")
        await reader.readline()
        return reader, writer

    opened = await asyncio.gather(*(one() for _ in range(count)))
    for _, writer in opened:
        writer.write(b"ping\n")
    echoed = [await reader.readline() for reader, _ in opened]
    for _, writer in opened:
        writer.close()
    return echoed.count(b"ping\n")


def p99_ms(url: str, session: str, seconds: int) -> float:
    """Of requests to the session by wrk at 64 connections."""
    (wrk,) = require_programs("wrk")
    argv = [wrk, "-t1", "-c64", f"-d{seconds}s", "--latency", "-H", f"x-session-id: {session}", url + PATH]
    out = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    found = re.search(r"99%\s+([\d.]+)(us|ms|s)", out)
    assert found is not None, out
    return float(found[1]) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[found[2]]


async def data_path(proxy: Proxy, world: Internet, seconds: int) -> None:
    """Print p99 alone, beside a download at full rate that is made directly, and beside one through egress.

    The direct ones tell what the processes of a download cost by themselves, where there are fewer cores than that: one
    has the two of any download, the other a process between them that passes the bytes on and decides nothing
    (`--pass-on`), so as many as egress has. In turns, and the median of each: a change of the machine's speed affects
    all.
    """
    direct = [*world.enter, sys.executable, "-m", "loadtest.egress_bench", "--measure", PUBLIC, "0", ""]
    proxied = [sys.executable, "-m", "loadtest.egress_bench", "--measure", "127.0.0.1", str(proxy.port), ORIGIN]
    with socket.create_server(("127.0.0.1", 0)) as free:
        passing = str(free.getsockname()[1])
    plain = [*world.enter, sys.executable, "-m", "loadtest.egress_bench", "--measure", "127.0.0.1", passing, "plain"]
    loads: dict[str, list[str]] = {
        "alone": [], "beside a direct download": direct, "beside one that is passed on": plain,
        "beside egress": proxied, "beside egress at a lower priority": proxied,
    }  # fmt: skip
    service = proxy.gate.pid
    assert service is not None
    priority = os.getpriority(os.PRIO_PROCESS, service)
    times: dict[str, list[float]] = {name: [] for name in loads}
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (program,) = require_programs("nginx")
    with subprocess.Popen([program, "-c", str(nginx_conf(world.folder, port))], stderr=subprocess.DEVNULL) as nginx:
        command = [sys.executable, "-m", "loadtest.bench_gateway", f"127.0.0.1:{port}"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as gateway:
            assert gateway.stdout is not None
            url, session, *_ = (await asyncio.to_thread(gateway.stdout.readline)).split()
            for _ in range(3):
                for name, command in loads.items():
                    with contextlib.ExitStack() as stack:
                        os.setpriority(os.PRIO_PROCESS, service, 10 if name.endswith("lower priority") else priority)
                        if command is plain:
                            passer = [*world.enter, sys.executable, "-m", "loadtest.egress_bench", "--pass-on", passing]
                            between = subprocess.Popen(passer, stdout=subprocess.PIPE, text=True)
                            stack.callback(between.wait)
                            stack.callback(between.kill)
                            assert between.stdout is not None
                            between.stdout.readline()
                        if command:
                            load = subprocess.Popen([*command, "1", "100000000"], stdout=subprocess.DEVNULL)
                            stack.callback(load.wait)
                            stack.callback(load.kill)
                        times[name].append(await asyncio.to_thread(p99_ms, url, session, seconds))
            gateway.terminate()
            await asyncio.to_thread(gateway.stdout.read)  # its counts
        nginx.terminate()
    base = quantile(times["alone"], 0.5)
    for name, found in times.items():
        middle, all_of_it = quantile(found, 0.5), ", ".join(f"{each:.1f}" for each in found)
        print(f"data path p99 at c=64 {name}: {middle:.2f} ms, {middle / base:.2f} of that alone ({all_of_it})")


async def over_tls(proxy: Proxy, trust: str, host: str, path: str, rounds: int) -> tuple[list[float], float]:
    """Milliseconds of each GET on one connection, and MB/s of all."""
    times, received, began = [], 0, time.perf_counter()
    request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
    async with proxy.secure(f"{host}:443", trust=trust) as (reader, writer):
        for _ in range(rounds):
            sent = time.perf_counter()
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            found = re.search(rb"content-length: (\d+)", head)
            assert found is not None, head
            received += len(await reader.readexactly(int(found[1])))
            times.append((time.perf_counter() - sent) * 1000)
    return times, received / 1e6 / (time.perf_counter() - began)


async def where_tls_is_ended(world: Internet, rounds: int) -> None:
    """Print requests and downloads over HTTPS that passes, and where TLS is ended; and a package twice."""
    content = os.urandom(50_000_000)
    digest = hashlib.blake2b(content, digest_size=32).hexdigest()
    package = f"packages/{digest[:2]}/{digest[2:4]}/{digest[4:]}/large-1.0-py3-none-any.whl"
    (world.files / package).parent.mkdir(parents=True)
    (world.files / package).write_bytes(content)
    (world.folder / "key").write_text("sk-0123456789abcdef")
    secrets = (Secret("KEY", (ORIGIN,), "bearer", file=str(world.folder / "key")),)
    cache = (world.folder / "cache", 1 << 30, 1)
    gate = EgressGate(wrapper=world.enter, authority=world.folder / "authority", trusted=world.ca, cache=cache)
    trust = gate.bundle(time.time()).decode()
    async with open_proxy(gate, ORIGIN) as passing, open_proxy(gate, ORIGIN, "pypi", secrets=secrets) as ended:
        for name, proxy in (("TLS that passes", passing), ("TLS that is ended", ended)):
            times, _ = await over_tls(proxy, trust, ORIGIN, "/x", rounds)
            _, rate = await over_tls(proxy, trust, ORIGIN, "/bytes/100000000", 3)
            p50, p99 = quantile(times, 0.5), quantile(times, 0.99)
            print(f"{name}: request p50 {p50:.2f} ms, p99 {p99:.2f} ms; {rate:.0f} MB/s")
        for name in ("its host", "the cache"):
            (took, *_), rate = await over_tls(ended, trust, "files.pythonhosted.org", f"/{package}", 1)
            print(f"package of 50 MB from {name}: {took:.0f} ms, {rate:.0f} MB/s")
    await gate.aclose()


def memory_mib(gate: EgressGate) -> tuple[float, float]:
    """Of the service: what it has now, and the most that it has had."""
    status = Path(f"/proc/{gate.pid}/status").read_text()
    now, most = (int(re.search(rf"{name}:\s+(\d+) kB", status)[1]) for name in ("VmRSS", "VmHWM"))  # type: ignore[index]
    return now / 1024, most / 1024


async def run(options: argparse.Namespace, world: Internet) -> None:
    """All measurements."""
    gate = EgressGate(wrapper=world.enter)
    numbers = str(options.rounds), str(options.megabytes)
    async with open_proxy(gate, ORIGIN, f"{ORIGIN}:22") as proxy:
        await at_once(proxy, 1)
        idle, _ = memory_mib(gate)
        enter = list(world.enter)
        direct = await asyncio.to_thread(measured, enter, PUBLIC, "0", "", *numbers)
        through = await asyncio.to_thread(measured, [], "127.0.0.1", str(proxy.port), ORIGIN, *numbers)
        for name, found in (("direct", direct), ("egress", through)):
            p50, p99, rate = found["p50_ms"], found["p99_ms"], found["mb_s"]
            print(f"{name}: connect p50 {p50:.2f} ms, p99 {p99:.2f} ms; {rate:.0f} MB/s")
        print(f"connect p50 above direct: {through['p50_ms'] - direct['p50_ms']:.2f} ms")
        print(f"at once: {await at_once(proxy, options.connections)} of {options.connections} connections echo")
        if options.seconds:
            await data_path(proxy, world, options.seconds)
        print(f"memory of the service: {idle:.0f} MiB idle, {memory_mib(gate)[1]:.0f} MiB at most")
    await gate.aclose()
    await where_tls_is_ended(world, options.rounds)


def main() -> None:
    """Parse the options and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--megabytes", type=int, default=2000)
    parser.add_argument("--connections", type=int, default=500)
    parser.add_argument("--seconds", type=int, default=8, help="of each load on the data path; 0: leave it out")
    parser.add_argument("--measure", nargs=5, help=argparse.SUPPRESS)
    parser.add_argument("--pass-on", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.pass_on:
        pass_on(options.pass_on)
    if options.measure:
        address, port, target, rounds, megabytes = options.measure
        measure(address, int(port), target, int(rounds), int(megabytes))
        return
    with tempfile.TemporaryDirectory() as folder, internet(Path(folder)) as world:
        asyncio.run(run(options, world))


if __name__ == "__main__":
    main()
