"""What only a real control plane can say: that it takes our manifests, and does with our objects what we rely on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.core.clock import SystemClock
from gateway.core.errors import UnauthorizedError
from gateway.core.identity import Role
from gateway.core.settings import Settings
from gateway.identity.oidc import make_verifier
from gateway.provider.kubernetes import rights
from tests.support.kube.clusters import REAL, in_thread
from tests.support.kube.recovery import INTERPRETERS, condition, makes_session, pod_of, pool_of, written
from tests.support.kube.served import INTERPRETER, in_cluster
from tests.support.kube.simulator import ApiError, Cluster
from tests.support.kube.simulator.objects import BY_PLURAL
from tests.support.serve import Server
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not REAL, reason="needs a real control plane: scripts/test-kubernetes, or set KUBERNETES_BIN"),
]
ROOT = Path(__file__).resolve().parents[3]
WARM = {"wakegate.io/pool": "warm"}
Kubectl = Callable[..., str]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Cluster, Kubectl]]:
    """A gateway with its own account in a real cluster, and kubectl as its administrator."""
    folder = tmp_path_factory.mktemp("plane")
    with in_cluster(folder) as (server, cluster):
        yield server, cluster, make_kubectl(cluster, folder)


def make_kubectl(cluster: Any, folder: Path) -> Kubectl:
    """Its standard output; a warning of pods that break a standard is an error."""
    config = cluster.plane.kubeconfig(cluster.plane.tokens["admin"], folder / "admin")

    def kubectl(*arguments: str) -> str:
        argv = [str(Path(sys.prefix) / "bin" / "kubectl"), "--kubeconfig", str(config), *arguments]
        done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "violate PodSecurity" not in done.stderr
        return done.stdout

    return kubectl


def make_may(cluster: Any) -> Callable[..., bool]:
    """Whether the gateway's account may, by the server's SubjectAccessReview, as `kubectl auth can-i --as` asks it.

    Not by kubectl, which knows no resource of a group that is not served here (metrics.k8s.io).
    """
    account = "system:serviceaccount:wakegate:wakegate"
    groups = ["system:serviceaccounts", "system:serviceaccounts:wakegate", "system:authenticated"]

    def may(verb: str, resource: str, namespace: str, group: str = "", name: str = "") -> bool:
        kind, _, sub = resource.partition("/")
        wanted = {"namespace": namespace, "verb": verb, "group": group, "resource": kind, "subresource": sub}
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {"user": account, "groups": groups, "resourceAttributes": {**wanted, "name": name}},
        }
        with cluster.plane.client() as client:
            answer = client.post("/apis/authorization.k8s.io/v1/subjectaccessreviews", json=review)
        return bool(answer.raise_for_status().json()["status"]["allowed"])

    return may


def full(server: Server) -> None:
    """Wait until the warm pool has its two ready pods."""

    def holds() -> bool:
        pool = pool_of(server, "my-interpreter")
        return bool(pool["ready"] == pool["target"] == 2)

    wait_until(holds, "the pool is full")


@pytest.mark.parametrize("overlay", ["overlays/quickstart", "overlays/production", "with-components"])
def test_manifests_are_taken_as_they_are(tmp_path: Path, overlay: str) -> None:
    """The server validates every object of what `kubectl apply -k` sends: schemas, admission, and all."""
    with in_thread() as cluster:
        kubectl = make_kubectl(cluster, tmp_path)
        target = f"manifests/{overlay}"
        if overlay == "with-components":
            target = str(tmp_path / "made")
            (tmp_path / "made").mkdir()
            up = "../" * len((tmp_path / "made").parts[1:]) + str(ROOT)[1:] + "/manifests"
            made = {
                "apiVersion": "kustomize.config.k8s.io/v1beta1",
                "kind": "Kustomization",
                "resources": [f"{up}/overlays/production"],
                "components": [f"{up}/components/{name}" for name in ("shared-volume", "prepull")],
            }
            (tmp_path / "made" / "kustomization.yaml").write_text(yaml.safe_dump(made))
        kubectl("apply", "-f", "manifests/sandboxes/namespace.yaml")  # a dry run makes none, and objects go into it
        said = kubectl("apply", "--dry-run=server", "-k", target)
        assert "deployment.apps/wakegate created (server dry run)" in said
        assert all(line.endswith("(server dry run)") for line in said.splitlines())


def test_gateways_account_may_do_what_it_needs_and_no_more(tmp_path: Path) -> None:
    """The server's own verdict on the shipped Roles: all rights of the list, and nothing that would give it others."""
    with in_thread() as cluster:
        kubectl = make_kubectl(cluster, tmp_path)
        kubectl("apply", "-k", "manifests/sandboxes")
        kubectl("apply", "-n", "wakegate", "-f", "manifests/base/access.yaml")
        kubectl("apply", "-k", "manifests/node-leases")
        may = make_may(cluster)
        for namespace, wanted in (
            ("wakegate-sandboxes", rights.SANDBOXES), ("wakegate", rights.GATEWAY), ("kube-node-lease", rights.NODES),
        ):  # fmt: skip
            for right in wanted:
                for verb in right.verbs:
                    assert may(verb, right.resource, namespace, right.group, right.name), right
        rbac = "rbac.authorization.k8s.io"
        for verb, resource, group in (
            ("get", "secrets", ""), ("list", "secrets", ""), ("create", "pods/exec", ""), ("create", "pods/attach", ""),
            ("create", "serviceaccounts/token", ""), ("create", "rolebindings", rbac), ("escalate", "roles", rbac),
            ("patch", "namespaces", ""), ("list", "networkpolicies", "networking.k8s.io"),
        ):  # fmt: skip
            assert not may(verb, resource, "wakegate-sandboxes", group), (verb, resource)
        for verb, resource, namespace in (
            ("list", "secrets", "wakegate"), ("list", "pods", "wakegate"), ("create", "pods", "wakegate"),
            ("create", "pods", "kube-system"), ("list", "pods", "default"), ("impersonate", "users", ""),
            ("get", "nodes", ""), ("delete", "namespaces", ""),
        ):  # fmt: skip
            assert not may(verb, resource, namespace), (verb, resource, namespace)
        assert not may("get", "secrets", "wakegate", name="wakegate-admin-key")


