"""What is made in the cluster for a runtime, around its pod template (template.py). Pure.

The warm pool's Deployment, pods for cold claims, and the patches that bind and mark warm pods. The NetworkPolicy is
egress.py's.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from gateway.core.model import Runtime, StartKind
from gateway.provider.kubernetes import names

Object = dict[str, Any]

# activeDeadlineSeconds is a net for pods that every gateway forgot; ending sessions in time is the lifecycle's.
DEADLINE_SLACK_S = 300


def owner_of(runtime: Runtime) -> list[Object]:
    """The ownerReferences of what is made for it: its custom resource, if it came from one."""
    metadata = runtime.manifest.get("metadata") or {}
    if not metadata.get("uid"):
        return []
    return [
        {
            "apiVersion": names.API_VERSION,
            "kind": runtime.key.kind.value,
            "name": metadata["name"],
            "uid": metadata["uid"],
        }
    ]


# A pod of the new version takes an old one's place only when it has been ready for this long: time in which gateways
# see it, and mark an old one as no longer claimable. So a roll removes none that is being claimed.
ROLLING: Object = {
    "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 0}},
    "minReadySeconds": 2,
}


def make_deployment(runtime: Runtime, template: Object, replicas: int) -> Object:
    """The warm pool. Its selector never changes; the label that a claim changes is part of it."""
    labels = names.runtime_labels(runtime.key)
    metadata: Object = {
        "name": names.deployment_name(runtime.key),
        "namespace": runtime.key.namespace,
        "labels": {**labels, names.APPLIED: template["metadata"]["annotations"][names.TEMPLATE]},
        "annotations": {**names.runtime_notes(runtime.key), **gang_notes(template)},
    }
    if owners := owner_of(runtime):
        metadata["ownerReferences"] = owners
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata,
        "spec": {
            "replicas": replicas,
            # apps/v1 refuses to change a selector, so nothing is in it that a new version of the runtime could change.
            "selector": {"matchLabels": {**labels, names.POOL: names.WARM}},
            "template": template,
            **ROLLING,
        },
    }


def gang_notes(template: Object) -> dict[str, str]:
    """The Deployment's annotation for Volcano's gangs. Not the pods': one that is made for a claim would wait for
    others that nobody makes."""
    size = template["metadata"]["annotations"].get(names.TOGETHER)
    return {names.GANG: size} if size else {}


def keep_off(spec: Object, nodes: Iterable[str]) -> None:
    """Have the scheduler leave out nodes that it takes for ready. Changes a pod's spec."""
    left_out = [{"key": "metadata.name", "operator": "NotIn", "values": [node]} for node in sorted(nodes)]
    if not left_out:
        return
    affinity = spec.setdefault("affinity", {}).setdefault("nodeAffinity", {})
    required = affinity.setdefault("requiredDuringSchedulingIgnoredDuringExecution", {"nodeSelectorTerms": [{}]})
    for term in required["nodeSelectorTerms"]:  # of which one must hold
        term["matchFields"] = [*term.get("matchFields", ()), *left_out]


def make_cold_pod(runtime: Runtime, template: Object, name: str, session: str, claim: str) -> Object:
    """A pod that is claimed from its first moment, made like the warm ones."""
    pod = copy.deepcopy(template)
    pod |= {"apiVersion": "v1", "kind": "Pod"}
    metadata = pod["metadata"]
    metadata |= {"name": name, "namespace": runtime.key.namespace}
    metadata["labels"] |= claim_labels(session, name)
    metadata["annotations"] |= claim_notes(session, claim, StartKind.COLD, 0)
    if owners := owner_of(runtime):
        metadata["ownerReferences"] = owners
    pod["spec"]["activeDeadlineSeconds"] = _deadline(runtime.max_session_duration)
    return pod


def make_claim(
    runtime: Runtime, version: str, name: str, restarts: int, session: str, claim: str, running: float
) -> Object:
    """The merge patch that binds a warm pod: out of the selector, stamped, bounded. `running`: its seconds so far."""
    metadata: Object = {
        # Makes the patch conditional: 409 if anybody has written the pod since we read it, another gateway or the
        # kubelet.
        "resourceVersion": version,
        "labels": claim_labels(session, name),
        "annotations": claim_notes(session, claim, StartKind.WARM, restarts),
    }
    # In place of the ReplicaSet's. It would take its own off in a moment; but should it be deleted before, the garbage
    # collector would take the claimed pod with it.
    metadata["ownerReferences"] = owner_of(runtime) or None
    # It counts from the pod's start, which may be long ago, not from the claim.
    return {"metadata": metadata, "spec": {"activeDeadlineSeconds": _deadline(running + runtime.max_session_duration)}}


def make_rebinding(name: str, restarts: int, session: str, claim: str) -> Object:
    """The merge patch that gives a pod made for one claim to another. Its deadline stays: the server lets none grow.

    DEADLINE_SLACK_S covers the start and the time for which such a pod is kept.
    """
    notes = claim_notes(session, claim, StartKind.COLD, restarts)
    return {"metadata": {"labels": claim_labels(session, name), "annotations": notes}}


def make_victim(version: str) -> Object:
    """The merge patch that marks a warm pod for a shrink: unclaimable, and the first that the ReplicaSet removes."""
    # Of pods that are alike in phase and readiness, a ReplicaSet removes the one of the lowest cost first; others have
    # 0.
    return _notes(version, {names.VICTIM: "true", names.DELETION_COST: "-1000"})


def make_spared(version: str) -> Object:
    """The merge patch that takes the mark back."""
    return _notes(version, {names.VICTIM: None, names.DELETION_COST: None})


def claim_labels(session: str, pod: str) -> dict[str, str]:
    """The labels of a claimed pod besides its runtime's."""
    return {
        names.POOL: names.CLAIMED,
        names.SESSION: names.label_value(session),
        names.SANDBOX: names.label_value(pod),
    }


def claim_notes(session: str, claim: str, start: StartKind, restarts: int) -> dict[str, str]:
    """The annotations of a claimed pod besides its runtime's."""
    return {
        names.SESSION_ID: session,
        names.CLAIM: claim,
        names.START: start.value,
        names.RESTARTS: str(restarts),
    }


def _deadline(seconds: float) -> int:
    # The API server refuses more than an int32 holds, and a runtime may allow sessions of more than 68 years.
    return min(2**31 - 1, int(seconds) + DEADLINE_SLACK_S)


def _notes(version: str, notes: Mapping[str, str | None]) -> Object:
    return {"metadata": {"resourceVersion": version, "annotations": dict(notes)}}
