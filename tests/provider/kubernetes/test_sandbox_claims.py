"""SandboxClaims of a cluster: agent-sandbox's own client, the API server and a gateway that answers its claims."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from k8s_agent_sandbox.exceptions import SandboxClaimFailedError, SandboxWarmPoolNotFoundError
from k8s_agent_sandbox.models import SandboxDirectConnectionConfig
from k8s_agent_sandbox.sandbox_client import SandboxClient
from kubernetes.client import ApiException, CustomObjectsApi
from kubernetes.config import new_client_from_config

from gateway.build import build
from gateway.core.errors import SettingsError
from gateway.core.settings import Settings
from tests.support.keyed import make_key, serve_with_keys
from tests.support.kube.clusters import in_thread
from tests.support.kube.served import INTERPRETER, MANIFESTS, enforce_roles, flags_for
from tests.support.kube.simulator import Cluster
from tests.support.serve import Server, serve
from tests.support.waiting import wait_until

POOL = "my-interpreter"
CLAIMS = ("extensions.agents.x-k8s.io", "v1beta1", "default", "sandboxclaims")
SANDBOXES = ("agents.x-k8s.io", "v1beta1", "default", "sandboxes")
FINALIZER = "wakegate.io/session"


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Cluster]]:
    """A gateway that asks for keys and answers claims for the tenant `acme`, with the rights shipped for that."""
    folder = tmp_path_factory.mktemp("claims")
    with in_thread() as cluster:
        cluster.call(lambda: cluster.create("codeinterpreters", POOL, namespace="default", spec=INTERPRETER))
        enforce_roles(cluster, MANIFESTS / "sandbox-claims/access.yaml")
        with serve_with_keys(folder, *flags_for(cluster, folder), "--kube-claims-tenant", "acme") as server:
            yield server, cluster


@pytest.fixture(scope="module")
def api(both: tuple[Server, Cluster], tmp_path_factory: pytest.TempPathFactory) -> Iterator[CustomObjectsApi]:
    """The API server, for a person with all rights; their claims are gone afterwards."""
    config = both[1].kubeconfig(tmp_path_factory.mktemp("admin"), admin=True)
    made = CustomObjectsApi(new_client_from_config(str(config)))  # type: ignore[no-untyped-call]
    yield made
    left: Any = made.list_namespaced_custom_object(*CLAIMS)
    for each in left["items"]:
        delete(made, each["metadata"]["name"])


@pytest.fixture(scope="module")
def key(both: tuple[Server, Cluster]) -> str:
    """A key of the claims' tenant."""
    return make_key(both[0], "acme")


@pytest.fixture
def client(both: tuple[Server, Cluster], api: CustomObjectsApi, key: str) -> SandboxClient[Any]:
    """As a user has it: the cluster's own kubeconfig, and the gateway as the router."""
    headers = {"Authorization": f"Bearer {key}"}
    return SandboxClient(
        connection_config=SandboxDirectConnectionConfig(api_url=both[0].url, server_port=8888, extra_headers=headers),
        api_client=api.api_client,
    )


def claim(name: str, **spec: Any) -> dict[str, Any]:
    """A claim of the pool."""
    group, version = CLAIMS[:2]
    fields = {"warmPoolRef": {"name": POOL}, **spec}
    return {"apiVersion": f"{group}/{version}", "kind": "SandboxClaim", "metadata": {"name": name}, "spec": fields}


def look(api: CustomObjectsApi, *path: str) -> Any:
    """An object as it is now."""
    get: Any = api.get_namespaced_custom_object
    return get(*path)


def ready(api: CustomObjectsApi, name: str) -> dict[str, Any]:
    """The Ready condition of a claim; empty while there is none."""
    status = look(api, *CLAIMS, name).get("status") or {}
    return next((each for each in status.get("conditions", []) if each["type"] == "Ready"), {})


def is_absent(api: CustomObjectsApi, *path: str) -> bool:
    """Whether there is no such object."""
    try:
        look(api, *path)
    except ApiException as error:
        return bool(error.status == 404)
    return False