async def test_tokens_of_service_accounts_are_verified_with_the_servers_keys(
    opened: tuple[Server, Cluster, Kubectl], tmp_path: Path
) -> None:
    """As a pod's: made for our audience by the API server, whose keys are read with a token of our own."""
    _, cluster, kubectl = opened
    plane = cluster.plane  # type: ignore[attr-defined]  # of the real one
    kubectl("create", "serviceaccount", "agent", "-n", "default")
    (tmp_path / "token").write_text(kubectl("create", "token", "agent", "-n", "default"))
    (tmp_path / "ca.crt").write_bytes(plane.ca.read_bytes())
    settings = Settings(
        oidc_issuer="https://kubernetes.default.svc",
        oidc_jwks_url=f"{plane.url}/openid/v1/jwks",
        oidc_audience="wakegate",
        oidc_tenant_claim="kubernetes.io.namespace",
        oidc_roles_claim="sub",
        oidc_role_map="system:serviceaccount:default:*=member",
        oidc_user_claim="=",
    )
    verifier = make_verifier(settings, SystemClock(), tmp_path)
    assert verifier is not None
    known = await verifier.verify(kubectl("create", "token", "agent", "-n", "default", "--audience=wakegate").strip())
    assert (known.role, known.tenant) == (Role.MEMBER, "default")
    assert known.subject.startswith("oidc:system:serviceaccount:default:agent@")
    with pytest.raises(UnauthorizedError, match="aud"):
        await verifier.verify(kubectl("create", "token", "agent", "-n", "default").strip())


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({}, "spec.template: Required value"),
        ({"template": {"image": 3}}, "spec.template.image"),
        ({"template": {}, "warmPoolSize": -1}, "spec.warmPoolSize in body should be greater than or equal to 0"),
        ({"template": {}, "authMode": "ldap"}, 'spec.authMode: Unsupported value: "ldap"'),
        ({"template": {}, "wakegate": {"pool": {"mode": "sometimes"}}}, "spec.wakegate.pool.mode: Unsupported value"),
        ({"template": {}, "ports": [{"port": 99999}]}, "spec.ports[0].port in body should be less than or equal"),
    ],
)
def test_runtime_that_is_wrong_is_refused_with_its_field(
    opened: tuple[Server, Cluster, Kubectl], spec: Any, words: str
) -> None:
    """The schema, not the gateway, rejects it, before anything is stored."""
    with pytest.raises(ApiError) as refused:
        opened[1].create("codeinterpreters", "bad", namespace="default", spec=spec)
    assert refused.value.status == 422
    assert words in refused.value.message


