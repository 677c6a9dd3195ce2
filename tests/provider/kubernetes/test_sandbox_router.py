"""The router of agent-sandbox's own controllers: requests go to the pods of Sandboxes, and wake those that sleep."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from k8s_agent_sandbox.models import SandboxDirectConnectionConfig
from k8s_agent_sandbox.sandbox_client import SandboxClient
from kubernetes.client import CustomObjectsApi
from kubernetes.config import new_client_from_config
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from gateway.build import build
from gateway.core.errors import SettingsError
from gateway.core.settings import Settings
from tests.support.keyed import make_key
from tests.support.kube.sandbox_controllers import NAMESPACE, SandboxControllers, controlled, router_flags
from tests.support.kube.served import MANIFESTS
from tests.support.serve import Server, serve
from tests.support.waiting import wait_until

ADMIN = "a" * 40
PROGRAM = "tests.support.kube.router_gateway"


@pytest.fixture(scope="module")
def routed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, SandboxControllers]]:
    """A gateway that asks for keys and routes the namespace of the tenant `acme`, with the rights shipped for that."""
    folder = tmp_path_factory.mktemp("router")
    (folder / "admin").write_text(ADMIN)
    with controlled() as controllers:
        controllers.cluster.enforce(
            wakegate=(MANIFESTS / "base/access.yaml",),
            default=(MANIFESTS / "sandboxes/access.yaml",),
            agents=(MANIFESTS / "sandbox-router/access.yaml",),
        )
        flags = [
            *router_flags(controllers, folder),
            "--admin-key-file",
            str(folder / "admin"),
            "--audit-log",
            str(folder / "audit.log"),
        ]
        with serve(folder / "state", *flags, program=PROGRAM) as server:
            yield server, controllers


@pytest.fixture(scope="module")
def key(routed: tuple[Server, SandboxControllers]) -> str:
    """A key of the tenant."""
    return make_key(routed[0], "acme")


def to(name: str, key: str = "", **more: str) -> dict[str, str]:
    """The header fields that clients send for a Sandbox."""
    fields = {
        "x-sandbox-id": name,
        "x-sandbox-namespace": NAMESPACE,
        **({"authorization": f"Bearer {key}"} if key else {}),
    }
    return fields | {f"x-sandbox-{field}": value for field, value in more.items()}


def fields_of(shown: Any) -> dict[str, str]:
    """The header fields that the pod got."""
    return dict(shown["headers"])


def test_request_reaches_the_pod_as_it_is(routed: tuple[Server, SandboxControllers], key: str) -> None:
    """Path, query, method and fields of its own; nothing that proves to us who it is, and nothing of the hop."""
    server, controllers = routed
    controllers.create("plain")
    wait_until(lambda: controllers.is_ready("plain"), "it runs")
    headers = to("plain", key) | {
        "x-api-key": "secret", "cookie": "wakegate_session=x; theme=dark", "x-custom": "kept", "te": "trailers",
        "connection": "x-hop", "x-hop": "gone", "x-session-id": "of-the-app",
    }  # fmt: skip
    reply = server.client.put("/v1/keys/a%2Fb?x=1&y", content=b"body", headers=headers)
    shown = reply.json()
    assert (shown["pod"], shown["method"], shown["target"], shown["port"]) == (
        "plain",
        "PUT",
        "/v1/keys/a%2Fb?x=1&y",
        8888,
    )
    fields = fields_of(shown)
    assert fields["host"] == f"{controllers.pods['plain'].address}:8888"
    assert (fields["cookie"], fields["x-custom"], fields["x-session-id"]) == ("theme=dark", "kept", "of-the-app")
    assert fields["x-sandbox-id"] == "plain"
    assert not {"authorization", "x-api-key", "x-hop", "te"} & fields.keys()
    assert "set-cookie" not in reply.headers
    assert (reply.headers["x-app"], reply.headers["x-content-type-options"]) == ("yes", "nosniff")
    other_port = server.client.get("/health", headers=to("plain", key, port="8889")).json()
    assert (other_port["target"], other_port["port"]) == ("/health", 8889)
    big = b"x" * (5 << 20)
    assert server.client.post("/count", content=big, headers=to("plain", key)).json() == {"size": len(big)}
    chunked = server.client.post("/count", content=iter([big, big]), headers=to("plain", key))
    assert chunked.json() == {"size": 2 * len(big)}


def test_answer_is_streamed(routed: tuple[Server, SandboxControllers], key: str) -> None:
    """What the pod has sent is there while it goes on."""
    server, controllers = routed
    controllers.create("streams")
    wait_until(lambda: controllers.is_ready("streams"), "it runs")
    with server.client.stream("GET", "/stream", headers=to("streams", key)) as reply:
        lines = reply.iter_lines()
        assert next(lines) == "first"
        controllers.cluster.call(controllers.pods["streams"].released.set)
        assert next(lines) == "last"


def test_websocket_reaches_the_pod_and_wakes_it(routed: tuple[Server, SandboxControllers], key: str) -> None:
    """Messages both ways, without what proves to us who it is; a refusal of the handshake is passed on as well."""
    server, controllers = routed
    controllers.create("socket", mode="Suspended")
    url = server.url.replace("http", "ws")
    with connect(f"{url}/socket", additional_headers=to("socket", key)) as socket:
        fields = json.loads(socket.recv())
        assert (fields["x-sandbox-id"], "authorization" in fields) == ("socket", False)
        socket.send("hello")
        assert socket.recv() == "echo hello"
    for path, name, status in (("socket", "unknown", 404), ("no-socket", "socket", 403)):
        with pytest.raises(InvalidStatus) as refused:
            connect(f"{url}/{path}", additional_headers=to(name, key))
        assert refused.value.response.status_code == status
        if status == 404:
            assert json.loads(refused.value.response.body)["detail"] == "sandbox unknown not found in agents"


def test_requests_are_in_the_audit_trail_with_their_sandbox(
    routed: tuple[Server, SandboxControllers], key: str
) -> None:
    """What may change something there, and what was refused for who asked."""
    server, controllers = routed
    controllers.create("audited")
    wait_until(lambda: controllers.is_ready("audited"), "it runs")
    for sent, status in ((key, 200), (make_key(server, "other"), 404), ("", 401)):
        assert server.client.post("/count?audited", content=b"abc", headers=to("audited", sent)).status_code == status
    trail = server.log.parent / "audit.log"

    def found() -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in trail.read_text().splitlines()]
        return [each for each in lines if each.get("detail", {}).get("path") == "/count"][-3:]

    wait_until(lambda: [each["status"] for each in found()] == [200, 404, 401], "all three are recorded")
    done, missed, denied = found()
    assert (done["action"], done["detail"]["sandbox"]) == ("sandbox.request", "agents/audited")
    assert (missed["actor"]["tenant"], denied["action"]) == ("other", "auth.denied")


def test_many_requests_wake_a_sandbox_with_one_patch(routed: tuple[Server, SandboxControllers], key: str) -> None:
    """Fifty that come at once are held until its pod is there, and all are answered."""
    server, controllers = routed
    controllers.create("sleeper", mode="Suspended")
    before = controllers.patches
    with ThreadPoolExecutor(50) as pool:
        replies = list(pool.map(lambda _: server.client.get("/", headers=to("sleeper", key)), range(50)))
    assert [reply.status_code for reply in replies] == [200] * 50
    assert {reply.json()["pod"] for reply in replies} == {"sleeper"}
    assert (controllers.patches - before, controllers.modes.count(("sleeper", "Running"))) == (1, 1)
    assert controllers.pods["sleeper"].requests == 50
    controllers.set_mode("sleeper", "Suspended")
    wait_until(lambda: not controllers.is_ready("sleeper"), "it sleeps again")
    assert server.client.get("/", headers=to("sleeper", key)).status_code == 200


def test_refusals_say_why(routed: tuple[Server, SandboxControllers], key: str) -> None:
    """In the shape of their router, and without a look at the cluster for what is malformed."""
    server, controllers = routed
    controllers.create("mine")
    wait_until(lambda: controllers.is_ready("mine"), "it runs")

    def refused(headers: dict[str, str]) -> tuple[int, str]:
        reply = server.client.get("/", headers=headers)
        return reply.status_code, str(reply.json()["detail"])

    named = {"x-sandbox-namespace": NAMESPACE, "authorization": f"Bearer {key}"}
    assert refused(named) == (400, "the request names no sandbox: send X-Sandbox-ID")
    for field, value in (
        ("id", "No Name"),
        ("port", "0"),
        ("port", "65536"),
        ("port", "80a"),
        ("timeout", "-1"),
        ("timeout", "0"),
    ):
        status, text = refused(to("mine", key) | {f"x-sandbox-{field}": value})
        assert (status, value in text) == (400, True)
    assert refused(to("unknown", key)) == (404, "sandbox unknown not found in agents")
    assert refused(to("mine"))[0] == 401
    # Another tenant's sandbox is one that is not there.
    assert refused(to("mine", make_key(server, "other"))) == (404, "sandbox mine not found in agents")
    viewer = server.client.post(
        "/v1/keys", json={"role": "viewer", "tenant": "acme"}, headers={"authorization": f"Bearer {ADMIN}"}
    )
    assert refused(to("mine", viewer.json()["key"]))[0] == 403
    status, text = refused(to("mine", key, port="81"))
    assert (status, "port 81 of sandbox mine" in text) == (502, True)
    silent = server.client.get("/held", headers=to("mine", key, timeout="0.5"))
    assert (silent.status_code, silent.json()["detail"]) == (504, "the sandbox was silent for 0.5 s")


def test_sandbox_that_does_not_become_ready_is_a_504(routed: tuple[Server, SandboxControllers], key: str) -> None:
    """After the time that the client gives it, with what its status says; one that is deleted meanwhile is a 404."""
    server, controllers = routed
    controllers.pause(paused=True)
    try:
        controllers.create("slow", mode="Suspended")
        reply = server.client.get("/", headers=to("slow", key, timeout="1"))
        assert (reply.status_code, reply.json()["detail"]) == (
            504, "sandbox slow was not ready within 1 s (DependenciesNotReady)",
        )  # fmt: skip
        with ThreadPoolExecutor(5) as pool:
            waiting = [pool.submit(server.client.get, "/", headers=to("slow", key)) for _ in range(5)]
            controllers.delete("slow")
            assert {each.result().status_code for each in waiting} == {404}
    finally:
        controllers.pause(paused=False)


def test_only_what_the_status_says_is_dialled(routed: tuple[Server, SandboxControllers], key: str) -> None:
    """Not what a client names; and nothing that is no pod's, whoever has written it there."""
    server, controllers = routed
    for name in ("target", "bystander"):
        controllers.create(name)
    wait_until(lambda: controllers.is_ready("target") and controllers.is_ready("bystander"), "they run")
    named = to("target", key) | {"x-sandbox-pod-ip": controllers.pods["bystander"].address}
    assert server.client.get("/", headers=named).json()["pod"] == "target"
    controllers.set_status("target", "169.254.169.254")
    replies: list[httpx.Response] = []

    def is_refused() -> bool:
        """Once the watch has told the gateway of it."""
        replies.append(server.client.get("/", headers=to("target", key, timeout="1")))
        return replies[-1].status_code == 504

    wait_until(is_refused, "the address is refused")
    assert "not of this cluster" in replies[-1].json()["detail"]
    assert {reply.json().get("pod") for reply in replies[:-1]} <= {"target"}


