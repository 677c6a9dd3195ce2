"""What a gateway adds to a real control plane: claims, cold starts, wakes and rolls beside the bare API's own.

    KUBERNETES_BIN=FOLDER scripts/bench kube_timings [--rounds 10]

FOLDER has etcd, kube-apiserver, kube-controller-manager and kube-scheduler, as `scripts/test-kubernetes` builds them;
without it the simulator answers, and says so. The kubelet is ours in both: each pod is a real picod on this machine, no
image is pulled. Baselines are of the same run: a PATCH, a pod and a Deployment of the same kind without a gateway.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import orjson
import psutil

from loadtest.figures import quantile
from tests.support.kube.clusters import REAL
from tests.support.kube.real.plane import PROGRAMS
from tests.support.kube.served import INTERPRETER, in_cluster
from tests.support.kube.simulator import Cluster
from tests.support.kube.simulator.objects import BY_PLURAL, DEPLOYMENTS
from tests.support.serve import Server

WARM = 5
AT_ONCE = 50
PATCHES, CONNECTIONS = 800, 8
LIMIT_S = 120.0
NAME = "my-interpreter"
PODS_URL = "/api/v1/namespaces/default/pods"
SPEC: dict[str, Any] = {**INTERPRETER, "warmPoolSize": WARM, "wakegate": {"pool": {"mode": "fixed", "max": 100}}}
MERGE = {"content-type": "application/merge-patch+json"}
OURS = {"wakegate.io/pool": "warm", "wakegate.io/runtime": NAME}
Times = list[float]


def until(holds: Callable[[], bool], what: str) -> None:
    """Wait for it. Raises SystemExit when it does not come about."""
    ends = time.monotonic() + LIMIT_S
    while not holds():
        if time.monotonic() > ends:
            raise SystemExit(f"kube_timings: after {LIMIT_S:.0f} s still not: {what}")
        time.sleep(0.005)


def timed(verb: Callable[[], object]) -> float:
    """Seconds that it took."""
    began = time.perf_counter()
    verb()
    return time.perf_counter() - began


def show(what: str, times: Times, baseline: Times | None = None, of: str = "") -> None:
    """p50 and the slowest in milliseconds, and the ratio of p50 to the baseline's."""
    p50 = quantile(times, 0.5)
    ratio = f"   x{p50 / quantile(baseline, 0.5):.2f} of {of}" if baseline else ""
    print(f"{what:<50} {len(times):>4} {p50 * 1e3:>9.1f} ms  max {max(times) * 1e3:>8.1f} ms{ratio}", flush=True)


class Bench:
    """One gateway over one cluster."""

    def __init__(self, server: Server, cluster: Cluster, rounds: int) -> None:
        self.server, self.cluster, self.rounds = server, cluster, rounds
        plane = getattr(cluster, "plane", None)
        self.bare: httpx.Client = plane.client() if plane else httpx.Client(base_url=cluster.url)
        self.bare.timeout = LIMIT_S
        self.processes = [each for each in psutil.Process().children() if each.name() in PROGRAMS]

    def pool(self, name: str = NAME) -> dict[str, Any]:
        """The pool's status, as the gateway says."""
        found: list[dict[str, Any]] = self.server.client.get("/v1/runtimes").json()["runtimes"]
        return next((each["pool"] for each in found if each["name"] == name), {"ready": -1, "target": 0})

    def full(self, name: str = NAME, warm: int = WARM) -> None:
        """Wait until it is."""
        until(lambda: self.pool(name)["ready"] == warm, f"{name} has {warm} warm sandboxes")

    def new_pod(self, name: str) -> dict[str, Any]:
        """A pod like a warm one that nobody but Kubernetes knows."""
        with ready_of(self.cluster) as pods:
            spec = {**pods[0]["spec"]}
        for made in ("nodeName", "tolerations", "serviceAccount", "priority", "preemptionPolicy"):
            spec.pop(made, None)
        notes = {k: v for k, v in pods[0]["metadata"]["annotations"].items() if not k.startswith("wakegate.io")}
        return {"metadata": {"name": name, "namespace": "default", "labels": {"app": name}, "annotations": notes},
                "spec": spec}  # fmt: skip

    def get(self, path: str) -> Any:
        """An object of the API server."""
        reply = self.bare.get(path)
        return reply.json() if reply.status_code == 200 else {}

    def ready(self, name: str) -> bool:
        """Whether the pod is."""
        return is_ready(self.get(f"{PODS_URL}/{name}"))


