"""Makes the pod template of a runtime from its manifest. Pure.

For a CodeInterpreter the gateway writes the whole pod: no privileges, a read-only root, no token of the cluster,
picod's keys mounted. An AgentRuntime has a pod of its own, in which only absent fields are set. build.py makes
Deployments and pods for cold starts from the template, pod_resources.py has the limits.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from gateway.core.model import Kind, Runtime
from gateway.egress.credentials import placeholder_of
from gateway.egress.environment import PROXIES, trust
from gateway.egress.grants import by_name
from gateway.provider.kubernetes import names
from gateway.provider.kubernetes.code import add_code
from gateway.provider.kubernetes.pod import KEYS_FOLDER, PICOD_CONTAINER, PICOD_PORT
from gateway.provider.kubernetes.pod_resources import quantity, with_limits
from picod import wire

Object = dict[str, Any]

TRUST_FOLDER, TRUST_FILE = "/run/wakegate/trust", "ca.pem"  # of names.TRUST_CONFIGMAP
WORKSPACE = "/workspace"
TMP = "/tmp"  # noqa: S108 - the sandbox's own
USER = 1000

# A dead node's pods are evicted after this many seconds in place of Kubernetes' 300: their sessions wake elsewhere.
LOST_NODE_TIMEOUT_S = 30

# A pod that is evicted or drained with files in it stays up for a moment, in which a gateway copies them: its picod
# serves on after SIGTERM. Our own deletions give it a second only, and an empty one, as all warm ones are, does not
# wait. Rejected: a preStop hook that sleeps; each deletion of ours then reports it as failed, with a Warning event.
EVICTION_COPY_S = 20

WORKSPACE_BYTES = 5 << 30
AGENT_DISK_BYTES = 5 << 30  # of an agent's container, and of each emptyDir
SPARE_DISK_BYTES = 1 << 30

# spec.wakegate.pod: fields of the PodSpec that a CodeInterpreter may set besides AgentCube's own.
_POD_FIELDS = (
    "nodeSelector",
    "tolerations",
    "affinity",
    "topologySpreadConstraints",
    "schedulerName",
    "priorityClassName",
    "runtimeClassName",
    "dnsPolicy",
    "dnsConfig",
)


@dataclass(frozen=True, slots=True)
class PodDefaults:
    """Defaults for runtimes whose manifest does not set these."""

    picod_image: str
    spread: str = "spread"  # or pack, balanced: --kube-spread
    scheduler: str = ""
    runtime_class: str = ""
    code_context: str = "warm"  # wire.ENV_CODE_CONTEXT
    trusted: bool = False  # manifests may ask for anything that a pod can have
    egress_service: tuple[str, int] | None = None  # the gateways' namespace and their port for it (--egress-port)
    environment: Mapping[str, str] = field(default_factory=dict)  # of picod, e.g. AgentCube's public key


def make_template(runtime: Runtime, defaults: PodDefaults) -> Object:
    """The pod template: metadata and spec, with the digest of both in an annotation."""
    spec = (
        _agent_pod(runtime, defaults) if runtime.key.kind is Kind.AGENT_RUNTIME else _interpreter_pod(runtime, defaults)
    )
    own = own_section(runtime)
    pod = own.get("pod") or {}
    spread = pod.get("spread") or defaults.spread
    for name, value in _placement(spread, runtime).items():
        if name == "affinity":  # merged by kind: the manifest's node affinity is kept, its pod affinity replaces ours
            spec["affinity"] = {**value, **(spec.get("affinity") or {})}
        else:
            spec.setdefault(name, value)
    if pod.get("schedulerName"):  # of an AgentRuntime; a CodeInterpreter's is there already
        spec.setdefault("schedulerName", pod["schedulerName"])
    if defaults.scheduler:
        spec.setdefault("schedulerName", defaults.scheduler)
    if defaults.runtime_class:
        spec.setdefault("runtimeClassName", defaults.runtime_class)
    given = runtime.manifest.get("spec") or {}
    source = given.get("podTemplate") if runtime.key.kind is Kind.AGENT_RUNTIME else given.get("template")
    source = source or {}
    labels = {**(source.get("labels") or {}), **names.runtime_labels(runtime.key), names.POOL: names.WARM}
    notes = {
        **(source.get("annotations") or {}),
        **names.runtime_notes(runtime.key),
        names.PORT: str(default_port(runtime)),
    }
    if runtime.code:
        notes[names.CODE] = ",".join(digest for _, digest in runtime.code)
    if pod.get("queue"):
        notes[names.QUEUE] = str(pod["queue"])
    if pod.get("gang"):
        notes[names.TOGETHER] = str(pod["gang"])
    template: Object = {"metadata": {"labels": labels, "annotations": notes}, "spec": spec}
    notes[names.TEMPLATE] = digest(template)
    return template


def is_trusted(runtime: Runtime, defaults: PodDefaults) -> bool:
    """Whether its manifest may ask for anything. Never of an agent of the API, which whoever has a key may make."""
    return defaults.trusted and not runtime.key.revision


def digest(template: Mapping[str, Any]) -> str:
    """A short hash of the template, by which a rollout is recognised."""
    return hashlib.sha256(orjson.dumps(template, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


def default_port(runtime: Runtime) -> int:
    """The target port for `/`, else the first one; picod's port if there are none."""
    ports = target_ports(runtime)
    for entry in ports:
        if (entry.get("pathPrefix") or "/") == "/":
            return int(entry["port"])
    return int(ports[0]["port"]) if ports else PICOD_PORT


