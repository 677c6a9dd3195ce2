"""A manifest that is not trusted gets pods of Pod Security's `restricted` profile, or none and a reason."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.model import Kind, Runtime, RuntimeKey
from gateway.core.units import parse_quantity
from gateway.provider.kubernetes import connect
from gateway.provider.kubernetes.catalog import WatchedCatalog, read_declared
from gateway.provider.kubernetes.template import PodDefaults, make_template
from gateway.provider.kubernetes.trust import untrusted
from tests.support.kube.clusters import make_cluster
from tests.support.kube.schema import problems_of

POD = "spec.podTemplate.spec"


def resource(kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    metadata = {"name": "one", "namespace": "default", "uid": "u", "resourceVersion": "1"}
    return {"kind": kind, "metadata": metadata, "spec": spec}


def agent(pod: dict[str, Any], container: dict[str, Any], annotations: dict[str, str] | None = None) -> dict[str, Any]:
    spec = {**pod, "containers": [{"name": "agent", "image": "agent:1", **container}]}
    template = {"spec": spec, "annotations": annotations or {}}
    return resource("AgentRuntime", {"targetPort": [{"port": 8080}], "podTemplate": template})


REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"hostNetwork": True}, {}, f"{POD}.hostNetwork"),
    ({"hostPID": True}, {}, f"{POD}.hostPID"),
    ({"hostIPC": True}, {}, f"{POD}.hostIPC"),
    ({"nodeName": "control-plane"}, {}, f"{POD}.nodeName"),
    ({"serviceAccountName": "admin"}, {}, f"{POD}.serviceAccountName"),
    ({"serviceAccount": "admin"}, {}, f"{POD}.serviceAccount"),
    ({"automountServiceAccountToken": True}, {}, f"{POD}.automountServiceAccountToken"),
    ({"priorityClassName": "system-node-critical"}, {}, f"{POD}.priorityClassName"),
    ({"ephemeralContainers": [{}]}, {}, f"{POD}.ephemeralContainers"),
    ({"aFieldOfALaterKubernetes": 1}, {}, f"{POD}.aFieldOfALaterKubernetes"),
    ({"securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}}, {}, f"{POD}.securityContext.sysctls"),
    ({"securityContext": {"runAsUser": 0}}, {}, f"{POD}.securityContext.runAsUser"),
    ({"securityContext": {"seccompProfile": {"type": "Unconfined"}}}, {}, f"{POD}.securityContext.seccompProfile.type"),
    ({"securityContext": {"windowsOptions": {"hostProcess": True}}}, {}, f"{POD}.securityContext.windowsOptions"),
    *(
        ({"volumes": [{"name": "v", source: {}}]}, {}, f"{POD}.volumes[0].{source}")
        for source in ("hostPath", "secret", "projected", "nfs", "csi", "iscsi", "gitRepo")
    ),
    (
        {"initContainers": [{"name": "i", "securityContext": {"privileged": True}}]},
        {},
        f"{POD}.initContainers[0].securityContext.privileged",
    ),
    *(
        ({}, {"securityContext": context}, f"{POD}.containers[0].securityContext.{where}")
        for context, where in (
            ({"privileged": True}, "privileged"),
            ({"allowPrivilegeEscalation": True}, "allowPrivilegeEscalation"),
            ({"capabilities": {"add": ["SYS_ADMIN"]}}, "capabilities.add"),
            ({"runAsUser": 0}, "runAsUser"),
            ({"runAsNonRoot": False}, "runAsNonRoot"),
            ({"procMount": "Unmasked"}, "procMount"),
            ({"seLinuxOptions": {"type": "spc_t"}}, "seLinuxOptions"),
            ({"appArmorProfile": {"type": "Unconfined"}}, "appArmorProfile"),
        )
    ),
    (
        {},
        {"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]},
        f"{POD}.containers[0].env[0].valueFrom.secretKeyRef",
    ),
    ({}, {"envFrom": [{"secretRef": {"name": "s"}}]}, f"{POD}.containers[0].envFrom[0].secretRef"),
    ({}, {"ports": [{"containerPort": 1, "hostPort": 1}]}, f"{POD}.containers[0].ports[0].hostPort"),
    ({}, {"volumeDevices": []}, f"{POD}.containers[0].volumeDevices"),
    (
        {},
        {"volumeMounts": [{"name": "v", "mountPath": "/v", "mountPropagation": "Bidirectional"}]},
        f"{POD}.containers[0].volumeMounts[0].mountPropagation",
    ),
    (
        {},
        {"livenessProbe": {"httpGet": {"host": "169.254.169.254", "port": 80}}},
        f"{POD}.containers[0].livenessProbe.httpGet.host",
    ),
    (
        {},
        {"lifecycle": {"preStop": {"tcpSocket": {"host": "10.0.0.1", "port": 22}}}},
        f"{POD}.containers[0].lifecycle.preStop.tcpSocket.host",
    ),
]


@pytest.mark.parametrize(("pod", "container", "where"), [pytest.param(*each, id=each[2]) for each in REFUSED])
def test_agent_that_reaches_beyond_its_pod_is_not_served(
    pod: dict[str, Any], container: dict[str, Any], where: str
) -> None:
    """Its condition names the field and the flag; with --kube-trust-manifests it is served as it is."""
    declared = read_declared(agent(pod, container))
    assert declared.runtime is None
    assert declared.problems == (f"{where}: refused without --kube-trust-manifests",)

    assert read_declared(agent(pod, container), trusted=True).runtime is not None


def test_interpreter_gets_no_secrets_system_priority_or_privileged_annotations() -> None:
    """Its template has an environment and annotations, its spec.wakegate.pod a priority class."""
    template = {
        "environment": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}],
        "annotations": {"io.katacontainers.config.hypervisor.path": "/bin/sh", "note": "x"},
    }
    own = {"pod": {"priorityClassName": "system-cluster-critical"}}
    assert read_declared(resource("CodeInterpreter", {"template": template, "wakegate": own})).problems == tuple(
        f"{where}: refused without --kube-trust-manifests"
        for where in (
            "spec.template.environment[0].valueFrom.secretKeyRef",
            "spec.wakegate.pod.priorityClassName",
            "spec.template.annotations.io.katacontainers.config.hypervisor.path",
        )
    )


USUAL = agent(
    {
        "volumes": [{"name": "a", "emptyDir": {}}, {"name": "b", "emptyDir": None}, {"name": "c", "configMap": {}}],
        "initContainers": [{"name": "init", "image": "init:1"}],
        "imagePullSecrets": [{"name": "registry"}],
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
    },
    {
        "env": [{"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
        "securityContext": {"capabilities": {"add": ["NET_BIND_SERVICE"]}, "readOnlyRootFilesystem": True},
        "resources": {"limits": {"memory": "64Mi"}, "requests": {"cpu": "3"}},
        "readinessProbe": {"httpGet": {"path": "/", "port": 8080}},
    },
)


def spec_of(declared: Any) -> Any:
    runtime = declared.runtime
    assert isinstance(runtime, Runtime)
    template = make_template(runtime, PodDefaults("picod:1"))
    assert problems_of(template, "V1PodTemplateSpec") == []
    return template["spec"]


@pytest.mark.parametrize("manifest", [USUAL, agent({}, {}), resource("CodeInterpreter", {"template": {}})])
def test_pods_fit_the_restricted_profile(manifest: dict[str, Any]) -> None:
    """What Pod Security's admission asks for, field by field."""
    spec = spec_of(read_declared(manifest))
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] == 1000
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    for container in (*spec["containers"], *spec.get("initContainers", ())):
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]
    assert all(
        not volume.keys() - {"name", "emptyDir", "configMap"}
        and volume.get("emptyDir", {"sizeLimit": 1}).get("sizeLimit")
        for volume in spec.get("volumes", ())
    )


