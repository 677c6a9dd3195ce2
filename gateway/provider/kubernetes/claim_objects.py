"""SandboxClaims and Sandboxes of agent-sandbox as the claim controller reads and writes them. Pure.

A Sandbox object stands for a session here, and not for a pod of its own: the session's pod changes, and goes while the
session sleeps. Clients read its conditions, and ask it to sleep or wake by `spec.operatingMode`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gateway.core.agent_sandbox import CLAIM_GROUP, RUNNING, SANDBOX_GROUP, VERSION, sandbox_name
from gateway.core.model import Session, SessionId, SessionState
from gateway.provider.kubernetes import names

Object = dict[str, Any]

FINALIZER = "wakegate.io/session"  # a claim stays until its session has ended, also while no gateway runs
CLAIM_UID = "wakegate.io/claim-uid"  # label of a Sandbox


@dataclass(frozen=True, slots=True)
class ClaimObject:
    """A SandboxClaim. `manifest` is what its author wrote of it: labels, annotations, spec."""

    uid: str
    version: str
    namespace: str
    name: str
    generation: int
    finalizers: tuple[str, ...]
    is_deleted: bool  # it goes once its finalizers are done
    manifest: Mapping[str, Any]
    status: Mapping[str, Any] = field(default_factory=dict)

    @property
    def session_id(self) -> SessionId:
        """The session that it is, whoever made it: so that no claim has two."""
        return SessionId(self.uid)

    @property
    def is_bound(self) -> bool:
        """Whether its status names a sandbox."""
        return bool((self.status.get("sandbox") or {}).get("name"))

    @property
    def ends_with_sandbox(self) -> bool:
        """Whether the claim is to be deleted when its sandbox has ended."""
        life = (self.manifest.get("spec") or {}).get("lifecycle")
        return isinstance(life, dict) and str(life.get("shutdownPolicy", "")).startswith("Delete")


@dataclass(frozen=True, slots=True)
class SandboxObject:
    """A Sandbox that stands for a session. `observed`: the generation whose operating mode was followed."""

    uid: str
    version: str
    namespace: str
    name: str
    claim_uid: str
    generation: int
    observed: int
    mode: str
    status: Mapping[str, Any] = field(default_factory=dict)


def claims(namespace: str, name: str = "", sub: str = "") -> str:
    """Path of SandboxClaims, of one, or of a subresource of one."""
    return _path(CLAIM_GROUP, namespace, "sandboxclaims", name, sub)


def sandboxes(namespace: str, name: str = "", sub: str = "", version: str = VERSION) -> str:
    """Path of Sandboxes, of one, or of a subresource of one."""
    return _path(SANDBOX_GROUP, namespace, "sandboxes", name, sub, version)


def read_claim(obj: Mapping[str, Any]) -> ClaimObject:
    """A SandboxClaim as the server gives it."""
    metadata = obj["metadata"]
    return ClaimObject(
        uid=metadata["uid"],
        version=metadata["resourceVersion"],
        namespace=metadata["namespace"],
        name=metadata["name"],
        generation=int(metadata.get("generation") or 1),
        finalizers=tuple(metadata.get("finalizers") or ()),
        is_deleted="deletionTimestamp" in metadata,
        manifest={
            "metadata": {name: metadata[name] for name in ("name", "labels", "annotations") if metadata.get(name)},
            "spec": obj.get("spec") or {},
        },
        status=obj.get("status") or {},
    )


def read_sandbox(obj: Mapping[str, Any]) -> SandboxObject | None:
    """A Sandbox as the server gives it; None for one that goes, or is not of ours."""
    metadata, status = obj["metadata"], obj.get("status") or {}
    claim_uid = (metadata.get("labels") or {}).get(CLAIM_UID)
    if claim_uid is None or "deletionTimestamp" in metadata:
        return None
    return SandboxObject(
        uid=metadata["uid"],
        version=metadata["resourceVersion"],
        namespace=metadata["namespace"],
        name=metadata["name"],
        claim_uid=claim_uid,
        generation=int(metadata.get("generation") or 1),
        observed=int(_present(status, "Suspended").get("observedGeneration") or 0),
        mode=(obj.get("spec") or {}).get("operatingMode") or RUNNING,
        status=status,
    )


def make_sandbox(claim: ClaimObject, image: str) -> Object:
    """The Sandbox of a claim; it goes with its claim."""
    return {
        "apiVersion": f"{SANDBOX_GROUP}/{VERSION}",
        "kind": "Sandbox",
        "metadata": {
            "name": sandbox_name(claim.session_id),
            "namespace": claim.namespace,
            "labels": {names.MANAGED: names.MANAGER, CLAIM_UID: claim.uid},
            "ownerReferences": [
                {
                    "apiVersion": f"{CLAIM_GROUP}/{VERSION}", "kind": "SandboxClaim", "name": claim.name,
                    "uid": claim.uid, "controller": True,
                }
            ],
        },
        # The pod is made from the runtime's own template; agent-sandbox's schema demands one here as well.
        "spec": {"operatingMode": RUNNING, "podTemplate": {"spec": {"containers": [{"name": "main", "image": image}]}}},
    }  # fmt: skip


def claim_status(claim: ClaimObject, session: Session, now: str) -> Object:
    """The status of a claim that has a session."""
    # No podIPs: what a client names is not dialled, so its X-Sandbox-Pod-IP would be of no use.
    return {
        "sandbox": {"name": sandbox_name(session.id), "podIPs": []},
        "conditions": [_condition(claim.status, "Ready", *_ready(session), claim.generation, now)],
    }


def waiting_status(claim: ClaimObject, reason: str, message: str, now: str) -> Object:
    """The status of a claim that has no session, and why. Some reasons make clients give up, others wait."""
    return {"conditions": [_condition(claim.status, "Ready", "False", reason, message, claim.generation, now)]}


def sandbox_status(sandbox: SandboxObject, session: Session, now: str) -> Object:
    """The status of a session's Sandbox."""
    sleeps = session.state in (SessionState.HIBERNATED, SessionState.HIBERNATING)
    reason = "Hibernated" if sleeps else "Running"
    status, generation = sandbox.status, sandbox.generation
    return {
        "podIPs": [],
        "conditions": [
            _condition(status, "Ready", *_ready(session), generation, now),
            _condition(status, "Suspended", "True" if sleeps else "False", reason, "", generation, now),
        ],
    }


def _ready(session: Session) -> tuple[str, str, str]:
    if session.state is SessionState.TERMINATED:
        return "False", "SandboxExpired", session.reason
    # One that sleeps is ready: its next request wakes it, and a client that waits for `Ready` would never send that.
    return "True", "DependenciesReady", ""


def _present(status: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    found = (each for each in status.get("conditions") or [] if each.get("type") == kind)
    present: Mapping[str, Any] = next(found, {})
    return present


def _condition(
    present: Mapping[str, Any], kind: str, holds: str, reason: str, message: str, generation: int, now: str
) -> Object:
    before = _present(present, kind)
    return {
        "type": kind,
        "status": holds,
        "reason": reason,
        "message": message[:1024],
        "observedGeneration": generation,
        "lastTransitionTime": before.get("lastTransitionTime", now) if before.get("status") == holds else now,
    }


def _path(group: str, namespace: str, plural: str, name: str, sub: str, version: str = VERSION) -> str:
    path = f"/apis/{group}/{version}/namespaces/{namespace}/{plural}" + (f"/{name}" if name else "")
    return path + (f"/{sub}" if sub else "")
