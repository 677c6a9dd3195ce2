"""A gateway's part of a cluster, without the gateway: catalogue, provider and statuses over the simulator."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from gateway.core.clock import SystemClock
from gateway.core.model import Runtime
from gateway.core.settings import Settings
from gateway.egress.gate import EgressGate
from gateway.provider.kubernetes.engine import Cluster as Joined
from gateway.provider.kubernetes.engine import join_cluster
from tests.support.kube.simulator import Cluster


@asynccontextmanager
async def joined(
    cluster: Cluster, folder: Path, files: Sequence[Runtime] = (), gate: EgressGate | None = None, **settings: Any
) -> AsyncIterator[Joined]:
    """As `wakegate serve` makes it. `files`: runtimes from files; `gate`: of its egress service; `settings` besides
    what reaches the cluster."""
    folder.mkdir(parents=True, exist_ok=True)
    made = Settings(state_dir=folder, engine="kubernetes", kubeconfig=cluster.kubeconfig(folder), **settings)
    one = await join_cluster(made, files, SystemClock(), gate)
    await one.provider.start()
    following = asyncio.create_task(one.follow())
    try:
        await one.provider.apply(one.catalog.all())
        yield one
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await one.provider.aclose()