def delete(api: CustomObjectsApi, name: str) -> None:
    """Delete a claim, and wait until it is gone."""
    with suppress(ApiException):
        api.delete_namespaced_custom_object(*CLAIMS, name)
    wait_until(lambda: is_absent(api, *CLAIMS, name), f"claim {name} goes")


def test_client_gets_a_warm_pod_by_a_claim_of_the_cluster(
    both: tuple[Server, Cluster], client: SandboxClient[Any], api: CustomObjectsApi, key: str
) -> None:
    """A user's program, unmodified: claim, commands, files, look-ups; what it deletes takes session and pod along."""
    server, cluster = both
    wait_until(lambda: len(cluster.pods(**{"wakegate.io/pool": "warm"})) == 2, "the pool is full")
    sandbox = client.create_sandbox(POOL, labels={"team": "a"}, env={"GREETING": "hello"})
    names = sandbox.claim_name, sandbox.sandbox_id
    try:
        assert sandbox.commands.run("sh -c 'echo $GREETING'").stdout == "hello\n"
        sandbox.files.write("d/a.txt", b"text")
        assert sandbox.files.read("d/a.txt") == b"text"
        assert client.get_sandbox(sandbox.claim_name).sandbox_id == sandbox.sandbox_id
        assert sandbox.claim_name in client.list_all_sandboxes()
        session = sandbox.sandbox_id.removeprefix("s-")
        made = look(api, *CLAIMS, sandbox.claim_name)
        assert (made["metadata"]["uid"], made["metadata"]["finalizers"]) == (session, [FINALIZER])
        headers = {"authorization": f"Bearer {key}"}
        record = server.client.get(f"/v1/sessions/{session}", headers=headers).json()
        assert (record["state"], record["tenant"], record["start"]) == ("active", "acme", "warm")
        other = {"authorization": f"Bearer {make_key(server, 'other')}", "x-sandbox-id": sandbox.sandbox_id}
        assert server.client.post("/execute", json={"command": "true"}, headers=other).status_code == 404
        assert len(cluster.pods(**{"wakegate.io/pool": "claimed"})) == 1
    finally:
        sandbox.terminate()
    wait_until(lambda: is_absent(api, *CLAIMS, str(names[0])), "the claim goes")
    wait_until(lambda: is_absent(api, *SANDBOXES, names[1]), "its Sandbox goes")
    assert server.client.get(f"/v1/sessions/{session}", headers=headers).json()["state"] == "terminated"
    wait_until(lambda: not cluster.pods(**{"wakegate.io/pool": "claimed"}), "its pod goes")


def test_claims_that_cannot_be_answered_say_why(client: SandboxClient[Any], api: CustomObjectsApi) -> None:
    """An unknown pool and a broken claim fail at once at the client; one whose pool comes later is answered then."""
    with pytest.raises(SandboxWarmPoolNotFoundError):
        client.create_sandbox("no-such-pool")
    with pytest.raises(SandboxClaimFailedError):
        client.create_sandbox(POOL, volume_claim_templates=[{"metadata": {"name": "v"}}])
    api.create_namespaced_custom_object(*CLAIMS, claim("late", warmPoolRef={"name": "later"}))
    wait_until(lambda: ready(api, "late").get("reason") == "WarmPoolNotFound", "the pool is missed")
    later = ("runtime.agentcube.volcano.sh", "v1alpha1", "default", "codeinterpreters")
    runtime = {
        "apiVersion": f"{later[0]}/{later[1]}", "kind": "CodeInterpreter",
        "metadata": {"name": "later"}, "spec": {**INTERPRETER, "warmPoolSize": 1},
    }  # fmt: skip
    api.create_namespaced_custom_object(*later, runtime)
    wait_until(lambda: ready(api, "late").get("status") == "True", "the claim is answered")
    delete(api, "late")
    api.delete_namespaced_custom_object(*later, "later")


