"""What the tests of recovery in a cluster look at: pods, pools and conditions."""

from __future__ import annotations

from typing import Any

from tests.support.kube.simulator import Cluster
from tests.support.kube.simulator.objects import BY_PLURAL
from tests.support.serve import Server

INTERPRETERS = BY_PLURAL["codeinterpreters"]


CLAIMED = {"wakegate.io/pool": "claimed"}


def pod_of(cluster: Cluster, session: str) -> Any:
    """The pod that a session has."""
    labels = {**CLAIMED, "runtime.agentcube.io/session-id": session}
    (pod,) = cluster.call(lambda: cluster.pods(**labels))
    return pod


def makes_session(server: Server, runtime: str) -> int:
    """The status of asking for a session."""
    return server.client.post("/v1/sessions", json={"runtime": f"default/{runtime}"}).status_code


def written(server: Server, text: str) -> str:
    """Create a session with the file `note`."""
    session = server.session()
    assert server.run(session, f"echo {text} > note").status_code == 200
    return session


def pool_of(server: Server, runtime: str) -> Any:
    """A runtime's pool as /v1/runtimes shows it."""
    return {each["name"]: each["pool"] for each in server.client.get("/v1/runtimes").json()["runtimes"]}[runtime]


def condition(cluster: Cluster, runtime: str, kind: str = "Ready") -> Any:
    """A condition of a CodeInterpreter's status, as kubectl shows it."""
    status = cluster.call(lambda: cluster.objects.get(INTERPRETERS, "default", runtime)).get("status", {})
    found = [each for each in status.get("conditions", []) if each["type"] == kind]
    return found[0] if found else {"status": None, "reason": None, "message": ""}
