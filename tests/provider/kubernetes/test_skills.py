"""Skills in a cluster: a gateway brings their folders into pods of their own, with their own limits and egress."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gateway.provider.kubernetes.pod import CODE_CONTAINER
from tests.support.kube.clusters import in_thread
from tests.support.kube.served import enforce_roles, flags_for
from tests.support.kube.simulator import Cluster
from tests.support.kube.simulator.objects import BY_PLURAL, PODS
from tests.support.serve import Server, serve
from tests.support.waiting import wait_until

pytestmark = pytest.mark.processes

MANIFEST = """
apiVersion: runtime.agentcube.volcano.sh/v1alpha1
kind: CodeInterpreter
metadata: {name: office, namespace: default}
spec:
  template: {image: wakegate/picod:test}
  warmPoolSize: 1
  wakegate:
    codeContext: "off"
    skills:
      - {source: adds, limits: {memory: 256Mi}, egress: [192.0.2.0/24]}
"""
SKILL = """---
name: adds
description: Adds amounts.
---
Run `sum.py` with the amounts.
"""
SUM = """
import os, sys
try: open("/skill/SKILL.md", "a"); kept = "writable"
except OSError: kept = "read-only"
print(sum(map(int, sys.argv[1:])), sorted(os.listdir("/workspace")), sorted(os.listdir("/skill")), kept)
"""


def call(server: Server, session: str, **arguments: Any) -> str:
    """What a model reads of one call."""
    use = {"type": "tool_use", "id": "t1", "name": "skill_adds", "input": arguments}
    answer = server.client.post("/v1/tool_calls", json={"session_id": session, "content": [use]})
    assert answer.status_code == 200, answer.text
    content = answer.json()["content"][0]["content"]
    return content if isinstance(content, str) else "\n".join(each.get("text", "") for each in content)


def seen(cluster: Cluster, runtime: str, kind: Any = PODS) -> list[dict[str, Any]]:
    found = cluster.call(lambda: cluster.objects.all(kind, "default"))
    return [each for each in found if each["metadata"].get("labels", {}).get("wakegate.io/runtime") == runtime]


def accepted(cluster: Cluster, name: str) -> dict[str, Any]:
    """The condition of a custom resource; empty until there is one."""
    found = cluster.call(lambda: cluster.objects.all(BY_PLURAL["codeinterpreters"], "default"))
    (status,) = [each.get("status") or {} for each in found if each["metadata"]["name"] == name]
    return next((each for each in status.get("conditions") or () if each["type"] == "Accepted"), {})


def test_a_skill_runs_in_a_pod_of_its_own_that_has_its_folder(tmp_path: Path) -> None:
    """Of a runtime that is in a file of the gateway's: listed with its description, run, and gone afterwards."""
    (tmp_path / "adds" / "scripts").mkdir(parents=True)
    (tmp_path / "adds" / "SKILL.md").write_text(SKILL)
    (tmp_path / "adds" / "scripts" / "sum.py").write_text(SUM)
    (tmp_path / "office.yaml").write_text(MANIFEST)
    with in_thread() as cluster:
        enforce_roles(cluster)
        flags = [*flags_for(cluster, tmp_path), "--runtime", str(tmp_path / "office.yaml")]
        with serve(tmp_path / "state", *flags) as server:
            query = {"format": "mcp", "runtime": "default/office"}
            tools = {each["name"]: each for each in server.client.get("/v1/tools", params=query).json()["tools"]}
            assert tools["skill_adds"]["description"].startswith("Adds amounts.")
            session = server.session("default/office")
            server.run(session, "echo hidden > secret")
            assert call(server, session) == "Run `sum.py` with the amounts."
            pods: list[dict[str, Any]] = []
            cluster.objects.listen(lambda kind, change: pods.append(change.new) if kind is PODS else None)
            said = call(server, session, script="sum.py", args=["20", "22"])
            assert said.strip() == "42 [] ['SKILL.md', 'scripts'] read-only", said + server.log.read_text()
            own = [each for each in pods if each["metadata"]["labels"]["wakegate.io/runtime"] == "office.skill.adds"]
            (waited,) = own[0]["spec"]["initContainers"]
            (ran,) = own[0]["spec"]["containers"]
            assert (waited["name"], ran["resources"]["limits"]["memory"]) == (CODE_CONTAINER, str(256 << 20))
            (policy,) = seen(cluster, "office.skill.adds", BY_PLURAL["networkpolicies"])
            assert policy["spec"]["egress"] == [{"to": [{"ipBlock": {"cidr": "192.0.2.0/24"}}]}]
            wait_until(lambda: not seen(cluster, "office.skill.adds"), "its pod is gone")
            assert not any("skill" in each["name"] for each in server.client.get("/v1/runtimes").json()["runtimes"])

            # A custom resource comes from no file that a folder could lie beside.
            spec = {"template": {"image": "wakegate/picod:test"}, "wakegate": {"skills": [{"source": "adds"}]}}
            cluster.call(lambda: cluster.create("codeinterpreters", "remote", namespace="default", spec=spec))
            wait_until(lambda: accepted(cluster, "remote"), "it is looked at")
            condition = accepted(cluster, "remote")
            assert (condition["status"], condition["reason"]) == ("False", "InvalidSpec")
            assert "skills[0].source: only a manifest in a file of the gateway's" in condition["message"]
            assert "remote" not in {each["name"] for each in server.client.get("/v1/runtimes").json()["runtimes"]}
