"""What clients see while parts of the cluster are killed. The order is that of the harm."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime

import pytest

from tests.cluster.gateway import Gateway
from tests.cluster.load import Load, under_load
from tests.support.kube.whole.cluster import NAMESPACE, SANDBOXES, WholeCluster
from tests.support.kube.whole.node import Node
from tests.support.waiting import wait_until

Sessions = list[tuple[str, str]]
_GATEWAYS = "app.kubernetes.io/component=gateway"
_AWAY_S = 15.0
_SLOW_S = 180.0


@pytest.fixture
def sessions(gateway: Gateway) -> Iterator[Sessions]:
    """Four, each with its own file."""
    gateway.wait_for_pool()
    made = [(gateway.session(f"file-{number}"), f"file-{number}") for number in range(4)]
    yield made
    wait_until(lambda: gateway.client.get("/readyz").status_code == 200, "the gateway is ready", within=_SLOW_S)
    gateway.end(*(session for session, _ in made))


def settled(load: Load, answers: int) -> None:
    """Wait for further answers, so that what came after the fault is counted as well."""
    until = load.answers + answers
    wait_until(lambda: load.answers >= until, "the load goes on", within=_SLOW_S)


def node_of(cluster: WholeCluster, pod: object) -> Node:
    """The node of a pod."""
    name = pod["spec"]["nodeName"]  # type: ignore[index]
    return next(node for node in cluster.nodes if node.name == name)


def pod_of(cluster: WholeCluster, session: str) -> object:
    """The pod that a session has."""
    (pod,) = cluster.pods(SANDBOXES, f"runtime.agentcube.io/session-id={session}")
    return pod


def kill_in(cluster: WholeCluster, pod: object, word: str) -> None:
    """kill -9 the processes of a pod whose command line has that word."""
    cluster.kill_in_pod(pod["metadata"]["uid"], word)  # type: ignore[index]


@pytest.mark.parametrize("program", ["kubelet", "containerd"])
def test_restart_of_what_runs_pods_disturbs_nobody(
    cluster: WholeCluster, gateway: Gateway, sessions: Sessions, figures: dict[str, object], program: str
) -> None:
    """On both nodes at once, with kill -9."""
    with under_load(gateway, sessions) as load:
        settled(load, 40)
        for node in cluster.nodes:
            node.stop(program)
        for node in cluster.nodes:
            (node.start_kubelet if program == "kubelet" else node.start_containerd)()
        settled(load, 200)
    figures[f"{program} killed on both nodes"] = load.figures()
    assert (load.errors, load.lost) == ({}, 0)


def test_api_server_that_is_away_hurts_no_live_session(
    cluster: WholeCluster, gateway: Gateway, sessions: Sessions, figures: dict[str, object]
) -> None:
    """Killed for 15 s. New sessions are refused meanwhile, and made again soon after."""
    with under_load(gateway, sessions) as load:
        settled(load, 40)
        cluster.plane.stop_api()
        gone = time.monotonic()
        wait_until(lambda: time.monotonic() - gone > _AWAY_S, "the time is over", within=2 * _AWAY_S)
        cluster.plane.start_api()
        made = load.created
        wait_until(lambda: load.created > made + 1, "sessions are made again", within=_SLOW_S)
        settled(load, 60)
    figures["API server killed for 15 s"] = load.figures()
    assert (load.errors, load.lost) == ({}, 0)


def test_replaced_redis_hurts_no_live_session(
    cluster: WholeCluster, gateway: Gateway, sessions: Sessions, figures: dict[str, object]
) -> None:
    """Its pod is deleted; its volume stays."""
    with under_load(gateway, sessions) as load:
        settled(load, 40)
        cluster.kubectl("delete", "pod", "wakegate-redis-0", "-n", NAMESPACE, "--wait=false")
        made = load.created
        wait_until(lambda: load.created > made + 3, "sessions are made again", within=_SLOW_S)
        settled(load, 60)
    figures["Redis pod deleted"] = load.figures()
    assert (load.errors, load.lost) == ({}, 0)


def test_session_keeps_its_files_when_picod_or_its_pod_ends(
    cluster: WholeCluster, gateway: Gateway, sessions: Sessions, figures: dict[str, object]
) -> None:
    """picod killed with -9, the pod deleted, and a command that takes more memory than there is."""
    (first, _), (second, _), (third, _), _ = sessions
    reply = gateway.run(third, "python -c 'x = bytearray(3 << 30)'")
    assert reply.status_code in (200, 502), reply.text
    kill_in(cluster, pod_of(cluster, first), "picod")
    metadata = pod_of(cluster, second)["metadata"]  # type: ignore[index]
    cluster.kubectl("delete", "pod", metadata["name"], "-n", SANDBOXES, "--wait=false")
    with under_load(gateway, sessions, creates=False) as load:
        settled(load, 100)
    figures["picod killed, a pod deleted, a command out of memory"] = load.figures()
    assert load.lost == 0
    assert "none" not in load.restored


def test_gateway_that_is_killed_is_back_with_every_session(
    cluster: WholeCluster, gateway: Gateway, sessions: Sessions, figures: dict[str, object]
) -> None:
    """The only one, with kill -9: its container starts again."""
    (pod,) = cluster.pods(NAMESPACE, _GATEWAYS)
    with under_load(gateway, sessions) as load:
        settled(load, 40)
        killed = time.time()
        kill_in(cluster, pod, "wakegate")
        made = load.created
        wait_until(lambda: load.created > made + 1, "sessions are made again", within=_SLOW_S)
        settled(load, 60)
    figures["the only gateway killed"] = f"{load.figures()}; {_back(cluster, killed)}"
    assert load.lost == 0
    assert not load.restored


def _back(cluster: WholeCluster, killed: float) -> str:
    """What the kubelet tells of the only gateway since it was killed, at an epoch. Its times are whole seconds."""
    (pod,) = cluster.pods(NAMESPACE, _GATEWAYS)
    (container,) = pod["status"]["containerStatuses"]
    ready = next(each for each in pod["status"]["conditions"] if each["type"] == "Ready")
    started_s, ready_s = (
        datetime.fromisoformat(each).timestamp() - killed
        for each in (container["state"]["running"]["startedAt"], ready["lastTransitionTime"])
    )
    return f"its container began after {started_s:.0f} s and was ready after {ready_s:.0f} s"


@pytest.fixture(scope="module")
def two_gateways(cluster: WholeCluster, gateway: Gateway) -> None:
    """From now on there are two, which share the volume of snapshots, as components/shared-volume has it."""
    strategy = {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}
    cluster.patch("deployment", "wakegate", NAMESPACE, {"spec": {"replicas": 2, "strategy": strategy}})
    cluster.roll()


@pytest.mark.usefixtures("two_gateways")
def test_rollout_of_gateways_answers_every_request(
    cluster: WholeCluster, gateway: Gateway, sessions: Sessions, figures: dict[str, object]
) -> None:
    """`kubectl rollout restart` under load."""
    with under_load(gateway, sessions) as load:
        settled(load, 40)
        cluster.kubectl("rollout", "restart", "deployment/wakegate", "-n", NAMESPACE)
        cluster.roll()
        settled(load, 100)
    figures["rollout of two gateways"] = load.figures()
    assert (load.errors, load.not_created, load.lost) == ({}, {}, 0)


@pytest.mark.usefixtures("two_gateways")
def test_one_of_two_gateways_killed(
    cluster: WholeCluster, gateway: Gateway, sessions: Sessions, figures: dict[str, object]
) -> None:
    """Its connections break, and nothing else."""
    pod = cluster.pods(NAMESPACE, _GATEWAYS)[0]
    with under_load(gateway, sessions) as load:
        settled(load, 40)
        kill_in(cluster, pod, "wakegate")
        settled(load, 200)
    figures["one of two gateways killed"] = load.figures()
    assert load.lost == 0
    assert not load.restored
    assert load.longest_outage_s < _AWAY_S
    cluster.roll()


@pytest.mark.usefixtures("two_gateways")
def test_drain_moves_sessions_with_their_files(
    cluster: WholeCluster, gateway: Gateway, sessions: Sessions, figures: dict[str, object]
) -> None:
    """`kubectl drain` of the node that has sandboxes."""
    node = node_of(cluster, pod_of(cluster, sessions[0][0]))
    with under_load(gateway, sessions, creates=False) as load:
        settled(load, 40)
        # What the platform runs stays: a gateway's drain takes as long as its clients do, and Redis is alone.
        cluster.kubectl(
            "drain", node.name, "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=120s",
            "--pod-selector=app.kubernetes.io/managed-by=wakegate", within=150,
        )  # fmt: skip
        settled(load, 100)
    cluster.kubectl("uncordon", node.name)
    figures["node drained"] = load.figures()
    assert load.lost == 0
    assert "none" not in load.restored


@pytest.mark.usefixtures("two_gateways")
def test_session_of_a_lost_node_goes_on_elsewhere(
    cluster: WholeCluster, gateway: Gateway, figures: dict[str, object]
) -> None:
    """Everything on a node ends at once. A session too young for a checkpoint is told that its files are gone."""
    redis = node_of(cluster, cluster.pods(NAMESPACE, "app.kubernetes.io/component=redis")[0])
    lost = next(node for node in cluster.nodes if node is not redis)
    cluster.route_services(redis)
    for _ in range(20):
        gateway.wait_for_pool()
        session = gateway.session("kept")
        if node_of(cluster, pod_of(cluster, session)) is lost:
            break
        gateway.end(session)
    else:
        pytest.skip("no sandbox came up on the node that has no Redis")
    with under_load(gateway, [(session, "kept")], creates=False) as load:
        settled(load, 20)
        lost.kill()
        settled(load, 20)
    cluster.boot(lost)
    wait_until(lambda: cluster.is_ready(lost), "the node is back", within=_SLOW_S)
    figures["node lost"] = load.figures() + f", restored: {sorted(load.restored)}"
    gateway.end(session)
    assert load.restored == {"none"}
