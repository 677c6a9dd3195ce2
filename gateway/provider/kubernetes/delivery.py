"""Brings the files of agents into pods that wait for them.

A gateway dials the pod, as for every other request, with a token for that pod alone: the pod needs no credential and no
way out. Every gateway that sees the pod tries; the pod takes each archive from one of them, so one that is killed half
way is replaced by another.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace

from gateway.core.background import Tasks
from gateway.core.backoff import backoff, jittered
from gateway.core.errors import WakegateError
from gateway.core.model import Sandbox
from gateway.provider.kubernetes.cache import Cache
from gateway.provider.kubernetes.pod import PICOD_PORT, Pod

logger = logging.getLogger(__name__)

Bring = Callable[[Sandbox, str], Awaitable[None]]
"""Sends a pod the archive of a digest. Raises WakegateError."""

_AT_ONCE = 8  # streams out of the snapshot store
# A container counts as running some 0.2 s before its picod listens, and is seen as ended up to a second late.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0
_LOGGED_TRIES = 6  # in a row, some 3 s; fewer are what a start looks like


class Deliveries:
    """`bring` is set once the gateway has the store of agents' files; until then pods wait."""

    def __init__(self, cache: Cache, tasks: Tasks) -> None:
        self._cache, self._tasks = cache, tasks
        self._under_way: set[str] = set()
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self.bring: Bring | None = None

    def look(self, pod: Pod | None) -> None:
        """Begin with a pod that waits, unless that is under way."""
        if pod is None or self.bring is None or not self._tasks.running or not _waits(pod):
            return
        if pod.uid not in self._under_way:
            self._under_way.add(pod.uid)
            self._tasks.spawn(self._deliver(pod, self.bring))

    async def _deliver(self, pod: Pod, bring: Bring) -> None:
        tries = 0
        try:
            while (found := self._cache.pods[pod.namespace].items.get(pod.uid)) is not None and _waits(found):
                tries += 1
                try:
                    await self._bring_all(found, bring)
                except WakegateError as error:
                    level = logging.WARNING if tries == _LOGGED_TRIES else logging.DEBUG
                    logger.log(level, "pod %s/%s waits for its files: %s", pod.namespace, pod.name, error)
                # Also after a success: the container ends in a moment, and starts again if it could not.
                await asyncio.sleep(jittered(backoff(tries, first=_FIRST_PAUSE_S, longest=_LONGEST_PAUSE_S)))
        finally:
            self._under_way.discard(pod.uid)

    async def _bring_all(self, pod: Pod, bring: Bring) -> None:
        sandbox = replace(pod, port=PICOD_PORT).sandbox()
        for digest in pod.awaits:
            async with self._slots:
                await bring(sandbox, digest)


def _waits(pod: Pod) -> bool:
    return bool(pod.awaits) and bool(pod.ip) and not pod.deleting and not pod.ended
