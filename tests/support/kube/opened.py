"""A provider over the simulator, and what tests ask of both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.core.clock import SystemClock
from gateway.core.model import Kind, PoolSpec, Runtime, RuntimeKey
from gateway.provider.kubernetes import KubernetesProvider, PodDefaults, connect
from tests.support.kube.clusters import make_cluster
from tests.support.kube.simulator import Cluster
from tests.support.waiting import LIMIT_S

KEY = RuntimeKey("default", "my-interpreter")
DEFAULTS = PodDefaults(picod_image="wakegate/picod:test")


def runtime(warm: int = 0, *, key: RuntimeKey = KEY, **fields: Any) -> Runtime:
    """A runtime whose picod asks for no token."""
    return Runtime(key, auth=False, pool=PoolSpec(size=warm), **fields)


@dataclass
class Opened:
    """A cluster and a provider over it."""

    cluster: Cluster
    provider: KubernetesProvider
    folder: Path

    async def full(self, key: RuntimeKey = KEY) -> None:
        """Wait until the pool has what it should have."""

        async with asyncio.timeout(LIMIT_S):
            while True:
                status = await self.provider.status(key)
                if status.ready == status.target and not self.extra(key):
                    return
                await asyncio.sleep(0.01)

    def extra(self, key: RuntimeKey) -> bool:
        """Whether the cluster has more warm pods than the Deployment wants."""
        pods = self.cluster.pods(**{"wakegate.io/pool": "warm", "wakegate.io/runtime": key.name})
        return len(pods) > self.provider._pools[key].target

    async def gateway(self, **options: Any) -> KubernetesProvider:
        """A further provider over the same cluster, as another replica has."""
        return await open_provider(self.cluster, self.folder, **options)


async def open_provider(cluster: Cluster, folder: Path, **options: Any) -> KubernetesProvider:
    """Connect as a gateway does, with a kubeconfig."""
    folder.mkdir(parents=True, exist_ok=True)
    api = await connect(cluster.kubeconfig(folder), options.pop("concurrency", 32))
    provider = KubernetesProvider(api, SystemClock(), options.pop("defaults", DEFAULTS), ["default"], **options)
    await provider.start()
    return provider


@asynccontextmanager
async def opened(folder: Path, *, hollow: bool = True, **options: Any) -> AsyncIterator[Opened]:
    """A cluster, hollow unless its picods matter, and a started provider."""
    async with make_cluster(hollow=hollow).running() as cluster:
        provider = await open_provider(cluster, folder, **options)
        try:
            yield Opened(cluster, provider, folder)
        finally:
            await provider.aclose()


def custom(cluster: Cluster, name: str, spec: Any, kind: Kind = Kind.CODE_INTERPRETER) -> Any:
    """Put a runtime's custom resource into the cluster."""
    plural = "codeinterpreters" if kind is Kind.CODE_INTERPRETER else "agentruntimes"
    return cluster.create(plural, name, namespace="default", spec=spec)


__all__ = ["KEY", "Opened", "custom", "open_provider", "opened", "runtime"]
