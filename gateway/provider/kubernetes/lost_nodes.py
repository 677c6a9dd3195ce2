"""Finds claimed pods that were lost with their node, before the cluster deletes them.

Kubernetes notices a node that stops after 40 to 50 s, and deletes its pods when their tolerations are over, another
30 s later; until then a request to one of them waits for a connection in vain. A kubelet may also be away while the
pods on its node run on (it is being restarted, or cut off from the API server). So a pod counts as lost only when both
are seen: the cluster says that the node does not report, and the pod accepts no connection, twice in a row. Its
session is then given another pod at once, and this one is deleted, so that a node that comes back ends it.
"""

from __future__ import annotations

from gateway.core.background import Tasks
from gateway.core.clock import Clock
from gateway.provider.kubernetes.cache import Cache
from gateway.provider.kubernetes.endings import Endings
from gateway.provider.kubernetes.pod import Pod
from gateway.provider.kubernetes.pool import Pool
from gateway.provider.kubernetes.reach import accepts

_ATTEMPTS = 2  # connections in a row that must fail: one SYN may be lost on a network under load
# Until an end is published once more, should the session's store have been away. Its recovery takes a few seconds; an
# event in between would count the same loss twice.
_REPEAT_S = 30.0


class LostNodes:
    """Tries the claimed pods of nodes that do not report. Call `look` every few seconds for each pool."""

    def __init__(self, cache: Cache, endings: Endings, clock: Clock, tasks: Tasks) -> None:
        self._cache, self._endings, self._clock, self._tasks = cache, endings, clock, tasks
        self._trying: set[str] = set()  # UIDs
        self._published: dict[str, float] = {}  # UID -> when, monotonic

    def look(self, pool: Pool) -> None:
        """Start to try those of this pool that are not being tried; returns at once."""
        now = self._clock.monotonic()
        self._published = {uid: at for uid, at in self._published.items() if now - at < _REPEAT_S}
        for pod in pool.claimed.values():
            if pod.node_away and not pod.gone and pod.uid not in self._trying and pod.uid not in self._published:
                self._trying.add(pod.uid)
                self._tasks.spawn(self._try(pool, pod))

    async def _try(self, pool: Pool, pod: Pod) -> None:
        try:
            for _ in range(_ATTEMPTS):
                if await accepts(pod):
                    return
            present = self._cache.pods[pod.namespace].items.get(pod.uid)
            if present is not None and present.node_away and not present.gone:
                self._published[pod.uid] = self._clock.monotonic()
                self._endings.node_lost(pool, present)
        finally:
            self._trying.discard(pod.uid)
