"""What keys and quotas cost, and what one tenant's flood costs another.

    scripts/bench governance_bench [--part proxy|audit|neighbour ...] [--seconds 1] [--repeats 24]

proxy      requests/s on a live session without keys, with one, and with a rate of its tenant besides, in turns, each
           gateway on one core (wanted: 0.95 of that without). A ratio is the median over the turns, each of which
           compares runs of a second that follow each other, forwards and backwards in turn: a virtual machine's speed
           changes by a fifth over minutes. A second gateway without keys is measured as well: how far its ratio is
           from 1 is what the machine's other work adds to all of them. Needs wrk and nginx.
audit      the same without and with an audit trail: reads of a kind that it leaves out, and commands, each of which
           is a line of it with the hash of its body.
neighbour  the time of warm creates of tenant b alone, and beside a flood of creates by tenant a, which has a quota: the
           wanted p99 is within 2 x that of b alone. Both sandboxes and gateway are real.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import uvloop

from loadtest.figures import quantile
from loadtest.local import gateway, until_full
from loadtest.processes import free_port, require_programs, running, wait_for
from loadtest.proxy_bench import PATH, Load, median, nginx_conf, wrk

PARTS = ("proxy", "audit", "neighbour")
_CONTROL = "without again"
_COMMAND = """wrk.method = "POST"
wrk.headers["content-type"] = "application/json"
wrk.body = '{"command": ["echo", "hello"]}'
"""
_QUOTA = 4  # sandboxes of the tenant that floods
_POOL = 12  # as many as are created in one go: a flood also takes the processor from refills, which are not measured
_ROUNDS = 8  # 96 creates each: of fewer, p99 would be the one that the machine happened to disturb
_FLOODERS = 8  # connections, each of which asks again as soon as it is refused


def measure_proxy(seconds: int, repeats: int, connections: int) -> int:
    """Print requests/s with and without keys. Returns how many bars were missed."""
    flags = {"without keys": [], "with a key": ["--auth"], "and a rate": ["--auth", "--rate"], _CONTROL: []}
    rounds = _in_turns(flags, seconds, repeats, connections)
    base, missed = rounds["without keys"], 0
    for name, loads in rounds.items():
        missed += (_print(name, loads, base) < 0.95 and name != _CONTROL) or median(loads).errors > 0
    return missed


def measure_audit(seconds: int, repeats: int, connections: int) -> int:
    """Print requests/s with and without an audit trail. Returns how many sides had errors."""
    missed = 0
    for what, script in (("reads", ""), ("commands", _COMMAND)):
        flags = {f"{what}, none": [], f"{what}, audit": ["--audit"], f"{what}, {_CONTROL}": []}
        rounds = _in_turns(flags, seconds, repeats, connections, script)
        base = rounds[f"{what}, none"]
        for name, loads in rounds.items():
            _print(name, loads, base)
            missed += median(loads).errors > 0
    return missed


def _print(name: str, loads: list[Load], base: list[Load]) -> float:
    """Print a side's medians; returns its throughput over that of the base, the median of the turns' ratios."""
    load = median(loads)
    ratios = [mine.rate / without.rate for mine, without in zip(loads, base, strict=True)]
    low, ratio, high = (quantile(ratios, q) for q in (0.25, 0.5, 0.75))
    # What disturbs a run only slows it down, so the fastest runs are the least disturbed.
    best = quantile([each.rate for each in loads], 0.9) / quantile([each.rate for each in base], 0.9)
    print(
        f"{name:<23} {load.rate:>8.0f} requests/s  p99 {load.p99:6.2f} ms  {load.cpu_us:5.1f} us of CPU  "
        f"{load.errors} errors  {ratio:.3f} of that without (half of the turns: {low:.3f} to {high:.3f}; "
        f"of the fastest tenth: {best:.3f})",
        flush=True,
    )
    return ratio


def _in_turns(
    gateways: dict[str, list[str]], seconds: int, repeats: int, connections: int, script: str = ""
) -> dict[str, list[Load]]:
    """Loads of gateways that are started with these flags, by name. `script`: wrk's, in Lua."""
    cores = sorted(os.sched_getaffinity(0))
    mine, others = cores[0], cores[-1]
    _, nginx_path, _ = require_programs("wrk", "nginx", "taskset")
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        upstream = free_port()
        stack.enter_context(running([nginx_path, "-c", str(nginx_conf(Path(temporary), upstream))], others))
        wait_for(upstream)
        sides: dict[str, tuple[str, list[str], int]] = {}
        for name, flags in gateways.items():
            argv = [sys.executable, "-m", "loadtest.bench_gateway", f"127.0.0.1:{upstream}", *flags]
            process = stack.enter_context(running(argv, mine))
            assert process.stdout is not None
            url, session, _, *key = process.stdout.readline().split()
            headers = [f"x-session-id: {session}", *(f"authorization: Bearer {each}" for each in key)]
            sides[name] = (url + PATH, headers, process.pid)
        rounds: dict[str, list[Load]] = {name: [] for name in sides}
        order = list(sides)
        for _ in range(repeats):  # in turns, so that a change of the machine's speed affects all of them
            order.reverse()
            for name in order:
                address, headers, pid = sides[name]
                url = address.removesuffix("/health") + "/api/execute" if script else address
                rounds[name].append(wrk(url, connections, seconds, others, headers, pid, script))
    return rounds


