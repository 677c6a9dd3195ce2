"""The dialects compared with the native calls that do the same, through a gateway on a real sandbox.

    scripts/bench dialects_bench [--rounds 200] [--creates 20] [--transfers 5]

Each pair is measured in the same run, its two sides in turn: E2B's `commands.run("true")`, `run_code("1+1")`,
`Sandbox.create()` and files of 100 MB, Jupyter's execute_request, MCP's tools/call. All sides send the bytes of their
dialect over a kept-alive connection each (loadtest/wire.py), made before the clock starts, so no client library's time
counts: a figure is what passes from the first byte sent to the last of the answer. Exits with 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import orjson

from loadtest.figures import quantile
from loadtest.local import gateway, until_full
from loadtest.wire import Channel, Wire, enveloped, request

RUN_LIMIT, CREATE_LIMIT, FILE_LIMIT = 1.3, 2.0, 0.7
POOL = 3
FILE_BYTES = 100 << 20
_WARM_UP = 10
COMMAND = ["/bin/bash", "-l", "-c", "true"]  # what E2B's SDKs make of commands.run("true")
ROWS = "{:<40} {:>9} {:>9} {:>9} {:>9} {:>7}  {}"

Side = Callable[[], float]


class Kinds:
    """The two sides of each pair, on one session. Each returns milliseconds."""

    def __init__(self, url: str, session: str, token: str) -> None:
        self.native, self.e2b, self.mcp_wire = Wire(url), Wire(url), Wire(url)
        host = self.native.host
        self._session = {"x-session-id": session}
        access = {"x-access-token": token, "e2b-sandbox-id": session}
        self.envd = {**access, "e2b-sandbox-port": "49983"}
        interpreter = {**access, "e2b-sandbox-port": "49999"}
        start = {"process": {"cmd": COMMAND[0], "args": COMMAND[1:], "envs": {}}, "stdin": False}
        self._execute = request(host, "POST", "/api/execute", self._session, {"command": COMMAND})
        self._start = request(
            host,
            "POST",
            "/process.Process/Start",
            {**self.envd, "content-type": "application/connect+json", "connect-protocol-version": "1"}
            | {"connect-timeout-ms": "60000", "keepalive-ping-interval": "50"},
            enveloped(start),
        )
        code = {"code": "1+1", "language": "python"}
        self._run_code = request(host, "POST", "/api/run_code", self._session, code)
        asked = {"code": "1+1", "context_id": None, "language": None, "env_vars": None}
        self._interpret = request(host, "POST", "/execute", interpreter, asked)
        self._channel = Channel(url, f"/jupyter/api/kernels/{session}/channels")
        self._call = _tool_call(host, session)

    def execute(self) -> float:
        """POST /api/execute."""
        return self.native.exchange(self._execute, expect=b'"exit_code":0')

    def start(self) -> float:
        """E2B's Start, followed to its end."""
        return self.e2b.exchange(self._start, expect=b'"exitCode":0')

    def run_code(self) -> float:
        """POST /api/run_code."""
        return self.native.exchange(self._run_code, expect=b'"2"')

    def interpret(self) -> float:
        """E2B's POST /execute, whose lines end with that of the end."""
        return self.e2b.exchange(self._interpret, expect=b"end_of_execution")

    def jupyter(self) -> float:
        """An execute_request, to the kernel's being idle again."""
        return self._channel.execute("1+1", expect=b'"text/plain":"2"')

    def mcp(self) -> float:
        """A tools/call of the revision without sessions, with the handle of one."""
        return self.mcp_wire.exchange(self._call, expect=b'"2"')


