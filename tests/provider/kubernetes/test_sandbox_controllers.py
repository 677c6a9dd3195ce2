"""The router beside agent-sandbox's own controllers, which are real: their program, over a real control plane.

What stands in for kubelets gives each pod an address and a server (tests/support/kube/real/pod_servers.py).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.keyed import ADMIN, make_key
from tests.support.kube.clusters import REAL
from tests.support.kube.real import plane
from tests.support.kube.real.pod_servers import PodServers
from tests.support.kube.served import MANIFESTS
from tests.support.serve import Server, serve
from tests.support.waiting import wait_until

PROGRAMS = Path(os.environ.get("KUBERNETES_BIN", ""))
CONTROLLER = PROGRAMS / "agent-sandbox-controller"
CRDS = PROGRAMS / "agent-sandbox-crds"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not REAL, reason="needs a real control plane: scripts/test-kubernetes, or set KUBERNETES_BIN"),
    pytest.mark.skipif(
        not (CONTROLLER.exists() and CRDS.exists()),
        reason="KUBERNETES_BIN lacks agent-sandbox-controller: scripts/build-kubernetes builds it",
    ),
]
NAMESPACE, PORT = "agents", 8888
Kubectl = Callable[..., str]


@pytest.fixture(scope="module")
def kubectl(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kubectl]:
    """kubectl in a cluster where the controllers run, and pods of their namespace get servers."""
    folder = tmp_path_factory.mktemp("controllers")
    with plane.running(PROGRAMS, folder / "plane") as control:
        config = control.kubeconfig(control.tokens["admin"], folder / "admin")

        def ask(*arguments: str, given: Any = None) -> str:
            argv = [str(Path(sys.prefix) / "bin" / "kubectl"), "--kubeconfig", str(config), *arguments]
            text = None if given is None else json.dumps(given)
            done = subprocess.run(argv, capture_output=True, text=True, timeout=60, input=text)
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout

        ask("apply", "--server-side", "-f", str(CRDS))
        ask("apply", "-k", str(MANIFESTS / "base/crds"))
        ask("wait", "--for=condition=established", "crd", "--all")
        for name in (NAMESPACE, "wakegate", "wakegate-sandboxes"):
            ask("create", "namespace", name)
        with open(folder / "controllers.log", "wb") as log, control.client() as client:
            flags = ("--leader-elect=false", "--metrics-bind-address=0", "--health-probe-bind-address=0")
            process = subprocess.Popen(
                [str(CONTROLLER), *flags, f"--kubeconfig={config}"], stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
            pods = PodServers(client, NAMESPACE, PORT)
            pods.start()
            try:
                yield ask
            finally:
                pods.stop()
                process.kill()
                process.wait()


@pytest.fixture(scope="module")
def server(kubectl: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The router of that namespace."""
    folder = tmp_path_factory.mktemp("router")
    (folder / "admin").write_text(ADMIN)
    flags = ["--engine", "kubernetes", "--kubeconfig", str(_config_of(kubectl, folder))]
    flags += ["--kube-router-tenants", f"{NAMESPACE}=acme", "--admin-key-file", str(folder / "admin")]
    with serve(folder / "state", *flags, program="tests.support.kube.router_gateway") as one:
        yield one


def _config_of(kubectl: Kubectl, folder: Path) -> Path:
    path = folder / "config"
    path.write_text(kubectl("config", "view", "--raw", "--flatten"))
    return path


def make(kubectl: Kubectl, name: str, **annotations: str) -> None:
    """A Sandbox that runs, as a person applies one."""
    pod = {"spec": {"containers": [{"name": "main", "image": "example.test/runtime:1"}]}}
    notes = {f"wakegate.io/{key.replace('_', '-')}": value for key, value in annotations.items()}
    document = {
        "apiVersion": "agents.x-k8s.io/v1alpha1", "kind": "Sandbox",
        "metadata": {"name": name, "namespace": NAMESPACE, "annotations": notes},
        "spec": {"replicas": 1, "podTemplate": pod},
    }  # fmt: skip
    kubectl("apply", "-f", "-", given=document)


def replicas(kubectl: Kubectl, name: str) -> str:
    return kubectl("get", "sandbox", name, "-n", NAMESPACE, "-o", "jsonpath={.spec.replicas}")


def pods(kubectl: Kubectl) -> list[str]:
    return kubectl("get", "pods", "-n", NAMESPACE, "-o", "jsonpath={.items[*].metadata.name}").split()


def asked(server: Server, key: str, name: str) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}", "x-sandbox-id": name, "x-sandbox-namespace": NAMESPACE}
    return httpx.get(f"{server.url}/who", headers=headers, timeout=60)


def test_request_reaches_the_pod_that_the_controller_made(kubectl: Kubectl, server: Server) -> None:
    """And one for a Sandbox that there is not is 404."""
    key = make_key(server, "acme")
    make(kubectl, "plain")
    reply = asked(server, key, "plain")
    assert (reply.status_code, reply.text.split()[0]) == (200, pods(kubectl)[0]), reply.text
    assert asked(server, key, "nobody").status_code == 404


def test_suspended_sandbox_is_woken_by_its_next_request(kubectl: Kubectl, server: Server) -> None:
    """The controller takes its pod away and, when the router has asked for it, makes another; the request is held."""
    key = make_key(server, "acme")
    make(kubectl, "sleeper")
    before = asked(server, key, "sleeper").text
    kubectl("patch", "sandbox", "sleeper", "-n", NAMESPACE, "--type=merge", "-p", '{"spec":{"replicas":0}}')
    wait_until(lambda: "sleeper" not in pods(kubectl), "the controller takes the pod away")
    reply = asked(server, key, "sleeper")
    assert reply.status_code == 200, reply.text
    assert reply.text != before
    assert replicas(kubectl, "sleeper") == "1"


def test_sandbox_that_nobody_uses_is_suspended_and_woken(kubectl: Kubectl, server: Server) -> None:
    """With the annotation, after its idle timeout; the controller ends the pod."""
    key = make_key(server, "acme")
    make(kubectl, "idle", idle_timeout="2s")
    before = asked(server, key, "idle").text
    wait_until(lambda: replicas(kubectl, "idle") == "0" and "idle" not in pods(kubectl), "it is suspended", within=30)
    assert asked(server, key, "idle").text not in ("", before)
