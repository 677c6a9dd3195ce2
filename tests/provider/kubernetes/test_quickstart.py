"""The quickstart as it is applied: its settings, Roles, runtime and Redis, around a real gateway and real pods."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import yaml

from tests.support.kube.clusters import in_thread
from tests.support.kube.manifests import MANIFESTS, built, one
from tests.support.kube.recovery import INTERPRETERS
from tests.support.kube.simulator import Cluster
from tests.support.redis_server import RedisServer
from tests.support.serve import serve
from tests.support.waiting import wait_until

NAMESPACE = "wakegate-sandboxes"


def test_quickstart_gives_a_working_gateway(tmp_path: Path) -> None:
    """On an otherwise empty cluster a session runs, is hibernated, wakes with its files and ends."""
    redis = RedisServer(tmp_path / "redis").start()
    # What is a place inside the pod or the cluster is one of this machine's here; everything else is as shipped.
    runtimes = tmp_path / "runtimes"
    runtimes.mkdir()
    for name, text in one("quickstart", "ConfigMap", "wakegate-runtimes")["data"].items():
        (runtimes / name).write_text(text)
    here = {
        "WAKEGATE_STORE": redis.url,
        "WAKEGATE_SNAPSHOTS": f"file://{tmp_path}/snapshots",
        "WAKEGATE_RUNTIME": str(runtimes),
        "WAKEGATE_HOST": "127.0.0.1",
        "WAKEGATE_ADMIN_KEY_FILE": str(tmp_path / "key"),
    }
    admin = {"authorization": f"Bearer {secrets.token_hex(32)}"}  # as the Secret has it
    (tmp_path / "key").write_text(admin["authorization"].removeprefix("Bearer "))
    container = one("quickstart", "Deployment", "wakegate")["spec"]["template"]["spec"]["containers"][0]
    variables = {each["name"]: each["value"] for each in container["env"] if "value" in each}
    given = {**one("quickstart", "ConfigMap", "wakegate-settings")["data"], **variables}
    assert here.keys() < given.keys()
    settings = {**given, **here}
    flags = [
        part
        for name, value in settings.items()
        if name not in ("WAKEGATE_PORT", "WAKEGATE_STATE_DIR")
        for part in ("--" + name.removeprefix("WAKEGATE_").lower().replace("_", "-"), value)
    ]
    try:
        with in_thread() as cluster:
            cluster.api.roles = {role["metadata"]["namespace"]: role["rules"] for role in of_kind("Role")}
            policy = one("quickstart", "NetworkPolicy", "wakegate-sandboxes", NAMESPACE)["spec"]
            cluster.call(
                lambda: cluster.create("networkpolicies", "wakegate-sandboxes", namespace=NAMESPACE, spec=policy)
            )
            flags += ["--kubeconfig", str(cluster.kubeconfig(tmp_path))]
            with serve(tmp_path / "state", *flags) as server:
                assert server.client.get("/v1/sessions").status_code == 401
                server.client.headers.update(admin)
                made = server.client.post("/v1/keys", json={"role": "operator", "name": "prometheus"}).json()
                scraped = {"authorization": f"Bearer {made['key']}"}
                assert server.client.get("/metrics", headers=scraped).status_code == 200
                assert server.client.get("/metrics", headers={"authorization": ""}).status_code == 401
                session = server.session(f"{NAMESPACE}/my-interpreter")
                assert server.run(session, "echo kept > note").status_code == 200
                assert server.client.post(f"/v1/sessions/{session}/hibernate").json()["state"] == "hibernated"
                reply = server.run(session, "cat note")
                assert (reply.status_code, reply.json()["stdout"]) == (200, "kept\n")
                pods = claimed(cluster)
                assert [pod["spec"]["containers"][0]["image"] for pod in pods] == [settings["WAKEGATE_PICOD_IMAGE"]]
                show_to_kubectl(cluster)
                assert server.run(session, "cat note").json()["stdout"] == "kept\n"
                assert [pod["metadata"]["uid"] for pod in claimed(cluster)] == [pod["metadata"]["uid"] for pod in pods]
                assert server.client.delete(f"/v1/sessions/{session}").status_code == 204
                assert server.terminate() == 0
    finally:
        redis.kill()


def claimed(cluster: Cluster) -> list[Any]:
    """The pods of sessions."""
    return cluster.call(lambda: cluster.pods(**{"wakegate.io/pool": "claimed"}))


def show_to_kubectl(cluster: Cluster) -> None:
    """Apply the quickstart's runtime as docs/kubernetes.md says, and wait until its status tells of the pool."""
    spec = yaml.safe_load((MANIFESTS / "overlays/quickstart/my-interpreter.yaml").read_text())["spec"]
    cluster.call(lambda: cluster.create("codeinterpreters", "my-interpreter", namespace=NAMESPACE, spec=spec))

    def ready() -> bool:
        found = cluster.call(lambda: cluster.objects.get(INTERPRETERS, NAMESPACE, "my-interpreter"))
        conditions = found.get("status", {}).get("conditions", [])
        return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)

    wait_until(ready, "kubectl get codeinterpreters shows it as ready")


def test_quickstart_asks_for_nothing_that_an_empty_cluster_lacks() -> None:
    """Every volume, account, Secret and ConfigMap that a pod of it names is applied with it, or optional; no object is
    of a kind that it brings only itself, which one apply would refuse."""
    there = {(d["kind"], d["metadata"]["name"]) for d in built("quickstart")}
    for document in (*of_kind("Deployment"), *of_kind("StatefulSet")):
        pod = document["spec"]["template"]["spec"]
        # The admin's key is yours to make: the first line that a reader sees says how.
        yours = {("Secret", "wakegate-admin-key")}
        assert (
            "create secret generic wakegate-admin-key"
            in (MANIFESTS / "overlays/quickstart/kustomization.yaml").read_text()
        )
        named = [("ServiceAccount", pod.get("serviceAccountName", ""))] if "serviceAccountName" in pod else []
        for volume in pod.get("volumes", []):
            if "persistentVolumeClaim" in volume:
                named.append(("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]))
            if "secret" in volume:
                named.append(("Secret", volume["secret"]["secretName"]))
            if "configMap" in volume:
                named.append(("ConfigMap", volume["configMap"]["name"]))
        for container in pod["containers"]:
            named += [
                ("Secret", variable["valueFrom"]["secretKeyRef"]["name"])
                for variable in container.get("env", [])
                if "secretKeyRef" in variable.get("valueFrom", {})
            ]
            for source in container.get("envFrom", []):
                for field, kind in (("configMapRef", "ConfigMap"), ("secretRef", "Secret")):
                    if field in source and not source[field].get("optional"):
                        named.append((kind, source[field]["name"]))
        assert set(named) <= there | yours
    brought = {d["spec"]["names"]["kind"] for d in of_kind("CustomResourceDefinition")}
    assert not {d["kind"] for d in built("quickstart")} & brought
    (runtime,) = one("quickstart", "ConfigMap", "wakegate-runtimes")["data"].values()
    assert yaml.safe_load(runtime)["kind"] in brought


def of_kind(kind: str) -> list[Any]:
    """The quickstart's objects of a kind."""
    return [document for document in built("quickstart") if document["kind"] == kind]
