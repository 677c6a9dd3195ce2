"""overlays/production as a user makes it their own: over a Redis and a bucket, with an autoscaler that has metrics.

It takes the quickstart's place, so it comes last (conftest.py).
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn
import yaml

from tests.cluster.gateway import Gateway
from tests.cluster.load import Load, under_load
from tests.support.kube.whole import metrics, network
from tests.support.kube.whole.cluster import NAMESPACE, WholeCluster
from tests.support.s3 import Objects
from tests.support.waiting import wait_until

_S3_PORT = 443  # to which the gateways' NetworkPolicy lets them
_SLOW_S = 240.0
_GATEWAYS = "app.kubernetes.io/component=gateway"
_BUSY_CLIENTS = 6
# What docs/kubernetes.md has users change, and requests that fit on nodes of two cores.
_OWN = {
    "apiVersion": "kustomize.config.k8s.io/v1beta1",
    "kind": "Kustomization",
    "resources": ["../production"],
    "configMapGenerator": [
        {
            "name": "wakegate-settings", "namespace": NAMESPACE, "behavior": "merge",
            "literals": ["WAKEGATE_SNAPSHOTS=s3://bucket/wakegate"],
        }
    ],
    "generatorOptions": {"disableNameSuffixHash": True},
    "patches": [
        {
            "target": {"kind": "Deployment", "name": "wakegate"},
            "patch": yaml.safe_dump([
                {"op": "replace", "path": "/spec/template/spec/containers/0/resources/requests", "value": {
                    "cpu": "100m", "memory": "128Mi",
                }}
            ]),
        },
        {
            "target": {"kind": "HorizontalPodAutoscaler", "name": "wakegate"},
            "patch": yaml.safe_dump([
                {"op": "replace", "path": "/spec/minReplicas", "value": 2},
                {"op": "replace", "path": "/spec/maxReplicas", "value": 3},
                # The overlay waits for five minutes.
                {"op": "replace", "path": "/spec/behavior/scaleDown/stabilizationWindowSeconds", "value": 15},
            ]),
        },
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def bucket() -> Iterator[Objects]:
    """An object store outside the cluster."""
    objects = Objects()
    config = uvicorn.Config(
        objects, host=network.OUTSIDE, port=_S3_PORT, log_level="critical", lifespan="off", ws="none"
    )  # fmt: skip
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    wait_until(lambda: server.started, "the object store listens")
    yield objects
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def production(cluster: WholeCluster, gateway: Gateway, bucket: Objects) -> Gateway:
    """The same cluster after `kubectl apply -k` of the overlay."""
    own = cluster.folder / "manifests/overlays/own"
    own.mkdir(exist_ok=True)
    (own / "kustomization.yaml").write_text(yaml.safe_dump(_OWN))
    password = (cluster.folder / "manifests/overlays/quickstart/redis-password.env").read_text().strip()
    values = {
        "WAKEGATE_STORE": f"redis://:{password.partition('=')[2]}@wakegate-store.{NAMESPACE}.svc:6379/0",
        "AWS_ENDPOINT": f"http://{network.OUTSIDE}:{_S3_PORT}", "AWS_ALLOW_HTTP": "true", "AWS_REGION": "here",
        "AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret",
    }  # fmt: skip
    literals = [f"--from-literal={name}={value}" for name, value in values.items()]
    cluster.kubectl("-n", NAMESPACE, "create", "secret", "generic", "wakegate-connections", *literals)
    cluster.kubectl("apply", "-k", str(own))
    cluster.roll()

    def alone() -> bool:
        return len(cluster.get("pods", "-n", NAMESPACE, "-l", _GATEWAYS)["items"]) == _replicas(cluster)[1]

    # Connections that were open lead to the former ones for as long as those drain.
    wait_until(alone, "the former gateways are gone", within=_SLOW_S)
    gateway.wait_for_pool()
    return gateway


def _replicas(cluster: WholeCluster) -> tuple[int, int]:
    """Gateways that are wanted, and that are ready."""
    shown = cluster.get("deployment", "wakegate", "-n", NAMESPACE)
    return shown["spec"]["replicas"], shown["status"].get("readyReplicas", 0)


def test_session_sleeps_in_the_bucket_and_wakes(production: Gateway, bucket: Objects) -> None:
    """Its files are objects while it sleeps, and it has them again afterwards."""
    session = production.session("kept")
    before = set(bucket.objects)
    production.client.post(f"/v1/sessions/{session}/hibernate").raise_for_status()
    assert set(bucket.objects) - before
    assert production.output(session, "cat note") == "kept"
    production.end(session)


def test_every_gateway_has_the_overlays_settings(cluster: WholeCluster, production: Gateway) -> None:
    """As many as the autoscaler wants at least, none of the quickstart's, and `wakegate doctor` in each of them finds
    the Redis, the bucket and the rights."""
    wait_until(lambda: _replicas(cluster) >= (2, 2), "the autoscaler's least number is ready", within=_SLOW_S)
    for pod in cluster.pods(NAMESPACE, _GATEWAYS):
        assert not any(volume.get("persistentVolumeClaim") for volume in pod["spec"]["volumes"])
        doctor = ("/opt/wakegate/bin/wakegate", "doctor", "--port", "0")
        said = cluster.try_kubectl("exec", "-n", NAMESPACE, pod["metadata"]["name"], "--", *doctor)
        assert said.returncode == 0, said.stdout + said.stderr


@pytest.fixture(scope="module")
def measured(cluster: WholeCluster, production: Gateway) -> Iterator[None]:
    """The cluster with metrics-server, from which the HorizontalPodAutoscaler has its figures."""
    program = Path(cluster.programs) / metrics.PROGRAM
    if not program.exists():
        pytest.skip(f"{program} is not there; scripts/build-kubernetes builds it")
    process = metrics.start(cluster, program, cluster.folder)
    wait_until(lambda: _replicas(cluster) >= (2, 2), "two are ready", within=_SLOW_S)
    yield
    process.kill()
    process.wait()


def _further(load: Load, answers: int) -> None:
    until = load.answers + answers
    wait_until(lambda: load.answers >= until, "the load goes on", within=_SLOW_S)


def _utilization(cluster: WholeCluster) -> str:
    """What the autoscaler has seen last."""
    scaler = cluster.get("hpa", "wakegate", "-n", NAMESPACE)["status"]
    seen = scaler["currentMetrics"][0]["resource"]["current"]["averageUtilization"]
    return f"CPU at {seen} % of what was requested"


@pytest.mark.usefixtures("measured")
def test_autoscaler_adds_a_gateway_and_no_request_fails(
    cluster: WholeCluster, production: Gateway, figures: dict[str, object]
) -> None:
    """metrics-server measures, the HorizontalPodAutoscaler of the overlay decides, and clients notice nothing."""
    sessions = [(production.session("kept"), "kept")]
    stop = threading.Event()

    def ask() -> None:
        headers = production.client.headers
        with httpx.Client(base_url=production.client.base_url, headers=headers, timeout=60) as client:
            while not stop.is_set():
                client.get("/v1/runtimes")

    busy = [threading.Thread(target=ask) for _ in range(_BUSY_CLIENTS)]
    try:
        with under_load(production, sessions, creates=False) as load:
            for each in busy:
                each.start()
            wait_until(lambda: _replicas(cluster) == (3, 3), "the autoscaler has added one", within=_SLOW_S)
            _further(load, 100)
            stop.set()
    finally:
        stop.set()
    figures["a gateway added by the autoscaler"] = f"{load.figures()}; {_utilization(cluster)}"
    production.end(*(session for session, _ in sessions))
    assert (load.errors, load.lost) == ({}, 0)


@pytest.mark.usefixtures("measured")
def test_autoscaler_takes_a_gateway_away_and_no_request_fails(
    cluster: WholeCluster, production: Gateway, figures: dict[str, object]
) -> None:
    """The one that goes drains: sessions that its clients use, and that they make, are another's from then on."""
    sessions = [(production.session(f"file-{number}"), f"file-{number}") for number in range(2)]

    def taken_away() -> bool:
        """Also the pod, which is there until it has drained."""
        return _replicas(cluster)[0] == len(cluster.get("pods", "-n", NAMESPACE, "-l", _GATEWAYS)["items"]) == 2

    with under_load(production, sessions) as load:
        wait_until(taken_away, "the autoscaler has taken one away", within=_SLOW_S)
        _further(load, 100)
    figures["a gateway taken away by the autoscaler"] = f"{load.figures()}; {_utilization(cluster)}"
    production.end(*(session for session, _ in sessions))
    assert (load.errors, load.not_created, load.lost) == ({}, {}, 0)