def test_client_of_agent_sandbox_uses_the_gateway_as_its_router(
    routed: tuple[Server, SandboxControllers], key: str, tmp_path: Path
) -> None:
    """Its program unmodified but for `api_url`: a claim of the cluster's own controllers, commands, files, a wake."""
    server, controllers = routed
    config = controllers.cluster.kubeconfig(tmp_path, admin=True)
    api = CustomObjectsApi(new_client_from_config(str(config)))  # type: ignore[no-untyped-call]
    client: SandboxClient[Any] = SandboxClient(
        connection_config=SandboxDirectConnectionConfig(
            api_url=server.url, server_port=8888, extra_headers={"Authorization": f"Bearer {key}"}
        ),
        api_client=api.api_client,
    )
    sandbox = client.create_sandbox("pool", namespace=NAMESPACE)
    assert sandbox.commands.run("echo hello").stdout == "hello\n"
    sandbox.files.write("a.txt", b"text")
    assert sandbox.files.read("a.txt") == b"text"
    controllers.set_mode(sandbox.sandbox_id, "Suspended")
    wait_until(lambda: not controllers.is_ready(sandbox.sandbox_id), "it sleeps")
    assert sandbox.commands.run("echo again").stdout == "again\n"


async def test_settings_that_contradict_are_refused(tmp_path: Path) -> None:
    """Before anything starts, with what is wrong."""
    for settings, wanted in (
        ({"kube_router_tenants": "agents"}, "expected NAMESPACE=TENANT"),
        ({"kube_router_tenants": "a=x,a=y", "engine": "kubernetes"}, "two tenants for the namespace a"),
        ({"kube_router_tenants": "a=x"}, "only with --engine kubernetes"),
        (
            {"kube_router_tenants": "default=x", "kube_claims_tenant": "x", "engine": "kubernetes"},
            "SandboxClaims are answered",
        ),
    ):
        with pytest.raises(SettingsError, match=wanted):
            await build(Settings(state_dir=tmp_path, **settings))  # type: ignore[arg-type]
