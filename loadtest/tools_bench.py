"""A model's tool calls compared with the plain requests that they become, through a gateway on a real sandbox.

    scripts/bench tools_bench [--rounds 200]

Prints p50 and p99 of `1+1` by POST /api/run_code (the baseline), by a run_python tool call and over MCP; of `true` by
POST /api/execute and by a run_shell tool call; of eight calls in one message; and what the first MCP request costs the
gateway. The kinds take turns, so that other work on the machine affects all of them.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import orjson

from loadtest.figures import quantile
from loadtest.local import gateway, until_full
from loadtest.processes import own_pss_mb

RUN_CODE = "1+1 by /api/run_code"
EXECUTE = "true by /api/execute"
_numbers = itertools.count()


def call(name: str, **arguments: Any) -> dict[str, Any]:
    """A tool call with a new id, so that none is taken for a retry."""
    function = {"name": name, "arguments": orjson.dumps(arguments).decode()}
    return {"id": f"call_{next(_numbers)}", "type": "function", "function": function}


class Kinds:
    """One request of each kind on one session."""

    def __init__(self, client: httpx.AsyncClient, session: str) -> None:
        self._client = client
        self._headers = {"x-session-id": session}

    async def _post(self, path: str, body: Any, expect: bytes, **headers: str) -> None:
        reply = await self._client.post(path, content=orjson.dumps(body), headers={**self._headers, **headers})
        assert reply.status_code == 200, reply.text
        assert expect in reply.content, reply.text

    async def run_code(self) -> None:
        """POST /api/run_code, the request that the tool becomes."""
        await self._post("/api/run_code", {"code": "1+1", "language": "python"}, b'"2"')

    async def run_python(self) -> None:
        """POST /v1/tool_calls with a run_python call of the same code."""
        await self._post("/v1/tool_calls", [call("run_python", code="1+1")], b'"content":"2"')

    async def mcp(self) -> None:
        """POST /mcp with the same call, without a session of the protocol."""
        params = {"name": "run_python", "arguments": {"code": "1+1"}}
        body = {"jsonrpc": "2.0", "id": next(_numbers), "method": "tools/call", "params": params}
        accept = "application/json, text/event-stream"
        await self._post("/mcp", body, b'"2"', **{"accept": accept, "content-type": "application/json"})

    async def execute(self) -> None:
        """POST /api/execute, the request that run_shell becomes."""
        await self._post("/api/execute", {"command": ["true"]}, b'"exit_code":0')

    async def run_shell(self) -> None:
        """POST /v1/tool_calls with a run_shell call, which starts a shell as well."""
        await self._post("/v1/tool_calls", [call("run_shell", command="true")], b"no output")

    async def eight(self) -> None:
        """POST /v1/tool_calls with eight run_shell calls, which run concurrently."""
        await self._post("/v1/tool_calls", [call("run_shell", command="true") for _ in range(8)], b"no output")


async def measure(kinds: dict[str, Callable[[], Awaitable[None]]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each kind of request. The kinds take turns."""
    taken: dict[str, list[float]] = {name: [] for name in kinds}
    for number in range(rounds + 5):
        for name, send in kinds.items():
            began = time.perf_counter()
            await send()
            if number >= 5:  # the first five are a warm-up
                taken[name].append((time.perf_counter() - began) * 1e3)
    return taken


async def main(rounds: int) -> None:
    """Measure all kinds on one session and print the table."""
    with tempfile.TemporaryDirectory() as folder:
        async with gateway(Path(folder), 1) as (client, pid):
            await until_full(client, 1)
            reply = await client.post("/v1/sessions", json={"runtime": "default/warm"})
            one = Kinds(client, reply.json()["id"])
            # Once, so that the context runs: its start is not what a call costs.
            await one.run_python()
            # The first MCP message imports the SDK (api/mcp/endpoint.py).
            before = own_pss_mb(pid)
            began = time.perf_counter()
            await one.mcp()
            first = (time.perf_counter() - began) * 1e3
            grown = own_pss_mb(pid) - before
            taken = await measure(
                {
                    RUN_CODE: one.run_code,
                    "1+1 by a tool call": one.run_python,
                    "1+1 over MCP": one.mcp,
                    EXECUTE: one.execute,
                    "true by a tool call (bash)": one.run_shell,
                    "8 x true in one message": one.eight,
                },
                rounds,
            )
    print(f"{'':<28} {'p50 ms':>8} {'p99 ms':>8}   ratio")
    base = 1.0
    for name, values in taken.items():
        p50 = quantile(values, 0.5)
        # Each plain request is the baseline of the tool calls listed after it.
        base = p50 if name in (RUN_CODE, EXECUTE) else base
        print(f"{name:<28} {p50:>8.2f} {quantile(values, 0.99):>8.2f}   {p50 / base:.2f}")
    print(f"MCP's first request: {first:.0f} ms, {grown:.1f} MB more PSS of the gateway (before: {before:.1f} MB)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Tool calls compared with the plain requests that they become.")
    parser.add_argument("--rounds", type=int, default=200)
    asyncio.run(main(parser.parse_args().rounds))
