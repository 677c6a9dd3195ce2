"""agent-sandbox's own client, and its wire, against a gateway with real sandboxes."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from k8s_agent_sandbox.exceptions import SandboxRequestError
from k8s_agent_sandbox.models import SandboxDirectConnectionConfig
from k8s_agent_sandbox.sandbox_client import SandboxClient
from kubernetes.client import ApiException
from kubernetes.config import new_client_from_config

from tests.support.serve import Server, serve
from tests.support.waiting import wait_until

CLAIMS = "/apis/extensions.agents.x-k8s.io/v1beta1/namespaces/default/sandboxclaims"
SANDBOXES = "/apis/agents.x-k8s.io/v1beta1/namespaces/default/sandboxes"
POOL = "my-interpreter"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One gateway for the module."""
    with serve(tmp_path_factory.mktemp("agent-sandbox") / "state", "--warm-pool", "1") as running:
        yield running


@pytest.fixture
def client(server: Server, tmp_path: Path) -> SandboxClient[Any]:
    """As a user has it: a kubeconfig that names the gateway as its cluster, and the gateway as the router."""
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(yaml.safe_dump({
        "apiVersion": "v1", "kind": "Config", "current-context": "w",
        "clusters": [{"name": "w", "cluster": {"server": server.url}}],
        "users": [{"name": "w", "user": {}}],
        "contexts": [{"name": "w", "context": {"cluster": "w", "user": "w"}}],
    }))  # fmt: skip
    return SandboxClient(
        connection_config=SandboxDirectConnectionConfig(api_url=server.url, server_port=8888),
        api_client=new_client_from_config(str(kubeconfig)),  # type: ignore[no-untyped-call]
    )


