"""Names that sandboxes in a cluster may reach, through the gateway: a real gateway, its service, and real picods.

One gateway over a real Redis serves all tests; the last ones have another beside it, and a Service that sends each
connection of a sandbox to the next of the two.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from gateway.core.model import Kind, Runtime, RuntimeKey
from gateway.provider.kubernetes.egress import make_egress
from gateway.provider.kubernetes.template import PodDefaults, make_template
from tests.support.internet import OTHER, PUBLIC, Internet, internet
from tests.support.kube.clusters import REAL, in_thread
from tests.support.kube.recovery import condition
from tests.support.kube.served import INTERPRETER, enforce_roles, flags_for, lend
from tests.support.kube.simulator import Cluster
from tests.support.kube.spreading import spreading
from tests.support.redis_server import RedisServer, free_port
from tests.support.serve import Server, child_that_runs, serve
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(REAL, reason="pods of the simulator have an address each on this machine's loopback"),
]

SPEC: dict[str, Any] = {
    **INTERPRETER,
    "wakegate": {"egress": ["*.example.com", "origin.example.com:22"], "egressLimits": {"bytes": "50Mi"}},
}


# Where TLS is ended. `lent` may be used by this runtime for that host, `other` is lent to nobody.
VALUE = "/".join(("sk-cluster-7Qx", "9+aV3nT0pLzK"))
ENDED: dict[str, Any] = {
    **INTERPRETER,
    "warmPoolSize": 1,
    "wakegate": {
        "egressLimits": {"bytes": "8Mi", "connections": 8},
        "egress": [
            "pypi",
            "origin.example.com:22,80,443",
            {"host": "other.example.com", "methods": ["GET"], "paths": ["/v1/"]},
        ],
        "secrets": [
            {
                "name": "API_KEY",
                "hosts": ["origin.example.com"],
                "bearer": True,
                "from": {"secret": "lent", "key": "k"},
            },
            {"name": "OTHER_KEY", "hosts": ["pypi.org"], "bearer": True, "from": {"secret": "other", "key": "k"}},
        ],
    },
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Internet]:
    with internet(tmp_path_factory.mktemp("world")) as made:
        yield made


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with in_thread() as made:
        made.call(lambda: made.create("codeinterpreters", "my-interpreter", namespace="default", spec=SPEC))
        made.call(lambda: made.create("codeinterpreters", "ended", namespace="default", spec=ENDED))
        enforce_roles(made)
        made.call(lambda: lend(made, "lent", {"k": VALUE}, to="default/ended", hosts="origin.example.com"))
        made.call(lambda: lend(made, "other", {"k": VALUE}, to="elsewhere/*", hosts="pypi.org"))
        yield made


@dataclass
class Gateways:
    """One or two, what starts them, and the Service before their ports."""

    start: Callable[[int], Server]
    ports: list[int]
    running: list[Server]


@pytest.fixture(scope="module")
def gateways(cluster: Cluster, world: Internet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateways]:
    """One, with the service. It is told by a name, which it has to look up."""
    folder, ports = tmp_path_factory.mktemp("gateway"), [free_port()]
    with ExitStack() as stack:
        redis = RedisServer(folder / "redis").start()
        stack.callback(redis.kill)
        service = stack.enter_context(spreading(ports))
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("TEST_EGRESS_WRAPPER", json.dumps(list(world.enter)))
        flags = [*flags_for(cluster, folder), "--store", redis.url, "--egress-ca", str(world.ca)]
        flags += ["--egress-address", f"localhost:{service}", "--snapshots", f"file://{folder}/snapshots"]

        def start(port: int) -> Server:
            own = ["--egress-port", str(port)]
            program = "tests.support.kube.worldly_gateway"
            return stack.enter_context(serve(folder / f"state-{port}", *flags, *own, program=program))

        yield Gateways(start, ports, [start(ports[0])])


@pytest.fixture(scope="module")
def server(gateways: Gateways) -> Server:
    """The gateway that is there from the beginning."""
    return gateways.running[0]


@pytest.fixture(scope="module")
def both(gateways: Gateways) -> list[Server]:
    """That one and another: from now on every second connection comes to the other."""
    port = free_port()
    gateways.running.append(gateways.start(port))
    gateways.ports.append(port)
    return gateways.running


def create(server: Server, runtime: str = "my-interpreter", **fields: Any) -> str:
    reply = server.client.post("/v1/sessions", json={"runtime": f"default/{runtime}", **fields})
    assert reply.status_code == 201, reply.text
    return str(reply.json()["id"])


def status_of(server: Server, session: str, url: str) -> str:
    """What curl gets, by the environment of the sandbox alone."""
    reply = server.run(session, f"curl -sSk -o /dev/null -w '%{{http_code}} %{{http_connect}}' {url}")
    assert reply.status_code == 200, reply.text
    return str(reply.json()["stdout"])


def log_of(server: Server, session: str) -> dict[str, Any]:
    document: dict[str, Any] = server.client.get(f"/v1/sessions/{session}/egress").json()
    return document


def test_sessions_reach_names_by_their_own_rules_and_are_seen(server: Server) -> None:
    """As on one machine: the runtime's names, a session's fewer ones, refusals in words, TLS untouched, one list."""
    usual, narrow = create(server), create(server, egress=["origin.example.com"])
    urls = ("http://origin.example.com/", "https://origin.example.com/", "http://other.example.com/",
            "https://third.example.net/")  # fmt: skip
    assert [status_of(server, usual, url) for url in urls] == ["200 000", "200 200", "200 000", "000 403"]
    assert [status_of(server, narrow, url) for url in urls] == ["200 000", "200 200", "403 000", "000 403"]
    wait_until(lambda: len(log_of(server, narrow)["log"]) == 4, "the session's list has all")
    seen = log_of(server, narrow)
    assert seen["connections"] == {"closed": 2, "refused": 2, "failed": 0, "cut": 0, "open": 0}
    assert {line["address"] for line in seen["log"] if line["outcome"] == "closed"} == {PUBLIC}
    shown = server.run(narrow, "curl -sS http://other.example.com/").json()["stdout"]
    assert "egress refused: other.example.com:80 is not allowed" in shown
    wait_until(lambda: log_of(server, usual)["bytesReceived"] > 500, "bytes are the session's")


def test_limit_holds_over_connections(server: Server) -> None:
    """50 MiB of one session, in pieces; another session has its own."""
    session, other = create(server), create(server)
    fetch = "curl -sS -o /dev/null -w '%{size_download}' http://origin.example.com/bytes/30000000"
    assert server.run(session, fetch).json()["stdout"] == "30000000"
    assert int(server.run(session, fetch).json()["stdout"]) < 23_000_000
    assert status_of(server, session, "http://origin.example.com/") == "403 000"
    assert status_of(server, other, "http://origin.example.com/") == "200 000"


def out_of(server: Server, session: str, command: str) -> str:
    """What a command prints that succeeds."""
    reply = server.run(session, command).json()
    assert reply["exit_code"] == 0, reply
    return str(reply["stdout"])


def test_tls_is_ended_for_methods_paths_and_lent_secrets(server: Server, world: Internet) -> None:
    """By an authority that the sandbox trusts, and with a value that it never has; what is not lent opens nothing."""
    session = create(server, "ended")
    answer = json.loads(out_of(server, session, "curl -sS https://origin.example.com/headers"))
    assert dict(answer["headers"])["authorization"] == f"Bearer {'*' * len(VALUE)}"
    sent = [dict(each["headers"]).get("authorization") for each in world.requests() if each["path"] == "/headers"]
    assert sent == [f"Bearer {VALUE}"]
    assert out_of(server, session, "printf %s $API_KEY").startswith("wakegate-secret-")
    assert VALUE not in out_of(server, session, "env; cat /proc/1/environ")
    assert status_of(server, session, "https://other.example.com/v1/x") == "200 200"
    assert status_of(server, session, "https://other.example.com/v2/x") == "403 200"
    assert status_of(server, session, "-X POST https://other.example.com/v1/x") == "403 200"
    assert status_of(server, session, "https://pypi.org/simple/") == "502 200"
    wait_until(lambda: len(log_of(server, session)["log"]) == 5, "the session's list has all")
    found = {line["host"]: line["secrets"] for line in log_of(server, session)["log"] if line["secrets"]}
    assert found == {"origin.example.com": "API_KEY"}


def test_status_says_which_secret_is_not_lent(server: Server, cluster: Cluster) -> None:
    """Who applies the runtime reads it there, before a sandbox has asked; one without secrets has no such line."""
    wait_until(lambda: condition(cluster, "ended", "SecretsReady")["status"] == "False", "the status is written")
    found = condition(cluster, "ended", "SecretsReady")
    assert found["reason"] == "NotLent"
    assert found["message"].startswith("OTHER_KEY: Secret wakegate/other is not lent to it")
    assert "API_KEY" not in found["message"]
    assert VALUE not in found["message"]
    wait_until(lambda: condition(cluster, "my-interpreter")["status"], "the other's status is written too")
    assert condition(cluster, "my-interpreter", "SecretsReady")["status"] is None


def test_package_is_downloaded_once_for_all_sandboxes(server: Server, world: Internet) -> None:
    """The second session's comes from the gateway."""
    content = b"wheel" * 1000
    digest = hashlib.blake2b(content, digest_size=32).hexdigest()
    path = f"packages/{digest[:2]}/{digest[2:4]}/{digest[4:]}/sample-1.0-py3-none-any.whl"
    (world.files / path).parent.mkdir(parents=True)
    (world.files / path).write_bytes(content)
    for _ in range(2):
        session = create(server, "ended")
        fetch = f"curl -sS https://files.pythonhosted.org/{path} | sha256sum"
        assert out_of(server, session, fetch).split()[0] == hashlib.sha256(content).hexdigest()
    asked = [each["address"] for each in world.requests() if each["path"] == f"/{path}"]
    assert asked == [OTHER]


