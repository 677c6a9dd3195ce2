"""The cost of picod's own parts compared with a dependency or the standard library: the figures of ADRs 8 and 10.

    scripts/bench picod_bench [--repeats 7] [--requests 3000]

Server: picod.http.server and uvicorn (httptools, asyncio's loop, no logs), each in its own process with the same ASGI
app on a unix socket. Tar: the headers of picod.archive.tar_members and those of tarfile.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import socket
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

from picod.archive.source import Source
from picod.archive.tar_members import (
    BLOCK,
    END,
    EXTENDED,
    Member,
    encode,
    member_of,
    padding,
    parse_head,
    parse_records,
)

_ROOT = Path(__file__).resolve().parent.parent
# The smallest request and answer: what is left is the server's own work.
_REQUEST = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"
_BODY = b'{"status":"ok"}'
_MEMBERS = 20_000

# Each program gets the descriptor of a listening socket. picod runs without ssl, as its __main__ does.
_APP = f"""
import os, socket, sys
async def app(scope, receive, send):
    await send({{"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"{len(_BODY)}")]}})
    await send({{"type": "http.response.body", "body": {_BODY!r}, "more_body": False}})
listener = socket.socket(fileno=int(sys.argv[1]))
"""
_SERVERS = {
    "picod": "import sys; sys.modules['ssl'] = None"
    + _APP
    + """
import asyncio
from picod.http.server import Connection
async def main():
    await asyncio.get_running_loop().create_server(lambda: Connection(app, set()), sock=listener)
    await asyncio.Event().wait()
asyncio.run(main())
""",
    "uvicorn": _APP
    + """
import uvicorn
config = uvicorn.Config(app, http="httptools", ws="none", loop="asyncio", lifespan="off", log_config=None)
uvicorn.Server(config).run(sockets=[listener])
""",
}


def measure_server(program: str, requests: int) -> tuple[float, float, float, float]:
    """Milliseconds from start to first answer, MiB of private memory, median and mean microseconds of a request."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
        path = os.path.join(folder, "socket")
        listener.bind(path)
        listener.listen(16)
        begin = time.perf_counter()
        command = [sys.executable, "-c", program, str(listener.fileno())]
        # The listening socket is handed over, as the gateway does; so the client can connect before the server is up,
        # and the time to the first answer is the time of the start.
        process = subprocess.Popen(command, cwd=_ROOT, pass_fds=[listener.fileno()])
        try:
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(30)
                client.connect(path)
                _ask(client)
                started = time.perf_counter() - begin
                took = []
                for _ in range(requests):
                    one = time.perf_counter()
                    _ask(client)
                    took.append(time.perf_counter() - one)
                return (
                    started * 1e3,
                    _private_mib(process.pid),
                    statistics.median(took) * 1e6,
                    sum(took) / requests * 1e6,
                )
        finally:
            process.kill()
            process.wait()


def _ask(client: socket.socket) -> None:
    client.sendall(_REQUEST)
    data = b""
    # The answer may come in pieces; the connection stays open for the next request.
    while not data.endswith(_BODY):
        data += (piece := client.recv(4096))
        if not piece:
            raise ConnectionError("the server closed the connection")


def _private_mib(pid: int) -> float:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    # Private pages only: what a sandbox costs beyond what all of them share.
    return sum(int(kib) for kib in re.findall(r"^Private_\w+: +(\d+)", text, re.MULTILINE)) / 1024


def write_members() -> bytes:
    """An archive of empty files, with times to the nanosecond, written by picod."""
    return b"".join(encode(_member(number)) for number in range(_MEMBERS)) + END


def _member(number: int) -> Member:
    return Member(b"folder/file-%d" % number, mtime_ns=1_700_000_000_123_456_789 + number)


def write_tarfile() -> bytes:
    """The same archive written by tarfile. Its times are floats: they are up to 128 ns wrong when read back."""
    out = []
    for number in range(_MEMBERS):
        info = tarfile.TarInfo(f"folder/file-{number}")
        info.mtime = 1_700_000_000.123456789 + number * 1e-9
        out.append(info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))
    return b"".join(out) + END


def read_members(archive: bytes) -> int:
    """The number of members in an archive, each parsed by picod."""
    source = Source(io.BytesIO(archive).readinto)
    records: dict[bytes, bytes] = {}
    count = 0
    while any(block := source.take(BLOCK)):
        head = parse_head(block)
        if head.kind == EXTENDED:
            records = parse_records(source.take(head.size))
            source.take(padding(head.size))
        else:
            member_of(head, records)
            count += 1
    return count


def read_tarfile(archive: bytes) -> int:
    """The same by tarfile in stream mode, which keeps every member in memory."""
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r|") as tar:
        return sum(1 for _ in tar)


def _time_of(work: Any, repeats: int, *arguments: Any) -> float:
    """Microseconds per member, the best of several runs."""
    # The best and not the median: the work is the same each time, so whatever takes longer is the machine.
    best = float("inf")
    for _ in range(repeats):
        begin = time.perf_counter()
        work(*arguments)
        best = min(best, time.perf_counter() - begin)
    return best / _MEMBERS * 1e6


def main() -> None:
    """Measure the servers and the archives, and print a table of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--requests", type=int, default=3000)
    options = parser.parse_args()
    rows: dict[str, list[tuple[float, ...]]] = {name: [] for name in _SERVERS}
    for _ in range(options.repeats):  # in turns, so that other work on the machine affects both
        for name, program in _SERVERS.items():
            rows[name].append(measure_server(program, options.requests))
    print(f"{'server':10} {'start ms':>9} {'private MiB':>12} {'p50 us':>8} {'mean us':>8}")
    for name, each in rows.items():
        start, memory, median, mean = (statistics.median(column) for column in zip(*each, strict=True))
        print(f"{name:10} {start:9.0f} {memory:12.1f} {median:8.0f} {mean:8.0f}")
    print(f"\n{'tar':10} {'write us':>9} {'read us':>9}   (a member)")
    for name, write, read in (("picod", write_members, read_members), ("tarfile", write_tarfile, read_tarfile)):
        archive = write()
        assert read(archive) == _MEMBERS
        print(f"{name:10} {_time_of(write, options.repeats):9.1f} {_time_of(read, options.repeats, archive):9.1f}")


if __name__ == "__main__":
    main()