def test_runtime_gets_its_defaults_and_shows_its_state(opened: tuple[Server, Cluster, Kubectl]) -> None:
    """What the schema fills in, and the columns of `kubectl get`."""
    server, cluster, kubectl = opened
    full(server)
    spec = cluster.objects.get(INTERPRETERS, "default", "my-interpreter")["spec"]
    assert (spec["sessionTimeout"], spec["maxSessionDuration"], spec["authMode"]) == ("15m", "8h", "picod")

    def shown() -> bool:
        head, row = kubectl("get", "codeinterpreters").splitlines()
        assert head.split() == ["NAME", "READY", "REASON", "WARM", "CLAIMED", "TARGET", "AGE"]
        return row.split()[:6] == ["my-interpreter", "True", "SandboxReady", "2", "0", "2"]

    wait_until(shown, "the columns tell of the pool")


def test_rollout_is_undone_by_kubectl_and_leaves_sessions(opened: tuple[Server, Cluster, Kubectl]) -> None:
    """A new image rolls the warm pods, `kubectl rollout undo` brings the earlier one back and no gateway changes that;
    the session keeps its pod."""
    server, cluster, kubectl = opened
    session = written(server, "kept")
    uid = pod_of(cluster, session)["metadata"]["uid"]

    def images() -> set[str]:
        return {pod["spec"]["containers"][0]["image"] for pod in cluster.pods(**WARM)}

    new = {**INTERPRETER, "template": {**INTERPRETER["template"], "image": "wakegate/picod:next"}}
    cluster.objects.update(INTERPRETERS, "default", "my-interpreter", lambda present: {**present, "spec": new})
    wait_until(lambda: images() == {"wakegate/picod:next"}, "the pool has rolled")
    full(server)
    kubectl("rollout", "undo", "deployment/my-interpreter-ci-pool")
    wait_until(lambda: images() == {"wakegate/picod:test"}, "the roll is undone")
    full(server)
    assert makes_session(server, "my-interpreter") == 201
    assert images() == {"wakegate/picod:test"}
    assert server.run(session, "cat note").json()["stdout"] == "kept\n"
    assert pod_of(cluster, session)["metadata"]["uid"] == uid


def test_drained_node_costs_no_session_its_files(opened: tuple[Server, Cluster, Kubectl]) -> None:
    """`kubectl drain` evicts its pod; the next request has the files on the other node."""
    server, cluster, kubectl = opened
    session = written(server, "drained")
    node = pod_of(cluster, session)["spec"]["nodeName"]
    kubectl("drain", node, "--force", "--delete-emptydir-data", "--timeout=50s")
    reply = server.run(session, "cat note")
    assert (reply.status_code, reply.json()["stdout"]) == (200, "drained\n")
    assert reply.headers["x-wakegate-start"] in ("wake", "wake-cold")
    assert pod_of(cluster, session)["spec"]["nodeName"] != node
    kubectl("uncordon", node)
    full(server)


