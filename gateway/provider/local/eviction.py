"""Ending who fills the disk: disk_quota.py says who and why, the fleet ends it."""

from __future__ import annotations

import asyncio
import logging

from gateway.core.clock import Clock
from gateway.provider.local.disk_quota import LOOK_S, DiskWatch, Tenant
from gateway.provider.local.registry import Fleet
from gateway.provider.local.sandbox import BoxState

log = logging.getLogger(__name__)


async def watch_disk(fleet: Fleet, disk: DiskWatch, clock: Clock) -> None:
    """End who fills the disk, as though it had ended by itself: its session keeps its files and is told why."""
    while True:
        await asyncio.sleep(LOOK_S)
        tenants = [
            Tenant(box.id, box.workspace, box.process.pid, box.runtime.limits.workspace_size) for box in fleet.bound()
        ]
        try:
            now = clock.monotonic()
            if not disk.due(tenants, now):
                continue
            for name, reason in (await asyncio.to_thread(disk.look, tenants, now)).items():
                box = fleet.get(name)
                if box is not None and box.state is BoxState.CLAIMED:
                    box.verdict = f"was ended: {reason}"
                    await box.process.end()
        except (OSError, TimeoutError) as error:
            log.warning("the disk below %s cannot be watched: %s", disk.folder, error)
