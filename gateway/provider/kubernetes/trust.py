"""What a runtime's manifest may ask of its pods without being trusted. Pure.

A user who may create AgentRuntimes would otherwise control the node: by a hostPath, a privileged container, the host's
network, another's service account, or a Secret of the namespace. What is allowed is Pod Security's `restricted` profile
(https://kubernetes.io/docs/concepts/security/pod-security-standards/) and no Secrets. Fields are taken from a list, so
that one which a later Kubernetes adds is refused until it has been reviewed. `--kube-trust-manifests` lifts all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gateway.core.model import Kind, Runtime
from gateway.provider.kubernetes.egress import refused_egress

# Not here, for example: hostNetwork, hostPID, hostIPC, serviceAccountName, and nodeName, which passes by the scheduler.
_POD_FIELDS = frozenset((
    "activeDeadlineSeconds", "affinity", "automountServiceAccountToken", "containers", "dnsConfig", "dnsPolicy",
    "enableServiceLinks", "hostAliases", "hostname", "imagePullSecrets", "initContainers", "nodeSelector", "os",
    "overhead", "preemptionPolicy", "priorityClassName", "readinessGates", "restartPolicy", "runtimeClassName",
    "schedulerName", "securityContext", "setHostnameAsFQDN", "shareProcessNamespace", "subdomain",
    "terminationGracePeriodSeconds", "tolerations", "topologySpreadConstraints", "volumes",
))  # fmt: skip
_CONTAINER_FIELDS = frozenset((
    "args", "command", "env", "envFrom", "image", "imagePullPolicy", "lifecycle", "livenessProbe", "name", "ports",
    "readinessProbe", "resizePolicy", "resources", "restartPolicy", "securityContext", "startupProbe", "stdin",
    "stdinOnce", "terminationMessagePath", "terminationMessagePolicy", "tty", "volumeMounts", "workingDir",
))  # fmt: skip
# Of either security context; what is not here is refused. Some are looked at further below.
_SECURITY_FIELDS = frozenset((
    "allowPrivilegeEscalation", "capabilities", "fsGroup", "fsGroupChangePolicy", "privileged",
    "readOnlyRootFilesystem", "runAsGroup", "runAsNonRoot", "runAsUser", "seccompProfile", "supplementalGroups",
    "supplementalGroupsPolicy",
))  # fmt: skip
# Not here: hostPath, secret, projected (it can hold a token of the API server), nfs, csi and all other drivers.
_VOLUME_SOURCES = frozenset(("configMap", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim"))
# Not here: secretKeyRef.
_VALUE_SOURCES = frozenset(("configMapKeyRef", "fieldRef", "resourceFieldRef"))
_FOREIGN_VOLUMES = ("configMap", "persistentVolumeClaim")
_PROBES = ("livenessProbe", "readinessProbe", "startupProbe")
# Read by container runtimes, network plug-ins, service meshes and clouds as orders: another profile, network, address
# or hypervisor, mounts, flags of gVisor, a role of the cloud's.
_ANNOTATIONS = (
    "container.apparmor.security.beta.kubernetes.io/",
    "container.seccomp.security.alpha.kubernetes.io/",
    "seccomp.security.alpha.kubernetes.io/",
    "k8s.v1.cni.cncf.io/",
    "io.katacontainers.",
    "io.kubernetes.cri",
    "io.containerd.",
    "dev.gvisor.",
    "security.alpha.kubernetes.io/",
    "v1.multus-cni.io/",
    "cni.projectcalico.org/",
    "policy.cilium.io/",
    "io.cilium",
    "ovn.kubernetes.io/",
    "k8s.ovn.org/",
    "iam.amazonaws.com/",
    "vault.hashicorp.com/",
    "sidecar.istio.io/user",  # volumes; `inject` only says whether there is a sidecar
    "sidecar.istio.io/bootstrapOverride",
    "sidecar.istio.io/proxyImage",
    "inject.istio.io/",
    "traffic.sidecar.istio.io/",
    "config.linkerd.io/",
)
# Of an ephemeral volume's claim: a copy of another claim's data, or a volume that is there already.
_OTHERS_DATA = ("dataSource", "dataSourceRef", "volumeName")
_ADVICE = "refused without --kube-trust-manifests"


def untrusted(runtime: Runtime) -> list[str]:
    """What its manifest asks for beyond that: `FIELD: what is refused` each. Empty for most."""
    spec = runtime.manifest.get("spec") or {}
    if runtime.key.kind is Kind.AGENT_RUNTIME:
        template = _mapping(spec.get("podTemplate"))
        found = list(_pod(_mapping(template.get("spec")), "spec.podTemplate.spec"))
        place = "spec.podTemplate"
    else:
        template = _mapping(spec.get("template"))
        found = list(_environment(template.get("environment"), "spec.template.environment"))
        found += _priority(_mapping(_mapping(spec.get("wakegate")).get("pod")), "spec.wakegate.pod")
        place = "spec.template"
    found += refused_egress(_mapping(spec.get("wakegate")).get("egress"), "spec.wakegate.egress")
    for name in _mapping(template.get("annotations")):
        if str(name).startswith(_ANNOTATIONS) or ".crio.io" in str(name).partition("/")[0]:
            found.append(f"{place}.annotations.{name}")
    return [f"{path}: {_ADVICE}" for path in found]


def foreign(runtime: Runtime) -> list[str]:
    """What an agent of the API asks for of the objects beside it, which may be other tenants': as `untrusted`.

    Whoever may apply manifests reads them anyway; whoever has a key of the gateway does not.
    """
    pod = _mapping(_mapping(_mapping(runtime.manifest.get("spec")).get("podTemplate")).get("spec"))
    place = "spec.podTemplate.spec"
    found = [f"{place}.{name}" for name in ("imagePullSecrets", "priorityClassName") if pod.get(name)]
    for index, volume in enumerate(_sequence(pod.get("volumes"))):
        found += [f"{place}.volumes[{index}].{name}" for name in _FOREIGN_VOLUMES if name in _mapping(volume)]
        claim = _mapping(_mapping(_mapping(_mapping(volume).get("ephemeral")).get("volumeClaimTemplate")).get("spec"))
        inner = f"{place}.volumes[{index}].ephemeral.volumeClaimTemplate.spec"
        found += [f"{inner}.{name}" for name in _OTHERS_DATA if claim.get(name)]
    for kind in ("initContainers", "containers"):
        for index, container in enumerate(_sequence(pod.get(kind))):
            given = _mapping(container)
            if given.get("envFrom"):
                found.append(f"{place}.{kind}[{index}].envFrom")
            for number, entry in enumerate(_sequence(given.get("env"))):
                if "configMapKeyRef" in _mapping(_mapping(entry).get("valueFrom")):
                    found.append(f"{place}.{kind}[{index}].env[{number}].valueFrom.configMapKeyRef")
    return [f"{path}: refused of an agent of the API; apply an AgentRuntime with kubectl" for path in found]


def _pod(pod: Mapping[str, Any], place: str) -> Iterator[str]:
    """Paths of what is refused in a PodSpec."""
    yield from (f"{place}.{name}" for name in pod if name not in _POD_FIELDS)
    if pod.get("automountServiceAccountToken"):
        yield f"{place}.automountServiceAccountToken"
    yield from _priority(pod, place)
    yield from _security(pod.get("securityContext"), f"{place}.securityContext")
    for index, volume in enumerate(_sequence(pod.get("volumes"))):
        for source in _mapping(volume):
            if source != "name" and source not in _VOLUME_SOURCES:
                yield f"{place}.volumes[{index}].{source}"
    for kind in ("initContainers", "containers"):
        for index, container in enumerate(_sequence(pod.get(kind))):
            yield from _container(_mapping(container), f"{place}.{kind}[{index}]")


def _container(container: Mapping[str, Any], place: str) -> Iterator[str]:
    yield from (f"{place}.{name}" for name in container if name not in _CONTAINER_FIELDS)
    yield from _security(container.get("securityContext"), f"{place}.securityContext")
    yield from _environment(container.get("env"), f"{place}.env")
    for index, source in enumerate(_sequence(container.get("envFrom"))):
        yield from (
            f"{place}.envFrom[{index}].{name}" for name in _mapping(source) if name not in ("prefix", "configMapRef")
        )
    for index, port in enumerate(_sequence(container.get("ports"))):
        # A port of the node: two pods could not be on one node, and it is reachable from outside of the cluster.
        yield from (f"{place}.ports[{index}].{name}" for name in ("hostPort", "hostIP") if _mapping(port).get(name))
    for index, mount in enumerate(_sequence(container.get("volumeMounts"))):
        # Bidirectional shows the container's mounts to the node and to the other pods on it.
        if _mapping(mount).get("mountPropagation") not in (None, "None"):
            yield f"{place}.volumeMounts[{index}].mountPropagation"
    lifecycle = _mapping(container.get("lifecycle"))
    for name, probe in (
        *((name, container.get(name)) for name in _PROBES),
        *((f"lifecycle.{name}", each) for name, each in lifecycle.items()),
    ):
        for action in ("httpGet", "tcpSocket"):  # the kubelet would ask any host in the sandbox's place
            if _mapping(_mapping(probe).get(action)).get("host"):
                yield f"{place}.{name}.{action}.host"


def _environment(entries: Any, place: str) -> Iterator[str]:
    for index, entry in enumerate(_sequence(entries)):
        for source in _mapping(_mapping(entry).get("valueFrom")):
            if source not in _VALUE_SOURCES:
                yield f"{place}[{index}].valueFrom.{source}"


def _priority(pod: Mapping[str, Any], place: str) -> Iterator[str]:
    """The system's priority classes push the cluster's own pods off their nodes."""
    if str(pod.get("priorityClassName") or "").startswith("system-"):
        yield f"{place}.priorityClassName"


def _security(context: Any, place: str) -> Iterator[str]:
    """Paths of what is refused in the securityContext of a pod or a container."""
    given = _mapping(context)
    yield from (f"{place}.{name}" for name in given if name not in _SECURITY_FIELDS)
    for name in ("privileged", "allowPrivilegeEscalation"):
        if given.get(name):
            yield f"{place}.{name}"
    if given.get("runAsNonRoot") is False:
        yield f"{place}.runAsNonRoot"
    for name in ("runAsUser", "runAsGroup", "fsGroup"):
        if given.get(name) == 0:
            yield f"{place}.{name}"
    if 0 in _sequence(given.get("supplementalGroups")):
        yield f"{place}.supplementalGroups"
    # Unconfined is what remains.
    if _mapping(given.get("seccompProfile")).get("type") not in (None, "RuntimeDefault", "Localhost"):
        yield f"{place}.seccompProfile.type"
    # The one capability that `restricted` lets a container add.
    if any(name != "NET_BIND_SERVICE" for name in _sequence(_mapping(given.get("capabilities")).get("add"))):
        yield f"{place}.capabilities.add"


def _mapping(value: Any) -> Mapping[str, Any]:
    """What is no mapping is the API server's to refuse."""
    return value if isinstance(value, Mapping) else {}


def _sequence(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else ()
