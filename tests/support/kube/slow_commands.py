"""Commands that take a while, on several gateways at once."""

from __future__ import annotations

import httpx

from tests.support.kube.simulator import Cluster
from tests.support.serve import Server
from tests.support.waiting import LIMIT_S


def patient(gateway: Server, session: str) -> str:
    """A command that runs until the test creates the file `go-on`."""
    with httpx.Client(base_url=gateway.url, timeout=LIMIT_S) as client:
        script = "touch waits; while [ ! -e go-on ]; do sleep 0.05; done; echo done"
        headers = {"x-session-id": session}
        reply = client.post("/api/execute", json={"command": ["sh", "-c", script]}, headers=headers)
        return str(reply.json()["stdout"])


def slow_commands(cluster: Cluster) -> int:
    """The number of slow commands that are running in the cluster's pods."""
    return sum((path / "waits").exists() for path in cluster.call(lambda: cluster.kubelet.volumes("workspace")))
