"""Names that the engine writes into the cluster: labels, annotations, object names, paths of the API. Pure.

The three `runtime.agentcube.io` labels are those that AgentCube's own scripts select on.
"""

from __future__ import annotations

import hashlib
import re

from gateway.core.model import Kind, RuntimeKey

GROUP, VERSION = "runtime.agentcube.volcano.sh", "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
METRICS_GROUP = "metrics.k8s.io"

MANAGED = "app.kubernetes.io/managed-by"
MANAGER = "wakegate"
RUNTIME = "wakegate.io/runtime"  # a label, of an agent's revision as `name_r3`; an annotation with the whole name
REVISION = "wakegate.io/revision"  # an annotation: which of an agent's
KIND = "wakegate.io/kind"
POOL = "wakegate.io/pool"  # warm: in the Deployment's selector; claimed: bound to a session
WARM, CLAIMED = "warm", "claimed"
SESSION = "runtime.agentcube.io/session-id"
WORKLOAD = "runtime.agentcube.io/workload-name"
SANDBOX = "runtime.agentcube.io/sandbox-name"

# A label of the Deployment: the digest of the template that a gateway last put there. `kubectl rollout undo` brings
# annotations back with the old template, but no labels; so an undone rollout is seen, and left alone.
APPLIED = "wakegate.io/applied"

# Annotations.
PORT = "wakegate.io/port"  # where requests go that no path prefix sends elsewhere
SESSION_ID = "wakegate.io/session"  # the whole id: labels hold 63 characters only
CLAIM = "wakegate.io/claim"  # one claim's own mark: who finds it on a pod knows whose PATCH it was
START = "wakegate.io/start"  # warm | cold
RESTARTS = "wakegate.io/restarts"  # of picod's container when it was claimed
TOGETHER = "wakegate.io/gang"  # of a pod template: the Deployment's GANG, by which a change of it is seen
VICTIM = "wakegate.io/victim"  # to be removed by a shrink: it may not be claimed
CODE = "wakegate.io/code"  # digests of the archives that a gateway brings into the pod before its agent starts
TEMPLATE = "wakegate.io/template"  # digest of what the pods are made from
DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"

NODE_LEASES = "kube-node-lease"  # the namespace of what kubelets renew
# Volcano's: of pods, the queue; of a Deployment, how many of its pods are placed together or not at all. Its controller
# makes a PodGroup of that (https://volcano.sh/docs/unifiedscheduling).
QUEUE = "scheduling.volcano.sh/queue-name"
GANG = "scheduling.volcano.sh/group-min-member"

# Of an AgentRuntime that is an agent of the API: which revision its spec is of, and whose it is, as JSON.
AGENT = "wakegate.io/agent"

KEYS = "wakegate.io/keys"  # of the ConfigMap: which Secret it was made from, and since when each key is in it

KEYS_CONFIGMAP = "wakegate-picod-keys"
KEYS_SECRET = "wakegate-signing-keys"  # noqa: S105 - a name
AUTHORITY_SECRET = "wakegate-egress-authority"  # noqa: S105 - a name
TRUST_CONFIGMAP = "wakegate-egress-trust"
# Annotations by which an operator lends a Secret of the gateways' namespace to runtimes (egress_secrets.py).
LENT_TO = "wakegate.io/egress-runtimes"  # NAMESPACE/NAME or NAMESPACE/*, separated by commas
LENT_FOR = "wakegate.io/egress-hosts"  # names or *.NAME, :PORT if it is not 443, separated by commas
SELECTOR = f"{MANAGED}={MANAGER}"

_PLURALS = {Kind.CODE_INTERPRETER: "codeinterpreters", Kind.AGENT_RUNTIME: "agentruntimes"}
_SHORT = {Kind.CODE_INTERPRETER: "ci", Kind.AGENT_RUNTIME: "ar"}


def plural(kind: Kind) -> str:
    """The resource name, e.g. `codeinterpreters`."""
    return _PLURALS[kind]