async def measure_neighbour(folder: Path) -> int:
    """Print the times of b's creates alone and beside a's flood. Returns how many bars were missed."""
    key_file = folder / "admin.key"
    key_file.write_text(os.urandom(24).hex())
    flags = ("--code-context", "lazy", "--admin-key-file", str(key_file))
    async with gateway(folder, _POOL, *flags) as (client, _):
        client.headers["authorization"] = f"Bearer {key_file.read_text()}"
        limits = {"limits": {"sandboxes": _QUOTA}}
        (await client.put("/v1/tenants/a", json=limits)).raise_for_status()
        keys = {}
        for tenant in ("a", "b"):
            made = await client.post("/v1/keys", json={"role": "member", "tenant": tenant})
            keys[tenant] = {"authorization": f"Bearer {made.json()['key']}"}
        # Tenant a uses up its quota first, so that each create of the flood is refused and takes no sandbox.
        for _ in range(_QUOTA):
            await until_full(client, _POOL)
            (await client.post("/v1/sessions", json={"runtime": "warm"}, headers=keys["a"])).raise_for_status()
        await _creates(client, keys["b"], 5)  # what is done once per process
        alone, beside, answers = [], [], Counter[int]()
        for _ in range(_ROUNDS):  # in turns, so that a change of the machine's speed affects both
            await until_full(client, _POOL)
            alone += await _creates(client, keys["b"], _POOL)
            await until_full(client, _POOL)
            async with _flood(str(client.base_url), keys["a"], answers):
                beside += await _creates(client, keys["b"], _POOL)
    base = quantile(alone, 0.99)
    for name, times in (("alone", alone), ("beside a's flood", beside)):
        p50, p99 = quantile(times, 0.5), quantile(times, 0.99)
        print(f"warm creates of b, {name:<16}  p50 {p50:7.2f} ms  p99 {p99:7.2f} ms  {p99 / base:5.2f} x p99 alone")
    print(f"a's flood was answered {dict(answers)}")
    return int(quantile(beside, 0.99) > 2 * base) + int(set(answers) != {429})


async def _creates(client: httpx.AsyncClient, key: dict[str, str], count: int) -> list[float]:
    """Milliseconds of warm creates, one at a time; each session is ended again."""
    times = []
    for _ in range(count):
        began = time.perf_counter()
        reply = await client.post("/v1/sessions", json={"runtime": "warm"}, headers=key)
        took = (time.perf_counter() - began) * 1e3
        reply.raise_for_status()
        # A cold start measures bubblewrap and not the quota.
        if reply.headers["x-wakegate-start"] == "warm":
            times.append(took)
        await client.delete(f"/v1/sessions/{reply.json()['id']}", headers=key)
    return times


@contextlib.asynccontextmanager
async def _flood(url: str, key: dict[str, str], answers: Counter[int]) -> AsyncIterator[None]:
    """Creates of tenant a, by a process of its own so that it does not slow the one that measures."""
    argv = [sys.executable, "-m", "loadtest.governance_bench", "--flood", url, key["authorization"]]
    process = await asyncio.create_subprocess_exec(*argv, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    await process.stdout.readline()
    try:
        yield
    finally:
        out, _ = await process.communicate(b"")  # the end of its input ends it; without a value asyncio leaves it open
        answers.update({int(status): count for status, count in json.loads(out).items()})


async def flood(url: str, authorization: str) -> None:
    """Create sessions on _FLOODERS connections until the input ends; then print the answers by status."""
    answers: Counter[int] = Counter()
    async with httpx.AsyncClient(base_url=url, headers={"authorization": authorization}, timeout=60) as client:

        async def one() -> None:
            while True:
                answers[(await client.post("/v1/sessions", json={"runtime": "warm"})).status_code] += 1

        floods = [asyncio.create_task(one()) for _ in range(_FLOODERS)]
        print("flooding", flush=True)
        await asyncio.to_thread(sys.stdin.read)
        for each in floods:
            each.cancel()
        await asyncio.gather(*floods, return_exceptions=True)
    print(json.dumps(answers))


def main() -> int:
    """Run the parts that --part names. Returns the exit status, 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=PARTS)
    for name, default in (("seconds", 1), ("repeats", 24), ("connections", 32)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--flood", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.flood:
        uvloop.run(flood(*args.flood))
        return 0
    missed = 0
    for part in args.part or PARTS:
        print(f"-- {part} (load {os.getloadavg()[0]:.1f})", flush=True)
        if part == "proxy":
            missed += measure_proxy(args.seconds, args.repeats, args.connections)
        elif part == "audit":
            missed += measure_audit(args.seconds, args.repeats, args.connections)
        else:
            with tempfile.TemporaryDirectory(prefix="wg") as folder:
                missed += uvloop.run(measure_neighbour(Path(folder)))
    print("all bars held" if not missed else f"{missed} bars missed")
    return int(missed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