def test_killed_service_is_replaced(server: Server) -> None:
    """kill -9: the next connection of the same session is served."""
    session = create(server)
    assert status_of(server, session, "http://origin.example.com/") == "200 000"
    os.kill(child_that_runs(server, "gateway.egress").pid, signal.SIGKILL)
    assert status_of(server, session, "http://origin.example.com/") == "200 000"


def test_environment_of_the_manifest_stays_and_agents_have_none() -> None:
    """What a manifest sets is not replaced; nothing is set where only networks are named, or no service is."""
    service = PodDefaults("picod:1", egress_service=("wakegate", 3129))

    def variables(spec: dict[str, Any], defaults: PodDefaults = service, **fields: Any) -> dict[str, str]:
        runtime = Runtime(RuntimeKey("default", "one"), manifest={"spec": spec}, **fields)
        container = make_template(runtime, defaults)["spec"]["containers"][0]
        return {each["name"]: each.get("value", "") for each in container["env"]}

    given = variables({"template": {"environment": [{"name": "NO_PROXY", "value": "mine"}]}}, egress=("pypi",))
    assert (given["NO_PROXY"], given["HTTPS_PROXY"]) == ("mine", "http://127.0.0.1:3128")
    assert {"NO_PROXY", "HTTPS_PROXY", "npm_config_proxy"} <= set(given["PICOD_FORWARD_ENV"].split(","))
    assert given["PICOD_EGRESS"] == "service"
    for other in (variables({}, egress=("10.0.0.0/8",)), variables({}, PodDefaults("picod:1"), egress=("pypi",))):
        assert not {"HTTPS_PROXY", "PICOD_EGRESS"} & other.keys()


