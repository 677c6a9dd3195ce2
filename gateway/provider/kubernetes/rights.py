"""What a gateway asks of the API server: the rights that its Role must give, no more and no less.

`manifests/` grants exactly these (a test holds it so), `wakegate doctor` asks the server whether it has them.
"""

from __future__ import annotations

from typing import NamedTuple

from gateway.provider.kubernetes import names


class Right(NamedTuple):
    """Verbs on a resource (`plural` or `plural/sub`), of one name where it says so."""

    group: str
    resource: str
    verbs: tuple[str, ...]
    name: str = ""


_RUNTIMES = ("codeinterpreters", "agentruntimes")

SANDBOXES: tuple[Right, ...] = (
    Right("", "pods", ("get", "list", "watch", "create", "patch", "delete")),
    Right("apps", "deployments", ("get", "list", "watch", "create", "update", "delete")),
    Right("apps", "deployments/scale", ("patch",)),
    Right("", "configmaps", ("get", "update"), names.KEYS_CONFIGMAP),
    Right("", "configmaps", ("create",)),
    Right("networking.k8s.io", "networkpolicies", ("create", "update", "delete")),
    Right("networking.k8s.io", "networkpolicies", ("get",), "wakegate-sandboxes"),  # for `wakegate doctor`
    *(Right(names.GROUP, plural, ("list", "watch")) for plural in _RUNTIMES),
    *(Right(names.GROUP, f"{plural}/status", ("patch",)) for plural in _RUNTIMES),
)
"""In each namespace with sandboxes."""

GATEWAY: tuple[Right, ...] = (
    Right("", "secrets", ("get", "update"), names.KEYS_SECRET),
    Right("", "secrets", ("create",)),
)
"""In the gateway's own namespace."""
