"""What metrics-server serves: PodMetrics of metrics.k8s.io, from what the kubelet measures of pods' processes.

As there, a sample is an average since the one before, so a pod has none at its first scrape, and times are whole
seconds. Here each reading is a scrape unless a test says what there is to read.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from tests.support.kube.simulator.objects import Object

GROUP = "metrics.k8s.io"
Measure = Callable[[str], tuple[float, float] | None]
_PATH = re.compile(rf"/apis/{re.escape(GROUP)}/v1beta1/namespaces/([^/]+)/pods")


class Metrics:
    """Samples by UID."""

    def __init__(self, measure: Measure) -> None:
        """`measure(uid)`: seconds of CPU, and bytes."""
        self._measure = measure
        self._scraped: dict[str, tuple[float, float]] = {}  # uid -> monotonic time, seconds of CPU
        self.fixed: dict[str, tuple[float, str, str]] = {}  # uid -> epoch seconds, cpu, memory; in place of measuring

    def of(self, uid: str) -> tuple[float, str, str] | None:
        """Epoch seconds, cpu and memory as quantities."""
        if self.fixed:
            return self.fixed.get(uid)
        measured, now = self._measure(uid), time.monotonic()
        if measured is None:
            return None
        before = self._scraped.get(uid)
        self._scraped[uid] = now, measured[0]
        if before is None:
            return None
        cores = max(0.0, measured[0] - before[1]) / max(1e-3, now - before[0])
        return time.time(), f"{int(cores * 1e9)}n", f"{int(measured[1]) // 1024}Ki"


def namespace_of(path: str) -> str | None:
    """The namespace whose PodMetrics a path asks for; None for any other path."""
    found = _PATH.fullmatch(path)
    return found[1] if found else None


def pod_metrics_list(pods: Sequence[Object], metrics: Metrics) -> Object:
    """The answer, with the labels of the pods, as metrics-server copies them."""
    items: list[Any] = []
    for pod in pods:
        sample = metrics.of(pod["metadata"]["uid"])
        if sample is not None:
            at = datetime.fromtimestamp(sample[0], UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            items.append({
                "metadata": {name: pod["metadata"].get(name) for name in ("name", "namespace", "labels")}
                | {"creationTimestamp": at},
                "timestamp": at,
                "window": "15s",
                "containers": [{"name": "picod", "usage": {"cpu": sample[1], "memory": sample[2]}}],
            })  # fmt: skip
    return {"kind": "PodMetricsList", "apiVersion": f"{GROUP}/v1beta1", "metadata": {}, "items": items}