def deployment_name(key: RuntimeKey) -> str:
    """The warm pool's Deployment, at most 46 characters: the ReplicaSet's and the pod's suffixes fit into a label.

    A revision's number is behind `pool`, where no runtime of another name has it.
    """
    revision = f"-r{key.revision}" if key.revision else ""
    return f"{_fit(key.name, 38 - len(revision))}-{_SHORT[key.kind]}-pool{revision}"


def cold_name(key: RuntimeKey, suffix: str) -> str:
    """The name of a pod that is made for one claim; `suffix` makes it unique."""
    revision = f"-r{key.revision}" if key.revision else ""
    return f"{_fit(key.name, 44 - len(revision))}-{_SHORT[key.kind]}{revision}-{suffix}"


def runtime_labels(key: RuntimeKey) -> dict[str, str]:
    """What every pod and Deployment of a runtime carries. Each revision of an agent has a label of its own, so that no
    pool, policy or spread takes in another's pods; `_` is in no runtime's name."""
    revision = f"_r{key.revision}" if key.revision else ""
    label = _fit(key.name, 63 - len(revision)) + revision
    return {MANAGED: MANAGER, RUNTIME: label, KIND: key.kind.singular, WORKLOAD: _fit(key.name, 63)}


def runtime_notes(key: RuntimeKey) -> dict[str, str]:
    """The annotations that say which runtime a pod or a Deployment is of: labels hold 63 characters only."""
    return {RUNTIME: key.name, **({REVISION: str(key.revision)} if key.revision else {})}


def label_value(text: str) -> str:
    """Text as a label's value: what does not fit is replaced by a digest."""
    good = re.fullmatch(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?", text)
    return text if good else hashlib.sha256(text.encode()).hexdigest()[:32]


def pods(namespace: str, name: str = "") -> str:
    """Path of a namespace's pods, or of the one with that name."""
    return f"/api/v1/namespaces/{namespace}/pods" + (f"/{name}" if name else "")


def secrets(namespace: str, name: str = "") -> str:
    """Path of a namespace's Secrets, or of one."""
    return f"/api/v1/namespaces/{namespace}/secrets" + (f"/{name}" if name else "")


def config_maps(namespace: str, name: str = "") -> str:
    """Path of a namespace's ConfigMaps, or of one."""
    return f"/api/v1/namespaces/{namespace}/configmaps" + (f"/{name}" if name else "")


def events(namespace: str) -> str:
    """Path of a namespace's events."""
    return f"/api/v1/namespaces/{namespace}/events"


def pod_metrics(namespace: str) -> str:
    """Path of what a namespace's pods use."""
    return f"/apis/{METRICS_GROUP}/v1beta1/namespaces/{namespace}/pods"


def node_lease(node: str) -> str:
    """Path of what a node's kubelet renews while it reports."""
    return f"/apis/coordination.k8s.io/v1/namespaces/{NODE_LEASES}/leases/{node}"


def deployments(namespace: str, name: str = "", sub: str = "") -> str:
    """Path of Deployments, of one, or of a subresource of one."""
    path = f"/apis/apps/v1/namespaces/{namespace}/deployments" + (f"/{name}" if name else "")
    return path + (f"/{sub}" if sub else "")


def network_policies(namespace: str, name: str = "") -> str:
    """Path of NetworkPolicies, or of one."""
    return f"/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies" + (f"/{name}" if name else "")


def runtimes(kind: Kind, namespace: str, name: str = "", sub: str = "") -> str:
    """Path of CodeInterpreters or AgentRuntimes, of one, or of a subresource of one."""
    path = f"/apis/{GROUP}/{VERSION}/namespaces/{namespace}/{plural(kind)}" + (f"/{name}" if name else "")
    return path + (f"/{sub}" if sub else "")


def _fit(name: str, most: int) -> str:
    """A name cut to length; one that was cut ends in a digest, so that two long names stay two."""
    if len(name) <= most:
        return name
    return name[: most - 9].rstrip("-.") + "-" + hashlib.sha256(name.encode()).hexdigest()[:8]
