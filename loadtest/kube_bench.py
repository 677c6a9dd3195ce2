"""The Kubernetes engine on the simulator: claims, writes per claim, wakes, and the memory of 10,000 pods.

    scripts/bench kube_bench [--latency 0.005] [--pods 10000]

The API server runs in its own process and waits `--latency` seconds before each answer. The baseline of a claim is the
bare PATCH by kubernetes_asyncio's own CoreV1Api, in the same run: a claim is one write.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import orjson
import psutil
import yaml
from kubernetes_asyncio import client, config

from gateway.core.clock import SystemClock
from gateway.core.model import PoolSpec, Runtime, RuntimeKey, Sandbox, SessionId
from gateway.provider.kubernetes import KubernetesProvider, PodDefaults, connect
from loadtest.figures import quantile
from loadtest.processes import started
from tests.support.kube.simulator.kubelet import hollow_pod
from tests.support.serve import serve

KEY = RuntimeKey("default", "my-interpreter")
SERIAL = 100
AT_ONCE = 50
WAKES = 15
MB = 1_000_000
SETTLE_S = 2.5  # picod imports what a wake needs, and starts its code context, a second after its own start


@contextlib.contextmanager
def simulator(folder: Path, *flags: str) -> Iterator[str]:
    """Run the simulated cluster as a process. Yields its URL."""
    argv = [sys.executable, "-m", "tests.support.kube.simulator", str(folder), *flags]
    with started(argv, env={**os.environ, "PYTHONPATH": "."}) as (_, url):
        yield url


@contextlib.asynccontextmanager
async def provider(folder: Path, *, warm: int) -> AsyncIterator[KubernetesProvider]:
    """Run a provider and fill its warm pool."""
    api = await connect(folder / "kubeconfig")
    one = KubernetesProvider(api, SystemClock(), PodDefaults("wakegate/picod:0.1.0"), ["default"])
    await one.start()
    try:
        await one.apply([Runtime(KEY, auth=False, pool=PoolSpec(size=warm))])
        await full(one, warm)
        yield one
    finally:
        await one.aclose()


async def full(one: KubernetesProvider, warm: int) -> None:
    """Wait until the warm pool has `warm` ready pods."""
    while (await one.status(KEY)).ready < warm:
        await asyncio.sleep(0.02)


def writes(url: str) -> tuple[int, int]:
    """The number of PATCHes and creates of pods by clients so far, and of conflicts."""
    # The simulator counts what clients send; what its own controllers write is not among it.
    counts = httpx.get(f"{url}/simulator/counts").json()
    return counts.get("patch pods", 0) + counts.get("create pods", 0), counts["conflicts"]


def show(what: str, times: Sequence[float], baseline: Sequence[float] | None = None) -> None:
    """Print p50 and p99 in milliseconds, and the ratio to the baseline's p50."""
    ordered = sorted(times)
    p50, p99 = statistics.median(ordered) * 1e3, quantile(ordered, 0.99) * 1e3
    ratio = f"   x{p50 / (statistics.median(baseline) * 1e3):.2f} of the bare PATCH" if baseline else ""
    print(f"{what:<46} p50 {p50:8.2f} ms   p99 {p99:8.2f} ms{ratio}")


async def timed(verb: Callable[[], Awaitable[Any]]) -> tuple[float, Any]:
    """Await `verb`. Returns its duration in seconds and its result."""
    began = time.perf_counter()
    result = await verb()
    return time.perf_counter() - began, result


async def bare_patches(folder: Path, url: str, uids: set[str]) -> list[float]:
    """Seconds of each guarded PATCH with the library's own API and models."""
    listed = httpx.get(f"{url}/api/v1/namespaces/default/pods").json()["items"]
    names = [pod["metadata"]["name"] for pod in listed if pod["metadata"]["uid"] in uids]
    await config.load_kube_config(config_file=str(folder / "kubeconfig"))
    found = []
    async with client.ApiClient() as connection:
        core: Any = client.CoreV1Api(connection)
        for name in names:
            pod = await core.read_namespaced_pod(name, "default")
            # Guarded by the version, like a claim.
            body = {"metadata": {"resourceVersion": pod.metadata.resource_version, "annotations": {"bench": "1"}}}

            def patch(name: str = name, body: Any = body) -> Any:
                return core.patch_namespaced_pod(name, "default", body, _content_type="application/merge-patch+json")

            found.append((await timed(patch))[0])
    return found


