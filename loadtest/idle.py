"""The memory that idle clients cost the gateway: keep-alive connections and open WebSockets without traffic.

    scripts/bench idle [--clients 5000] [--sockets 1000] [--json FILE]

Each client has made one request; each WebSocket has exchanged one message and has its connection to a sandbox. Also:
how long a scrape of /metrics takes, and the gateway's memory, with --sessions sessions in memory (10,000).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import uvloop

from gateway.core.model import RuntimeKey
from gateway.routing.target import Target
from gateway.serving.server import serving
from gateway.testing import ScriptedProvider, scripted_gateway
from loadtest.k6.lib import echo_server
from loadtest.processes import pss_mb

_PER_SESSION = 200  # WebSockets; a sandbox has 256 slots
_KEY = b"x3JJHMbDL1EzLkh9GBhXDw=="


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serve one connection as the sandbox: WebSockets are echoed, any other request gets `ok`."""
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            # One server for both kinds: the gateway has one upstream.
            if b"upgrade: websocket" in head.lower():
                await echo_server.upgrade(head, reader, writer)
                return
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def opened(url: str, path: str, session: str, extra: bytes = b"") -> Any:
    """Send a request on a new connection. Returns the head of its answer, reader and writer."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(
        b"GET %b HTTP/1.1\r\nhost: localhost\r\nx-session-id: %b\r\n%b\r\n" % (path.encode(), session.encode(), extra)
    )
    head = await reader.readuntil(b"\r\n\r\n")
    return head, reader, writer


async def idle_clients(url: str, session: str, count: int) -> list[Any]:
    """Open connections that have received an answer and stay open."""
    links: list[Any] = []
    # In groups of 100: 5,000 connects at once would exceed the backlog of the listener.
    for _ in range(0, count, 100):
        links += await asyncio.gather(*(opened(url, "/a", session) for _ in range(min(100, count - len(links)))))
    for head, reader, _ in links:
        assert head.startswith(b"HTTP/1.1 200"), head
        await reader.readexactly(2)
    return links


async def open_sockets(url: str, sessions: list[str], count: int) -> list[Any]:
    """Open WebSockets that have sent and received one message."""
    extra = (
        b"upgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-version: 13\r\nsec-websocket-key: %b\r\n" % _KEY
    )
    links: list[Any] = []
    while len(links) < count:
        # 50 at a time: each handshake opens a connection to the sandbox too.
        batch = range(len(links), min(count, len(links) + 50))
        links += await asyncio.gather(*(opened(url, "/ws", sessions[index // _PER_SESSION], extra) for index in batch))
    for head, _, writer in links:
        assert head.startswith(b"HTTP/1.1 101"), head
        # A masked text frame of two bytes; a mask of zeros leaves them as they are.
        writer.write(bytes([0x81, 0x82, 0, 0, 0, 0]) + b"hi")
    for _, reader, _ in links:
        assert await reader.readexactly(4) == b"\x81\x02hi"
    return links


async def connections(clients: int, sockets: int) -> dict[str, Any]:
    """Measure a gateway's memory without and with idle connections, and print it. Returns the bar."""
    server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=4096)
    port = server.sockets[0].getsockname()[1]
    argv = [sys.executable, "-m", "loadtest.bench_gateway", f"127.0.0.1:{port}"]
    gateway = await asyncio.create_subprocess_exec(*argv, stdout=subprocess.PIPE)
    assert gateway.stdout is not None
    try:
        url, session, _ = (await gateway.stdout.readline()).decode().split()
        async with httpx.AsyncClient(base_url=url) as client:
            made = [
                (await client.post("/v1/sessions", json={"runtime": "my-interpreter"})).json()["id"]
                # Rounded up.
                for _ in range(-(-sockets // _PER_SESSION))
            ]
        before = pss_mb(gateway.pid)
        links = await idle_clients(url, session, clients)
        middle = pss_mb(gateway.pid)
        links += await open_sockets(url, made, sockets)
        after = pss_mb(gateway.pid)
        for *_, writer in links:
            writer.transport.abort()
    finally:
        gateway.send_signal(signal.SIGTERM)
        await gateway.communicate()
        server.close()
    each = (middle - before) / clients * 1024, (after - middle) / sockets * 1024
    print(
        f"gateway {before:.0f} MB; with {clients} idle clients {middle:.0f} MB ({each[0]:.1f} KB each); "
        f"and {sockets} WebSockets {after:.0f} MB ({each[1]:.1f} KB each)"
    )
    text = f"memory with {clients} idle clients and {sockets} WebSockets, MB"
    return {"text": text, "figure": after, "bound": "<= 250", "held": after <= 250}


async def scrapes(sessions: int) -> list[dict[str, Any]]:
    """Measure the time of a scrape, and this process's memory, with `sessions` live sessions. Returns the bars."""
    with tempfile.TemporaryDirectory() as folder:
        gateway = scripted_gateway(Path(folder), ScriptedProvider(), max_sandboxes=sessions)
        async with serving(gateway) as (url, _), httpx.AsyncClient(base_url=url) as client:
            for _ in range(sessions):
                opened_one = await gateway.lifecycle.create(RuntimeKey("default", "my-interpreter"))
                reservation = await gateway.activator.reserve(Target(opened_one.session.id, None, b"/"))
                # The slot is given back, the route stays: a live session without a request.
                reservation.route.leave(0.0)
            times = []
            for _ in range(30):
                began = time.perf_counter()
                (await client.get("/metrics")).raise_for_status()
                times.append((time.perf_counter() - began) * 1e3)
            used = pss_mb(os.getpid())
    middle = statistics.median(times)
    print(f"{sessions} sessions: scrape p50 {middle:.1f} ms, max {max(times):.1f} ms; {used:.0f} MB (client included)")
    return [
        {"text": f"scrape at {sessions} sessions, ms", "figure": middle, "bound": "<= 50", "held": middle <= 50},
        {"text": f"memory with {sessions} sessions, MB", "figure": used, "bound": "<= 150", "held": used <= 150},
    ]


def main() -> int:
    """Run both parts, print them and write --json. Returns the exit status, 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=5000)
    parser.add_argument("--sockets", type=int, default=1000)
    parser.add_argument("--sessions", type=int, default=10_000)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Where the hard limit is lower than what is asked for, fewer clients fit, and the run reports that itself.
    with contextlib.suppress(ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    print(f"load {os.getloadavg()[0]:.1f}")
    bars = [uvloop.run(connections(args.clients, args.sockets)), *uvloop.run(scrapes(args.sessions))]
    if args.json:
        args.json.write_text(json.dumps({"rows": [], "bars": bars}))
    for each in bars:
        print(f"{'held' if each['held'] else 'MISSED':<6} {each['text']}: {each['figure']:.2f} (bar {each['bound']})")
    return int(not all(each["held"] for each in bars))


if __name__ == "__main__":
    raise SystemExit(main())
