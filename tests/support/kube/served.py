"""A real gateway process with `--engine kubernetes`, over the simulator in a thread of the test."""

from __future__ import annotations

import base64
import contextlib
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gateway.provider.kubernetes import names
from tests.support.kube.clusters import in_thread
from tests.support.kube.simulator import Cluster
from tests.support.kube.simulator.objects import BY_PLURAL
from tests.support.serve import Server, serve

MANIFESTS = Path(__file__).resolve().parents[3] / "manifests"
INTERPRETER: dict[str, Any] = {
    "warmPoolSize": 2,
    "template": {"image": "wakegate/picod:test", "environment": [{"name": "GREETING", "value": "hello"}]},
    "ports": [{"port": 8080, "pathPrefix": "/", "protocol": "HTTP"}],
}


@contextlib.contextmanager
def in_cluster(
    folder: Path,
    *flags: str,
    spec: dict[str, Any] | None = None,
    tls: ssl.SSLContext | None = None,
    **options: Any,
) -> Iterator[tuple[Server, Cluster]]:
    """A gateway that serves the CodeInterpreter my-interpreter of an own cluster. `options` are the Cluster's.

    `tls`: as `serve` takes it.
    """
    with in_thread(**options) as cluster:
        made = spec or INTERPRETER
        cluster.call(lambda: cluster.create("codeinterpreters", "my-interpreter", namespace="default", spec=made))
        enforce_roles(cluster)
        with serve(folder / "state", *flags_for(cluster, folder), *flags, tls=tls) as server:
            yield server, cluster


def enforce_roles(cluster: Cluster, *more: Path) -> None:
    """Allow only what the shipped Roles grant, as the cluster of whoever applies them does."""
    roles = {
        "wakegate": (MANIFESTS / "base/access.yaml",),
        "default": (MANIFESTS / "sandboxes/access.yaml", *more),
        "kube-node-lease": (MANIFESTS / "node-leases/access.yaml",),
    }
    cluster.enforce(**roles)


def lend(cluster: Cluster, name: str, values: dict[str, str], *, to: str, hosts: str) -> None:
    """Make a Secret beside the gateways and let runtimes use it, as docs/egress.md says; on the cluster's own loop."""
    notes = {names.LENT_TO: to, names.LENT_FOR: hosts}
    data = {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}
    body = {"metadata": {"name": name, "annotations": notes}, "type": "Opaque", "data": data}
    cluster.objects.create(BY_PLURAL["secrets"], "wakegate", body)
    rule = {"apiGroups": [""], "resources": ["secrets"], "resourceNames": [name], "verbs": ["get"]}
    assert cluster.api.roles is not None, "enforce_roles comes first"
    cluster.api.roles["wakegate"].append(rule)


def flags_for(cluster: Cluster, folder: Path) -> list[str]:
    """How a gateway reaches the cluster."""
    return ["--engine", "kubernetes", "--kubeconfig", str(cluster.kubeconfig(folder))]