def test_pods_meet_the_restricted_standard(opened: tuple[Server, Cluster, Kubectl]) -> None:
    """Where Pod Security's strictest level is enforced, sandboxes start, warm and cold, and the server warns of nothing
    in our own Deployments."""
    server, cluster, kubectl = opened
    level = "pod-security.kubernetes.io/"
    kubectl("label", "namespace", "default", f"{level}enforce=restricted")
    kubectl("label", "namespace", "wakegate", f"{level}enforce=restricted", f"{level}warn=restricted")
    try:
        full(server)
        for _ in range(4):
            assert makes_session(server, "my-interpreter") == 201
        full(server)
        starts = {pod["metadata"]["annotations"].get("wakegate.io/start") for pod in cluster.pods()}
        assert starts >= {"warm", "cold"}
        for overlay in ("quickstart", "production"):
            said = kubectl("apply", "--dry-run=server", "-k", f"manifests/overlays/{overlay}")
            assert "deployment.apps/wakegate created" in said
    finally:
        for namespace in ("default", "wakegate"):
            kubectl("label", "namespace", namespace, f"{level}enforce-", f"{level}warn-")


def test_claims_at_once_under_a_quota_all_succeed(opened: tuple[Server, Cluster, Kubectl]) -> None:
    """Twenty pods that are counted into one ResourceQuota at once: none is refused while there is room."""
    server, cluster, _ = opened
    full(server)
    cluster.create("resourcequotas", "many", namespace="default", spec={"hard": {"pods": "60"}})
    quotas = BY_PLURAL["resourcequotas"]
    wait_until(lambda: cluster.objects.get(quotas, "default", "many").get("status"), "the quota is counted")
    try:
        with ThreadPoolExecutor(20) as threads:
            answers = list(threads.map(lambda _: makes_session(server, "my-interpreter"), range(20)))
        assert answers == [201] * 20
    finally:
        cluster.delete("resourcequotas", "default", "many")


def test_server_that_comes_back_without_its_history_is_followed(opened: tuple[Server, Cluster, Kubectl]) -> None:
    """After kill -9 of kube-apiserver and a compacted etcd every watch gets 410 and lists again; the pool fills."""
    server, cluster, _ = opened
    session = written(server, "here")
    cluster.await_(cluster.stop_api)
    assert server.run(session, "cat note").json()["stdout"] == "here\n"
    cluster.await_(cluster.start_api)
    cluster.plane.compact()  # type: ignore[attr-defined]  # a real cluster's
    wait_until(lambda: makes_session(server, "my-interpreter") == 201, "sessions are made")
    full(server)
    wait_until(lambda: condition(cluster, "my-interpreter")["status"] == "True", "the status is written")
    assert server.run(session, "cat note").json()["stdout"] == "here\n"


def test_runtime_that_is_deleted_takes_all_that_is_its_own(opened: tuple[Server, Cluster, Kubectl]) -> None:
    """The garbage collector goes by our owner references: pool, warm pods, claimed pods and network policy; also when
    deletion is to wait for them (--cascade=foreground)."""
    server, cluster, kubectl = opened
    spec = {**INTERPRETER, "warmPoolSize": 1, "wakegate": {"egress": ["dns"]}}
    cluster.create("codeinterpreters", "short", namespace="default", spec=spec)
    wait_until(lambda: makes_session(server, "short") == 201, "it has a session")
    labels = {"wakegate.io/runtime": "short"}
    wait_until(lambda: len(cluster.pods(**labels)) == 2, "a warm pod and a claimed one")
    kubectl("delete", "codeinterpreter", "short", "--cascade=foreground", "--timeout=50s")
    wait_until(lambda: not cluster.pods(**labels), "its pods go")

    def left() -> list[str]:
        every = (each for name in ("deployments", "networkpolicies") for each in cluster.objects.all(BY_PLURAL[name]))
        return [each["metadata"]["name"] for each in every if each["metadata"]["name"].startswith("short-")]

    wait_until(lambda: not left(), "its Deployment and its policy go")