def target_ports(runtime: Runtime) -> list[Mapping[str, Any]]:
    """An AgentRuntime's `targetPort`, a CodeInterpreter's `ports`; may be empty."""
    spec = runtime.manifest.get("spec") or {}
    return list(spec.get("targetPort" if runtime.key.kind is Kind.AGENT_RUNTIME else "ports") or [])


def disk_limits(runtime: Runtime) -> dict[str, int]:
    """Bytes that each volume of a CodeInterpreter's pod may hold, by its path."""
    size = (own_section(runtime).get("pod") or {}).get("workspaceSize")
    workspace = int(quantity(str(size))) if size else runtime.limits.workspace_size or WORKSPACE_BYTES
    return {WORKSPACE: workspace, TMP: runtime.limits.tmp_size}


def _interpreter_pod(runtime: Runtime, defaults: PodDefaults) -> Object:
    """The PodSpec of a CodeInterpreter, as Pod Security's `restricted` profile wants it."""
    template = (runtime.manifest.get("spec") or {}).get("template") or {}
    own = own_section(runtime).get("pod") or {}
    # What picod keeps (PICOD_DISK_LIMITS), and room above it: a kubelet evicts the pod, files and all, at these.
    sizes = {path: limit + wire.disk_headroom(limit) for path, limit in disk_limits(runtime).items()}
    container = _picod_container(runtime, defaults, template)
    # All that the pod writes counts against it: both volumes, logs, and an image's own folders.
    disk = sum(sizes.values()) + SPARE_DISK_BYTES
    container["resources"] = with_limits(template.get("resources") or {}, disk)
    spec: Object = {
        "containers": [container],
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": EVICTION_COPY_S + 5,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumes": [
            {"name": "workspace", "emptyDir": {"sizeLimit": str(sizes[WORKSPACE])}},
            {"name": "tmp", "emptyDir": {"sizeLimit": str(sizes[TMP])}},
            {"name": "keys", "configMap": {"name": names.KEYS_CONFIGMAP, "optional": not runtime.auth}},
        ],
        "tolerations": [*(own.get("tolerations") or []), *_lost_node()],
    }
    if _by_service(runtime, defaults):
        spec["volumes"].append({"name": "trust", "configMap": {"name": names.TRUST_CONFIGMAP}})
        container["volumeMounts"].append({"name": "trust", "mountPath": TRUST_FOLDER, "readOnly": True})
    _add_mounts(spec, container, runtime)
    add_code(spec, runtime, defaults.picod_image)
    for field_name in _POD_FIELDS:
        if own.get(field_name) and field_name != "tolerations":
            spec[field_name] = copy.deepcopy(own[field_name])
    for field_name in ("runtimeClassName", "imagePullSecrets"):  # AgentCube's own fields win over spec.wakegate.pod
        if template.get(field_name):
            spec[field_name] = template[field_name]
    return spec


