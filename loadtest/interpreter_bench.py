"""Code contexts compared with ordinary commands, through a gateway on real sandboxes.

    scripts/bench interpreter_bench [--rounds 200] [--megabytes 1000]

Prints, each with a baseline of the same run: p50 and p95 of `1+1` by POST /api/run_code (bar: 5 ms), of `true` in a
bash context, of ["true"] (bar: 3 ms) and ["python3", "-c", "1+1"] by POST /api/execute; the first run of a session with
and without a warm context; memory (PSS) of a warm sandbox with and without the context (bar: 90 MB); the throughput of
a command's output as events (bar: 200 MB/s) compared with a file of the same size, with picod's peak memory; and the
time to suspend a context and to restore its variables.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import httpx
import psutil

from loadtest.figures import quantile
from loadtest.local import Caller, gateway, until_full
from loadtest.processes import own_pss_mb

LINE = "a line of text that has about eighty characters as lines of text usually have"
TRUE = '["true"] by /api/execute'
BARS = {TRUE: 3.0, "1+1 by /api/run_code": 5.0}  # ms, p50
ROW = 20  # requests of one kind, one after another
PSS_BAR, STREAM_BAR = 90.0, 200.0


class Session:
    """Requests on one session; those that fail raise AssertionError."""

    def __init__(self, client: httpx.AsyncClient, session: str) -> None:
        self.client = client
        self.headers = {"x-session-id": session}
        self.id = session

    async def post(self, path: str, body: Any) -> dict[str, Any]:
        """Send a POST that must be answered with 200."""
        reply = await self.client.post(path, json=body, headers=self.headers)
        assert reply.status_code == 200, reply.text
        answer: dict[str, Any] = reply.json()
        return answer

    async def code(self, code: str, language: str = "python") -> None:
        """Run code, which must not fail."""
        answer = await self.post("/api/run_code", {"code": code, "language": language, "timeout": 300})
        assert answer["error"] is None, answer

    async def execute(self, *command: str) -> str:
        """Run a command, which must not fail."""
        answer = await self.post("/api/execute", {"command": command})
        assert answer["exit_code"] == 0, answer
        return str(answer["stdout"])


async def new_session(client: httpx.AsyncClient) -> Session:
    """A session on a warm sandbox."""
    reply = await client.post("/v1/sessions", json={"runtime": "default/warm"})
    reply.raise_for_status()
    return Session(client, reply.json()["id"])


async def timed(work: Awaitable[Any]) -> float:
    """Duration of one call in milliseconds."""
    began = time.perf_counter()
    await work
    return (time.perf_counter() - began) * 1e3


def sandbox_processes(pid: int) -> list[psutil.Process]:
    """All processes below the gateway."""
    return psutil.Process(pid).children(recursive=True)


def picods(pid: int) -> list[int]:
    """The pids of the picods below the gateway."""
    return [each.pid for each in sandbox_processes(pid) if "picod" in each.cmdline() and "bwrap" not in each.name()]


async def context_ready(pid: int) -> None:
    """Wait until the kernel of the warm sandbox is loaded and idle."""
    while True:
        kernels = [each for each in sandbox_processes(pid) if any("kernel.py" in part for part in each.cmdline())]
        # IPython's kernel has its threads (heartbeat, iopub, control, history) once it can run code; there is no event
        # for it outside of its sandbox.
        if kernels and kernels[0].num_threads() > 6:
            await asyncio.sleep(1.0)
            return
        await asyncio.sleep(0.05)


async def memory_and_first_run(folder: Path, context: str) -> tuple[float, float]:
    """PSS of one warm sandbox in MB, and milliseconds of its session's first run, with that codeContext."""
    async with gateway(folder, 1, "--code-context", context) as (client, pid):
        await until_full(client, 1)
        if context == "warm":
            await context_ready(pid)
        # PSS: pages that sandboxes share count once over all of them.
        memory = sum(own_pss_mb(each.pid) for each in sandbox_processes(pid))
        session = await new_session(client)
        return memory, await timed(session.code("1+1"))