def _tool_call(host: str, session: str) -> bytes:
    version = "2026-07-28"
    meta = {
        "io.modelcontextprotocol/protocolVersion": version,
        "io.modelcontextprotocol/clientInfo": {"name": "bench", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    arguments = {"code": "1+1", "session": session}
    params = {"name": "run_python", "arguments": arguments, "_meta": meta}
    headers = {"accept": "application/json, text/event-stream", "mcp-protocol-version": version}
    headers |= {"mcp-method": "tools/call", "mcp-name": "run_python"}
    # The same id each time: a gateway remembers no call of this revision by it.
    return request(host, "POST", "/mcp", headers, {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params})


def in_turn(sides: Mapping[str, Side], rounds: int) -> dict[str, list[float]]:
    """What each side took, in turn; every second round in the other order, so that neither always follows the same."""
    taken: dict[str, list[float]] = {name: [] for name in sides}
    order = list(sides.items())
    for number in range(rounds + _WARM_UP):
        for name, side in order if number % 2 else order[::-1]:
            took = side()
            if number >= _WARM_UP:
                taken[name].append(took)
    return taken


class Transfers:
    """A file of 100 MB, up and down both ways. Returns milliseconds."""

    def __init__(self, kinds: Kinds) -> None:
        self._kinds, host = kinds, kinds.native.host
        self._data = bytes(range(256)) * (FILE_BYTES // 256)
        session = {"x-session-id": kinds.envd["e2b-sandbox-id"]}
        octets = {"content-type": "application/octet-stream", "content-length": str(FILE_BYTES)}
        e2b_path = "/files?path=b.bin&username=user"
        self._heads = {
            "put": request(host, "PUT", "/api/files/a.bin", session | octets),
            "post": request(host, "POST", e2b_path, kinds.envd | octets),
            "get": request(host, "GET", "/api/files/a.bin", session),
            "e2b": request(host, "GET", e2b_path, kinds.envd),
        }

    def native_up(self) -> float:
        """PUT /api/files."""
        return self._kinds.native.exchange(self._heads["put"], self._data)

    def e2b_up(self) -> float:
        """POST /files with the bytes as they are, as the SDKs send them."""
        return self._kinds.e2b.exchange(self._heads["post"], self._data)

    def native_down(self) -> float:
        """GET /api/files."""
        return self._kinds.native.drain(self._heads["get"], FILE_BYTES)

    def e2b_down(self) -> float:
        """GET /files."""
        return self._kinds.e2b.drain(self._heads["e2b"], FILE_BYTES)


async def creates(client: httpx.AsyncClient, url: str, count: int) -> dict[str, list[float]]:
    """What a create of each side took, the warm pool being full before each."""
    wire = Wire(url)
    native = request(wire.host, "POST", "/v1/sessions", {}, {"runtime": "default/warm"})
    body = {"templateID": "warm", "timeout": 300, "secure": True, "autoPause": False, "allow_internet_access": True}
    sent = {"native": native, "E2B": request(wire.host, "POST", "/sandboxes", {"x-api-key": "e2b_" + "0" * 40}, body)}
    taken: dict[str, list[float]] = {name: [] for name in sent}
    for number in range(count + 1):
        for name in sent if number % 2 else reversed(sent):
            await until_full(client, POOL)
            took = wire.exchange(sent[name], status=201)
            made = orjson.loads(wire.body)
            await client.delete(f"/v1/sessions/{made.get('id') or made['sandboxID']}")
            if number:
                taken[name].append(took)
    return taken


def row(name: str, native: list[float], dialect: list[float], limit: float, *, speed: bool = False) -> bool:
    """Print a pair. `speed`: a file's, whose ratio is one of speeds. Returns whether its bar holds."""
    base, other = quantile(native, 0.5), quantile(dialect, 0.5)
    ratio = base / other if speed else other / base
    holds = ratio >= limit if speed else ratio <= limit
    bar = f"{'>=' if speed else '<='} {limit:g} {'held' if holds else 'MISSED'}"
    figures = [f"{each:.2f}" for each in (base, other, quantile(native, 0.95), quantile(dialect, 0.95), ratio)]
    print(ROWS.format(name, *figures, bar), flush=True)
    return holds


async def main(args: argparse.Namespace) -> int:
    """Measure all pairs, and print a table. Returns the exit code."""
    with tempfile.TemporaryDirectory() as folder:
        async with gateway(Path(folder), POOL) as (client, _):
            url = str(client.base_url)
            await until_full(client, POOL)
            reply = await client.post("/sandboxes", json={"templateID": "warm", "timeout": 3600})
            made: dict[str, Any] = reply.raise_for_status().json()
            kinds = Kinds(url, made["sandboxID"], made["envdAccessToken"])
            print(ROWS.format("p50 ms, p95 ms", "native", "dialect", "n. p95", "d. p95", "ratio", "bar"))
            await until_full(client, POOL)
            # In threads: these calls block, as nothing else happens meanwhile, and httpx needs no loop of its own.
            run = in_turn({"native": kinds.execute, "E2B": kinds.start}, args.rounds)
            held = [row("E2B commands.run('true')", run["native"], run["E2B"], RUN_LIMIT)]
            sides = {"native": kinds.run_code, "E2B": kinds.interpret, "Jupyter": kinds.jupyter, "MCP": kinds.mcp}
            code = in_turn(sides, args.rounds)
            titles = {"E2B": "E2B run_code('1+1')", "Jupyter": "Jupyter execute 1+1", "MCP": "MCP tools/call 1+1"}
            held += [row(title, code["native"], code[name], RUN_LIMIT) for name, title in titles.items()]
            created = await creates(client, url, args.creates)
            held.append(row("E2B Sandbox.create(), warm", created["native"], created["E2B"], CREATE_LIMIT))
            files = Transfers(kinds)
            for name, native, dialect in (
                ("E2B files.write, 100 MB", files.native_up, files.e2b_up),
                ("E2B files.read, 100 MB", files.native_down, files.e2b_down),
            ):
                taken = in_turn({"native": native, "E2B": dialect}, args.transfers)
                held.append(row(name, taken["native"], taken["E2B"], FILE_LIMIT, speed=True))
    return 0 if all(held) else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Dialects compared with the native calls that do the same.")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--creates", type=int, default=20)
    parser.add_argument("--transfers", type=int, default=5)
    raise SystemExit(asyncio.run(main(parser.parse_args())))
