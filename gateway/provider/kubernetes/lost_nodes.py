"""Finds claimed pods that were lost with their node, before the cluster deletes them.

Kubernetes notices a node that stops after 40 to 50 s, and deletes its pods when their tolerations are over, another
30 s later; until then a request to one of them waits for a connection in vain. A kubelet may also be away while the
pods on its node run on (it is being restarted, or cut off from the API server), and a network may lose the way between
a gateway and a node. So a pod counts as lost only when two things are seen: it accepts no connection, twice in a row;
and its node does not report. The second is what the node controller says of the pod, or, where the gateway may read
the leases of nodes (manifests/node-leases), a lease that the kubelet has not renewed in time, which is seen some 30 s
earlier. The lease is asked for only after a request could not connect.

Until the cluster says that a node is not ready, which takes it 40 to 50 s, its warm pods look as if they could be had,
and new ones may be placed there. So sessions get neither as long as the lease is not renewed. A machine that starts
anew within that time renews it at once, and has none of the pods that still count as ready until its kubelet has looked
at each; so none is given out before all of them accept connections.

Such a pod is deleted first and its end told afterwards, so that two never live: from then on every gateway counts it
as gone, and a node that comes back ends it. Its session is given another pod at once.
"""

from __future__ import annotations

import asyncio
import logging

from gateway.core.background import Tasks
from gateway.core.clock import Clock
from gateway.provider.kubernetes import names
from gateway.provider.kubernetes.cache import Cache
from gateway.provider.kubernetes.client import KubeApi, KubeError
from gateway.provider.kubernetes.endings import Endings
from gateway.provider.kubernetes.pod import Pod, read_time
from gateway.provider.kubernetes.pool import Pool
from gateway.provider.kubernetes.reach import accepts

logger = logging.getLogger(__name__)

_ATTEMPTS = 2  # connections in a row that must fail: one SYN may be lost on a network under load
_BETWEEN_S = 1.0
# A kubelet renews its lease every 10 s, and up to 0.4 s later. By the gateway's clock: of clocks that differ by seconds
# a node is believed to be silent too early or too late, and the connections alone decide, or the node controller does.
_SILENT_S = 12.0
_FOLLOWED_S = 20.0  # a pod that a request could not reach; by then its node has reported, or is silent
# By then a kubelet that is back has reported all its pods. A pod may be ready without ever listening at its port.
_RETURNS_S = 60.0
# Until an end is told once more, should the session's store have been away. Its recovery takes a few seconds; an
# event in between would count the same loss twice.
_REPEAT_S = 30.0


class LostNodes:
    """Tries claimed pods of nodes that do not report, and those that requests could not reach.

    Call `look` every few seconds for each pool, and `suspect` after a connection that failed.
    """

    def __init__(
        self, api: KubeApi, cache: Cache, endings: Endings, clock: Clock, tasks: Tasks, silent: set[str]
    ) -> None:
        """`silent`: the nodes that are not to be used, kept here."""
        self._api, self._cache, self._endings, self._clock, self._tasks = api, cache, endings, clock, tasks
        self._silent = silent
        self._asking: set[str] = set()  # silent nodes whose leases are being asked for
        self._back: dict[str, float] = {}  # of these, since when they report again, monotonic
        self._trying: set[str] = set()  # UIDs
        self._told: dict[str, float] = {}  # UID -> when, monotonic
        self._leases: dict[
            str, tuple[float, float]
        ] = {}  # node -> when it was asked for, monotonic; its renewal, epoch
        self._may_read = True

    def look(self, pool: Pool) -> None:
        """Start to try those of this pool whose node is away; returns at once."""
        now = self._clock.monotonic()
        self._told = {uid: at for uid, at in self._told.items() if now - at < _REPEAT_S}
        self._leases = {node: each for node, each in self._leases.items() if now - each[0] < _REPEAT_S}
        for node in self._silent - self._asking:
            self._asking.add(node)
            self._tasks.spawn(self._look_again(node))
        for pod in pool.claimed.values():
            if pod.node_away:
                self._follow(pool, pod, 0.0)

    def suspect(self, pool: Pool, pod: Pod) -> None:
        """A request could not connect to it. Returns at once."""
        if pod.claimed and self._may_read:
            self._follow(pool, pod, _FOLLOWED_S)

    def _follow(self, pool: Pool, pod: Pod, seconds: float) -> None:
        if not (pod.gone or pod.uid in self._trying or pod.uid in self._told):
            self._trying.add(pod.uid)
            self._tasks.spawn(self._try(pool, pod, self._clock.monotonic() + seconds))

    async def _try(self, pool: Pool, pod: Pod, until: float) -> None:
        """Until it accepts, has ended, or is lost; or nothing of that is seen for so long."""
        failed = 0
        try:
            while failed < _ATTEMPTS or self._clock.monotonic() < until:
                if await accepts(pod):
                    return
                failed += 1
                present = self._cache.pods[pod.namespace].items.get(pod.uid)
                if present is None or present.gone:
                    return
                if failed >= _ATTEMPTS and (present.node_away or await self._is_silent(present.node)):
                    if await self._endings.end_lost(pool, present):
                        self._told[pod.uid] = self._clock.monotonic()
                    return
                await asyncio.sleep(_BETWEEN_S)
        finally:
            self._trying.discard(pod.uid)

    async def _look_again(self, node: str) -> None:
        try:
            if await self._is_silent(node):
                self._back.pop(node, None)
                return
            now = self._clock.monotonic()
            since = self._back.setdefault(node, now)
            if now - since >= _RETURNS_S or await self._all_accept(node):
                self._silent.discard(node)
                self._back.pop(node, None)
        finally:
            self._asking.discard(node)

    async def _all_accept(self, node: str) -> bool:
        """Whether all of its pods that claims may be given do."""
        warm = [
            pod
            for pods in self._cache.pods.values()
            for pod in pods.items.values()
            if pod.node == node and pod.claimable
        ]
        return all(await asyncio.gather(*(accepts(pod) for pod in warm)))

    async def _is_silent(self, node: str) -> bool:
        """Whether its kubelet has not renewed its lease in time. An API server that does not answer says nothing."""
        if not node or not self._may_read:
            return False
        asked, renewed = self._leases.get(node, (float("-inf"), 0.0))
        now = self._clock.monotonic()
        if now - asked >= _BETWEEN_S:  # once for all pods of a node
            self._leases[node] = (now, renewed)  # what is known meanwhile, for the others that ask
            try:
                lease = await self._api.get(names.node_lease(node))
            except KubeError as error:
                if error.http_status == 403:
                    self._may_read = False
                    logger.info("leases of nodes may not be read (manifests/node-leases): %s", error)
                return False
            renewed = read_time((lease.get("spec") or {}).get("renewTime"))
            self._leases[node] = (now, renewed)
        if renewed and self._clock.now() - renewed > _SILENT_S:
            self._silent.add(node)
            return True
        return False