def _add_mounts(spec: Object, container: Object, runtime: Runtime) -> None:
    """Add the volumes of spec.wakegate.mounts, read-only at the volume too where they are to be read only."""
    for index, mount in enumerate(runtime.mounts):
        name = f"mount-{index}"
        source: Object = {"configMap": {"name": mount.config_map}}
        if mount.claim:
            source = {"persistentVolumeClaim": {"claimName": mount.claim, "readOnly": mount.read_only}}
        spec["volumes"].append({"name": name, **source})
        container["volumeMounts"].append({"name": name, "mountPath": mount.target, "readOnly": mount.read_only})


def _picod_container(runtime: Runtime, defaults: PodDefaults, template: Mapping[str, Any]) -> Object:
    """The one container of a CodeInterpreter, without its resources. `template`: the manifest's `spec.template`."""
    port = default_port(runtime)
    given = [*_for_egress(runtime, defaults), *(template.get("environment") or _plain(runtime))]
    container: Object = {
        "name": PICOD_CONTAINER,
        "image": runtime.image or defaults.picod_image,
        "ports": [{"containerPort": port, "protocol": "TCP"}],
        "env": [*_picod_environment(runtime, defaults, given), *given],
        "readinessProbe": {
            "httpGet": {"path": wire.HEALTH_PATH, "port": port},
            "periodSeconds": 1,
            "failureThreshold": 10,  # a sandbox that computes on all its cores is busy, not away
            "timeoutSeconds": 5,
        },
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "workspace", "mountPath": WORKSPACE},
            {"name": "tmp", "mountPath": TMP},
            {"name": "keys", "mountPath": KEYS_FOLDER, "readOnly": True},
        ],
        "workingDir": WORKSPACE,
    }
    for field_name in ("command", "args", "imagePullPolicy"):
        if template.get(field_name):
            container[field_name] = template[field_name]
    return container


def _agent_pod(runtime: Runtime, defaults: PodDefaults) -> Object:
    spec: Object = copy.deepcopy(runtime.manifest["spec"]["podTemplate"]["spec"])
    spec.setdefault("automountServiceAccountToken", False)
    spec.setdefault("enableServiceLinks", False)
    spec.setdefault("terminationGracePeriodSeconds", 5)
    security = spec.setdefault("securityContext", {})
    security.setdefault("seccompProfile", {"type": "RuntimeDefault"})
    hardened = not is_trusted(runtime, defaults)
    if hardened:  # else what trust.py lets through would be more than `restricted`
        security["runAsNonRoot"] = True
        for name in ("runAsUser", "runAsGroup", "fsGroup"):
            security.setdefault(name, USER)
    spec["tolerations"] = [*(spec.get("tolerations") or []), *_lost_node()]
    spec.pop("restartPolicy", None)  # Always: a Deployment's pods have no other
    port = default_port(runtime)
    first = spec["containers"][0]
    first.setdefault("ports", [{"containerPort": port, "protocol": "TCP"}])
    # Ready means that it listens: without a probe it would count as ready when its process began.
    first.setdefault("readinessProbe", {"tcpSocket": {"port": port}, "periodSeconds": 1, "failureThreshold": 10})
    for container in (*spec["containers"], *(spec.get("initContainers") or ())):
        container["resources"] = with_limits(container.get("resources") or {}, AGENT_DISK_BYTES)
        if hardened:
            own = container.setdefault("securityContext", {})
            own["allowPrivilegeEscalation"] = False
            own["capabilities"] = {**(own.get("capabilities") or {}), "drop": ["ALL"]}
    for volume in spec.get("volumes") or ():
        if isinstance(volume.get("emptyDir"), dict):
            volume["emptyDir"].setdefault("sizeLimit", str(AGENT_DISK_BYTES))
        elif "emptyDir" in volume:  # `emptyDir:` with nothing behind it
            volume["emptyDir"] = {"sizeLimit": str(AGENT_DISK_BYTES)}
    add_code(spec, runtime, defaults.picod_image)
    return spec


