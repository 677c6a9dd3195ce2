"""What becomes of a session when its pod, its node or the API server goes: a whole gateway over real picods."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gateway.provider.kubernetes import rights
from tests.support.kube.recovery import INTERPRETERS, condition, makes_session, pod_of, pool_of, written
from tests.support.kube.served import INTERPRETER, flags_for, in_cluster
from tests.support.kube.simulator import Cluster
from tests.support.kube.simulator.objects import BY_PLURAL, DEPLOYMENTS, PODS, ApiError
from tests.support.serve import Server, serve
from tests.support.waiting import wait_until


def told_everywhere(server: Server, cluster: Cluster, session: str, words: str) -> None:
    """Why a session's sandbox ended stands in the status, in /v1/runtimes and in the log."""
    assert words in pool_of(server, "my-interpreter")["lastLoss"]
    (line,) = [line for line in server.log.read_text().splitlines() if session in line and "ended: " in line]
    assert words in line

    def said() -> bool:
        lost = condition(cluster, "my-interpreter", "SandboxLost")
        return lost["status"] == "True" and words in lost["message"]

    wait_until(said, f"the status says {words}")


@pytest.mark.parametrize("how", ["evicted", "crashed"])
def test_session_keeps_its_files_when_its_pod_goes(server: Server, cluster: Cluster, how: str) -> None:
    """Eviction, drain, and a crash or OOM of picod: the files are copied out before they are gone, and the next request
    has them on another pod; it is told that what ran is lost."""
    session = written(server, how)
    pod = pod_of(cluster, session)
    name, uid = pod["metadata"]["name"], pod["metadata"]["uid"]
    if how == "evicted":
        cluster.call(lambda: cluster.evict("default", name))
    else:
        cluster.call(lambda: cluster.kubelet.kill(uid))
    wait_until(lambda: server.state(session)["state"] != "active", "the loss is noticed")
    reply = server.run(session, "cat note")
    assert (reply.status_code, reply.json()["stdout"]) == (200, f"{how}\n")
    assert reply.headers["x-wakegate-restored"] != "none"
    assert reply.headers["x-wakegate-start"] in ("wake", "wake-cold")
    assert pod_of(cluster, session)["metadata"]["uid"] != uid
    said = {"evicted": "its pod was evicted: Eviction API: evicting", "crashed": "out of memory"}[how]
    told_everywhere(server, cluster, session, said)


def test_session_on_a_lost_node_continues_from_its_last_snapshot(server: Server, cluster: Cluster) -> None:
    """A node that vanishes takes what was not kept; the session wakes elsewhere with what was."""
    session = written(server, "kept")
    assert server.client.post(f"/v1/sessions/{session}/hibernate").json()["state"] == "hibernated"
    assert server.run(session, "echo lost > later").status_code == 200
    pod = pod_of(cluster, session)
    cluster.await_(lambda: cluster.lose_node(pod))
    wait_until(lambda: server.state(session)["state"] != "active", "the loss is noticed")
    reply = server.run(session, "cat note; ls")
    assert (reply.status_code, reply.json()["stdout"]) == (200, "kept\nnote\n")
    assert reply.headers["x-wakegate-restored"] not in ("none", "")
    told_everywhere(server, cluster, session, "its node was lost")


def test_end_that_only_an_event_explains_has_its_words(server: Server, cluster: Cluster) -> None:
    """An eviction for a volume leaves a pod that succeeded, with no reason in its status."""
    session = written(server, "gone")
    pod = pod_of(cluster, session)
    cluster.call(lambda: cluster.kubelet.evict_for_volume(pod, "tmp"))
    wait_until(lambda: server.state(session)["state"] == "lost", "the loss is noticed")
    told_everywhere(server, cluster, session, 'EmptyDir volume "tmp" exceeds the limit "256Mi".')


