"""Keeps what a session writes within the limits of its volumes, where nothing else does so without ending the sandbox.

In a cluster a volume's limit is watched by the kubelet, which looks every 10 s and evicts the whole pod: all files are
lost with it. So picod watches a lower limit, once a second. What runs in the sandbox is killed when a volume passes it,
and uploads are refused with 507 until there is room again; commands that delete files still run. Whatever grew so fast
that the pod would be evicted all the same is removed.

Rejected: a limit on the size of each file alone, which many files pass; project quotas, which need rights on the node.
"""

from __future__ import annotations

import asyncio
import os
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass

from picod import wire
from picod.commands.exit_status import over_limit
from picod.commands.processes import Children
from picod.filesystem.room import room
from picod.filesystem.usage import Usage, measure, remove_file

_INTERVAL_S = 1.0
# A look at the file system's own count costs a microsecond, at all files of a volume 10 us each. So files are only
# looked at when that count allows for an excess, and every few seconds where it changed: other volumes on the same
# disk may have shrunk by as much as this one grew.
_MEASURE_INTERVAL_S = 5.0
_MAX_SHARE = 0.02  # of one core that measuring may take


@dataclass
class _Volume:
    path: str
    limit: int
    fd: int
    size: int = 0
    disk_used: int = -1  # of the whole file system when the volume was measured
    measured_at: float = 0.0
    took: float = 0.0
    within_limit_ns: int = 0  # when it was last measured within its limit
    full: bool = False

    def is_due(self, disk_used: int, now: float) -> bool:
        if self.full or self.disk_used < 0 or self.size + max(0, disk_used - self.disk_used) > self.limit:
            return now - self.measured_at >= self.took / 0.5  # never more than half of one core
        pause = max(_MEASURE_INTERVAL_S, self.took / _MAX_SHARE)
        return disk_used != self.disk_used and now - self.measured_at >= pause


class DiskGuard:
    """Watches volumes. `limits`: bytes by path; a path that cannot be opened raises OSError."""

    def __init__(self, limits: Sequence[tuple[str, int]], children: Children) -> None:
        self._children = children
        self._volumes = [
            _Volume(path, limit, os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) for path, limit in limits
        ]

    def limit_file_sizes(self, largest: int) -> None:
        """Let no single file, which one system call can allocate, be larger; 0: than the largest volume."""
        largest = min(filter(None, (largest, max(volume.limit for volume in self._volumes))))
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        if hard == resource.RLIM_INFINITY or hard > largest:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
        elif soft > hard:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))

    async def run(self) -> None:
        """Look at each volume in turn, until cancelled."""
        while True:
            for volume in self._volumes:
                try:
                    await self.look(volume)
                except OSError:
                    pass  # a folder moved during the walk, or cannot be read: the next look tries again
            await asyncio.sleep(_INTERVAL_S)

    async def look(self, volume: _Volume) -> None:
        """Measure a volume if it is due, and act on what was found. Raises OSError."""
        found = os.fstatvfs(volume.fd)
        disk_used = (found.f_blocks - found.f_bfree) * found.f_frsize
        if not volume.is_due(disk_used, time.monotonic()):
            return
        began, began_ns = time.monotonic(), time.time_ns()
        usage = await asyncio.to_thread(measure, volume.fd, volume.within_limit_ns)
        if usage.size > volume.limit and (not volume.full or usage.size > volume.size):
            over_limit.note(_reason(volume))
            await self._children.kill_commands()
            # Again, as they went on writing meanwhile: at the next look that would pass for growth, and a command that
            # has come to delete files would be killed.
            usage = await asyncio.to_thread(measure, volume.fd, volume.within_limit_ns)
        volume.size, volume.disk_used, volume.measured_at = usage.size, disk_used, time.monotonic()
        volume.took = volume.measured_at - began
        if usage.size <= volume.limit:
            volume.within_limit_ns = began_ns
            if volume.full:
                volume.full = False
                room.full = next((_reason(each) for each in self._volumes if each.full), "")
            return
        volume.full, room.full = True, _reason(volume)
        if usage.size > volume.limit + wire.disk_headroom(volume.limit) // 2:
            await asyncio.to_thread(_shrink, volume, usage)

    def close(self) -> None:
        """Close the volumes' descriptors."""
        for volume in self._volumes:
            os.close(volume.fd)


def _reason(volume: _Volume) -> str:
    return f"{volume.path} is over its limit of {_readable(volume.limit)}; delete files there"


def _shrink(volume: _Volume, usage: Usage) -> None:
    """Remove files that grew since the volume was within its limit, the largest first, until it is again."""
    excess = usage.size - volume.limit
    for size, names in usage.grown:
        if excess <= 0:
            return
        try:
            remove_file(volume.fd, names)
        except OSError:
            continue  # it is gone, or was moved
        excess -= size


def _readable(size: int) -> str:
    for factor, unit in ((1 << 30, "GiB"), (1 << 20, "MiB")):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size} bytes"
