"""metrics-server beside the control plane, and the API that it adds to the cluster's."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.kube.whole import network
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from tests.support.kube.whole.cluster import WholeCluster

PROGRAM = "metrics-server"
_PORT = 4443
_SPACE = "kube-system"


def start(cluster: WholeCluster, program: Path, folder: Path) -> subprocess.Popen[bytes]:
    """Run it until the API server answers from it. What it serves is found at the control plane's address."""
    config = folder / "admin.kubeconfig"
    with open(folder / f"{PROGRAM}.log", "ab") as log:
        process = subprocess.Popen(
            [
                str(program), f"--kubeconfig={config}", f"--authentication-kubeconfig={config}",
                f"--authorization-kubeconfig={config}", "--kubelet-insecure-tls", f"--secure-port={_PORT}",
                "--metric-resolution=10s", "--kubelet-request-timeout=5s", f"--cert-dir={folder / PROGRAM}",
                "--kubelet-preferred-address-types=InternalIP",
            ],
            stdout=log, stderr=log, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    name = {"name": PROGRAM, "namespace": _SPACE}
    service = {"spec": {"ports": [{"name": "https", "port": 443, "targetPort": _PORT}]}}
    ready = [{"addresses": [{"ip": network.PLANE}], "ports": [{"name": "https", "port": _PORT}]}]
    added = {
        "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": "v1beta1.metrics.k8s.io"},
        "spec": {
            "service": name, "group": "metrics.k8s.io", "version": "v1beta1", "insecureSkipTLSVerify": True,
            "groupPriorityMinimum": 100, "versionPriority": 100,
        },
    }  # fmt: skip
    for each in (
        {"apiVersion": "v1", "kind": "Service", "metadata": name, **service},
        {"apiVersion": "v1", "kind": "Endpoints", "metadata": name, "subsets": ready},
        added,
    ):
        cluster.kubectl("apply", "-f", "-", given=json.dumps(each))

    def answers() -> bool:
        assert process.poll() is None, (folder / f"{PROGRAM}.log").read_text()[-2000:]
        shown = cluster.try_kubectl("get", "--raw", "/apis/metrics.k8s.io/v1beta1/nodes")
        return shown.returncode == 0 and len(json.loads(shown.stdout)["items"]) == len(cluster.nodes)

    wait_until(answers, "every node has metrics", within=120)
    return process