def test_session_moves_when_its_node_stops_reporting_and_its_pod_accepts_nothing(tmp_path: Path) -> None:
    """It moves before the cluster deletes the pod, to its last checkpoint, which it has though its runtime sets no
    interval; the old pod is deleted so that two never live. A session whose pod still answers stays where it is, though
    its node does not report either."""
    with in_cluster(tmp_path, "--checkpoint-interval", "1s") as (server, cluster):
        reached, session = written(server, "reached"), written(server, "kept")
        stays, pod = pod_of(cluster, reached), pod_of(cluster, session)

        def checkpointed() -> bool:
            server.run(session, "true")  # only sessions in use are copied
            return server.state(session)["snapshotAt"] is not None

        wait_until(checkpointed, "a checkpoint is on record")
        cluster.call(lambda: cluster.node_away(stays))
        cluster.await_(lambda: cluster.silence_node(pod))
        wait_until(lambda: server.state(session)["state"] == "lost", "the loss is noticed")
        reply = server.run(session, "cat note")
        assert (reply.status_code, reply.json()["stdout"]) == (200, "kept\n")
        assert reply.headers["x-wakegate-restored"] not in ("none", "")
        told_everywhere(server, cluster, session, "its node was lost")
        assert pool_of(server, "my-interpreter")["losses"] == 1

        def old_pod_ends() -> bool:
            return "deletionTimestamp" in cluster.objects.get(PODS, "default", pod["metadata"]["name"])["metadata"]

        wait_until(lambda: cluster.call(old_pod_ends), "the old pod is deleted")
        assert server.run(reached, "cat note").json()["stdout"] == "reached\n"
        assert pod_of(cluster, reached)["metadata"]["uid"] == stays["metadata"]["uid"]