def is_ready(pod: Any) -> bool:
    """Whether its conditions say so."""
    conditions = pod.get("status", {}).get("conditions") or []
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


@contextmanager
def ready_of(cluster: Cluster) -> Iterator[list[Any]]:
    """The warm pods."""
    yield cluster.pods(**{"wakegate.io/pool": "warm"})


def claims(bench: Bench) -> Times:
    """Sessions on warm sandboxes, beside the PATCH that each of them is."""
    bench.full()
    name = bench.cluster.pods(**{"wakegate.io/pool": "warm"})[0]["metadata"]["name"]
    patched: Times = []
    for number in range(10 * bench.rounds):
        body = orjson.dumps({"metadata": {"annotations": {"bench": str(number)}}})
        patched.append(timed(lambda b=body: bench.bare.patch(f"{PODS_URL}/{name}", content=b, headers=MERGE)))  # type: ignore[misc]
    show("bare PATCH of a pod", patched)
    made: Times = []
    for _ in range(bench.rounds):
        bench.full()
        made.append(timed(bench.server.session))
    show("a session on a warm sandbox, over HTTP", made, patched, "the PATCH")
    bench.full()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        began = time.perf_counter()
        together = list(pool.map(lambda _: timed(bench.server.session), range(AT_ONCE)))
        took = time.perf_counter() - began
    show(f"{AT_ONCE} at once on a pool of {WARM}: all in {took:.1f} s", together, made, "one alone")
    return made


