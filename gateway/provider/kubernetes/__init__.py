"""Sandboxes as pods: Deployments are warm pools, a claim is one PATCH. provider.py is the way in."""

from __future__ import annotations

from gateway.provider.kubernetes.client import KubeApi, connect
from gateway.provider.kubernetes.provider import KubernetesProvider
from gateway.provider.kubernetes.template import PodDefaults

__all__ = ["KubeApi", "KubernetesProvider", "PodDefaults", "connect"]
