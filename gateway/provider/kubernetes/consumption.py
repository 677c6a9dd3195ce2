"""What pods really use, for usage metering: from the Resource Metrics API, which metrics-server or an adapter serves.

Source: kubernetes/metrics, PodMetrics of metrics.k8s.io/v1beta1: for each container the cores that it kept busy on
average over a window (metrics-server: some 15 s) and its working set in bytes, with the time at which the window ended.
A sample is returned once, by pod and time, though the API shows it at several readings: the next one then stands
for all the time since. The window's own length is not used: windows leave gaps, and overlap after a restart.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gateway.core.clock import Clock
from gateway.core.model import SandboxId
from gateway.core.units import parse_quantity
from gateway.core.usage import SandboxLoad, SandboxUsage
from gateway.provider.kubernetes import names
from gateway.provider.kubernetes.cache import Cache
from gateway.provider.kubernetes.client import KubeApi, KubeError
from gateway.provider.kubernetes.pod import Pod, read_time

logger = logging.getLogger(__name__)

_TIMEOUT_S = 5.0  # usage is written every 10 s, and must not wait for it
_ABSENT_PAUSE_S = 60.0  # between attempts while there is no such API
_SELECTOR = f"{names.SELECTOR},{names.POOL}={names.CLAIMED}"


@dataclass(frozen=True, slots=True)
class Sample:
    """One PodMetrics. `at`: epoch seconds."""

    at: float
    cores: float
    memory_bytes: float


class Consumption:
    """Reads samples. State: the last one that was returned of each sandbox, and why there are none."""

    def __init__(self, api: KubeApi, clock: Clock, cache: Cache) -> None:
        self._api, self._clock, self._cache = api, clock, cache
        self._told: dict[SandboxId, Sample] = {}
        self._problem = ""
        self._asks_again = float("-inf")  # monotonic

    async def usage(self, sandboxes: Sequence[SandboxId]) -> Mapping[SandboxId, SandboxUsage]:
        """See EngineMeter. One without a new sample is left out; one that ended used until then what it did before."""
        pods = {name: pod for name in sandboxes if (pod := self._pod(name)) is not None and not pod.gone}
        samples = await self._read({pod.namespace for pod in pods.values()})
        self._told = {name: self._told[name] for name in sandboxes if name in self._told}
        found = {}
        for name in sandboxes:
            pod, before = pods.get(name), self._told.get(name)
            if pod is None:
                if before is not None:
                    found[name] = SandboxUsage(cores=before.cores)
                    del self._told[name]
                continue
            sample = samples.get((pod.namespace, pod.name))
            # Samples of an earlier pod of that name may be listed for a while after its end.
            if sample is not None and sample.at >= pod.created_at and (before is None or sample.at > before.at):
                self._told[name] = sample
                found[name] = SandboxUsage(cores=sample.cores, memory_bytes=sample.memory_bytes)
        return found

    def latest(self, name: SandboxId) -> SandboxLoad:
        """The last sample that `usage` returned of a sandbox; empty before the first."""
        sample = self._told.get(name)
        return SandboxLoad() if sample is None else SandboxLoad(cores=sample.cores, memory_bytes=sample.memory_bytes)

    def _pod(self, name: SandboxId) -> Pod | None:
        return next((pods.items[name] for pods in self._cache.pods.values() if name in pods.items), None)

    async def _read(self, namespaces: set[str]) -> Mapping[tuple[str, str], Sample]:
        """Samples by namespace and name; none while the API does not answer, which is logged once."""
        if self._clock.monotonic() < self._asks_again:
            return {}
        found: dict[tuple[str, str], Sample] = {}
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                for namespace in namespaces:
                    answer = await self._api.get(names.pod_metrics(namespace), labelSelector=_SELECTOR)
                    found |= {(namespace, name): sample for name, sample in read_samples(answer)}
            problem = ""
        except TimeoutError:
            problem = f"no answer within {_TIMEOUT_S:g} s"
        except KubeError as error:
            problem = str(error)
            if error.http_status in (403, 404):
                self._asks_again = self._clock.monotonic() + _ABSENT_PAUSE_S
        if problem and not self._problem:
            logger.warning("CPU and memory really used are not counted: metrics.k8s.io: %s", problem)
        elif self._problem and not problem and namespaces:
            logger.info("CPU and memory really used are counted")
        self._problem = problem if problem or namespaces else self._problem
        return found


def read_samples(answer: Mapping[str, Any]) -> Iterator[tuple[str, Sample]]:
    """Name and sample of each item of a PodMetricsList; an item that cannot be read is left out."""
    for item in answer.get("items") or ():
        try:
            usages = [container["usage"] for container in item["containers"]]
            cores, memory = (sum(parse_quantity(str(usage[name])) for usage in usages) for name in ("cpu", "memory"))
            at = read_time(item["timestamp"])
            if all(map(math.isfinite, (cores, memory))) and cores >= 0 and memory >= 0:
                yield item["metadata"]["name"], Sample(at, cores, memory)
        except (KeyError, TypeError, ValueError, OverflowError):
            continue