async def claims(latency: float) -> None:
    """Measure claims one after another, 50 at once, and 25 + 25 from two gateways."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        with simulator(folder, "--hollow", "--latency", str(latency)) as url:
            async with provider(folder, warm=AT_ONCE) as one:
                serial: list[float] = []
                made: list[Sandbox] = []
                before = writes(url)
                for number in range(SERIAL):
                    took, sandbox = await timed(lambda n=number: one.claim(KEY, SessionId(f"s{n}")))  # type: ignore[misc]
                    serial.append(took)
                    made.append(sandbox)
                after = writes(url)
                # Afterwards, on the claimed pods: before, it would change versions that the provider has seen.
                baseline = await bare_patches(folder, url, {sandbox.id for sandbox in made})
                show(f"bare PATCH, {latency * 1e3:g} ms API", baseline)
                show(f"warm claim, one after another, {SERIAL}", serial, baseline)
                print(
                    f"{'':<46} {(after[0] - before[0]) / SERIAL:.2f} writes a claim, {after[1] - before[1]} conflicts"
                )
                # The pool refills before the next part, or its claims would be cold.
                await full(one, AT_ONCE)
                await at_once(url, f"{AT_ONCE} claims at once on a pool of {AT_ONCE}", [one])
                await full(one, AT_ONCE)
                async with provider(folder, warm=AT_ONCE) as other:
                    await at_once(url, "the same from two gateways", [one, other])


async def at_once(url: str, what: str, gateways: Sequence[KubernetesProvider]) -> None:
    """Measure AT_ONCE claims that are made at the same time, and count their writes and conflicts."""
    before = writes(url)
    # A list first, so that all of them start in one turn of the event loop.
    calls = [
        timed(lambda n=n: gateways[n % len(gateways)].claim(KEY, SessionId(f"{what[:3]}-{n}")))  # type: ignore[misc]
        for n in range(AT_ONCE)
    ]
    results = await asyncio.gather(*calls)
    after = writes(url)
    # A pod that two sessions got would make every figure here worthless.
    assert len({sandbox.id for _, sandbox in results}) == AT_ONCE
    cold = sum(sandbox.start == "cold" for _, sandbox in results)
    show(what, [took for took, _ in results])
    print(
        f"{'':<46} {(after[0] - before[0]) / AT_ONCE:.2f} writes a claim, {after[1] - before[1]} conflicts, {cold} cold"
    )


def wakes(latency: float) -> None:
    """Measure a gateway with real picods: hibernate a session with 1 MB, then wake it on a warm pod by a request."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        runtime = folder / "runtime.yaml"
        runtime.write_text(yaml.safe_dump(_manifest(3)))
        with simulator(folder, "--latency", str(latency)):
            flags = ["--engine", "kubernetes", "--kubeconfig", str(folder / "kubeconfig"), "--runtime", str(runtime)]
            with serve(folder / "state", *flags) as server:
                session = server.session()
                # Random, so that compression does not make it smaller.
                server.run(session, f"head -c {MB} /dev/urandom > blob")
                hibernations, found = [], []
                for _ in range(WAKES):
                    began = time.perf_counter()
                    server.client.post(f"/v1/sessions/{session}/hibernate").raise_for_status()
                    hibernations.append(time.perf_counter() - began)
                    _wait_warm(server.client)
                    began = time.perf_counter()
                    reply = server.run(session, "wc -c < blob")
                    took = time.perf_counter() - began
                    assert reply.json()["stdout"].strip() == str(MB)
                    # The others are counted in the heading, which names how many wakes there were.
                    if reply.headers["x-wakegate-start"] == "wake":  # not wake-cold, whose time is that of a new pod
                        found.append(took)
                show("hibernate, 1 MB", hibernations)
                show(f"wake onto a warm pod, 1 MB, with the request ({len(found)})", found)


def _wait_warm(asks: httpx.Client) -> None:
    """Wait until the pool is full and its newest pod is idle, as all pods share the gateway's cores here."""
    while asks.get("/v1/runtimes").json()["runtimes"][0]["pool"]["starting"]:
        time.sleep(0.02)
    time.sleep(SETTLE_S)


def _manifest(warm: int) -> dict[str, Any]:
    return {
        "apiVersion": "runtime.agentcube.volcano.sh/v1alpha1",
        "kind": "CodeInterpreter",
        "metadata": {"name": KEY.name, "namespace": KEY.namespace},
        "spec": {"warmPoolSize": warm, "template": {"image": "wakegate/picod:0.1.0"}},
    }


def many_pods(count: int) -> None:
    """Measure the resident memory of a gateway with `count` pods in its cache, and of one with none."""
    for pods in (0, count):
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            runtime = folder / "runtime.yaml"
            runtime.write_text(yaml.safe_dump(_manifest(1)))
            with simulator(folder, "--hollow", "--pods", str(pods), "--runtime", KEY.name):
                flags = [
                    "--engine",
                    "kubernetes",
                    "--kubeconfig",
                    str(folder / "kubeconfig"),
                    "--runtime",
                    str(runtime),
                ]
                with serve(folder / "state", *flags) as server:
                    claimed = server.client.get("/v1/runtimes").json()["runtimes"][0]["pool"]["claimed"]
                    assert claimed == pods
                    memory = psutil.Process(server.process.pid).memory_info().rss / MB
                    print(f"{f'gateway with {pods} pods in its cache':<46} {memory:8.0f} MB resident")


async def events(count: int) -> None:
    """Measure how long the provider takes for one watch event, from the line to the cache, with `count` pods known."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        with simulator(folder, "--hollow", "--pods", str(count), "--runtime", KEY.name):
            async with provider(folder, warm=1) as one:
                pods = one.pods("default")
                base, found = 10_000_000, []
                for index in range(2000):
                    obj = hollow_pod(KEY.name, index)
                    # Newer than anything in the cache; an older one would be passed over at once.
                    obj["metadata"]["resourceVersion"] = str(base + index)
                    line = orjson.dumps({"type": "MODIFIED", "object": obj})
                    began = time.perf_counter()
                    pods.learn(orjson.loads(line)["object"])
                    found.append(time.perf_counter() - began)
                show(f"a watch event with {count} pods known", found)


def main() -> None:
    """Run all parts, or the one that --only names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latency", type=float, default=0.005, help="of the API server, seconds")
    parser.add_argument("--only", choices=("claims", "wakes", "events", "memory"), help="one part of it")
    parser.add_argument("--pods", type=int, default=10_000, help="for the cache")
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    parts: dict[str, Callable[[], object]] = {
        "claims": lambda: asyncio.run(claims(arguments.latency)),
        "wakes": lambda: wakes(arguments.latency),
        "events": lambda: asyncio.run(events(arguments.pods)),
        "memory": lambda: many_pods(arguments.pods),
    }
    for name in [arguments.only] if arguments.only else parts:
        parts[name]()


if __name__ == "__main__":
    main()
