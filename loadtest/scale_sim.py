"""What clusters a million sessions take: the gateway's own code over a model of an API server and a real Redis.

    scripts/bench scale_sim [--pods 10000] [--claims 1000] [--latency 0.01] [--sessions 1000000] [--rate 10000]

The engine is the real one (claims, pools, cache, watches), so are the autoscaler's pools and the store. The API server
is `scale_model`. Each figure is CPU of one core, beside a baseline of the same run; at its end stands which limits
come first. docs/scale.md says what follows.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import orjson
import redis

from gateway.autoscaler.pool import Pool
from gateway.autoscaler.settings import AutoscalerSettings
from gateway.core.clock import SystemClock
from gateway.core.model import PoolSpec, Runtime, RuntimeKey, Session, SessionId, SessionState
from gateway.provider.kubernetes import KubeApi, KubernetesProvider, PodDefaults, names
from gateway.store.redis import RedisStore
from loadtest.scale_model import LEAD_S, NAMESPACE, PODS, ModelApi, ModelServer
from loadtest.scale_plan import Costs, plan
from tests.support.redis_server import RedisServer

AT_ONCE = 64  # claims under way at a gateway
SETTLE_S = LEAD_S + 0.5  # until the pods that follow claims are ready
LIVES = 3000  # sessions that come and go in the Redis
TICKS = 600


@dataclass(frozen=True)
class Run:
    """Sessions that came and went. `cpu`: seconds of this process for one, of all gateways and the model together."""

    cpu: float
    parsing: float  # seconds for parsing the events of one life once, which each gateway's watch does
    events: float
    size: float  # bytes of those events
    conflicts: float


def make_gateway(api: ModelApi) -> KubernetesProvider:
    """An engine on the model."""
    return KubernetesProvider(cast("KubeApi", api), SystemClock(), PodDefaults("wakegate/picod:0.1.0"), [NAMESPACE])


async def run(gateways: int, options: argparse.Namespace, *, pods: int, warm: int, rolls: bool = False) -> Run:
    """Sessions claimed and released over gateways and runtimes, `pods` claimed ones and `warm` ones a runtime there.

    `rolls`: all warm pods are of an earlier version, as when a roll begins.
    """
    server, claims = ModelServer(options.latency), options.claims
    keys = [RuntimeKey(NAMESPACE, f"runtime-{number}") for number in range(options.runtimes)]
    for number in range(pods):
        server.start_pod(keys[number % len(keys)].name, claimed=True, lead=False)
    for key in keys:
        for _ in range(warm):
            server.start_pod(key.name, lead=False)
    apis = [ModelApi(server) for _ in range(gateways)]
    engines = [make_gateway(api) for api in apis]
    for engine in engines:
        await engine.start()
        image = "picod:next" if rolls else ""
        await engine.apply([Runtime(key, image=image, pool=PoolSpec(size=warm)) for key in keys])
    await asyncio.sleep(0.5)
    before, slots, tell = len(server.log[PODS]), asyncio.Semaphore(AT_ONCE), server.version

    async def one(number: int) -> None:
        async with slots:
            engine = engines[number % gateways]
            sandbox = await engine.claim(keys[number % len(keys)], SessionId(f"session-{number}"))
            await engine.release(sandbox.id)

    cpu = time.process_time()
    for first in range(0, claims, per := min(claims, warm * len(keys) // 2)):
        await asyncio.gather(*(one(number) for number in range(first, min(claims, first + per))))
        await asyncio.sleep(SETTLE_S)  # the pools fill again, so that no claim is cold
    used = time.process_time() - cpu
    assert server.version > tell
    for engine in engines:
        await engine.aclose()
    lines = [line for _, _, line in server.log[PODS][before:]]
    began = time.process_time()
    for line in lines:
        orjson.loads(line)
    parsing = (time.process_time() - began) / claims
    conflicts = sum(api.conflicts for api in apis) / claims
    return Run(used / claims, parsing, len(lines) / claims, sum(map(len, lines)) / claims, conflicts)


async def bare(options: argparse.Namespace) -> float:
    """CPU seconds of the model for one life: PATCH, the pod that follows, DELETE, with nobody watching."""
    server = ModelServer(options.latency)
    for _ in range(options.claims):
        server.start_pod("runtime-0", lead=False)
    api, slots = ModelApi(server), asyncio.Semaphore(AT_ONCE)

    async def one(name: str) -> None:
        async with slots:
            await api.patch(f"{PODS}/{name}", {"metadata": {"labels": {names.POOL: names.CLAIMED}}})
            await api.delete(f"{PODS}/{name}")

    cpu = time.process_time()
    await asyncio.gather(*(one(name) for name in list(server.objects[PODS])))
    await asyncio.sleep(SETTLE_S)
    return (time.process_time() - cpu) / int(options.claims)


def show(what: str, figure: str, ratio: float | None, of: str = "") -> None:
    """A line with the ratio to its baseline."""
    print(f"{what:<58} {figure:>14}" + (f"   x{ratio:.2f} of {of}" if ratio is not None else ""), flush=True)


async def engine(options: argparse.Namespace) -> tuple[float, float, float]:
    """CPU of a gateway for a life of its own, and for following one of another gateway; bytes of a watch for it."""
    model = await bare(options)
    show("a life at the model alone, nobody watching", f"{model * 1e3:.3f} ms", None)
    few = await run(1, options, pods=100, warm=50)
    base = few.cpu - model
    show("claim, follow, release; 100 pods known", f"{base * 1e3:.3f} ms", base / model, "the model's own")
    many = await run(1, options, pods=options.pods, warm=50)
    own = many.cpu - model
    show(f"the same, {options.pods} pods known", f"{own * 1e3:.3f} ms", own / base, "that")
    large = await run(1, options, pods=100, warm=500)
    show(f"100 known, {options.runtimes} pools of 500", f"{(large.cpu - model) * 1e3:.3f} ms",
         (large.cpu - model) / base, "pools of 50")  # fmt: skip
    rolling = await run(1, options, pods=100, warm=500, rolls=True)
    show("the same while all of them roll", f"{(rolling.cpu - model) * 1e3:.3f} ms",
         (rolling.cpu - model) / (large.cpu - model), "that without a roll")  # fmt: skip
    most = await run(4, options, pods=100, warm=50)
    follow = (most.cpu - few.cpu) / 3
    show("a life of another gateway, followed", f"{follow * 1e3:.3f} ms", follow / few.parsing, "parsing its events")
    print(f"a life is {few.events:.1f} events and {few.size / 1e3:.1f} kB on each watch; "
          f"{most.conflicts:.4f} conflicts a claim at 4 gateways")  # fmt: skip
    return own, follow, few.size


def autoscaler() -> float:
    """CPU seconds of the leader for a tick of a busy runtime."""
    runtime = Runtime(RuntimeKey(NAMESPACE, "busy"), pool=PoolSpec(size=100, max=5000))
    pool = Pool.make(runtime, AutoscalerSettings(), None)
    pool.restored = True
    began, now = time.process_time(), 1.7e9
    for number in range(TICKS):
        pool.tick(now + number, 80 + number % 40, 0)
    used = (time.process_time() - began) / TICKS
    show("autoscaler: a second of a runtime with 100 claims/s", f"{used * 1e3:.3f} ms", None)
    return used


async def store() -> tuple[float, float]:
    """Seconds of the Redis server for a session that comes and goes, and bytes of a record that stays."""
    with tempfile.TemporaryDirectory() as place:
        server = RedisServer(Path(place)).start()
        kept = RedisStore(server.url, SystemClock(), deadline=10.0)  # it waits, on a busy machine, and fails nothing
        try:
            with redis.Redis("127.0.0.1", server.port) as client:
                await kept.start()
                return await _lives(kept, client)
        finally:
            await kept.aclose()
            server.kill()


async def _lives(kept: RedisStore, client: Any) -> tuple[float, float]:
    def busy() -> float:
        said = client.info("cpu")
        return float(said["used_cpu_user"]) + float(said["used_cpu_sys"])

    now, key = time.time(), RuntimeKey(NAMESPACE, "my-interpreter")
    value = os.urandom(560)
    before = busy()
    for number in range(LIVES):
        client.set(f"plain-{number}", value)
    plain = (busy() - before) / LIVES
    memory = client.info("memory")["used_memory"]
    records = [
        Session(SessionId(f"s-{number}"), key, SessionState.ACTIVE, now, now, now + 900, 60.0)
        for number in range(LIVES)
    ]
    stored = [await kept.put(record) for record in records]
    size = (client.info("memory")["used_memory"] - memory) / LIVES
    before = busy()
    for record in stored:
        lease = await kept.acquire_lease(f"session:{record.id}", "gateway-1", 10.0)
        again = await kept.put(record, lease=lease)
        await kept.touch_many({record.id: now + 1})
        await kept.put(again, lease=lease)
        if lease is not None:
            await kept.release_lease(lease)
        await kept.delete(record.id)
    life = (busy() - before) / LIVES
    show("Redis: six writes of a session that comes and goes", f"{life * 1e3:.3f} ms", life / plain, "a plain SET")
    show("Redis: a record and its index entries", f"{size:.0f} bytes", size / 560, "the bytes of its JSON")
    return life, float(size)


def main() -> None:
    """Measure, then plan."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pods", type=int, default=10_000, help="claimed pods in the cache")
    parser.add_argument("--claims", type=int, default=1000)
    parser.add_argument("--runtimes", type=int, default=8)
    parser.add_argument("--latency", type=float, default=0.01, help="of the API server, seconds")
    parser.add_argument("--sessions", type=int, default=1_000_000)
    parser.add_argument("--awake", type=int, default=100_000, help="sessions with a sandbox at a time")
    parser.add_argument("--rate", type=int, default=10_000, help="claims per second")
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    own, follow, sent = asyncio.run(engine(options))
    tick = autoscaler()
    life, record = asyncio.run(store())
    costs = Costs(own, follow, sent, tick, life, record)
    print("\n".join(plan(costs, sessions=options.sessions, awake=options.awake, rate=options.rate)))


if __name__ == "__main__":
    main()