def test_policy_opens_the_gateways_port_to_those_who_name_hosts() -> None:
    """And to nobody else; what is named as a network is open as before."""

    def policy(*egress: Any, kind: Kind = Kind.CODE_INTERPRETER) -> Any:
        runtime = Runtime(
            RuntimeKey("default", "one", kind),
            manifest={"spec": {"template": {}, "wakegate": {"egress": list(egress)}}},
            egress=tuple(each for each in egress if isinstance(each, str) and each != "dns"),
        )
        made = make_egress(runtime, service=("gateways", 3129))
        return None if made is None else made["spec"]["egress"]

    (rule,) = policy("pypi")
    assert rule["ports"] == [{"port": 3129, "protocol": "TCP"}]
    assert rule["to"][0]["namespaceSelector"] == {"matchLabels": {"kubernetes.io/metadata.name": "gateways"}}
    assert policy("10.0.0.0/8", "pypi") == [*policy("10.0.0.0/8"), rule]
    assert rule not in policy("10.0.0.0/8")
    assert policy("pypi", kind=Kind.AGENT_RUNTIME) is None


# Two gateways.

# Opens so many connections one after the other, and says how many are open at once.
HOLD = """
import os, socket, sys
host = os.environ["HTTP_PROXY"].removeprefix("http://").partition(":")[0]
held = 0
kept = []
for _ in range(int(sys.argv[1])):
    made = socket.create_connection((host, 3128))
    made.sendall(b"CONNECT origin.example.com:22 HTTP/1.1\\r\\n\\r\\n")
    kept.append(made)
    held += b" 200 " in made.recv(4096)
print(held)
"""


def seen(both: list[Server], session: str) -> list[int]:
    """How many connections of the session each gateway has in its list."""
    return [len(each.client.get(f"/v1/sessions/{session}/egress").json()["log"]) for each in both]


def test_one_authority_and_one_credential_at_both_gateways(both: list[Server]) -> None:
    """A sandbox trusts whichever gateway its connection comes to, and each puts the value in."""
    session = create(both[0], "ended")
    fetch = "curl -sS https://origin.example.com/headers"
    for _ in range(2):
        answer = json.loads(out_of(both[0], session, fetch))
        assert dict(answer["headers"])["authorization"] == f"Bearer {'*' * len(VALUE)}"
    wait_until(lambda: seen(both, session) == [1, 1], "each gateway has had one")


def test_limits_of_a_session_are_not_multiplied_by_gateways(both: list[Server]) -> None:
    """8 connections and 8 MiB of one session, though every second connection comes to the other gateway."""
    session = create(both[1], "ended")
    assert 7 <= int(out_of(both[1], session, f"python3 -c '{HOLD}' 20")) <= 8
    fetch = "curl -s -o /dev/null -w '%{size_download}\\n' http://origin.example.com/bytes/3000000 || true"
    got = [int(out_of(both[1], session, fetch)) for _ in range(4)]
    assert got[:2] == [3_000_000, 3_000_000]

    def moved() -> int:
        # Not what came there: a connection that is cut takes with it what has not been read.
        return sum(int(log_of(each, session)["bytesReceived"]) for each in both)

    wait_until(lambda: moved() > 7 << 20, "all of it was moved")
    # Beyond the limit a connection moves the piece of 256 KiB that it has in hand, and one while it asks for more.
    assert moved() <= (8 << 20) + 4 * (256 << 10)
    assert min(seen(both, session)) > 0
