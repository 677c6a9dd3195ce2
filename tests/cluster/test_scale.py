"""Many claims at once, and releases that are taken back."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import yaml

from tests.cluster.gateway import Gateway
from tests.cluster.load import under_load
from tests.support.kube.whole.cluster import NAMESPACE, ROOT, SANDBOXES, WholeCluster
from tests.support.waiting import wait_until

_SLOW_S = 300.0
_NAME = "crowd"
_ROOM = 8  # pods that the quota leaves besides those that are there
_POOL = f"deployment/{_NAME}-ci-pool"


def _document(mark: str) -> Any:
    """A small runtime, whose code sees `mark` in its environment."""
    document = yaml.safe_load((ROOT / "manifests/overlays/quickstart/my-interpreter.yaml").read_text())
    document["metadata"]["name"] = _NAME
    document["spec"]["warmPoolSize"] = 2
    template = document["spec"]["template"]
    template["resources"]["requests"] = {"cpu": "10m", "memory": "32Mi"}
    template["environment"] = [{"name": "MARK", "value": mark}]
    document["spec"]["wakegate"] = {"pool": {"mode": "fixed"}}
    return document


@pytest.fixture(scope="module")
def crowd(cluster: WholeCluster, gateway: Gateway) -> Iterator[Gateway]:
    """The gateway, with a runtime for these tests."""
    cluster.kubectl("apply", "-f", "-", given=json.dumps(_document("first")))
    one = Gateway(gateway.client, f"{SANDBOXES}/{_NAME}")
    one.wait_for_pool()
    yield one
    cluster.kubectl("delete", "codeinterpreter", _NAME, "-n", SANDBOXES)


def _create(gateway: Gateway) -> tuple[int, dict[str, Any], float]:
    began = time.monotonic()
    headers = gateway.client.headers
    with httpx.Client(base_url=gateway.client.base_url, headers=headers, timeout=_SLOW_S) as client:
        reply = client.post("/v1/sessions", json={"runtime": gateway.runtime})
    return reply.status_code, reply.json(), time.monotonic() - began


def _at_once(gateway: Gateway, count: int) -> list[tuple[int, dict[str, Any], float]]:
    with ThreadPoolExecutor(count) as threads:
        return [each.result() for each in [threads.submit(_create, gateway) for _ in range(count)]]


def test_fifty_claims_at_once_all_get_a_sandbox(crowd: Gateway, figures: dict[str, object]) -> None:
    """Two of warm pods, the others of pods that are made for them, each its own."""
    found = _at_once(crowd, 50)
    seconds = sorted(took for _, _, took in found)
    sessions = [document["id"] for status, document, _ in found if status == 201]
    figures["50 claims at once with 2 warm pods, s"] = (
        f"first {seconds[0]:.1f}, half {seconds[25]:.1f}, all {seconds[-1]:.1f}"
    )
    hosts = Counter(crowd.output(session, "hostname") for session in sessions)
    crowd.end(*sessions)
    assert Counter(status for status, _, _ in found) == {201: 50}, [each for each in found if each[0] != 201][:3]
    assert len(hosts) == 50


def test_three_hundred_claims_where_few_fit_are_refused_in_words(
    cluster: WholeCluster, crowd: Gateway, figures: dict[str, object]
) -> None:
    """Under a quota: as many get a sandbox as there is room for, the others a clear 503 or 429, and no pod is left."""
    crowd.wait_for_pool()

    def settled() -> bool:
        every = cluster.get("pods", "-n", SANDBOXES)[
            "items"
        ]  # those that end count against a quota until they are gone
        return len(_pods(cluster)) == 2 and not any("deletionTimestamp" in pod["metadata"] for pod in every)

    wait_until(settled, "the earlier test's pods are gone", within=_SLOW_S)
    there = len(cluster.get("pods", "-n", SANDBOXES)["items"])
    quota = {
        "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "few"},
        "spec": {"hard": {"pods": str(there + _ROOM)}},
    }  # fmt: skip
    cluster.kubectl("apply", "-n", SANDBOXES, "-f", "-", given=json.dumps(quota))

    def in_force() -> bool:
        return "pods" in cluster.get("resourcequota", "few", "-n", SANDBOXES).get("status", {}).get("used", {})

    wait_until(in_force, "the quota is counted")
    try:
        found = _at_once(crowd, 300)
        sessions = [document["id"] for status, document, _ in found if status == 201]
        crowd.end(*sessions)
    finally:
        cluster.kubectl("delete", "resourcequota", "few", "-n", SANDBOXES)
    counted = Counter(status for status, _, _ in found)
    slowest = max(took for _, _, took in found)
    figures[f"300 claims at once, room for {_ROOM} more pods"] = (
        ", ".join(f"{count} x {status}" for status, count in sorted(counted.items())) + f", slowest {slowest:.1f} s"
    )
    assert set(counted) <= {201, 429, 503}, counted
    assert 2 <= counted[201] <= 2 + _ROOM + 2, counted  # those warm, those that fit, and such as came into their places
    refusals = [document["error"] for status, document, _ in found if status != 201]
    assert any("quota" in text for text in refusals), Counter(refusals).most_common(3)
    wait_until(lambda: len(_pods(cluster)) == 2, "only the pool's pods are left", within=_SLOW_S)
    crowd.wait_for_pool()


def _pods(cluster: WholeCluster) -> list[Any]:
    return [
        pod for pod in cluster.pods(SANDBOXES) if pod["metadata"]["annotations"].get("wakegate.io/runtime") == _NAME
    ]


def test_runtime_that_is_rolled_and_undone(cluster: WholeCluster, crowd: Gateway) -> None:
    """New sessions have the new environment, and after `kubectl rollout undo` the earlier one, also those of pods that
    are made for them; a session keeps what it began with."""
    session = crowd.session("kept")

    def of_new_sessions(count: int) -> set[str]:
        made = [crowd.session() for _ in range(count)]
        seen = {crowd.output(each, "printenv MARK").strip() for each in made}
        crowd.end(*made)
        return seen

    assert of_new_sessions(1) == {"first"}
    cluster.kubectl("apply", "-f", "-", given=json.dumps(_document("second")))
    wait_until(lambda: of_new_sessions(1) == {"second"}, "the new one is served", within=_SLOW_S)
    cluster.kubectl("rollout", "status", _POOL, "-n", SANDBOXES, "--timeout=120s", within=150)
    cluster.kubectl("rollout", "undo", _POOL, "-n", SANDBOXES)
    cluster.kubectl("rollout", "status", _POOL, "-n", SANDBOXES, "--timeout=120s", within=150)
    crowd.wait_for_pool()
    assert of_new_sessions(4) == {"first"}
    assert crowd.output(session, "cat note; printenv MARK") == "keptfirst\n"
    crowd.end(session)


def test_release_of_gateways_that_cannot_start_is_undone(
    cluster: WholeCluster, gateway: Gateway, figures: dict[str, object]
) -> None:
    """An image that nobody has, under load: the gateways that run go on, and `kubectl rollout undo` ends it."""
    gateway.wait_for_pool()
    replicas = cluster.get("deployment", "wakegate", "-n", NAMESPACE)["spec"]["replicas"]
    strategy = {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}
    cluster.patch("deployment", "wakegate", NAMESPACE, {"spec": {"replicas": replicas, "strategy": strategy}})
    cluster.roll()
    sessions = [(gateway.session("kept"), "kept")]

    def stuck() -> bool:
        for pod in cluster.pods(NAMESPACE, "app.kubernetes.io/component=gateway"):
            for container in pod["status"].get("containerStatuses", []):
                if "Image" in container["state"].get("waiting", {}).get("reason", ""):
                    return True
        return False

    with under_load(gateway, sessions) as load:
        cluster.kubectl("set", "image", "deployment/wakegate", "gateway=wakegate/gateway:absent", "-n", NAMESPACE)
        wait_until(stuck, "the new one cannot start", within=_SLOW_S)
        cluster.kubectl("rollout", "undo", "deployment/wakegate", "-n", NAMESPACE)
        cluster.roll()
        until = load.answers + 50
        wait_until(lambda: load.answers >= until, "the load goes on", within=_SLOW_S)
    figures["a release of gateways undone"] = load.figures()
    gateway.end(*(session for session, _ in sessions))
    assert (load.errors, load.not_created, load.lost) == ({}, {}, 0)
