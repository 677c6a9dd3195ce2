"""Manifests in a cluster by which an author reaches beyond their own pods, past the fields that are known for it."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.core.model import Kind, Runtime, RuntimeKey, StartKind
from gateway.provider.kubernetes import names
from gateway.provider.kubernetes.catalog import read_declared
from gateway.provider.kubernetes.pod import read_pod
from gateway.provider.kubernetes.trust import foreign, untrusted

POD = "spec.podTemplate.spec"


def resource(template: dict[str, Any], pod: dict[str, Any] | None = None) -> dict[str, Any]:
    metadata = {"name": "one", "namespace": "default", "uid": "u", "resourceVersion": "1"}
    spec = {"containers": [{"name": "agent", "image": "agent:1"}], **(pod or {})}
    return {
        "kind": "AgentRuntime",
        "metadata": metadata,
        "spec": {"targetPort": [{"port": 8080}], "podTemplate": {**template, "spec": spec}},
    }


ORDERS = (
    "iam.amazonaws.com/role", "dev.gvisor.flag.network", "dev.gvisor.spec.mount.a.source", "io.containerd.cri.x",
    "io.kubernetes.cri.untrusted-workload", "io.kubernetes.cri-o.userns-mode", "v1.multus-cni.io/default-network",
    "cni.projectcalico.org/ipAddrs", "cpu-load-balancing.crio.io", "security.alpha.kubernetes.io/unsafe-sysctls",
    "vault.hashicorp.com/agent-inject-secret-a", "sidecar.istio.io/userVolume", "config.linkerd.io/skip-outbound-ports",
    "ovn.kubernetes.io/ip_address", "container.apparmor.security.beta.kubernetes.io/agent",
)  # fmt: skip


@pytest.mark.parametrize("name", ORDERS)
def test_annotation_that_others_read_as_an_order_is_refused(name: str) -> None:
    """By its name; those of the author's own stay."""
    declared = read_declared(resource({"annotations": {name: "x", "example.com/team": "a", "note": "b"}}))
    assert declared.problems == (f"spec.podTemplate.annotations.{name}: refused without --kube-trust-manifests",)
    assert read_declared(resource({"annotations": {"example.com/team": "a", "note": "b"}})).runtime is not None


def test_pod_cannot_be_given_names_of_ours() -> None:
    """With --kube-trust-manifests too: a pod that says it is another session's would be taken for it."""
    notes = dict.fromkeys((names.SESSION_ID, names.START, names.REVISION, names.CODE, names.CLAIM), "forged")
    labels = dict.fromkeys((names.SESSION, names.SANDBOX, names.POOL, names.MANAGED), "forged")
    for field, given in (("annotations", notes), ("labels", labels)):
        for name in given:
            declared = read_declared(resource({field: {name: "forged", "note": "a"}}), trusted=True)
            assert declared.runtime is None, name
            assert f"spec.podTemplate.{field}.{name}" in declared.problems[0]


@pytest.mark.parametrize(
    "notes",
    [
        {names.START: "lukewarm"},
        {names.REVISION: "seven"},
        {names.REVISION: "-1"},
        {names.RESTARTS: "9" * 5000},
        {names.PORT: "\u0663"},
        {names.PORT: ""},
        {names.RESTARTS: "1.5", names.START: ""},
        {names.CODE: ",,,"},
        {names.REVISION: " 7"},
        {names.PORT: "0x50"},
    ],
)
def test_pod_with_any_annotations_is_read(notes: dict[str, str]) -> None:
    """Whoever may create pods may write them, and one that cannot be read would stop the watch of all."""
    labels = {names.KIND: Kind.AGENT_RUNTIME.singular, names.POOL: names.CLAIMED}
    status = {"containerStatuses": [{"name": "picod", "restartCount": 0}]}
    metadata = {"uid": "u", "namespace": "n", "name": "p", "resourceVersion": "1", "labels": labels}
    pod = read_pod({"metadata": {**metadata, "annotations": {names.RUNTIME: "one", **notes}}, "status": status})
    assert pod is not None
    assert (pod.port, pod.start, pod.runtime) == (8080, StartKind.WARM, RuntimeKey("n", "one", Kind.AGENT_RUNTIME))


@pytest.mark.parametrize(
    "claim",
    [
        {"dataSource": {"kind": "PersistentVolumeClaim", "name": "another"}},
        {"dataSource": {"kind": "VolumeSnapshot", "name": "another"}},
        {"dataSourceRef": {"kind": "PersistentVolumeClaim", "name": "another", "namespace": "other"}},
        {"volumeName": "pv-1"},
    ],
)
def test_agent_of_the_api_gets_no_copy_of_others_volumes(claim: dict[str, Any]) -> None:
    """An ephemeral volume may be made from another claim, which it may not mount."""
    volume = {"name": "v", "ephemeral": {"volumeClaimTemplate": {"spec": {"accessModes": ["ReadWriteOnce"], **claim}}}}
    runtime = Runtime(
        key=RuntimeKey("default", "one", Kind.AGENT_RUNTIME), manifest=resource({}, {"volumes": [volume]})
    )
    (problem,) = foreign(runtime)
    assert problem.startswith(f"{POD}.volumes[0].ephemeral.volumeClaimTemplate.spec.{next(iter(claim))}: ")


@pytest.mark.parametrize(
    "pod",
    [
        {"hostUsers": True},
        {"resourceClaims": [{"name": "gpu", "resourceClaimName": "others"}]},
        {"securityContext": {"supplementalGroups": [0.0]}},
        {"securityContext": {"runAsUser": False}},
        {"volumes": [{"name": "v", "image": {"reference": "x"}}]},
        {"volumes": [{"name": "v", "clusterTrustBundle": {}}]},
        {"initContainers": [{"name": "i", "restartPolicy": "Always", "securityContext": {"procMount": "Unmasked"}}]},
        {"initContainers": [{"name": "i", "env": [{"name": "A", "valueFrom": {"fileKeyRef": {}}}]}]},
        {"initContainers": [{"name": "i", "lifecycle": {"postStart": {"httpGet": {"host": "10.0.0.1"}}}}]},
        {"initContainers": [{"name": "i", "volumeMounts": [{"name": "v", "mountPropagation": "HostToContainer"}]}]},
        {"priority": 2_000_000_000},
    ],
)
def test_relatives_of_what_is_refused_are_refused(pod: dict[str, Any]) -> None:
    """Of init containers, in other spellings of a number, and fields of later versions of Kubernetes."""
    runtime = Runtime(key=RuntimeKey("default", "one", Kind.AGENT_RUNTIME), manifest=resource({}, pod))
    assert len(untrusted(runtime)) == 1
