"""A whole cluster: control plane, DNS, nodes and volumes, until the overlay's gateway serves on it."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.support.kube.real.plane import Plane
from tests.support.kube.whole import network
from tests.support.kube.whole.node import Node
from tests.support.waiting import wait_until

ROOT = Path(__file__).resolve().parents[4]
API_PORT = 6443  # the one that the gateway's NetworkPolicy names
GROUP = os.environ.get("CLUSTER_GROUP", "wakegate-cluster")
NAMESPACE, SANDBOXES = "wakegate", "wakegate-sandboxes"
_SLOW_S = 180.0
_KUBECTL = Path(sys.prefix) / "bin" / "kubectl"
_USERS = {
    "kube-proxy": ("system:kube-proxy", ""),
    "kube-router": ("kube-router", "system:masters"),
    "dns": ("dns", "system:masters"),
}
# What claims of the quickstart are bound to: folders that every node sees, as of a storage that is on the network.
_VOLUMES = {"data-wakegate-redis-0": 999, "wakegate-snapshots": 1000}


class WholeCluster:
    """In `folder`: logs, disks and volumes. `images`: a folder with archives of images, which every node gets."""

    def __init__(self, folder: Path, programs: Path, images: Path, nodes: int = 2) -> None:
        self.folder, self.programs, self._images = folder, programs, images
        self._archives = sorted(images.glob("*.tar"))
        self._booted: set[int] = set()
        node_names = [f"node-{number}" for number in range(1, nodes + 1)]
        self.plane = Plane(
            programs, folder / "plane", network.PLANE, API_PORT,
            hosts=(network.PLANE, "10.96.0.1", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"),
            clients={**_USERS, **{name: (f"system:node:{name}", "system:nodes") for name in node_names}},
            flags={
                "kube-apiserver": (
                    "--bind-address=0.0.0.0", f"--advertise-address={network.PLANE}",
                    "--endpoint-reconciler-type=lease", "--authorization-mode=Node",
                    "--enable-admission-plugins=NodeRestriction", "--allow-privileged=true",
                    f"--kubelet-client-certificate={folder / 'plane/kubelet-client.crt'}",
                    f"--kubelet-client-key={folder / 'plane/kubelet-client.key'}",
                    "--kubelet-preferred-address-types=InternalIP",
                    # For servers that add to the API (metrics.py): who asks is in headers that it sets.
                    f"--requestheader-client-ca-file={folder / 'plane/ca.crt'}",
                    "--requestheader-allowed-names=kube-apiserver",
                    "--requestheader-username-headers=X-Remote-User",
                    "--requestheader-group-headers=X-Remote-Group",
                    "--requestheader-extra-headers-prefix=X-Remote-Extra-",
                    f"--proxy-client-cert-file={folder / 'plane/kubelet-client.crt'}",
                    f"--proxy-client-key-file={folder / 'plane/kubelet-client.key'}",
                    "--enable-aggregator-routing=true",
                ),
                # As a cluster has them that nobody configured.
                "kube-controller-manager": (
                    "--node-monitor-grace-period=50s", "--node-monitor-period=5s", "--node-startup-grace-period=60s",
                ),
            },
        )  # fmt: skip
        self.nodes = [Node(number, folder, programs, GROUP) for number in range(1, nodes + 1)]
        self._dns: subprocess.Popen[bytes] | None = None
        self.admin_key = secrets.token_hex(32)

    def start(self) -> None:
        """Until every node is ready."""
        network.make_switch()
        self.plane.start()
        self.plane.kubeconfig(self.plane.tokens["admin"], self.folder / "admin.kubeconfig")
        responder = [sys.executable, "-m", "tests.support.kube.whole.dns", network.PLANE]
        with open(self.folder / "dns.log", "wb") as log:
            self._dns = subprocess.Popen(
                [*responder, self.plane.url, str(self.plane.ca)], stdout=log, stderr=log,
                env={**os.environ, "TOKEN": self.plane.tokens["dns"]}, cwd=ROOT,
            )  # fmt: skip
        for node in self.nodes:
            self.boot(node)
        wait_until(lambda: all(self.is_ready(node) for node in self.nodes), "all nodes are ready", within=_SLOW_S)
        network.route_services(1)

    def boot(self, node: Node) -> None:
        """Start a node and its programs."""
        for name, user in (("kubelet", node.name), ("kube-proxy", "kube-proxy"), ("kube-router", "kube-router")):
            self.plane.kubeconfig(self.plane.tokens[user], node.kubeconfigs / f"{name}.kubeconfig")
        node.start(self.plane.ca)
        if node.number not in self._booted:
            node.import_images(self._archives, self._images / "unpacked")
            self._booted.add(node.number)
        node.start_kubelet()
        wait_until(lambda: self.exists("node", node.name), f"{node.name} registers", within=_SLOW_S)
        cidr = network.pods_of(node.number)
        self.kubectl("patch", "node", node.name, "--patch", json.dumps({"spec": {"podCIDR": cidr, "podCIDRs": [cidr]}}))
        for other in self.nodes:
            if other is not node:
                network.ip(
                    "route", "replace", network.pods_of(other.number), "via", other.address, inside=node.inside
                )  # fmt: skip
        node.start_network()

    def kubeconfig(self, _: Path) -> Path:
        """The administrator's, as the simulator and a control plane alone have one too."""
        return self.folder / "admin.kubeconfig"

    def kill_in_pod(self, uid: str, word: str) -> None:
        """kill -9 the processes of a pod whose command line has that word."""
        script = (
            f"for p in $(grep -ls pod{uid} /proc/[0-9]*/cgroup | cut -d/ -f3); do "
            f"grep -qs -- {word} /proc/$p/cmdline && kill -9 $p; done; true"
        )
        for node in self.nodes:
            node.call("sh", "-c", script)

    def clear(self, namespace: str) -> None:
        """Delete what a provider makes there, and wait until it is gone."""
        kinds = "deployments,pods,networkpolicies,configmaps"
        self.kubectl("delete", kinds, "--all", "-n", namespace, "--grace-period=1", within=120)

    def kubectl(self, *arguments: str, given: str | None = None, within: float = 60) -> str:
        """Its standard output, as the administrator."""
        done = self.try_kubectl(*arguments, given=given, within=within)
        assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stdout}{done.stderr}"
        return done.stdout

    def try_kubectl(
        self, *arguments: str, given: str | None = None, within: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Whatever becomes of it."""
        argv = [str(_KUBECTL), "--kubeconfig", str(self.folder / "admin.kubeconfig"), *arguments]
        return subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, timeout=within, input=given)

    def get(self, *arguments: str) -> Any:
        """`kubectl get`, as a document."""
        return json.loads(self.kubectl("get", "-o", "json", *arguments))

    def exists(self, kind: str, name: str, namespace: str = "default") -> bool:
        """Whether there is that object."""
        return self.try_kubectl("get", kind, name, "-n", namespace).returncode == 0

    def is_ready(self, node: Node) -> bool:
        """As the control plane sees it."""
        said = self.try_kubectl(
            "get", "node", node.name, "-o", "jsonpath={.status.conditions[?(@.type=='Ready')].status}"
        )
        return said.stdout == "True"

    def pods(self, namespace: str, selector: str = "") -> list[Any]:
        """Pods that are not ending."""
        items: list[Any] = self.get("pods", "-n", namespace, "-l", selector)["items"]
        return [pod for pod in items if "deletionTimestamp" not in pod["metadata"]]

    def install(self, overlay: str = "manifests/overlays/quickstart") -> None:
        """As docs/kubernetes.md says, with volumes that this cluster's administrator has made."""
        for claim, user in _VOLUMES.items():
            place = self.folder / "volumes" / claim
            place.mkdir(parents=True, exist_ok=True)
            os.chown(place, user, user)
            self.kubectl("apply", "-f", "-", given=yaml.safe_dump(_volume(claim, place)))
        copy = self.folder / "manifests"
        shutil.copytree(ROOT / "manifests", copy, dirs_exist_ok=True)
        (copy / "overlays/quickstart/redis-password.env").write_text(f"password={secrets.token_hex(24)}\n")
        self.kubectl("apply", "-k", str(self.folder / overlay))
        self.kubectl(
            "-n", NAMESPACE, "create", "secret", "generic", "wakegate-admin-key", f"--from-literal=key={self.admin_key}"
        )
        self.kubectl("wait", "--for=condition=established", "crd", "--all")
        self.kubectl("apply", "-f", str(self.folder / "manifests/overlays/quickstart/my-interpreter.yaml"))
        self.roll()

    def patch(self, kind: str, name: str, namespace: str, change: Any) -> None:
        """A strategic merge patch."""
        self.kubectl("patch", kind, name, "-n", namespace, "--patch", json.dumps(change))

    def roll(self) -> None:
        """Wait until the gateways are those of the Deployment. Raises AssertionError with what keeps them."""
        waiting = ("rollout", "status", "deployment/wakegate", "-n", NAMESPACE, "--timeout=180s")
        done = self.try_kubectl(*waiting, within=200)
        assert done.returncode == 0, f"{done.stdout}{done.stderr}{self._what_gateways_say()}"

    def _what_gateways_say(self) -> str:
        selector = ("-n", NAMESPACE, "-l", "app.kubernetes.io/component=gateway")
        asked = (
            ("get", "pods", "-A", "-o", "wide"),
            ("get", "events", "-n", NAMESPACE, "--sort-by=.lastTimestamp"),
            ("logs", *selector, "--tail=30", "--prefix"),
        )
        return "".join(self.try_kubectl(*each).stdout[-5000:] for each in asked)

    def route_services(self, node: Node) -> None:
        """Use addresses of Services by way of that node."""
        network.route_services(node.number)

    @property
    def url(self) -> str:
        """The gateway's Service, from here."""
        return f"http://{self.get('service', 'wakegate', '-n', NAMESPACE)['spec']['clusterIP']}"

    def stop(self) -> None:
        """End every process; the namespaces and all in them end with their first ones."""
        for node in self.nodes:
            node.kill()
        if self._dns is not None:
            self._dns.kill()
            self._dns.wait()
        self.plane.stop()


def _volume(claim: str, place: Path) -> Any:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": claim},
        "spec": {
            "capacity": {"storage": "10Gi"},
            "accessModes": ["ReadWriteOnce", "ReadWriteMany"],
            "hostPath": {"path": str(place)},
            "claimRef": {"name": claim, "namespace": NAMESPACE},
        },
    }