@pytest.mark.parametrize("manifest", [USUAL, agent({}, {}), resource("CodeInterpreter", {"template": {}})])
def test_every_container_has_limits_that_its_requests_keep_to(manifest: dict[str, Any]) -> None:
    """Memory, CPU and disk; a manifest's own stay as they are, and a pool that names none does not ask for all."""
    spec = spec_of(read_declared(manifest))
    for container in (*spec["containers"], *spec.get("initContainers", ())):
        limits, requests = container["resources"]["limits"], container["resources"]["requests"]
        assert limits.keys() >= {"memory", "cpu", "ephemeral-storage"}
        assert all(parse_quantity(requests[name]) <= parse_quantity(limits[name]) for name in requests)
    first = spec["containers"][0]["resources"]
    if manifest is USUAL:
        assert (first["limits"]["memory"], first["limits"]["cpu"], first["requests"]["cpu"]) == ("64Mi", "3", "3")
        assert "memory" not in first["requests"]
    else:
        assert (first["limits"]["memory"], first["requests"]["memory"]) == ("1Gi", "128Mi")


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@given(
    name=st.sampled_from(["volumes", "containers", "initContainers", "securityContext", "priorityClassName"]),
    value=values,
    inner=st.sampled_from(["env", "envFrom", "ports", "volumeMounts", "lifecycle", "livenessProbe", "securityContext"]),
)
def test_any_value_in_any_field_is_judged(name: str, value: Any, inner: str) -> None:
    """What is not even of the right type is the API server's to refuse."""
    pod = {"containers": [{"name": "a", inner: value}], name: value}
    manifest = {"spec": {"podTemplate": {"spec": pod}}}
    runtime = Runtime(key=RuntimeKey("default", "one", Kind.AGENT_RUNTIME), manifest=manifest)
    assert isinstance(untrusted(runtime), list)


async def test_condition_of_a_refused_agent_names_the_field(tmp_path: Path) -> None:
    """Where `kubectl get agentruntimes` looks; what is served beside it stays served."""
    async with make_cluster(hollow=True).running() as cluster:
        await cluster.equip()
        api = await connect(cluster.kubeconfig(tmp_path), 4)
        try:
            spec = agent({"hostNetwork": True}, {})["spec"]
            cluster.create("agentruntimes", "bad", namespace="default", spec=spec)
            cluster.create("agentruntimes", "good", namespace="default", spec=agent({}, {})["spec"])
            catalog = WatchedCatalog(api, ["default"])
            async with asyncio.timeout(10):
                await catalog.start()
            assert [runtime.key.name for runtime in catalog.all()] == ["good"]
            bad = catalog.declared[RuntimeKey("default", "bad", Kind.AGENT_RUNTIME)]
            assert bad.problems == (f"{POD}.hostNetwork: refused without --kube-trust-manifests",)
        finally:
            await api.aclose()