def _picod_environment(runtime: Runtime, defaults: PodDefaults, given: Sequence[Mapping[str, Any]]) -> list[Object]:
    """picod's own variables. Those of the manifest (`given`) reach commands by name, as only the kubelet knows what
    a `valueFrom` stands for."""
    return [
        {"name": wire.ENV_AUDIENCE, "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}},
        {"name": wire.ENV_KEYS_FILE, "value": f"{KEYS_FOLDER}/jwks.json"},
        {"name": wire.ENV_AUTH, "value": "jwt" if runtime.auth else "none"},
        {"name": wire.ENV_WORKSPACE, "value": WORKSPACE},
        {"name": wire.ENV_FORWARD, "value": ",".join(str(variable["name"]) for variable in given)},
        {"name": wire.ENV_LINGER, "value": str(EVICTION_COPY_S)},
        {"name": wire.ENV_MAX_FILE_SIZE, "value": str(runtime.limits.file_size)},
        {
            "name": wire.ENV_DISK_LIMITS,
            "value": ",".join(f"{path}={size}" for path, size in disk_limits(runtime).items()),
        },
        {"name": wire.ENV_PORTS, "value": ",".join(f"{first}-{last}" for first, last in runtime.ports)},
        {"name": wire.ENV_CODE_CONTEXT, "value": runtime.code_context or defaults.code_context},
        *([{"name": wire.ENV_EGRESS, "value": "service"}] if _by_service(runtime, defaults) else ()),
        *([{"name": wire.ENV_PRELOAD, "value": ",".join(runtime.preload)}] if runtime.preload else ()),
        *({"name": name, "value": value} for name, value in defaults.environment.items()),
    ]


def _by_service(runtime: Runtime, defaults: PodDefaults) -> bool:
    """Whether picod passes on what code asks of the proxy."""
    return defaults.egress_service is not None and by_name(runtime)


def _for_egress(runtime: Runtime, defaults: PodDefaults) -> list[Object]:
    """Where commands find the proxy, whom to trust, and placeholders. What the manifest sets itself is left to it."""
    if not _by_service(runtime, defaults):
        return []
    placeholders = {secret.name: placeholder_of(str(runtime.key), secret.name) for secret in runtime.secrets}
    variables = {**PROXIES, **trust(f"{TRUST_FOLDER}/{TRUST_FILE}"), **placeholders}
    return [{"name": name, "value": value} for name, value in variables.items() if name not in _names_in(runtime)]


def _names_in(runtime: Runtime) -> set[str]:
    template = (runtime.manifest.get("spec") or {}).get("template") or {}
    return {str(each.get("name")) for each in template.get("environment") or ()} | runtime.environment.keys()


def _plain(runtime: Runtime) -> list[Object]:
    return [{"name": name, "value": value} for name, value in runtime.environment.items()]


def _placement(spread: str, runtime: Runtime) -> Object:
    """How a runtime's pods are distributed over nodes. All terms are preferences: none keeps a pod pending."""
    own = {"matchLabels": {names.RUNTIME: names.runtime_labels(runtime.key)[names.RUNTIME]}}
    if spread == "pack":  # few nodes, so that a cluster autoscaler can take the others away
        term = {"labelSelector": {"matchLabels": {names.MANAGED: names.MANAGER}}, "topologyKey": _HOST}
        wish = {"weight": 100, "podAffinityTerm": term}
        return {"affinity": {"podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [wish]}}}
    if spread == "balanced":  # over zones; within one as the scheduler scores free resources
        return {"topologySpreadConstraints": [_even(_ZONE, own)]}
    return {"topologySpreadConstraints": [_even(_HOST, own), _even(_ZONE, own)]}


_HOST, _ZONE = "kubernetes.io/hostname", "topology.kubernetes.io/zone"


def _even(key: str, selector: Object) -> Object:
    return {"maxSkew": 1, "topologyKey": key, "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": selector}


def _lost_node() -> list[Object]:
    return [
        {
            "key": f"node.kubernetes.io/{state}",
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": LOST_NODE_TIMEOUT_S,
        }
        for state in ("not-ready", "unreachable")
    ]


def own_section(runtime: Runtime) -> Mapping[str, Any]:
    """The manifest's `spec.wakegate`, with the fields that AgentCube does not have; may be empty."""
    return (runtime.manifest.get("spec") or {}).get("wakegate") or {}
