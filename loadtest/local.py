"""Shared by the benchmarks of sessions: a real gateway process on this machine, and requests to it."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

_MANIFEST = """
apiVersion: runtime.agentcube.volcano.sh/v1alpha1
kind: CodeInterpreter
metadata: {{name: {name}}}
spec: {{template: {{image: none}}, warmPoolSize: {size}}}
---
"""

_FULL_TIMEOUT_S = 120.0  # of a warm pool on a machine that does other work


class Caller:
    """One keep-alive connection that sends one request at a time and waits for it without an event loop.

    For times of a few milliseconds: httpx itself takes one to two milliseconds per request, on the same cores.
    """

    def __init__(self, url: str, session: str) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
        self._headers = {"x-session-id": session, "content-type": "application/json"}

    def post(self, path: str, body: Any) -> tuple[float, dict[str, Any]]:
        """Send a POST that must be answered with 200. Returns milliseconds and the answer."""
        data = json.dumps(body)
        began = time.perf_counter()
        self._connection.request("POST", path, data, self._headers)
        reply = self._connection.getresponse()
        body = reply.read()
        took = (time.perf_counter() - began) * 1e3
        assert reply.status == 200, body
        answer: dict[str, Any] = json.loads(body)
        return took, answer


@contextlib.asynccontextmanager
async def gateway(folder: Path, pool: int, *flags: str) -> AsyncIterator[tuple[httpx.AsyncClient, int]]:
    """Run a gateway process with the runtimes `warm` and `cold`. Yields a client and the process's pid."""
    manifest = folder / "runtimes.yaml"
    manifest.write_text(_MANIFEST.format(name="warm", size=pool) + _MANIFEST.format(name="cold", size=0))
    argv = [sys.executable, "-m", "gateway", "serve", "--port", "0", "--state-dir", str(folder / "state")]
    process = await asyncio.create_subprocess_exec(
        *argv,
        "--runtime",
        str(manifest),
        "--no-default-runtime",
        # Without flags no kernel starts beside what is measured.
        *(flags or ("--code-context", "lazy")),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    try:
        # The first line of the banner ends with the URL.
        url = (await process.stdout.readline()).decode().rsplit(" ", 1)[-1].strip()
        # httpx's default of 100 connections would queue a burst in the client.
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
            yield client, process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        await process.wait()


async def until_full(client: httpx.AsyncClient, pool: int) -> None:
    """Wait until the warm pool has `pool` ready sandboxes. Raises TimeoutError with how many there are."""
    ends = time.monotonic() + _FULL_TIMEOUT_S
    while True:
        runtimes = (await client.get("/v1/runtimes")).json()["runtimes"]
        if all(each["pool"]["ready"] >= pool for each in runtimes if each["name"] == "warm"):
            return
        if time.monotonic() > ends:
            ready = [each["pool"]["ready"] for each in runtimes if each["name"] == "warm"]
            raise TimeoutError(f"the warm pool has {ready} of {pool} sandboxes after {_FULL_TIMEOUT_S:g} s")
        await asyncio.sleep(0.1)


async def create(client: httpx.AsyncClient, name: str) -> tuple[float, str, str]:
    """Create a session. Returns milliseconds, start kind and session id."""
    began = time.perf_counter()
    reply = await client.post("/v1/sessions", json={"runtime": f"default/{name}"})
    took = (time.perf_counter() - began) * 1e3
    reply.raise_for_status()
    return took, reply.headers["x-wakegate-start"], reply.json()["id"]
