"""Sandboxes as pods: Deployments are warm pools, a claim is one PATCH.

Imports `observability`, `runtimes`, `sandbox` and `core`. Start with `provider`, which wires the parts; `engine` has
the rest of a gateway in a cluster: runtimes as custom resources, shared keys, conditions.
"""

from __future__ import annotations

from gateway.provider.kubernetes.client import KubeApi, connect
from gateway.provider.kubernetes.provider import KubernetesProvider
from gateway.provider.kubernetes.template import PodDefaults

__all__ = ["KubeApi", "KubernetesProvider", "PodDefaults", "connect"]
