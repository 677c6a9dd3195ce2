"""Deletes pods that a gateway releases, and publishes an event when a claimed pod ends in any other way."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from typing import Any

from gateway.core.background import Tasks
from gateway.core.clock import Clock
from gateway.core.model import SandboxEvent, SandboxId, SessionId
from gateway.provider.kubernetes import names
from gateway.provider.kubernetes.cache import Cache
from gateway.provider.kubernetes.client import KubeApi, KubeError
from gateway.provider.kubernetes.pod import Pod
from gateway.provider.kubernetes.pool import Pool
from gateway.provider.watches import Watches

logger = logging.getLogger(__name__)

_MAX_ENDED = 10_000  # whose event was perhaps not looked at yet
_GRACE_S = 1  # of a sandbox that is deleted: picod has nothing to finish
_EVENTS_TIMEOUT_S, _MAX_EVENTS = 2.0, 50
_MAX_REASON_CHARS = 300  # of an event's message
_ORPHAN_AGE_S = 600.0  # a claimed pod that ended this long ago and was never released is deleted


class Endings:
    """Deletes pods, and publishes the end of those that were not deleted here."""

    def __init__(self, api: KubeApi, clock: Clock, cache: Cache, tasks: Tasks) -> None:
        self._api, self._clock, self._cache, self._tasks = api, clock, cache, tasks
        self._released: set[str] = set()  # UIDs; their end is not published
        self._undeleted: dict[str, Pod] = {}  # whose DELETE the server did not take yet
        self._watches = Watches()
        self._ended: OrderedDict[str, Pool] = OrderedDict()  # pools of pods whose end was published, by UID

    async def release(self, sandbox_id: SandboxId) -> None:
        """Delete its pod; an absent one is success. If the server fails, the deletion is retried until it succeeds."""
        pod = await self._cache.find(sandbox_id)
        if pod is not None:
            self._released.add(pod.uid)
            self._undeleted[pod.uid] = pod
            self._cache.pods[pod.namespace].put(pod.as_deleting())
            await self._delete(pod)

    def is_released(self, uid: str) -> bool:
        """Whether this gateway deleted it."""
        return uid in self._released

    async def delete_again(self) -> None:
        """Retry the deletions that the API server did not accept."""
        for pod in list(self._undeleted.values()):
            await self._delete(pod)

    async def delete_orphans(self, pool: Pool) -> None:
        """Delete claimed pods that ended a while ago and were never released."""
        for pod in list(pool.claimed.values()):
            if pod.ended and not pod.deleting and pod.created_at + _ORPHAN_AGE_S < self._clock.now():
                await self._delete(pod)

    async def _delete(self, pod: Pod) -> None:
        try:
            await self._api.delete(names.pods(pod.namespace, pod.name), uid=pod.uid, grace=_GRACE_S)
            self._undeleted.pop(pod.uid, None)
        except KubeError as error:
            logger.warning("pod %s could not be deleted, trying again: %s", pod.name, error)

    def watch(self) -> AsyncIterator[SandboxEvent]:
        """Claimed sandboxes that end without `release`, from this call on."""
        return self._watches.begin()

    def end_watches(self) -> None:
        """End all watches: there will be no more events."""
        self._watches.end()

    def pod_changed(self, pool: Pool, old: Pod | None, new: Pod | None, *, starting: bool) -> None:
        """Publish the end of a claimed pod. `starting`: a claim waits for it, and sees the end by itself."""
        pod = new or old
        assert pod is not None
        ended = old is not None and old.claimed and not old.gone and (new is None or bool(new.gone))
        if ended and pod.uid not in self._released and not starting:
            if new is not None and new.unexplained and self._tasks.running:
                self._tasks.spawn(self._publish_explained(pool, new))
            else:
                self._publish(pool, pod, new.gone if new is not None else "its pod was deleted")
        if new is None:
            self._undeleted.pop(pod.uid, None)
            self._released.discard(pod.uid)

    async def _publish_explained(self, pool: Pool, pod: Pod) -> None:
        """Publish the end of a pod whose status gives no reason, with that of its last warning event, if there is one.

        A pod that wrote more than an emptyDir may hold is such a one: only the event names the volume and its limit.
        """
        reason = pod.gone
        try:
            async with asyncio.timeout(_EVENTS_TIMEOUT_S):
                reason = _words_of(await self._api.get(
                    names.events(pod.namespace), fieldSelector=f"involvedObject.uid={pod.uid}", limit=_MAX_EVENTS
                )) or reason  # fmt: skip
        except (KubeError, TimeoutError) as error:
            logger.debug("events of pod %s cannot be read: %s", pod.name, error)
        if pod.uid not in self._released:
            self._publish(pool, pod, reason)

    async def end_lost(self, pool: Pool, pod: Pod) -> bool:
        """Delete a claimed pod that cannot be reached and whose node does not report, and then publish its end.

        In this order, as a session is given another pod as soon as its end is known. False: the server did not take
        the deletion, and nothing was published.
        """
        if pod.uid in self._released:
            return True
        self._released.add(pod.uid)  # so that the watch, which tells of the deletion, publishes no second end
        try:
            await self._api.delete(names.pods(pod.namespace, pod.name), uid=pod.uid, grace=_GRACE_S)
        except KubeError as error:
            self._released.discard(pod.uid)
            logger.warning("pod %s of a lost node could not be deleted, trying again: %s", pod.name, error)
            return False
        self._cache.pods[pod.namespace].put(pod.as_deleting())
        self._publish(pool, pod, f"its node was lost: {pod.node} does not report, and the pod cannot be reached")
        return True

    def count_loss(self, event: SandboxEvent) -> None:
        """Count the end of an event in its pool."""
        pool = self._ended.pop(event.sandbox_id, None)
        if pool is not None:
            pool.lost(self._clock.monotonic(), event.reason)

    def _publish(self, pool: Pool, pod: Pod, reason: str) -> None:
        logger.info("sandbox %s (pod %s) of session %s ended: %s", pod.uid, pod.name, pod.session, reason)
        self._ended[pod.uid] = pool
        while len(self._ended) > _MAX_ENDED:
            self._ended.popitem(last=False)
        self._watches.publish(SandboxEvent(SandboxId(pod.uid), SessionId(pod.session), reason))


def _words_of(events: Mapping[str, Any]) -> str:
    """Why the kubelet ended a pod, from a list of its events; "" where none says so."""
    evictions = [
        event
        for event in events.get("items") or []
        if event.get("type") == "Warning" and event.get("reason") == "Evicted"
    ]
    if not evictions:
        return ""
    message = max(evictions, key=_time_of).get("message") or ""
    words = " ".join(str(message).split())[:_MAX_REASON_CHARS]
    return f"its pod was evicted: {words}".removesuffix(": ")


def _time_of(event: Mapping[str, Any]) -> str:
    # All of them are in UTC and in one form, so that they compare as text.
    return str(event.get("lastTimestamp") or event.get("eventTime") or "")
