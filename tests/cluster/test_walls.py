"""What a sandbox reaches, and what the gateway's account may do: NetworkPolicies and Roles that are enforced."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest
import yaml

from tests.cluster.gateway import Gateway
from tests.support.kube.whole import network
from tests.support.kube.whole.cluster import NAMESPACE, ROOT, SANDBOXES, WholeCluster
from tests.support.waiting import wait_until

_PORT = 80
# Prints how a connection, or a question to a DNS server, ends.
_PROBE = """
import socket, sys
kind, host, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
try:
    if kind == "udp":
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(1.5)
        s.sendto(b"\\0\\1\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0\\1a\\0\\0\\1\\0\\1", (host, port)); s.recv(512)
    else:
        socket.create_connection((host, port), 1.5)
    print("open")
except OSError as error:
    print("refused" if isinstance(error, ConnectionRefusedError) else "no answer")
"""
_FREE = "free"  # a pod that no policy concerns


@pytest.fixture(scope="module")
def outside() -> Iterator[None]:
    """A server on the addresses that stand for the internet and for a cloud's metadata server."""
    argv = [sys.executable, "-m", "http.server", str(_PORT), "--bind", "0.0.0.0"]
    server = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/proc/self/fdinfo")
    yield
    server.kill()
    server.wait()


@pytest.fixture(scope="module")
def targets(cluster: WholeCluster, gateway: Gateway, outside: None) -> dict[str, tuple[str, str, int]]:
    """Everything that a sandbox might want to reach and must not."""

    def address(namespace: str, selector: str) -> str:
        return str(cluster.pods(namespace, selector)[0]["status"]["podIP"])

    other = gateway.session("other")
    return {
        "another sandbox": ("tcp", address(SANDBOXES, f"runtime.agentcube.io/session-id={other}"), 8080),
        "the gateway's pod": ("tcp", address(NAMESPACE, "app.kubernetes.io/component=gateway"), 8080),
        "the gateway's Service": ("tcp", cluster.url.removeprefix("http://"), 80),
        "Redis": ("tcp", address(NAMESPACE, "app.kubernetes.io/component=redis"), 6379),
        "the API server": ("tcp", network.PLANE, 6443),
        "the API server's Service": ("tcp", "10.96.0.1", 443),
        "a kubelet": ("tcp", cluster.nodes[0].address, 10250),
        "the other kubelet": ("tcp", cluster.nodes[1].address, 10250),
        "DNS": ("udp", network.PLANE, network.DNS_PORT),
        "the metadata server": ("tcp", network.METADATA, _PORT),
        "the internet": ("tcp", network.OUTSIDE, _PORT),
    }


@pytest.fixture(scope="module")
def free(cluster: WholeCluster) -> str:
    """A pod of the sandboxes' image outside their namespace."""
    container = {
        "name": "c", "image": "wakegate/picod:0.1.0", "command": ["python", "-c", "import time; time.sleep(9999)"],
    }  # fmt: skip
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": _FREE}, "spec": {"containers": [container]}}
    cluster.kubectl("apply", "-n", "default", "-f", "-", given=json.dumps(pod))
    cluster.kubectl("wait", "-n", "default", "--for=condition=Ready", f"pod/{_FREE}", "--timeout=60s", within=70)
    return _FREE


def test_sandbox_reaches_nothing(
    cluster: WholeCluster,
    gateway: Gateway,
    targets: dict[str, tuple[str, str, int]],
    free: str,
    figures: dict[str, object],
) -> None:
    """And a pod that no policy concerns reaches each of the same, but for what guards itself: probes can succeed."""
    session = gateway.session()
    seen, freely = {}, {}
    for name, (kind, host, port) in targets.items():
        seen[name] = gateway.output(session, f"python -c '{_PROBE}' {kind} {host} {port}").strip()
        freely[name] = cluster.kubectl(
            "exec", "-n", "default", free, "--", "python", "-c", _PROBE, kind, host, str(port)
        ).strip()  # fmt: skip
    gateway.end(session)
    figures["a sandbox's connections"] = seen
    figures["those of a pod without a policy"] = freely
    assert "open" not in seen.values(), seen
    guarded = {"another sandbox", "Redis"}
    assert {name for name, answer in freely.items() if answer != "open"} == guarded, freely


