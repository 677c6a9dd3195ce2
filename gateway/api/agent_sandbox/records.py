"""What a claim keeps in its session's record, and records as the custom resources of agent-sandbox. Pure.

Source: github.com/kubernetes-sigs/agent-sandbox, its CRDs v1beta1, and what the Python client 1.0.8 reads of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from gateway.core.agent_sandbox import CLAIM_GROUP, SANDBOX_GROUP, VERSION, sandbox_name
from gateway.core.model import PRIVATE_METADATA, Session, SessionState
from gateway.core.units import rfc3339

_KEY = PRIVATE_METADATA + "claim"


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim as it was made. `env`: variables of every command in its sandbox."""

    namespace: str
    name: str
    pool: str
    env: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    shutdown_time: str | None = None

    def stored(self) -> dict[str, str]:
        """As entries of a session's metadata."""
        value = {
            "namespace": self.namespace,
            "name": self.name,
            "pool": self.pool,
            "env": dict(self.env),
            "labels": dict(self.labels),
            "annotations": dict(self.annotations),
            "shutdownTime": self.shutdown_time,
        }
        return {_KEY: orjson.dumps(value).decode()}


def claim_of(session: Session) -> Claim | None:
    """The claim that a session was made by; None for one that another surface made."""
    text = session.metadata.get(_KEY)
    if text is None:
        return None
    value = orjson.loads(text)
    return Claim(
        value["namespace"], value["name"], value["pool"], value["env"], value["labels"], value["annotations"],
        value["shutdownTime"],
    )  # fmt: skip


def claim_document(session: Session, claim: Claim) -> dict[str, Any]:
    """A session's SandboxClaim, as the Kubernetes API shows it."""
    spec: dict[str, Any] = {"warmPoolRef": {"name": claim.pool}}
    if claim.env:
        spec["env"] = [{"name": name, "value": value} for name, value in claim.env.items()]
    if claim.shutdown_time:
        spec["lifecycle"] = {"shutdownTime": claim.shutdown_time, "shutdownPolicy": "Delete"}
    return {
        "apiVersion": f"{CLAIM_GROUP}/{VERSION}",
        "kind": "SandboxClaim",
        "metadata": _metadata(session, claim, claim.name),
        "spec": spec,
        # No podIPs: what a client names is not dialled, so its X-Sandbox-Pod-IP would be of no use.
        "status": {
            "sandbox": {"name": sandbox_name(session.id), "podIPs": []},
            "conditions": [_ready(session)],
        },
    }


def sandbox_document(session: Session, claim: Claim) -> dict[str, Any]:
    """A session's Sandbox, as the Kubernetes API shows it."""
    suspended = session.state is SessionState.HIBERNATED
    return {
        "apiVersion": f"{SANDBOX_GROUP}/{VERSION}",
        "kind": "Sandbox",
        "metadata": _metadata(session, claim, sandbox_name(session.id)),
        "spec": {"operatingMode": "Suspended" if suspended else "Running"},
        "status": {
            "podIPs": [],
            "replicas": 0 if suspended else 1,
            "conditions": [
                _ready(session),
                _condition(session, "Suspended", is_true=suspended, reason="Hibernated" if suspended else "Running"),
            ],
        },
    }


def list_document(kind: str, group: str, items: list[dict[str, Any]]) -> dict[str, Any]:
    """A list of them; what follows it begins with the newest of their versions."""
    version = max((int(each["metadata"]["resourceVersion"]) for each in items), default=1)
    return {
        "apiVersion": f"{group}/{VERSION}",
        "kind": f"{kind}List",
        "metadata": {"resourceVersion": str(version)},
        "items": items,
    }


def _metadata(session: Session, claim: Claim, name: str) -> dict[str, Any]:
    return {
        "name": name,
        "namespace": claim.namespace,
        "uid": session.id,
        "resourceVersion": str(max(1, session.version)),
        "creationTimestamp": rfc3339(session.created_at),
        "labels": dict(claim.labels),
        "annotations": dict(claim.annotations),
    }


def _ready(session: Session) -> dict[str, Any]:
    # One that sleeps is ready: its next request wakes it, and a client that waits for `Ready` would never send that.
    return _condition(session, "Ready", is_true=True, reason="DependenciesReady")


def _condition(session: Session, kind: str, *, is_true: bool, reason: str) -> dict[str, Any]:
    return {
        "type": kind,
        "status": "True" if is_true else "False",
        "reason": reason,
        "message": session.reason,
        "lastTransitionTime": rfc3339(session.last_active_at),
    }