def test_session_moves_when_its_pod_accepts_nothing_and_its_kubelet_renews_no_lease(tmp_path: Path) -> None:
    """Before the cluster says anything of the node; asked of the lease alone, once a request could not connect. A pod
    that accepts nothing keeps its session as long as its kubelet renews the lease: it may be the network, or busy."""

    def renew(cluster: Cluster, node: str, at: datetime) -> None:
        time = at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        kind, space = BY_PLURAL["leases"], "kube-node-lease"
        try:
            cluster.objects.update(kind, space, node, lambda lease: {**lease, "spec": {"renewTime": time}})
        except ApiError:
            cluster.create("leases", node, namespace=space, spec={"renewTime": time})

    with in_cluster(tmp_path, "--connect-timeout", "500ms") as (server, cluster):
        session = written(server, "kept")
        assert server.client.post(f"/v1/sessions/{session}/hibernate").json()["state"] == "hibernated"
        assert server.run(session, "true").status_code == 200
        pod = pod_of(cluster, session)
        uid, node = pod["metadata"]["uid"], pod["spec"]["nodeName"]
        ahead = datetime.now(UTC) + timedelta(hours=1)
        cluster.call(lambda: renew(cluster, node, ahead))
        cluster.await_(lambda: cluster.silence(pod))
        assert server.run(session, "true").status_code == 502
        wait_until(lambda: cluster.call(lambda: cluster.api.counts["get", "leases"]) > 0, "the lease was looked at")
        assert server.state(session)["state"] == "active"
        assert pod_of(cluster, session)["metadata"]["uid"] == uid

        def place(present: dict[str, Any]) -> dict[str, Any]:
            return {**present, "spec": {**present["spec"], "nodeName": node}}

        # The pods that are warm are on the same node, and look ready: they are not given out either.
        wait_until(lambda: pool_of(server, "my-interpreter")["ready"] == 2, "the pool is full")
        for warm in cluster.call(lambda: cluster.pods(**{"wakegate.io/pool": "warm"})):
            move = partial(cluster.objects.update, PODS, "default", warm["metadata"]["name"], place)
            cluster.call(move)
        cluster.call(lambda: renew(cluster, node, ahead - timedelta(hours=2)))

        def answered() -> bool:
            return bool(server.run(session, "cat note").status_code == 200)

        wait_until(answered, "it goes on elsewhere", within=30)
        assert server.run(session, "cat note").json()["stdout"] == "kept\n"
        moved = pod_of(cluster, session)
        assert moved["metadata"]["annotations"]["wakegate.io/start"] == "cold"
        left_out = {"key": "metadata.name", "operator": "NotIn", "values": [node]}
        wanted = moved["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        assert wanted == {"nodeSelectorTerms": [{"matchFields": [left_out]}]}
        told_everywhere(server, cluster, session, "its node was lost")
        assert pool_of(server, "my-interpreter")["losses"] == 1

        # It has started anew: none of its earlier pods is there, and its kubelet has not yet looked at each.
        (gone, *_) = cluster.call(lambda: cluster.pods(**{"wakegate.io/pool": "warm"}))
        cluster.await_(lambda: cluster.silence(gone))
        asked = cluster.call(lambda: cluster.api.counts["get", "leases"])
        cluster.call(lambda: renew(cluster, node, ahead))
        # The third look begins after the second has tried the pods.
        wait_until(lambda: cluster.call(lambda: cluster.api.counts["get", "leases"]) > asked + 2, "it is looked at")
        assert pool_of(server, "my-interpreter")["ready"] == 0
        cluster.call(lambda: cluster.delete("pods", "default", gone["metadata"]["name"]))
        wait_until(lambda: pool_of(server, "my-interpreter")["ready"] == 2, "the node is used again")


def test_session_serves_while_the_api_server_is_unavailable(server: Server, cluster: Cluster) -> None:
    """Live sessions go on; what needs a new pod gets 503 with the reason, and works once the server is back."""
    session = written(server, "here")
    cluster.await_(cluster.stop_api)
    try:
        assert server.run(session, "cat note").json()["stdout"] == "here\n"
        reply = server.client.post("/v1/sessions", json={"runtime": "default/my-interpreter"})
        assert (reply.status_code, reply.json()["code"]) == (503, "SANDBOX_START_FAILED")
        assert "API server" in reply.json()["error"]
        away = "the Kubernetes API server cannot be reached"
        wait_until(lambda: away in pool_of(server, "my-interpreter")["lastError"], "/v1/runtimes says so")
        assert f"/pods: {away}" in server.log.read_text()
    finally:
        cluster.await_(cluster.start_api)
    wait_until(lambda: makes_session(server, "my-interpreter") == 201, "sessions are made again")
    wait_until(lambda: pool_of(server, "my-interpreter")["lastError"] == "", "nothing is said to be wrong any more")
    assert "followed again" in server.log.read_text()


def test_session_serves_through_a_dropped_and_expired_watch(server: Server, cluster: Cluster) -> None:
    """The watches break, and what happened meanwhile is compacted away (410): no request notices, what was missed is
    seen by a new list, and the log tells of it."""
    session, ended = written(server, "here"), written(server, "ended")
    pod = pod_of(cluster, ended)["metadata"]

    def drop() -> None:
        """All in one moment, so that no watch reports the pod."""
        cluster.api.cut_watches()
        cluster.kubelet.lose(pod["uid"])
        cluster.objects.remove(PODS, "default", pod["name"])
        cluster.objects.compact()

    cluster.call(drop)
    assert server.run(session, "cat note").json()["stdout"] == "here\n"
    wait_until(lambda: server.state(ended)["state"] == "lost", "the missed end is known")
    assert "(410); listing again" in server.log.read_text()
    assert server.run(session, "cat note").json()["stdout"] == "here\n"
    assert server.run(ended, "ls").headers["x-wakegate-restored"] == "none"
    assert server.client.get("/readyz").status_code == 200


def test_exhausted_quota_is_reported_everywhere_and_affects_no_live_session(server: Server, cluster: Cluster) -> None:
    """503 with the server's message and Retry-After where a new pod is needed; live sessions go on; the status, the log
    and /v1/runtimes name the quota; once it is freed, sessions are created again."""
    session = written(server, "here")
    used = len(cluster.call(cluster.pods))
    hard = {"hard": {"pods": str(used)}}
    cluster.call(lambda: cluster.create("resourcequotas", "few", namespace="default", spec=hard))
    try:
        spec = {"warmPoolSize": 1, "template": {"image": "wakegate/picod:test"}}
        cluster.call(lambda: cluster.create("codeinterpreters", "greedy", namespace="default", spec=spec))
        wait_until(lambda: condition(cluster, "greedy")["reason"] == "QuotaExceeded", "the status says so")
        assert "exceeded quota: few" in condition(cluster, "greedy")["message"]
        assert "exceeded quota: few" in pool_of(server, "greedy")["lastError"]
        reply = server.client.post("/v1/sessions", json={"runtime": "default/greedy"})
        assert (reply.status_code, reply.json()["code"]) == (503, "SANDBOX_START_FAILED")
        assert "exceeded quota: few" in reply.json()["error"]
        assert reply.headers["retry-after"]
        log = [line for line in server.log.read_text().splitlines() if "exceeded quota: few" in line]
        assert any("could not be started" in line for line in log)
        assert server.run(session, "cat note").json()["stdout"] == "here\n"
    finally:
        cluster.call(lambda: cluster.delete("resourcequotas", "default", "few"))
    wait_until(lambda: makes_session(server, "greedy") == 201, "sessions are made again")
    cluster.call(lambda: cluster.delete("codeinterpreters", "default", "greedy"))


def test_manifest_environment_reaches_commands_and_nothing_else_does(server: Server) -> None:
    """The variables of spec.template.environment, and none of picod's or the cluster's own."""
    said = server.run(server.session(), "env").json()["stdout"]
    assert "GREETING=hello" in said.splitlines()
    assert "PICOD_" not in said
    assert "KUBERNETES_" not in said


def test_status_of_a_runtime_is_current(server: Server, cluster: Cluster) -> None:
    """Ready only with a ready sandbox; an image that cannot be pulled is the reason there, in /v1/runtimes and in the
    answer to a claim; mended, it becomes Ready. A spec that is wrong says so and leaves what was served."""

    def spec(image: str, **extra: Any) -> Any:
        return {"warmPoolSize": 1, "template": {"image": image}, **extra}

    def change(new: Any) -> None:
        cluster.objects.update(INTERPRETERS, "default", "mended", lambda present: {**present, "spec": new})

    wait_until(lambda: condition(cluster, "my-interpreter")["status"] == "True", "my-interpreter is ready")
    cluster.kubelet.bad_images.add("registry.invalid/none:1")
    made = spec("registry.invalid/none:1")
    cluster.call(lambda: cluster.create("codeinterpreters", "mended", namespace="default", spec=made))
    wait_until(lambda: condition(cluster, "mended")["reason"] == "ImagePullBackOff", "the reason is in the status")
    assert condition(cluster, "mended")["status"] == "False"
    assert "failed to pull image" in pool_of(server, "mended")["lastError"]
    reply = server.client.post("/v1/sessions", json={"runtime": "default/mended"})
    assert reply.status_code == 503
    assert "ImagePullBackOff" in reply.json()["error"]
    wait_until(lambda: "default/mended: ImagePullBackOff" in server.log.read_text(), "the log says so")
    cluster.call(lambda: change(spec("wakegate/picod:test")))
    wait_until(lambda: condition(cluster, "mended")["status"] == "True", "it is ready")
    cluster.call(lambda: change(spec("wakegate/picod:test", sessionTimeout="soon")))
    wait_until(lambda: condition(cluster, "mended")["reason"] == "InvalidSpec", "the mistake is said")
    assert "spec.sessionTimeout: expected a duration" in condition(cluster, "mended")["message"]
    assert server.client.post("/v1/sessions", json={"runtime": "default/mended"}).status_code == 201
    cluster.call(lambda: cluster.delete("codeinterpreters", "default", "mended"))
    wait_until(lambda: makes_session(server, "mended") == 404, "it is not served any more")
    wait_until(lambda: not cluster.call(lambda: cluster.pods(**{"wakegate.io/runtime": "mended"})), "its pods go")


def test_runtime_that_the_server_refuses_harms_no_other(server: Server, cluster: Cluster) -> None:
    """An invalid pod spec is reported in the status and to the client; other runtimes are served as before."""
    container = {"image": "registry.example/agent:1"}  # without a name
    spec = {
        "targetPort": [{"port": 80, "protocol": "HTTP"}],
        "podTemplate": {"spec": {"containers": [container]}},
        "warmPoolSize": 1,
    }
    cluster.call(lambda: cluster.create("agentruntimes", "bad", namespace="default", spec=spec))

    def reason() -> Any:
        status = cluster.call(lambda: cluster.objects.get(BY_PLURAL["agentruntimes"], "default", "bad")).get("status")
        return status and status["conditions"][0]["reason"]

    wait_until(lambda: reason() == "Invalid", "the status says so")
    assert makes_session(server, "my-interpreter") == 201
    pools = {each["name"]: each["pool"] for each in server.client.get("/v1/runtimes").json()["runtimes"]}
    assert "is invalid" in pools["bad"]["lastError"]
    assert server.client.get("/readyz").status_code == 200
    cluster.call(lambda: cluster.delete("agentruntimes", "default", "bad"))


@pytest.mark.parametrize("what", ["pool", "runtime"])
def test_pool_that_is_deleted_is_made_again(server: Server, cluster: Cluster, what: str) -> None:
    """`kubectl delete deployment`, and `kubectl replace --force` of a runtime, whose old pool the garbage collector
    takes: the pool comes back, and belongs to the runtime as it is now."""

    def known() -> Any:
        return cluster.call(lambda: cluster.objects.get(INTERPRETERS, "default", "my-interpreter"))

    def pool() -> Any:
        found = cluster.call(lambda: cluster.objects.all(DEPLOYMENTS, "default"))
        return next((d["metadata"] for d in found if d["metadata"]["name"] == "my-interpreter-ci-pool"), None)

    def replace() -> None:
        cluster.delete("codeinterpreters", "default", "my-interpreter")
        cluster.create("codeinterpreters", "my-interpreter", namespace="default", spec=INTERPRETER)

    wait_until(lambda: pool_of(server, "my-interpreter")["ready"] == 2, "the pool is full")
    before = pool()["uid"]
    if what == "pool":
        cluster.call(lambda: cluster.delete("deployments", "default", "my-interpreter-ci-pool"))
    else:
        cluster.call(replace)
    wait_until(lambda: (found := pool()) is not None and found["uid"] != before, "another Deployment is there")
    assert pool()["ownerReferences"][0]["uid"] == known()["metadata"]["uid"]
    wait_until(lambda: pool_of(server, "my-interpreter")["ready"] == 2, "the pool is full again")


def test_gateway_needs_only_the_rights_that_its_roles_give(server: Server, cluster: Cluster) -> None:
    """All that the gateway asked of the server so far is in rights.py, from which the Roles are checked."""
    allowed = {
        (verb, right.resource) for right in (*rights.SANDBOXES, *rights.GATEWAY, *rights.NODES) for verb in right.verbs
    }
    assert server.client.get("/healthz").status_code == 200
    assert set(cluster.api.counts) <= allowed


def test_gateway_that_restarts_finds_its_sessions_and_its_keys(tmp_path: Path) -> None:
    """kill -9, and a new gateway with an empty key folder: the Secret has the keys, so that pods still believe it."""
    with in_cluster(tmp_path) as (server, cluster):
        session = written(server, "still")
        uid = pod_of(cluster, session)["metadata"]["uid"]
        server.kill()
        for file in (tmp_path / "state" / "keys" / "private").iterdir():
            file.unlink()
        with serve(tmp_path / "state", *flags_for(cluster, tmp_path)) as again:
            assert again.run(session, "cat note").json()["stdout"] == "still\n"
            assert pod_of(cluster, session)["metadata"]["uid"] == uid
