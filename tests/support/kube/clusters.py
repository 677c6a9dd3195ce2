"""The cluster that tests get: the simulator, or a real control plane when KUBERNETES_BIN names its programs."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from typing import Any

from tests.support.kube import simulator

REAL = "KUBERNETES_BIN" in os.environ


def make_cluster(**options: Any) -> simulator.Cluster:
    """One of the two; what a test does with it, it can do with both, or the test is skipped with the reason."""
    if not REAL:
        return simulator.Cluster(**options)
    from tests.support.kube.real.cluster import RealCluster

    return RealCluster(**options)  # type: ignore[return-value]


def in_thread(**options: Any) -> AbstractContextManager[simulator.Cluster]:
    """The same on its own event loop, for tests of whole processes."""
    return simulator.in_thread(make_cluster, **options)