def latencies(caller: Caller, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each kind of request. They take turns of ROW requests, so that none evicts another's caches."""
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        TRUE: ("/api/execute", {"command": ["true"]}),
        '["python3", "-c", "1+1"]': ("/api/execute", {"command": ["python3", "-c", "1+1"]}),
        "1+1 by /api/run_code": ("/api/run_code", {"code": "1+1", "language": "python"}),
        "true by /api/run_code, bash": ("/api/run_code", {"code": "true", "language": "bash"}),
    }
    taken: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(rounds // ROW):
        for name, (path, body) in kinds.items():
            for number in range(ROW + 2):
                took, answer = caller.post(path, body)
                assert not answer.get("error"), answer
                if number >= 2:  # the first two of a turn refill caches
                    taken[name].append(took)
    return taken


def receive(url: str, head: str, body: bytes) -> int:
    """Read an answer as fast as it arrives and drop it. Returns the number of bytes."""
    import socket
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    # A bare socket: httpx would take longer than the gateway for 1 GB.
    with socket.create_connection((parts.hostname, parts.port)) as connection:
        connection.sendall(
            f"{head}\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body
        )
        buffer, total = bytearray(1 << 20), 0
        while count := connection.recv_into(buffer):
            total += count
        return total


async def throughput(session: Session, pid: int, megabytes: int) -> None:
    """Print the throughput of streamed output compared with that of a file."""
    (picod,) = picods(pid)
    size = megabytes * 1_000_000
    url = str(session.client.base_url)
    await session.execute("sh", "-c", f"yes '{LINE}' | head -c {size} > big")
    who = f"x-session-id: {session.id}"

    async def rate(head: str, body: bytes) -> float:
        began = time.perf_counter()
        received = await asyncio.to_thread(receive, url, head, body)
        assert received >= size, received
        return megabytes / (time.perf_counter() - began)

    def command(text: str) -> bytes:
        return json.dumps({"command": ["sh", "-c", text], "stream": True}).encode()

    file = await rate(f"GET /api/files/big HTTP/1.1\r\n{who}", b"")
    print(f"{'the file, downloaded':<34} {file:8.0f} MB/s   1.00")
    head = f"POST /api/execute HTTP/1.1\r\n{who}"
    for name, text in (
        ("`cat` of it, as events", "cat big"),
        ("`yes LINE`, as events", f"yes '{LINE}' | head -c {size}"),
    ):
        # 5 resets VmHWM, so that the peak is of this transfer alone (Linux, Documentation/filesystems/proc.rst).
        Path(f"/proc/{picod}/clear_refs").write_text("5")
        before = resident(picod, "VmRSS")
        speed = await rate(head, command(text))
        peak = resident(picod, "VmHWM") - before
        held = f"{bar(STREAM_BAR - speed)}; picod grew by {peak:.1f} MB"
        print(f"{name:<34} {speed:8.0f} MB/s   {speed / file:4.2f}   {held}")


def resident(pid: int, field: str) -> float:
    """A field of /proc/PID/status, such as VmRSS, in MB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def bar(excess: float) -> str:
    """How a bar's result is printed; `excess` is the distance above the bar."""
    return "ok" if excess <= 0 else "MISSED"


async def suspend_and_resume(session: Session) -> None:
    """Print the time to suspend a context by the size of its variables."""
    await session.code("import numpy as np\nx = np.ones(1)")
    for name, code in (("one number", "x = 1"), ("an array of 50 MB", "x = np.ones(50_000_000 // 8)")):
        await session.code(code)
        save = await timed(session.post("/api/suspend", {}))
        # The context still runs, so there is nothing to restore: the cost of the call itself.
        nothing = await timed(session.post("/api/resume", {}))
        print(f"suspend with {name:<21} {save:8.1f} ms   (resume with nothing to restore: {nothing:.1f} ms)")


async def main(rounds: int, megabytes: int) -> None:
    """Run all parts and print their tables."""
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as folder:
        lazy, cold_first = await memory_and_first_run(Path(folder), "lazy")
        warm, first = await memory_and_first_run(Path(folder), "warm")
        print(f"{'warm sandbox without a context':<34} {lazy:8.1f} MB PSS")
        print(f"{'warm sandbox with a context':<34} {warm:8.1f} MB PSS   {warm / lazy:4.2f}   {bar(warm - PSS_BAR)}")
        print(f"{'first run, no context yet':<34} {cold_first:8.1f} ms   1.00")
        print(f"{'first run, context warm':<34} {first:8.1f} ms   {first / cold_first:4.2f}")
        async with gateway(Path(folder), 0, "--code-context", "lazy") as (client, pid):
            session = await new_session(client)
            await session.code("1")
            taken = await asyncio.to_thread(latencies, Caller(str(client.base_url), session.id), rounds)
            base = quantile(taken[TRUE], 0.5)
            for name, values in taken.items():
                p50, p95 = quantile(values, 0.5), quantile(values, 0.95)
                held = f"   {bar(p50 - BARS[name])}" if name in BARS else ""
                print(f"{name:<34} {p50:8.2f} ms p50 {p95:8.2f} ms p95   {p50 / base:4.2f}{held}")
            await throughput(session, pid, megabytes)
            await suspend_and_resume(session)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Code contexts beside ordinary commands.")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--megabytes", type=int, default=1000)
    arguments = parser.parse_args()
    asyncio.run(main(arguments.rounds, arguments.megabytes))
