"""Names of agent-sandbox's custom resources: for the surface that answers as a cluster, and the engine that is in one.

Source: github.com/kubernetes-sigs/agent-sandbox, its CRDs v1beta1.
"""

from __future__ import annotations

from gateway.core.model import SessionId

CLAIM_GROUP, SANDBOX_GROUP, VERSION = "extensions.agents.x-k8s.io", "agents.x-k8s.io", "v1beta1"
_PREFIX = "s-"  # a name of Kubernetes begins with a letter, for services at least; a session's id may not


def sandbox_name(session_id: SessionId) -> str:
    """The name of a session's sandbox, which clients send as X-Sandbox-ID."""
    return _PREFIX + session_id


def session_of(name: str) -> SessionId:
    """The session of a sandbox's name."""
    return SessionId(name.removeprefix(_PREFIX))
