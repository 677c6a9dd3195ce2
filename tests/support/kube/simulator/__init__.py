"""A Kubernetes cluster for tests: API server, controllers, scheduler and a kubelet that starts real picods.

Only what the provider relies on is here, and nothing that a real cluster does not do. `engine.py` is the way in.
"""

from __future__ import annotations

from tests.support.kube.simulator.cluster import Cluster, in_thread
from tests.support.kube.simulator.objects import ApiError, Kind

__all__ = ["ApiError", "Cluster", "Kind", "in_thread"]