def claim_of(name: str, **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": name}, "spec": {"warmPoolRef": {"name": POOL}, **spec}}


def test_client_runs_commands_and_moves_files(client: SandboxClient[Any]) -> None:
    """Create, run, write, read, list, exists, status, adopt, terminate: a user's program, unmodified."""
    sandbox = client.create_sandbox(POOL, labels={"team": "a"}, env={"GREETING": "hello"})
    try:
        done = sandbox.commands.run("sh -c 'echo $GREETING; echo oops >&2; exit 3'")
        assert (done.stdout, done.stderr, done.exit_code, done.timed_out) == ("hello\n", "oops\n", 3, False)
        assert sandbox.commands.run("sleep 60", command_timeout=0.2).timed_out
        sandbox.files.write("d/a b.txt", b"\x00\xffbytes")
        assert sandbox.files.read("d/a b.txt") == b"\x00\xffbytes"
        assert [(each.name, each.size, each.type) for each in sandbox.files.list("d")] == [("a b.txt", 7, "file")]
        assert [each.type for each in sandbox.files.list(".") if each.name == "d"] == ["directory"]
        found = [sandbox.files.exists(path) for path in ("d/a b.txt", "d", "nothing")]
        assert found == [True, True, False]
        with pytest.raises(SandboxRequestError):
            sandbox.files.read("nothing")
        assert sandbox.claim_name in client.list_all_sandboxes()
    finally:
        sandbox.terminate()
    with pytest.raises(Exception, match="not found"):
        client.get_sandbox(sandbox.claim_name)


def test_claim_of_a_name_is_adopted_and_taken(client: SandboxClient[Any], server: Server) -> None:
    """The same claim for who asks again, a conflict for who does not; another warm pool is not found."""
    first = client.create_sandbox(POOL, claim_name="mine", adopt_existing=True)
    again = client.create_sandbox(POOL, claim_name="mine", adopt_existing=True)
    assert again.commands.run("true").exit_code == 0
    taken = server.client.post(CLAIMS, json=claim_of("mine"))
    assert (taken.status_code, taken.json()["reason"]) == (409, "AlreadyExists")
    first.terminate()
    with pytest.raises(ApiException) as absent:
        client.create_sandbox("no-such-pool")
    assert absent.value.status == 404
    assert "no-such-pool" in str(absent.value.body)


def test_claims_made_at_once_under_one_name_are_one(server: Server) -> None:
    """One of them is answered 201, the others 409."""
    statuses: list[int] = []
    threads = [
        threading.Thread(target=lambda: statuses.append(server.client.post(CLAIMS, json=claim_of("one")).status_code))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [201, 409, 409, 409]
    assert server.client.delete(f"{CLAIMS}/one").status_code == 200


def test_sandbox_is_suspended_and_wakes_with_its_files(server: Server) -> None:
    """By operatingMode, and by its next request."""
    made = server.client.post(CLAIMS, json=claim_of("sleeper")).json()
    name = made["status"]["sandbox"]["name"]
    headers = {"x-sandbox-id": name, "x-sandbox-namespace": "default", "x-sandbox-port": "8888"}
    assert server.client.post("/execute", json={"command": "sh -c 'echo kept > note'"}, headers=headers).json() == {
        "stdout": "", "stderr": "", "exit_code": 0, "timed_out": False,
    }  # fmt: skip
    patched = server.client.patch(f"{SANDBOXES}/{name}", json={"spec": {"operatingMode": "Suspended"}})
    assert patched.status_code == 200, patched.text
    assert patched.json()["spec"]["operatingMode"] == "Suspended"
    conditions = {each["type"]: each["status"] for each in patched.json()["status"]["conditions"]}
    assert conditions == {"Ready": "True", "Suspended": "True"}
    read = server.client.get("/download/note", headers=headers)
    assert (read.status_code, read.text) == (200, "kept\n")
    wait_until(
        lambda: server.client.get(f"{SANDBOXES}/{name}").json()["spec"]["operatingMode"] == "Running", "it is awake"
    )
    server.client.delete(f"{CLAIMS}/sleeper")


def test_watch_tells_what_there_is_and_what_becomes_of_it(server: Server) -> None:
    """From the version that the client names or any other; it ends after its time."""
    server.client.post(CLAIMS, json=claim_of("watched"))
    seen: list[str] = []
    query = {"watch": "true", "fieldSelector": "metadata.name=watched", "timeoutSeconds": "30", "resourceVersion": "0"}
    with server.client.stream("GET", CLAIMS, params=query) as reply:
        for line in reply.iter_lines():
            event = json.loads(line)
            seen.append(event["type"])
            assert event["object"]["metadata"]["name"] == "watched"
            if event["type"] == "ADDED":
                server.client.delete(f"{CLAIMS}/watched")
            if event["type"] == "DELETED":
                break
    assert (seen[0], seen[-1]) == ("ADDED", "DELETED")
    ended = server.client.get(CLAIMS, params={**query, "timeoutSeconds": "0"})
    assert (ended.status_code, ended.text) == (200, "")


def test_claim_ends_at_its_shutdown_time(server: Server) -> None:
    """As the session's ttl."""
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    made = server.client.post(CLAIMS, json=claim_of("timed", lifecycle={"shutdownTime": later})).json()
    session = server.state(made["metadata"]["uid"])
    assert session["expiresAt"][:19] == later[:19]
    server.client.delete(f"{CLAIMS}/timed")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "metadata.name"),
        ({"metadata": {"name": "A/b"}, "spec": {}}, "metadata.name"),
        ({"metadata": {"name": "x"}, "spec": []}, "spec"),
        ({"metadata": {"name": "x"}, "spec": {"warmPoolRef": {}}}, "warmPoolRef"),
        (claim_of("x", volumeClaimTemplates=[{}]), "volumeClaimTemplates"),
        (claim_of("x", env=[{"name": "A", "valueFrom": {}, "value": 1}]), "spec.env"),
        (claim_of("x", env=[{"name": f"A{n}", "value": "x" * 4000} for n in range(9)]), "16384 bytes"),
        (claim_of("x", lifecycle={"shutdownTime": "yesterday"}), "RFC 3339"),
        (claim_of("x", lifecycle={"shutdownTime": "2001-01-01T00:00:00Z"}), "past"),
    ],
)
def test_malformed_claim_is_refused_with_its_field(server: Server, body: dict[str, Any], says: str) -> None:
    """In a Status, as a cluster does, and nothing is made."""
    reply = server.client.post(CLAIMS, json=body)
    status = reply.json()
    assert (reply.status_code, status["kind"], status["code"]) == (400, "Status", 400)
    assert says in status["message"]
    assert server.client.get(f"{CLAIMS}/x").status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "headers", "body", "expected"),
    [
        ("POST", "/execute", {"x-sandbox-id": "s-nobody"}, {"command": "true"}, 404),
        ("POST", "/execute", {"x-sandbox-id": ""}, {"command": "true"}, 400),
        ("POST", "/execute", {"x-sandbox-id": "x" * 5000}, {"command": "true"}, 400),
        ("POST", "/execute", {"x-sandbox-port": "9000"}, {"command": "true"}, 400),
        ("POST", "/execute", {}, {"command": "echo 'open"}, 400),
        ("POST", "/execute", {}, {"command": ""}, 400),
        ("POST", "/execute", {}, {"command": 1}, 400),
        ("POST", "/execute", {}, {"command": "true", "timeout_seconds": -1}, 400),
        ("POST", "/execute", {}, [], 400),
        ("POST", "/upload", {}, {}, 400),
        ("GET", "/download/..%2F..%2Fetc%2Fpasswd", {}, None, 400),
        ("GET", "/download/%ff", {}, None, 400),
        ("GET", "/download/nothing", {}, None, 404),
        ("GET", "/list/nothing", {}, None, 404),
        ("GET", "/elsewhere", {}, None, 404),
    ],
)
def test_malformed_request_to_a_sandbox_is_refused(
    server: Server, method: str, path: str, headers: dict[str, str], body: Any, expected: int
) -> None:
    """With `detail` and `message`, and the sandbox goes on."""
    named = {"x-sandbox-id": shared_sandbox(server), "x-sandbox-port": "8888", **headers}
    reply = server.client.request(method, path, headers=named, content=json.dumps(body) if body is not None else None)
    assert reply.status_code == expected, reply.text
    assert reply.json()["message"]
    named = {"x-sandbox-id": shared_sandbox(server)}
    assert server.client.post("/execute", json={"command": "true"}, headers=named).json()["exit_code"] == 0


def shared_sandbox(server: Server) -> str:
    """The sandbox of the claim `shared`, which the first that asks for makes."""
    reply = server.client.get(f"{CLAIMS}/shared")
    if reply.status_code == 404:
        reply = server.client.post(CLAIMS, json=claim_of("shared"))
    name: str = reply.json()["status"]["sandbox"]["name"]
    return name


def test_label_selector_beyond_the_limit_is_refused_and_not_cut(server: Server) -> None:
    """Cut, it would select claims that were not asked for."""
    server.client.post(CLAIMS, json=claim_of("labelled")).raise_for_status()
    selector = ",".join(f"label-{number}=x" for number in range(250))
    answer = server.client.get(CLAIMS, params={"labelSelector": selector})
    assert (answer.status_code, "labelSelector: expected at most 2048" in answer.text) == (400, True)
    server.client.delete(f"{CLAIMS}/labelled")
