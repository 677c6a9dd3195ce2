"""Names of agent-sandbox's custom resources: for the surface that answers as a cluster, and the engine that is in one.

Source: github.com/kubernetes-sigs/agent-sandbox, its CRDs v1beta1.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from gateway.core.model import SessionId

CLAIM_GROUP, SANDBOX_GROUP, VERSION = "extensions.agents.x-k8s.io", "agents.x-k8s.io", "v1beta1"
FORMER_VERSION = "v1alpha1"  # of agent-sandbox to 0.4: `spec.replicas`, 0 or 1, in place of `spec.operatingMode`
SUSPENDED, RUNNING = "Suspended", "Running"  # values of a Sandbox's spec.operatingMode
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_PREFIX = "s-"  # a name of Kubernetes begins with a letter, for services at least; a session's id may not


def sandbox_name(session_id: SessionId) -> str:
    """The name of a session's sandbox, which clients send as X-Sandbox-ID."""
    return _PREFIX + session_id


def session_of(name: str) -> SessionId:
    """The session of a sandbox's name."""
    return SessionId(name.removeprefix(_PREFIX))


@dataclass(frozen=True, slots=True)
class OpenedSandbox:
    """A Sandbox of the cluster that is ready. `host`: its pod's address, as its status says."""

    namespace: str
    name: str
    uid: str
    version: str
    host: str


def read_router_tenants(text: str) -> dict[str, str]:
    """`NAMESPACE=TENANT,...` as a mapping. Raises ValueError with what is wrong with it."""
    tenants: dict[str, str] = {}
    for each in filter(None, (each.strip() for each in text.split(","))):
        namespace, equals, tenant = each.partition("=")
        if not equals or not _LABEL.fullmatch(namespace) or not _LABEL.fullmatch(tenant):
            raise ValueError(f"expected NAMESPACE=TENANT, both of a-z, 0-9 and '-', got {each[:130]!r}")
        if tenants.setdefault(namespace, tenant) != tenant:
            raise ValueError(f"two tenants for the namespace {namespace}")
    return tenants
