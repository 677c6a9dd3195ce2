"""Claims whose callers left while their pod was being made: the pod goes to the next claim of its runtime.

A client that gives up on a slow start asks again. If its pod were deleted and another begun, a runtime whose image
takes longer to pull than clients wait would never give a session. No request has reached such a pod, so it may have any
session of the runtime.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict

from gateway.core.background import Tasks
from gateway.core.model import RuntimeKey, SandboxId, StartKind
from gateway.provider.kubernetes.coldstart import Release
from gateway.provider.kubernetes.pod import Pod

# Below what any gateway's sweep spares a pod for that no record names (sessions/orphans.py).
KEEP_S = 60.0


class AbandonedClaims:
    """Starts that no request waits for, by runtime, the oldest first. Warm pods are not kept: another is at hand."""

    def __init__(self, release: Release, tasks: Tasks, keep: float = KEEP_S) -> None:
        """`keep`: seconds after which a pod that is ready and was not claimed is released."""
        self._release, self._tasks, self._keep = release, tasks, keep
        self._starts: defaultdict[RuntimeKey, list[asyncio.Task[Pod]]] = defaultdict(list)

    def add(self, key: RuntimeKey, start: asyncio.Task[Pod]) -> None:
        """The caller of this claim has left."""
        self._starts[key].append(start)
        start.add_done_callback(lambda _: self._done(key, start))

    def take(self, key: RuntimeKey) -> asyncio.Task[Pod] | None:
        """The start that is furthest, which is the caller's from now on; None: there is none."""
        starts = self._starts.get(key)
        return starts.pop(0) if starts else None

    async def release_all(self) -> None:
        """Release the pods that are ready: the gateway shuts down."""
        for key, starts in list(self._starts.items()):
            for start in list(starts):
                if start.done():
                    await self._drop(key, start)

    def _done(self, key: RuntimeKey, start: asyncio.Task[Pod]) -> None:
        if start not in self._starts[key]:
            return
        if start.cancelled() or start.exception() is not None:
            self._starts[key].remove(start)
        elif self._tasks.running:
            warm = start.result().start is StartKind.WARM
            self._tasks.spawn(self._drop(key, start, after=0.0 if warm else self._keep))

    async def _drop(self, key: RuntimeKey, start: asyncio.Task[Pod], after: float = 0.0) -> None:
        await asyncio.sleep(after)
        if start in self._starts[key]:
            self._starts[key].remove(start)
            await self._release(SandboxId(start.result().uid))
