"""What a runtime's manifest makes of its pods, seen in the cluster: warm ones and those made for a claim."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from gateway.core.model import Runtime, SessionId
from gateway.provider.kubernetes import PodDefaults
from gateway.provider.kubernetes.build import make_cold_pod
from gateway.provider.kubernetes.template import make_template
from gateway.runtimes.manifest import parse_runtime
from tests.support.kube.clusters import make_cluster
from tests.support.kube.opened import open_provider
from tests.support.kube.simulator.objects import BY_PLURAL

# As Volcano spells them: pkg/apis/scheduling/v1beta1/labels.go of volcano-sh/apis.
QUEUE, GANG = "scheduling.volcano.sh/queue-name", "scheduling.volcano.sh/group-min-member"
HOST, ZONE = "kubernetes.io/hostname", "topology.kubernetes.io/zone"
TOLERATION = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
NODES = {
    "nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchExpressions": [{"key": "accelerator", "operator": "Exists"}]}]
        }
    }
}
EVEN = {
    "maxSkew": 2,
    "topologyKey": "rack",
    "whenUnsatisfiable": "DoNotSchedule",
    "labelSelector": {"matchLabels": {"app": "x"}},
}
PLACED: dict[str, Any] = {
    "nodeSelector": {"accelerator": "a100"},
    "tolerations": [TOLERATION],
    "affinity": NODES,
    "topologySpreadConstraints": [EVEN],
    "schedulerName": "agent-scheduler",
    "priorityClassName": "batch",
    "dnsPolicy": "None",
    "dnsConfig": {"nameservers": ["10.0.0.10"]},
}
TEMPLATE: dict[str, Any] = {
    "image": "registry.example/picod:1",
    "imagePullPolicy": "Always",
    "imagePullSecrets": [{"name": "registry"}],
    "runtimeClassName": "gvisor",
    "labels": {"team": "blue"},
    "annotations": {"note": "x"},
    "args": ["--workspace", "/workspace"],
    "resources": {"limits": {"cpu": 2, "memory": "4Gi", "nvidia.com/gpu": 1}, "requests": {"cpu": "500m"}},
}


def parsed(kind: str, spec: dict[str, Any]) -> Runtime:
    """A runtime from its manifest, as `kubectl apply` gives it."""
    problems: list[str] = []
    document = {
        "apiVersion": "runtime.agentcube.volcano.sh/v1alpha1",
        "kind": kind,
        "metadata": {"name": "one", "namespace": "default"},
        "spec": spec,
    }
    runtime = parse_runtime(document, "test", problems, engine="kubernetes")
    assert problems == []
    assert runtime is not None
    return runtime


async def pods_of(folder: Path, runtime: Runtime, **defaults: Any) -> tuple[Any, Any]:
    """A warm pod of it and one that was made for a claim, as the API server has them."""
    async with make_cluster(hollow=True).running() as cluster:
        await cluster.equip()
        provider = await open_provider(cluster, folder, defaults=PodDefaults("wakegate/picod:test", **defaults))
        try:
            await provider.apply([runtime])
            while not (await provider.status(runtime.key)).ready:
                await provider.pods("default").refresh()
            warm = await provider.claim(runtime.key, SessionId("a"))
            await provider.resize(runtime.key, 0)
            while cluster.pods(**{"wakegate.io/pool": "warm", "wakegate.io/runtime": "one"}):
                await asyncio.sleep(0.02)  # one may have been made in the warm one's place
            await provider.pods("default").refresh()
            cold = await provider.claim(runtime.key, SessionId("b"))
            by_uid = {pod["metadata"]["uid"]: pod for pod in cluster.pods()}
            assert by_uid[warm.id]["metadata"]["annotations"]["wakegate.io/start"] == "warm"
            assert by_uid[cold.id]["metadata"]["annotations"]["wakegate.io/start"] == "cold"
            return by_uid[warm.id], by_uid[cold.id]
        finally:
            await provider.aclose()


async def test_interpreter_with_every_field_gets_the_pods_it_asks_for(tmp_path: Path) -> None:
    """GPUs, a scheduler, a priority, selectors, tolerations, affinity, spreading, secrets for the image, a runtime
    class: all are in the pods, warm and cold, beside what keeps them shut in."""
    runtime = parsed("CodeInterpreter", {"warmPoolSize": 1, "template": TEMPLATE, "wakegate": {"pod": PLACED}})
    for pod in await pods_of(tmp_path, runtime, scheduler="volcano", runtime_class="kata"):
        spec = pod["spec"]
        for name, value in PLACED.items():
            if name == "tolerations":
                assert spec[name][0] == TOLERATION
                lost = {(each["key"], each["tolerationSeconds"]) for each in spec[name][1:]}
                assert lost == {(f"node.kubernetes.io/{state}", 30) for state in ("not-ready", "unreachable")}
            else:
                assert spec[name] == value, name
        assert spec["runtimeClassName"] == "gvisor"
        assert spec["imagePullSecrets"] == [{"name": "registry"}]
        assert pod["metadata"]["labels"]["team"] == "blue"
        assert pod["metadata"]["annotations"]["note"] == "x"
        (container,) = spec["containers"]
        assert (container["image"], container["imagePullPolicy"]) == ("registry.example/picod:1", "Always")
        assert container["args"] == ["--workspace", "/workspace"]
        limits = {
            "cpu": "2",
            "memory": "4Gi",
            "nvidia.com/gpu": "1",
            "ephemeral-storage": str((5 << 30) * 5 // 4 + (256 << 20) + (1 << 30) + (1 << 30)),
        }
        assert container["resources"]["limits"] == limits
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert (spec["automountServiceAccountToken"], spec["securityContext"]["runAsNonRoot"]) == (False, True)
        assert container["readinessProbe"]["httpGet"]["port"] == 8080
        given = {each["name"]: each.get("value") for each in container["env"]}
        assert given["PICOD_DISK_LIMITS"] == f"/workspace={5 << 30},/tmp={256 << 20}"
        # picod ends what passes its limits; the kubelet, which would evict the pod, has higher ones.
        room = {each["name"]: int(each["emptyDir"]["sizeLimit"]) for each in spec["volumes"] if "emptyDir" in each}
        assert room == {"workspace": (5 << 30) * 5 // 4, "tmp": (256 << 20) + (1 << 30)}
        (audience,) = [each for each in container["env"] if each["name"] == "PICOD_AUDIENCE"]
        assert audience["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.uid"


async def test_interpreter_without_own_values_gets_the_settings(tmp_path: Path) -> None:
    """--kube-scheduler, --kube-runtime-class, --kube-spread and --picod-image hold for who names none."""
    runtime = parsed("CodeInterpreter", {"warmPoolSize": 1, "template": {}})
    options = {"scheduler": "volcano", "runtime_class": "kata", "spread": "balanced"}
    for pod in await pods_of(tmp_path, runtime, **options):
        spec = pod["spec"]
        assert (spec["schedulerName"], spec["runtimeClassName"]) == ("volcano", "kata")
        assert spec["containers"][0]["image"] == "wakegate/picod:test"
        assert [each["topologyKey"] for each in spec["topologySpreadConstraints"]] == [ZONE]


@pytest.mark.parametrize(
    ("pod", "keys", "packed", "nodes"),
    [
        ({"spread": "spread"}, [HOST, ZONE], False, False),
        ({"spread": "balanced"}, [ZONE], False, False),
        ({"spread": "pack"}, [], True, False),
        ({"spread": "pack", "affinity": NODES, "nodeSelector": {"accelerator": "a100"}}, [], True, True),
        ({"spread": "spread", "topologySpreadConstraints": [EVEN]}, ["rack"], False, False),
    ],
)
async def test_spread_becomes_affinity_and_topology_constraints(
    tmp_path: Path, pod: dict[str, Any], keys: list[str], packed: bool, nodes: bool
) -> None:
    """Constraints over hosts and zones, a wish for company, or what the manifest says itself. Wishes keep no pod
    pending, and they are about the pods of this runtime."""
    runtime = parsed("CodeInterpreter", {"warmPoolSize": 1, "template": {}, "wakegate": {"pod": pod}})
    for made in await pods_of(tmp_path, runtime):
        spec, labels = made["spec"], made["metadata"]["labels"]
        constraints = spec.get("topologySpreadConstraints", [])
        assert [each["topologyKey"] for each in constraints] == keys
        for each in constraints:
            if each is not EVEN and each["topologyKey"] != "rack":
                assert each["whenUnsatisfiable"] == "ScheduleAnyway"
                assert each["labelSelector"]["matchLabels"].items() <= labels.items()
        affinity = spec.get("affinity", {})
        wishes = affinity.get("podAffinity", {}).get("preferredDuringSchedulingIgnoredDuringExecution", [])
        assert bool(wishes) == packed
        assert all(each["podAffinityTerm"]["topologyKey"] == HOST for each in wishes)
        assert ("nodeAffinity" in affinity) == nodes


async def test_agent_runtime_that_is_trusted_keeps_its_whole_pod(tmp_path: Path) -> None:
    """Every field of the PodSpec that its author gave arrives as it was; only what he left open is set."""
    theirs: dict[str, Any] = {
        **PLACED,
        "serviceAccountName": "agent",
        "automountServiceAccountToken": True,
        "terminationGracePeriodSeconds": 42,
        "hostAliases": [{"ip": "10.0.0.1", "hostnames": ["db"]}],
        "imagePullSecrets": [{"name": "registry"}],
        "runtimeClassName": "gvisor",
        "volumes": [{"name": "data", "emptyDir": {"sizeLimit": "1Gi"}}, {"name": "c", "configMap": {"name": "conf"}}],
        "initContainers": [{"name": "init", "image": "registry.example/init:1", "command": ["true"]}],
        "containers": [
            {
                "name": "agent",
                "image": "registry.example/agent:1",
                "ports": [{"containerPort": 9000}],
                "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}],
                "resources": {"limits": {"nvidia.com/gpu": 1}},
                "readinessProbe": {"httpGet": {"path": "/up", "port": 9000}},
                "volumeMounts": [{"name": "data", "mountPath": "/data"}],
                "securityContext": {"runAsUser": 7},
            },
            {"name": "sidecar", "image": "registry.example/sidecar:1"},
        ],
    }
    spec = {
        "targetPort": [{"pathPrefix": "/", "port": 9000, "protocol": "HTTP"}],
        "podTemplate": {"labels": {"app": "agent"}, "annotations": {"x": "y"}, "spec": theirs},
        "warmPoolSize": 1,
    }
    for pod in await pods_of(tmp_path, parsed("AgentRuntime", spec), trusted=True):
        assert includes(pod["spec"], {**theirs, "tolerations": [TOLERATION], "containers": []})
        for made, given in zip(pod["spec"]["containers"], theirs["containers"], strict=True):
            resources = {"resources": {"limits": {"nvidia.com/gpu": "1"}}} if "resources" in given else {}
            assert includes(made, {**given, **resources})
        assert pod["metadata"]["labels"]["app"] == "agent"
        assert pod["metadata"]["annotations"]["x"] == "y"
        assert pod["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert "readinessProbe" not in pod["spec"]["containers"][1]


def includes(made: Any, given: Any) -> bool:
    """Whether all of `given` is there; the server adds defaults, and we tolerations."""
    if isinstance(given, dict):
        return isinstance(made, dict) and all(includes(made.get(key), value) for key, value in given.items())
    if isinstance(given, list):
        return len(made) >= len(given) and all(includes(*pair) for pair in zip(made, given, strict=False))
    return bool(made == given)


async def test_mounts_become_volumes_of_every_pod(tmp_path: Path) -> None:
    """A claim that is read only is so at the volume too."""
    mounts = [
        {"claim": "models", "target": "/models"},
        {"claim": "scratch", "target": "/scratch", "readOnly": False},
        {"configMap": "prompts", "target": "/prompts"},
    ]
    spec = {"template": TEMPLATE, "warmPoolSize": 1, "wakegate": {"mounts": mounts}}
    for pod in await pods_of(tmp_path, parsed("CodeInterpreter", spec)):
        volumes = {each["name"]: each for each in pod["spec"]["volumes"]}
        assert volumes["mount-0"]["persistentVolumeClaim"] == {"claimName": "models", "readOnly": True}
        assert volumes["mount-1"]["persistentVolumeClaim"]["claimName"] == "scratch"
        assert not volumes["mount-1"]["persistentVolumeClaim"].get("readOnly")
        assert volumes["mount-2"]["configMap"]["name"] == "prompts"
        mounted = {each["mountPath"]: each for each in pod["spec"]["containers"][0]["volumeMounts"]}
        assert mounted["/models"]["readOnly"] is True
        assert not mounted["/scratch"].get("readOnly")
        assert mounted["/prompts"]["readOnly"] is True


@pytest.mark.parametrize("kind", ["CodeInterpreter", "AgentRuntime"])
async def test_volcano_places_sandboxes_by_queue_and_gang(tmp_path: Path, kind: str) -> None:
    """By its annotations: the queue of all pods, the gang of the pool's Deployment only, also once they change."""
    image = {"image": "registry.example/a:1"}
    spec: dict[str, Any] = {"warmPoolSize": 0, "template": image}
    if kind == "AgentRuntime":
        pod = {"spec": {"containers": [{"name": "agent", **image}]}}
        spec = {"warmPoolSize": 0, "podTemplate": pod, "targetPort": [{"port": 8080, "protocol": "HTTP"}]}
        spec |= {"sessionTimeout": "15m", "maxSessionDuration": "8h"}
    placed = {"schedulerName": "volcano", "queue": "interactive", "gang": 4}
    first = parsed(kind, {**spec, "wakegate": {"pod": placed}})
    cold = make_cold_pod(first, make_template(first, PodDefaults("p")), "c", "s", "claim")
    assert cold["spec"]["schedulerName"] == "volcano"
    assert cold["metadata"]["annotations"][QUEUE] == "interactive"
    assert GANG not in cold["metadata"]["annotations"]
    async with make_cluster(hollow=True).running() as cluster:
        provider = await open_provider(cluster, tmp_path)

        def deployment() -> Any:
            (found,) = cluster.objects.all(BY_PLURAL["deployments"], "default")
            return found

        try:
            await provider.apply([first])
            assert deployment()["metadata"]["annotations"][GANG] == "4"
            pods = deployment()["spec"]["template"]
            assert pods["spec"]["schedulerName"] == "volcano"
            assert pods["metadata"]["annotations"][QUEUE] == "interactive"
            assert GANG not in pods["metadata"]["annotations"]
            await provider.apply([parsed(kind, {**spec, "wakegate": {"pod": {**placed, "gang": 2}}})])
            assert deployment()["metadata"]["annotations"][GANG] == "2"
            await provider.apply([parsed(kind, {**spec, "wakegate": {"pod": {"schedulerName": "agent-scheduler"}}})])
            assert GANG not in deployment()["metadata"]["annotations"]
            assert QUEUE not in deployment()["spec"]["template"]["metadata"]["annotations"]
            assert deployment()["spec"]["template"]["spec"]["schedulerName"] == "agent-scheduler"
        finally:
            await provider.aclose()


@pytest.mark.parametrize("pod", [{"queue": "Mine!"}, {"gang": 0}, {"queue": ["a"]}, {"gang": "all"}])
def test_a_queue_or_a_gang_that_volcano_could_not_have_is_refused(pod: dict[str, Any]) -> None:
    """With the field's name."""
    problems: list[str] = []
    document = {
        "apiVersion": "runtime.agentcube.volcano.sh/v1alpha1", "kind": "CodeInterpreter",
        "metadata": {"name": "one"}, "spec": {"template": {}, "wakegate": {"pod": pod}},
    }  # fmt: skip
    parse_runtime(document, "test", problems, engine="kubernetes")
    assert len(problems) == 1
    assert f"spec.wakegate.pod.{next(iter(pod))}" in problems[0]
