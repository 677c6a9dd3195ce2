"""Agents of the API in a cluster: custom resources that kubectl sees and changes, with revisions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.kube.served import in_cluster
from tests.support.kube.simulator import Cluster
from tests.support.kube.simulator.objects import BY_PLURAL
from tests.support.serve import Server
from tests.support.waiting import wait_until

PROGRAM = """
import http.server, os
class Agent(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        data = os.environ["SAYS"].encode()
        self.send_response(200)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
http.server.ThreadingHTTPServer((os.environ["POD_IP"], 8080), Agent).serve_forever()
"""
AGENTS = BY_PLURAL["agentruntimes"]
ADDRESS = {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Cluster]]:
    """One gateway and its cluster, with the shipped Roles."""
    with in_cluster(tmp_path_factory.mktemp("kube")) as opened:
        yield opened


def spec(says: str) -> dict[str, Any]:
    """An agent that says a word."""
    container = {
        "name": "agent", "image": "registry.example/agent:1", "command": ["python3", "-c", PROGRAM],
        "env": [ADDRESS, {"name": "SAYS", "value": says}],
    }  # fmt: skip
    return {"targetPort": [{"port": 8080, "protocol": "HTTP"}], "podTemplate": {"spec": {"containers": [container]}}}


def ask(server: Server, name: str, session: str = "") -> httpx.Response:
    headers = {"x-session-id": session} if session else {}
    return server.client.get(f"/v1/namespaces/default/agent-runtimes/{name}/invocations/", headers=headers)


def stable(server: Server, name: str) -> int:
    found: int = server.client.get(f"/v1/agents/{name}").json()["status"]["stable"]
    return found


def resource(cluster: Cluster, name: str) -> dict[str, Any]:
    """As `kubectl get agentruntime` shows it."""
    (found,) = [each for each in _all(cluster) if each["metadata"]["name"] == name]
    return found


def _all(cluster: Cluster) -> list[dict[str, Any]]:
    return cluster.call(lambda: cluster.objects.all(AGENTS, "default"))


def edit(cluster: Cluster, name: str, says: str) -> None:
    """As `kubectl edit` does."""

    def change(obj: dict[str, Any]) -> dict[str, Any]:
        obj["spec"]["podTemplate"] = spec(says)["podTemplate"]
        return obj

    cluster.call(lambda: cluster.objects.update(AGENTS, "default", name, change))


def said(obj: dict[str, Any]) -> str:
    word: str = obj["spec"]["podTemplate"]["spec"]["containers"][0]["env"][1]["value"]
    return word


def note(obj: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(obj["metadata"]["annotations"]["wakegate.io/agent"])
    return found


def test_sessions_move_to_another_revision_without_files_when_asked(both: tuple[Server, Cluster]) -> None:
    """Nothing in an agent's pod could keep them, so a move that does not say so is refused. The session goes on in a
    pod of the revision that serves, and its answer tells that nothing was restored; the earlier pod is gone."""
    server, cluster = both
    made = server.client.post("/v1/agents", json={"name": "mover", "spec": spec("one")})
    assert made.status_code == 201, made.text
    first = ask(server, "mover")
    session = first.headers["x-session-id"]
    (pod,) = cluster.pods(**{"runtime.agentcube.io/session-id": session})
    server.client.patch("/v1/agents/mover", json={"spec": spec("two")})
    wait_until(lambda: stable(server, "mover") == 2, "the second revision serves")

    refused = server.client.post("/v1/agents/mover/rollout", json={"action": "move"})
    assert refused.status_code == 409, refused.text
    assert "discardFiles" in refused.json()["error"]
    assert ask(server, "mover", session).text == "one"
    asked = {"action": "move", "discardFiles": True}

    def moved() -> bool:
        return bool(server.client.post("/v1/agents/mover/rollout", json=asked).raise_for_status().json()["moved"])

    wait_until(moved, "it is moved once its last request is over for every gateway")
    again = ask(server, "mover", session)
    assert (again.text, again.headers["x-wakegate-restored"]) == ("two", "none")
    wait_until(lambda: pod["metadata"]["uid"] not in _uids(cluster), "the earlier pod is gone")
    assert server.client.delete("/v1/agents/mover").status_code == 204


def _uids(cluster: Cluster) -> set[str]:
    return {each["metadata"]["uid"] for each in cluster.pods()}


def test_an_agent_of_the_api_is_a_custom_resource_with_revisions(both: tuple[Server, Cluster]) -> None:
    """Created, changed, edited with kubectl, undone and deleted; a session keeps its revision's pod."""
    server, cluster = both
    made = server.client.post("/v1/agents", json={"name": "greeter", "spec": spec("one")})
    assert made.status_code == 201, made.text
    obj = resource(cluster, "greeter")
    assert (said(obj), note(obj)["revision"]) == ("one", 1)
    again = server.client.post("/v1/agents", json={"name": "greeter", "spec": spec("one")})
    assert again.status_code == 409, again.text
    first = ask(server, "greeter")
    assert (first.status_code, first.text) == (200, "one"), first.text
    session = first.headers["x-session-id"]

    changed = server.client.patch("/v1/agents/greeter", json={"spec": spec("two"), "reason": "say two"})
    assert changed.status_code == 200, changed.text
    assert said(resource(cluster, "greeter")) == "two"
    wait_until(lambda: stable(server, "greeter") == 2, "the second revision serves")
    assert ask(server, "greeter").text == "two"
    assert ask(server, "greeter", session).text == "one"

    edit(cluster, "greeter", "three")
    wait_until(lambda: stable(server, "greeter") == 3, "what kubectl wrote is a revision that serves")
    assert ask(server, "greeter").text == "three"
    revisions = server.client.get("/v1/agents/greeter/revisions").json()["revisions"]
    assert [(each["revision"], each["reason"]) for each in revisions] == [
        (3, "changed in the cluster"), (2, "say two"), (1, ""),
    ]  # fmt: skip
    wait_until(lambda: note(resource(cluster, "greeter"))["revision"] == 3, "the object says so")

    undone = server.client.post("/v1/agents/greeter/rollout", json={"action": "undo"})
    assert undone.json()["stable"] == 2, undone.text
    assert said(resource(cluster, "greeter")) == "two"
    assert ask(server, "greeter").text == "two"
    # The status has the pool of what serves.
    wait_until(lambda: resource(cluster, "greeter")["status"].get("ready") is True, "kubectl shows it as ready")

    assert server.client.delete("/v1/agents/greeter").status_code == 204
    assert [each["metadata"]["name"] for each in _all(cluster)] == []
    wait_until(lambda: ask(server, "greeter").status_code == 404, "it is not served any more")


def test_agents_of_kubectl_are_shown_deleted_and_taken_over(both: tuple[Server, Cluster]) -> None:
    """One that kubectl applied is listed and not changed here, until an annotation makes it the API's; one that it
    deletes is gone."""
    server, cluster = both
    applied = {**spec("hers"), "warmPoolSize": 1}
    cluster.call(lambda: cluster.create("agentruntimes", "hers", namespace="default", spec=applied))

    def listed() -> dict[str, str]:
        agents = server.client.get("/v1/agents").json()["agents"]
        return {each["name"]: each["managedBy"] for each in agents}

    wait_until(lambda: listed() == {"hers": "manifest"}, "it is listed")
    for method, path in (("PATCH", ""), ("DELETE", ""), ("POST", "/stop")):
        refused = server.client.request(method, f"/v1/agents/hers{path}", json={} if method == "PATCH" else None)
        assert refused.status_code == 409, refused.text
        assert "kubectl" in refused.text
    taken = server.client.post("/v1/agents", json={"name": "hers", "spec": spec("mine")})
    assert taken.status_code == 409, taken.text

    def annotate(obj: dict[str, Any]) -> dict[str, Any]:
        obj["metadata"].setdefault("annotations", {})["wakegate.io/agent"] = "{}"
        return obj

    cluster.call(lambda: cluster.objects.update(AGENTS, "default", "hers", annotate))
    wait_until(lambda: listed() == {"hers": "api"}, "it is the API's")
    wait_until(lambda: ask(server, "hers").text == "hers", "it answers")
    assert server.client.patch("/v1/agents/hers", json={"spec": spec("mine")}).status_code == 200
    wait_until(lambda: stable(server, "hers") == 2, "its second revision serves")
    cluster.call(lambda: cluster.delete("agentruntimes", "default", "hers"))
    wait_until(lambda: listed() == {}, "what kubectl deleted is gone")
    assert ask(server, "hers").status_code == 404


def test_what_a_tenants_agent_may_not_ask_of_a_cluster_is_refused(both: tuple[Server, Cluster]) -> None:
    """400 with the field, before anything is written."""
    server, cluster = both
    for change, word in (
        ({"hostNetwork": True}, "hostNetwork"),
        ({"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "other"}}]}, "persistentVolumeClaim"),
        ({"serviceAccountName": "admin"}, "serviceAccountName"),
    ):  # fmt: skip
        wanted = spec("one")
        wanted["podTemplate"]["spec"] |= change
        reply = server.client.post("/v1/agents", json={"name": "greedy", "spec": wanted})
        assert (reply.status_code, word in reply.text) == (400, True), reply.text
    elsewhere = server.client.post("/v1/agents", json={"name": "a", "namespace": "kube-system", "spec": spec("one")})
    assert elsewhere.status_code == 400, elsewhere.text
    assert _all(cluster) == []


def test_an_image_is_deployed_and_kubectl_shows_it(both: tuple[Server, Cluster], tmp_path: Path) -> None:
    """With the image's own command, by the same words as on one machine."""
    server, cluster = both
    environ = {**os.environ, "WAKEGATE_URL": server.url, "XDG_CONFIG_HOME": str(tmp_path)}
    words = ["deploy", "--image", "registry.example/greeter:1.2", "--env", "SAYS=hello", "--pool", "0"]
    with subprocess.Popen([sys.executable, "-m", "gateway", *words], env=environ, stdout=subprocess.DEVNULL) as deploy:
        try:
            # The custom resource is written first, and the agent's record after it.
            wait_until(lambda: server.client.get("/v1/agents/greeter").status_code == 200, "it is there")
        finally:
            deploy.kill()
    (container,) = resource(cluster, "greeter")["spec"]["podTemplate"]["spec"]["containers"]
    assert (container["image"], "command" in container) == ("registry.example/greeter:1.2", False)
    assert {"name": "SAYS", "value": "hello"} in container["env"]
    assert server.client.delete("/v1/agents/greeter").status_code == 204