def starts(bench: Bench) -> None:
    """A session without a warm sandbox, and a new runtime's first, beside a pod alone."""
    bench.full()
    alone: Times = []
    for number in range(bench.rounds):
        body = bench.new_pod(f"bare-{number}")
        bench.bare.post(PODS_URL, json=body).raise_for_status()
        alone.append(timed(lambda n=number: until(lambda: bench.ready(f"bare-{n}"), "the pod is ready")))  # type: ignore[misc]
        bench.bare.delete(f"{PODS_URL}/bare-{number}")
    show("a pod, from its creation to Ready", alone)
    none = {**SPEC, "warmPoolSize": 0, "wakegate": {"pool": {"mode": "fixed", "min": 0}}}
    kind = BY_PLURAL["codeinterpreters"]
    bench.cluster.create(kind.plural, "cold", namespace="default", spec=none)
    until(lambda: bench.pool("cold")["ready"] == 0, "the runtime without a pool is served")
    show("a session without a warm sandbox",
         [timed(lambda: bench.server.session("default/cold")) for _ in range(bench.rounds)], alone, "that")  # fmt: skip
    first: Times = []
    for number in range(max(3, bench.rounds // 3)):
        name = f"fresh-{number}"

        def arrives(name: str = name) -> None:
            bench.cluster.create(kind.plural, name, namespace="default", spec={**SPEC, "warmPoolSize": 1})
            until(lambda: bench.server.client.post("/v1/sessions", json={"runtime": f"default/{name}"}).status_code
                  == 201, "it gives a session")  # fmt: skip

        first.append(timed(arrives))
    show("a new runtime, from its creation to a session", first, alone, "that")


def wakes(bench: Bench, claimed: Times) -> None:
    """Hibernation and wakes, beside a request to a live session."""
    live: Times = []
    slept: Times = []
    woken: Times = []
    session = bench.server.session()
    bench.server.run(session, "head -c 1000000 /dev/urandom > blob")
    for _ in range(bench.rounds):
        live.append(timed(lambda: bench.server.run(session, "wc -c < blob")))
        hibernate = f"/v1/sessions/{session}/hibernate"
        slept.append(timed(lambda h=hibernate: bench.server.client.post(h).raise_for_status()))  # type: ignore[misc]
        bench.full()
        woken.append(timed(lambda: bench.server.run(session, "wc -c < blob")))
    show("a command in a live session", live)
    show("hibernating 1 MB", slept, live, "the command")
    show("the command in the hibernated session", woken, live, "the command")
    show("  the same beside a new session", woken, claimed, "that")


def rolls(bench: Bench) -> None:
    """A changed runtime's pool, beside a Deployment of the same pods without a gateway."""
    bench.full()
    pool = next(each for each in bench.cluster.objects.all(DEPLOYMENTS) if each["metadata"]["name"].startswith(NAME))
    labels = {"app": "bare"}
    pod = bench.new_pod("bare")
    template = {"metadata": {"labels": labels, "annotations": pod["metadata"]["annotations"]}, "spec": pod["spec"]}
    strategy = {key: pool["spec"][key] for key in ("strategy", "minReadySeconds") if key in pool["spec"]}
    spec = {"replicas": WARM, "selector": {"matchLabels": labels}, "template": template, **strategy}
    deployments = "/apis/apps/v1/namespaces/default/deployments"
    body = {"metadata": {"name": "bare", "labels": labels}, "spec": spec}
    bench.bare.post(deployments, json=body).raise_for_status()

    def rolled(selector: dict[str, str], image: str) -> bool:
        pods = bench.cluster.pods(**selector)
        images = [each["spec"]["containers"][0]["image"] for each in pods]
        return images == [image] * WARM and all(map(is_ready, pods))

    until(lambda: rolled(labels, pod["spec"]["containers"][0]["image"]), "the Deployment is full")
    alone: Times = []
    ours: Times = []
    for number in range(max(3, bench.rounds // 3)):
        image = f"wakegate/picod:next-{number}"
        spec["template"]["spec"]["containers"][0]["image"] = image
        patch = orjson.dumps({"spec": {"template": spec["template"]}})
        bench.bare.patch(f"{deployments}/bare", content=patch, headers=MERGE).raise_for_status()
        alone.append(timed(lambda i=image: until(lambda: rolled(labels, i), "it has rolled")))  # type: ignore[misc]
        changed = {**SPEC, "template": {**SPEC["template"], "image": image}}
        kind = BY_PLURAL["codeinterpreters"]
        bench.cluster.objects.update(kind, "default", NAME, lambda present, c=changed: {**present, "spec": c})  # type: ignore[misc]
        ours.append(timed(lambda i=image: until(lambda: rolled(OURS, i), "the pool has rolled")))  # type: ignore[misc]
    show(f"a Deployment of {WARM} rolls by itself", alone)
    show(f"a runtime's pool of {WARM} rolls", ours, alone, "that")


def writes(bench: Bench) -> None:
    """Writes that the API server takes from 32 connections, and what one costs it and etcd."""
    bench.full()
    names = [
        f"unplaced-{number}" for number in range(CONNECTIONS)
    ]  # one each: on one pod they would wait for each other
    for name in names:
        body = bench.new_pod(name)
        body["spec"]["nodeSelector"] = {"nowhere": "true"}
        bench.bare.post(PODS_URL, json=body).raise_for_status()
    used: dict[str, float] = {}
    for verb in ("GET", "PATCH"):
        before, began = cpu(bench), time.perf_counter()
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            calls = [pool.submit(ask_often, bench, verb, name) for name in names]
            for call in calls:
                call.result()
        took = time.perf_counter() - began
        used[verb] = (cpu(bench) - before) / PATCHES
        ratio = f"   x{used['PATCH'] / used['GET']:.2f} of a GET" if verb == "PATCH" and used["GET"] else ""
        rate = f"{verb:<5} {PATCHES} times from {CONNECTIONS} connections: {PATCHES / took:.0f}/s"
        print(f"{rate}, {used[verb] * 1e3:.2f} ms of CPU of the control plane each{ratio}", flush=True)


def ask_often(bench: Bench, verb: str, name: str) -> None:
    """One connection's share of the requests about a pod."""
    for number in range(PATCHES // CONNECTIONS):
        body = orjson.dumps({"metadata": {"annotations": {"bench": str(number)}}}) if verb == "PATCH" else None
        bench.bare.request(verb, f"{PODS_URL}/{name}", content=body, headers=MERGE).raise_for_status()


def cpu(bench: Bench) -> float:
    """Seconds of the control plane's processes so far."""
    return sum(sum(each.cpu_times()[:2]) for each in bench.processes)


def main() -> None:
    """Run all parts on one cluster."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    print(f"{'a real control plane' if REAL else 'the SIMULATOR'}, {os.cpu_count()} cores, "
          f"load {os.getloadavg()[0]:.1f}", flush=True)  # fmt: skip
    with tempfile.TemporaryDirectory() as place, in_cluster(Path(place), spec=SPEC) as (server, cluster):
        bench = Bench(server, cluster, options.rounds)
        claimed = claims(bench)
        starts(bench)
        wakes(bench, claimed)
        rolls(bench)
        writes(bench)
        bench.bare.close()


if __name__ == "__main__":
    main()
