"""What a gateway asks of the API server: the rights that its Role must give, no more and no less.

`manifests/` grants exactly these (a test holds it so), `wakegate doctor` asks the server whether it has them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from gateway.core.agent_sandbox import CLAIM_GROUP, SANDBOX_GROUP
from gateway.provider.kubernetes import names


class Right(NamedTuple):
    """Verbs on a resource (`plural` or `plural/sub`), of one object where `name` is set."""

    group: str
    resource: str
    verbs: tuple[str, ...]
    name: str = ""


_RUNTIMES = ("codeinterpreters", "agentruntimes")

# Secrets and ConfigMaps are limited to one name, except for `create`: RBAC takes the name from the path, and a POST has
# none there (https://kubernetes.io/docs/reference/access-authn-authz/rbac/#referring-to-resources).
SANDBOXES: tuple[Right, ...] = (
    Right("", "pods", ("get", "list", "watch", "create", "patch", "delete")),
    Right("", "pods/resize", ("patch",)),
    Right("apps", "deployments", ("get", "list", "watch", "create", "update", "delete")),
    Right("apps", "deployments/scale", ("patch",)),
    Right(names.METRICS_GROUP, "pods", ("list",)),
    Right("", "events", ("list",)),
    Right("", "configmaps", ("get", "update"), names.KEYS_CONFIGMAP),
    Right("", "configmaps", ("get", "update"), names.TRUST_CONFIGMAP),
    Right("", "configmaps", ("create",)),
    Right("networking.k8s.io", "networkpolicies", ("create", "update", "delete")),
    Right("networking.k8s.io", "networkpolicies", ("get",), "wakegate-sandboxes"),  # for `wakegate doctor`
    Right(names.GROUP, "codeinterpreters", ("list", "watch")),
    Right(names.GROUP, "agentruntimes", ("get", "list", "watch", "create", "update", "delete")),  # agents of the API
    *(Right(names.GROUP, f"{plural}/status", ("patch",)) for plural in _RUNTIMES),
)
"""In each namespace with sandboxes."""

CLAIMS: tuple[Right, ...] = (
    Right(CLAIM_GROUP, "sandboxclaims", ("list", "watch", "patch", "delete")),
    Right(CLAIM_GROUP, "sandboxclaims/status", ("patch",)),
    # For the owner of Sandboxes, where the server has OwnerReferencesPermissionEnforcement.
    Right(CLAIM_GROUP, "sandboxclaims/finalizers", ("update",)),
    Right(SANDBOX_GROUP, "sandboxes", ("list", "watch", "create", "delete")),
    Right(SANDBOX_GROUP, "sandboxes/status", ("patch",)),
)
"""There as well, where SandboxClaims are answered."""

ROUTER: tuple[Right, ...] = (Right(SANDBOX_GROUP, "sandboxes", ("list", "watch", "patch")),)
"""In each namespace whose Sandboxes agent-sandbox's controllers manage, and whose router the gateway is."""

GATEWAY: tuple[Right, ...] = (
    Right("", "secrets", ("get", "update"), names.KEYS_SECRET),
    Right("", "secrets", ("get", "update"), names.AUTHORITY_SECRET),
    Right("", "secrets", ("create",)),
)
"""In the gateway's own namespace."""

NODES: tuple[Right, ...] = (Right("coordination.k8s.io", "leases", ("get",)),)
"""In kube-node-lease, to see early that a node is lost. A gateway does without."""

# Reviews that every account may make about itself.
_GRANTED_TO_ALL = ("authorization.k8s.io", "authentication.k8s.io")


def beyond(rules: Iterable[Mapping[str, Any]], wanted: Sequence[Right]) -> list[str]:
    """Of the rules of a Role, or of a SelfSubjectRulesReview, what goes beyond `wanted`: `verb resource`, sorted."""
    found = set()
    for rule in rules:
        names_given = rule.get("resourceNames") or [""]
        for group in rule.get("apiGroups") or []:
            for resource in rule.get("resources") or []:
                if group not in _GRANTED_TO_ALL:
                    found |= {
                        f"{verb} {resource}" + (f" {name}" if name else "")
                        for verb in rule.get("verbs") or []
                        for name in names_given
                        if not any(_covers(right, group, resource, verb, name) for right in wanted)
                    }
    return sorted(found)


def _covers(right: Right, group: str, resource: str, verb: str, name: str) -> bool:
    same = (right.group, right.resource) == (group, resource) and verb in right.verbs
    return same and right.name in ("", name)
