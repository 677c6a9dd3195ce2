"""Sandboxes as pods: Deployments are warm pools, a claim is one PATCH.

Imports what `provider` may. Start with `provider`, which joins the parts; `engine` is what a gateway in a cluster has
besides it: runtimes as custom resources, shared keys, conditions.
"""

from __future__ import annotations

from gateway.provider.kubernetes.client import KubeApi, connect
from gateway.provider.kubernetes.provider import KubernetesProvider
from gateway.provider.kubernetes.template import PodDefaults

__all__ = ["KubeApi", "KubernetesProvider", "PodDefaults", "connect"]
