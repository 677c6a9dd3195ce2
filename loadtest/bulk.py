"""Large downloads and uploads through the gateway, compared with direct ones, and the gateway's memory meanwhile.

    scripts/bench bulk [--megabytes 1024] [--repeats 2] [--json FILE]

The upstream is a server that makes and drops bytes as fast as sockets allow; client, upstream and gateway share the
machine. Bars: at least half of the direct throughput, and memory that does not grow with the size of the transfer.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvloop

from loadtest.processes import cpu_seconds, pss_mb, started
from loadtest.proxy_bench import PATH

# As much as a socket's buffer takes at a time; smaller pieces would measure Python's calls.
_PIECE = bytes(256 * 1024)
_GROWTH_MB = 32.0  # of memory that counts as flat: buffers of one connection, both ways


class Source(asyncio.Protocol):
    """Answers GET with `x-size` bytes, and anything else once it has read `content-length` of them."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._head = b""
        self._left_in = 0
        self._left_out = 0
        self._paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: keep the transport."""
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        """asyncio: parse the request, then count its body or send the answer's."""
        assert self._transport is not None
        if not self._left_in:
            # The head may come in pieces. What follows it in the same piece is body.
            self._head += data
            head, found, data = self._head.partition(b"\r\n\r\n")
            if not found:
                return
            self._head = b""
            fields = {name.lower(): value for name, _, value in (line.partition(b": ") for line in head.split(b"\r\n"))}
            if head.startswith(b"GET"):
                self._left_out = int(fields.get(b"x-size", b"0"))
                self._transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % self._left_out)
                self._fill()
                return
            self._left_in = int(fields[b"content-length"])
        self._left_in -= len(data)
        if not self._left_in:
            self._transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")

    def pause_writing(self) -> None:
        """asyncio: the write buffer is full."""
        self._paused = True

    def resume_writing(self) -> None:
        """asyncio: the write buffer has room again."""
        self._paused = False
        self._fill()

    def _fill(self) -> None:
        assert self._transport is not None
        # Writes until asyncio reports that its buffer is full: a gateway that reads slowly must hold the source back.
        while self._left_out and not self._paused:
            piece = _PIECE[: self._left_out]
            self._left_out -= len(piece)
            self._transport.write(piece)


async def serve(listener: socket.socket) -> None:
    """Serve until the process ends."""
    server = await asyncio.get_running_loop().create_server(Source, sock=listener)
    await server.serve_forever()


def transfer(url: str, session: str, size: int, *, upload: bool) -> float:
    """Download or upload `size` bytes. Returns MB/s."""
    parts = urlsplit(url)
    path = parts.path.replace("health", "bulk")
    framing = f"content-length: {size}" if upload else f"x-size: {size}"
    head = (
        f"{'PUT' if upload else 'GET'} {path} HTTP/1.1\r\nhost: [::1]\r\nx-session-id: {session}\r\n{framing}\r\n\r\n"
    )
    # recv_into one buffer: new bytes for each piece would measure the client's allocations.
    buffer = bytearray(1 << 20)
    began = time.perf_counter()
    with socket.create_connection((parts.hostname, parts.port)) as link:
        link.sendall(head.encode())
        if upload:
            for left in range(size, 0, -len(_PIECE)):
                link.sendall(_PIECE[:left])
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += link.recv(65536)
        if not answer.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"expected 200, got {answer[:200]!r}")
        received = len(answer) - answer.index(b"\r\n\r\n") - 4
        while not upload and received < size:
            got = link.recv_into(buffer)
            if not got:
                raise SystemExit(f"cut off after {received} of {size} bytes")
            received += got
    return size / (time.perf_counter() - began) / 1e6


def minor_faults(pid: int) -> int:
    """The minor page faults of a process so far: pages that it got without reading from a disk."""
    # After the last ")": the program's name may contain spaces and brackets.
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[7])


@contextlib.contextmanager
def peak_memory(pid: int) -> Any:
    """A context that yields a list of one: the largest PSS of a process within the block, in MB."""
    # Sampled ten times a second, in a thread as the transfers block. VmHWM is no substitute: it counts pages that are
    # shared.
    peak, ended = [pss_mb(pid)], threading.Event()

    def watch() -> None:
        while not ended.wait(0.1):
            peak[0] = max(peak[0], pss_mb(pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        ended.set()
        watcher.join()


def main() -> int:
    """Run the transfers, print the table and write --json. Returns the exit status, 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        listener = socket.create_server(("127.0.0.1", 0))
        print(listener.getsockname()[1], flush=True)
        uvloop.run(serve(listener))
    with contextlib.ExitStack() as stack:
        sides: list[tuple[subprocess.Popen[str], str]] = []
        for argv in (["loadtest.bulk", "--serve"], ["loadtest.bench_gateway"]):
            if sides:
                argv.append(f"127.0.0.1:{sides[0][1]}")
            sides.append(stack.enter_context(started([sys.executable, "-m", *argv])))
        (_, port), (gateway, line) = sides
        base, session, _ = line.split()
        urls = {"direct": f"http://127.0.0.1:{port}/health", "Wakegate": base + PATH}
        size = args.megabytes << 20
        print(f"load {os.getloadavg()[0]:.1f}, {args.megabytes} MB each")
        bars = []
        for upload in (False, True):
            name = "upload" if upload else "download"
            speeds: dict[str, list[float]] = {side: [] for side in urls}
            # Before and after, not per transfer: a gateway's memory is expected to be flat, whatever passes.
            before, used, faults = pss_mb(gateway.pid), cpu_seconds(gateway.pid), minor_faults(gateway.pid)
            with peak_memory(gateway.pid) as peak:
                # Sides in turns, so that a change of the machine's speed affects both.
                for _ in range(args.repeats):
                    for side, url in urls.items():
                        speeds[side].append(transfer(url, session, size, upload=upload))
            middle = {side: statistics.median(each) for side, each in speeds.items()}
            moved = args.repeats * size / 1e9
            used = (cpu_seconds(gateway.pid) - used) / moved
            ratio, growth = middle["Wakegate"] / middle["direct"], peak[0] - before
            print(
                f"{name:<9} direct {middle['direct']:7.0f} MB/s  Wakegate {middle['Wakegate']:7.0f} MB/s  "
                f"ratio {ratio:.2f}  gateway {before:.0f} MB, at most {peak[0]:.0f} MB; "
                f"{used:.2f} s of CPU and {(minor_faults(gateway.pid) - faults) / moved:.0f} page faults per GB"
            )
            bars += [
                {"text": f"{name} over direct", "figure": ratio, "bound": ">= 0.5", "held": ratio >= 0.5},
                {"text": f"memory that a {name} takes, MB", "figure": growth, "bound": f"<= {_GROWTH_MB:g}",
                 "held": growth <= _GROWTH_MB},
            ]  # fmt: skip
    if args.json:
        args.json.write_text(json.dumps({"rows": [], "bars": bars}))
    for each in bars:
        print(f"{'held' if each['held'] else 'MISSED':<6} {each['text']}: {each['figure']:.2f} (bar {each['bound']})")
    return int(not all(each["held"] for each in bars))


if __name__ == "__main__":
    raise SystemExit(main())
