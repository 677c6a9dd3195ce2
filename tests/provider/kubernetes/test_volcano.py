"""What Volcano makes of our pods and Deployments, held against its API.

Its controller gives each pod whose scheduler is `volcano` a PodGroup: of the pod's own annotations, and of those of its
ReplicaSet, which has its Deployment's. What it reads, and the fields of a PodGroup with their types, are facts of
volcano.sh/apis (scheduling/v1beta1) and of its CRD at 1.12, the same in 1.13.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest

from gateway.core.model import Runtime, RuntimeKey
from gateway.provider.kubernetes import names
from gateway.provider.kubernetes.build import make_cold_pod
from gateway.provider.kubernetes.template import PodDefaults, make_template
from gateway.runtimes.manifest import parse_runtime
from tests.support.kube.clusters import make_cluster
from tests.support.kube.opened import open_provider
from tests.support.kube.simulator.objects import BY_PLURAL
from tests.support.waiting import eventually

GROUP = "scheduling.volcano.sh"
_INT32 = {"type": "integer", "minimum": -(2**31), "maximum": 2**31 - 1}
_QUANTITY = {
    "anyOf": [{"type": "integer"}, {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$"}]
}
POD_GROUP_SPEC = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "minMember": _INT32,
        "minTaskMember": {"type": "object", "additionalProperties": _INT32},
        "minResources": {"type": "object", "additionalProperties": _QUANTITY},
        "networkTopology": {"type": "object"},
        "priorityClassName": {"type": "string"},
        "queue": {"type": "string"},
    },
}


def pod_group(owner: dict[str, str], pod: Any) -> dict[str, Any]:
    """The spec that its controller makes, of the annotations of the pod's ReplicaSet and of the pod."""
    least = int(owner.get(f"{GROUP}/group-min-member", "1"))
    made: dict[str, Any] = {"minMember": least, "minResources": {}}
    for container in pod["spec"]["containers"]:
        made["minResources"] |= container.get("resources", {}).get("requests", {})
    if "priorityClassName" in pod["spec"]:
        made["priorityClassName"] = pod["spec"]["priorityClassName"]
    if (queue := pod["metadata"]["annotations"].get(f"{GROUP}/queue-name")) is not None:
        made["queue"] = queue
    return made


def interpreter(**placed: Any) -> Runtime:
    problems: list[str] = []
    resources = {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"cpu": "1", "memory": "1Gi"}}
    document = {
        "apiVersion": "runtime.agentcube.volcano.sh/v1alpha1", "kind": "CodeInterpreter",
        "metadata": {"name": "gang", "namespace": "default"},
        "spec": {
            "warmPoolSize": 2, "template": {"image": "registry.example/a:1", "resources": resources},
            "wakegate": {"pod": {"schedulerName": "volcano", **placed}},
        },
    }  # fmt: skip
    found = parse_runtime(document, "test", problems, engine="kubernetes")
    assert found is not None, problems
    return found


async def test_warm_pods_of_a_gang_are_a_pod_group_of_its_queue(tmp_path: Path) -> None:
    """Of the annotations that reach the ReplicaSet and the pods; fields and types are those of the CRD."""
    async with make_cluster(hollow=True).running() as cluster:
        provider = await open_provider(cluster, tmp_path)
        try:
            await provider.apply([interpreter(queue="interactive", gang=2, priorityClassName="agents")])
            await provider.resize(RuntimeKey("default", "gang"), 2)
            await eventually(lambda: len(cluster.pods(**{names.POOL: names.WARM})) == 2, "the pool has its pods")
            (owner,) = cluster.objects.all(BY_PLURAL["replicasets"], "default")
            for pod in cluster.pods(**{names.POOL: names.WARM}):
                made = pod_group(owner["metadata"]["annotations"], pod)
                jsonschema.validate(made, POD_GROUP_SPEC)
                assert (made["minMember"], made["queue"], made["priorityClassName"]) == (2, "interactive", "agents")
                assert made["minResources"]["cpu"] == "100m"
        finally:
            await provider.aclose()


@pytest.mark.parametrize("placed", [{}, {"queue": "interactive"}, {"queue": "interactive", "gang": 4}])
def test_a_pod_for_a_claim_is_a_group_of_one(placed: dict[str, Any]) -> None:
    """It has no ReplicaSet, so nothing keeps it waiting for others."""
    runtime = interpreter(**placed)
    pod = make_cold_pod(runtime, make_template(runtime, PodDefaults("p")), "c", "s", "claim")
    made = pod_group({}, pod)
    jsonschema.validate(made, POD_GROUP_SPEC)
    assert (made["minMember"], made.get("queue")) == (1, placed.get("queue"))


def test_names_are_those_of_its_api() -> None:
    """Its GroupName with the names that its controller looks for."""
    assert f"{GROUP}/queue-name" == names.QUEUE
    assert f"{GROUP}/group-min-member" == names.GANG
