"""Marks on warm pods that a shrink or a roll is about to remove, so that none of them is claimed meanwhile.

pool.py decides which pods to mark; a mark that is no longer needed is removed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Any

from gateway.core.background import Tasks
from gateway.provider.kubernetes import build, names
from gateway.provider.kubernetes.cache import Cache
from gateway.provider.kubernetes.client import KubeApi, KubeError
from gateway.provider.kubernetes.pod import Pod
from gateway.provider.kubernetes.pool import Pool

logger = logging.getLogger(__name__)


class Marks:
    """Adds and removes the annotations that mark victims."""

    def __init__(self, api: KubeApi, cache: Cache, tasks: Tasks) -> None:
        self._api, self._cache, self._tasks = api, cache, tasks

    async def mark(self, pods: Iterable[Pod]) -> None:
        """Mark victims, of a shrink or a roll. One that changed meanwhile is left alone: it may have been claimed.

        Raises KubeError.
        """
        # Mark and claim both name the version that they saw, so of the two that race for a pod exactly one is accepted:
        # a marked pod cannot be claimed, and a claimed one is not marked. All at once, as a shrink by 50 would
        # otherwise take 50 round trips.
        await asyncio.gather(*(self._annotate(pod, build.make_victim(pod.version)) for pod in pods))

    async def spare(self, pool: Pool) -> None:
        """Remove the marks that are no longer needed. Raises KubeError."""
        for pod in pool.spared():
            await self._annotate(pod, build.make_spared(pod.version))

    def look_for_outdated(self, pool: Pool) -> None:
        """Mark outdated pods in a background task, unless one is running."""
        # Called for each event of a pod, so it starts at most one task, and none while there is nothing to do.
        if self._tasks.running and not pool.marking and pool.outdated():
            pool.marking = True
            self._tasks.spawn(self.mark_outdated(pool))

    async def mark_outdated(self, pool: Pool) -> None:
        """Mark the old pods that a roll is about to remove, so that they are not claimed."""
        try:
            while marked := pool.outdated():
                await self.mark(marked)
                if pool.outdated() == marked:
                    return  # they changed meanwhile; the watch tells how, and then they are looked at again
        except KubeError as error:
            logger.debug("outdated pods: %s", error)
        finally:
            pool.marking = False

    async def _annotate(self, pod: Pod, patch: dict[str, Any]) -> None:
        try:
            self._cache.learn(await self._api.patch(names.pods(pod.namespace, pod.name), patch))
        except KubeError as error:
            # Deleted, or changed since we read it, perhaps claimed. The watch brings the new state, which is looked at
            # again.
            if error.http_status not in (404, 409):
                raise