def test_sandbox_reaches_what_its_runtime_names_and_no_metadata_server(
    cluster: WholeCluster, gateway: Gateway, targets: dict[str, tuple[str, str, int]], figures: dict[str, object]
) -> None:
    """A range of addresses in spec.wakegate.egress."""
    document = yaml.safe_load((ROOT / "manifests/overlays/quickstart/my-interpreter.yaml").read_text())
    document["metadata"]["name"] = "outgoing"
    document["spec"]["warmPoolSize"] = 1
    document["spec"]["wakegate"] = {"egress": ["0.0.0.0/0"]}
    cluster.kubectl("apply", "-f", "-", given=json.dumps(document))
    runtime = f"{SANDBOXES}/outgoing"

    def made() -> bool:
        return gateway.client.post("/v1/sessions", json={"runtime": runtime}).status_code == 201

    wait_until(made, "the runtime is served", within=120)
    session = gateway.session(runtime=runtime)

    def seen(name: str) -> str:
        kind, host, port = targets[name]
        return gateway.output(session, f"python -c '{_PROBE}' {kind} {host} {port}").strip()

    wait_until(lambda: seen("the internet") == "open", "the internet is reached", within=60)
    found = figures["a sandbox with egress 0.0.0.0/0"] = {name: seen(name) for name in targets}
    assert {name for name, answer in found.items() if answer == "open"} == {"the internet"}
    cluster.kubectl("delete", "codeinterpreter", "outgoing", "-n", SANDBOXES)


@pytest.mark.parametrize(
    ("verb", "resource", "namespace"),
    [
        ("get", "secrets", SANDBOXES),
        ("list", "secrets", NAMESPACE),
        ("create", "pods/exec", SANDBOXES),
        ("create", "pods/attach", SANDBOXES),
        ("create", "serviceaccounts/token", SANDBOXES),
        ("create", "pods", NAMESPACE),
        ("list", "pods", "default"),
        ("create", "rolebindings", SANDBOXES),
        ("get", "nodes", ""),
        ("delete", "namespaces", ""),
        ("impersonate", "users", ""),
    ],
)
def test_gateways_account_may_not(cluster: WholeCluster, verb: str, resource: str, namespace: str) -> None:
    """`kubectl auth can-i`, of what would make it more than a gateway."""
    account = f"--as=system:serviceaccount:{NAMESPACE}:wakegate"
    scope = ["-n", namespace] if namespace else []
    kind, _, part = resource.partition("/")  # a name behind the stroke would be that of an object
    said = cluster.try_kubectl("auth", "can-i", verb, kind, f"--subresource={part}", account, *scope)
    assert said.stdout.strip() == "no", said


def test_gateways_account_may_claim(cluster: WholeCluster) -> None:
    """The other verdict, so that `no` says something."""
    account = f"--as=system:serviceaccount:{NAMESPACE}:wakegate"
    assert cluster.kubectl("auth", "can-i", "patch", "pods", account, "-n", SANDBOXES).strip() == "yes"


def test_doctor_finds_nothing_inside_and_outside(cluster: WholeCluster, gateway: Gateway) -> None:
    """In a gateway's pod, with its account and settings; and with an administrator's kubeconfig."""
    pod = cluster.pods(NAMESPACE, "app.kubernetes.io/component=gateway")[0]["metadata"]["name"]
    doctor = ("/opt/wakegate/bin/wakegate", "doctor", "--port", "0")  # the gateway there has the port of its settings
    inside = cluster.try_kubectl("exec", "-n", NAMESPACE, pod, "--", *doctor)
    assert inside.returncode == 0, inside.stdout + inside.stderr
    argv = [sys.executable, "-m", "gateway.cli", "doctor", "--engine", "kubernetes", "--kube-namespaces", SANDBOXES]
    argv += ["--kubeconfig", str(cluster.folder / "admin.kubeconfig")]
    outside = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert "FAIL" not in outside.stdout, outside.stdout + outside.stderr