def test_sandbox_sleeps_and_wakes_by_its_operating_mode(
    both: tuple[Server, Cluster], client: SandboxClient[Any], api: CustomObjectsApi, key: str
) -> None:
    """Its pod goes, its files stay; a request wakes it as well, and is not put to sleep again for it."""
    server, _ = both
    sandbox = client.create_sandbox(POOL, claim_name="sleeper")
    sandbox.files.write("kept.txt", b"kept")

    def suspended() -> str:
        conditions = look(api, *SANDBOXES, sandbox.sandbox_id)["status"]["conditions"]
        return next(str(each["status"]) for each in conditions if each["type"] == "Suspended")

    def switch(mode: str) -> None:
        body = {"spec": {"operatingMode": mode}}
        api.patch_namespaced_custom_object(*SANDBOXES, sandbox.sandbox_id, body)

    wait_until(lambda: suspended() == "False", "it runs")
    switch("Suspended")
    wait_until(lambda: suspended() == "True", "it sleeps")
    assert ready(api, "sleeper")["status"] == "True"
    headers = {"authorization": f"Bearer {key}"}
    path = f"/v1/sessions/{sandbox.sandbox_id.removeprefix('s-')}"
    assert server.client.get(path, headers=headers).json()["state"] == "hibernated"
    assert sandbox.files.read("kept.txt") == b"kept"
    wait_until(lambda: suspended() == "False", "the request has woken it, and it stays awake")
    assert server.client.get(path, headers=headers).json()["state"] == "active"
    switch("Running")  # a change, after which it may change back
    switch("Suspended")
    wait_until(lambda: suspended() == "True", "it sleeps again")
    switch("Running")
    wait_until(lambda: suspended() == "False", "it wakes")
    delete(api, "sleeper")


def test_claim_ends_with_its_time_and_its_session(
    both: tuple[Server, Cluster], api: CustomObjectsApi, key: str
) -> None:
    """A session that its user ends leaves a claim that says so, or, where its author wants that, none."""
    server, _ = both
    headers = {"authorization": f"Bearer {key}"}
    for name, policy in (("stays", "Retain"), ("goes", "Delete")):
        made: Any = api.create_namespaced_custom_object(*CLAIMS, claim(name, lifecycle={"shutdownPolicy": policy}))
        wait_until(lambda name=name: ready(api, name).get("status") == "True", "it is answered")  # type: ignore[misc]
        assert server.client.delete(f"/v1/sessions/{made['metadata']['uid']}", headers=headers).status_code == 204
    wait_until(lambda: ready(api, "stays")["reason"] == "SandboxExpired", "the claim says that it has ended")
    wait_until(lambda: is_absent(api, *CLAIMS, "goes"), "the other claim goes")
    delete(api, "stays")


async def test_tenant_of_claims_is_checked_before_anything_starts(tmp_path: Path) -> None:
    """Sessions of a name that no key can have would be out of everybody's reach."""
    with pytest.raises(SettingsError, match="kube-claims-tenant 'A B': expected a name"):
        await build(Settings(kube_claims_tenant="A B", state_dir=tmp_path))


def test_claim_that_is_deleted_while_no_gateway_runs_takes_its_session_along_later(tmp_path: Path) -> None:
    """Its finalizer holds it; the next gateway ends the session and its pod, and lets the claim go."""
    spec = {**INTERPRETER, "warmPoolSize": 1}
    with in_thread() as cluster:
        cluster.call(lambda: cluster.create("codeinterpreters", POOL, namespace="default", spec=spec))
        enforce_roles(cluster, MANIFESTS / "sandbox-claims/access.yaml")
        config = cluster.kubeconfig(tmp_path, admin=True)
        api = CustomObjectsApi(new_client_from_config(str(config)))  # type: ignore[no-untyped-call]
        flags = [*flags_for(cluster, tmp_path), "--kube-claims-tenant", "default"]
        with serve(tmp_path / "state", *flags):
            made: Any = api.create_namespaced_custom_object(*CLAIMS, claim("left"))
            wait_until(lambda: ready(api, "left").get("status") == "True", "it is answered")
        api.delete_namespaced_custom_object(*CLAIMS, "left")
        assert "deletionTimestamp" in look(api, *CLAIMS, "left")["metadata"]
        with serve(tmp_path / "state", *flags) as server:
            wait_until(lambda: is_absent(api, *CLAIMS, "left"), "the claim goes")
            assert server.client.get(f"/v1/sessions/{made['metadata']['uid']}").json()["state"] == "terminated"
            wait_until(lambda: is_absent(api, *SANDBOXES, f"s-{made['metadata']['uid']}"), "its Sandbox goes")
