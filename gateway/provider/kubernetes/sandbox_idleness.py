"""Suspends Sandboxes of agent-sandbox's controllers that no gateway has used for their idle timeout.

The patch names the version of the object, and gateways write into the object what they use. So of a request that comes
at that moment and the suspension the API server lets one be first, and the other sees it: nothing is taken away from
under a request. A lease of the session store only spares the API server the attempts of several gateways.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Container, Mapping

from gateway.core.clock import Clock
from gateway.core.errors import WakegateError
from gateway.core.interfaces import SessionStore
from gateway.provider.kubernetes import routed_objects as objects
from gateway.provider.kubernetes.claim_objects import sandboxes
from gateway.provider.kubernetes.client import KubeApi, KubeError
from gateway.provider.kubernetes.reflector import Reflector
from gateway.provider.kubernetes.routed_objects import RoutedObject

logger = logging.getLogger(__name__)

IDLE_LEASE = "kubernetes-idle-sandboxes"
_LEASE_TTL_S = 10.0
_LOOK_INTERVAL_S = 1.0


class IdleSandboxes:
    """Looks at the Sandboxes of some namespaces again and again.

    State: since when each was seen to run without a gap, in epoch seconds by UID. Its idle timeout counts from there at
    the earliest: a person may have woken it just now; and while the API server was away, gateways could not write what
    they used.
    """

    def __init__(
        self,
        api: KubeApi,
        reflectors: Mapping[str, Reflector[RoutedObject]],
        clock: Clock,
        in_use: Container[tuple[str, str]],
    ) -> None:
        """`reflectors` by namespace. `in_use`: namespaces and names of those that this gateway uses now."""
        self._api, self._reflectors, self._clock, self._in_use = api, reflectors, clock, in_use
        self._running_since: dict[str, float] = {}

    async def run(self, store: SessionStore, holder: str) -> None:
        """Suspend those that are idle while this gateway holds the lease. Until cancelled."""
        while True:
            try:
                if await store.acquire_lease(IDLE_LEASE, holder, _LEASE_TTL_S) is not None:
                    await self._look()
                else:
                    self._running_since.clear()
            except WakegateError as error:
                logger.debug("idle sandboxes: %s", error)
            await asyncio.sleep(_LOOK_INTERVAL_S)

    async def _look(self) -> None:
        now = self._clock.now()
        running: dict[str, float] = {}
        for reflector in self._reflectors.values():
            if reflector.problem:  # what is known may be old, and what is in use may not have been written
                continue
            for found in reflector.items.values():
                if found.idle_timeout is not None and not found.is_suspended:
                    running[found.uid] = self._running_since.get(found.uid, now)
        self._running_since = running
        for namespace, reflector in self._reflectors.items():
            for uid in [uid for uid in reflector.items if uid in running]:
                now_known = reflector.items.get(uid)  # a suspension takes its time
                if now_known is not None and self._is_idle(now_known):
                    await self._suspend(namespace, now_known)

    def _is_idle(self, found: RoutedObject) -> bool:
        if found.idle_timeout is None or found.is_suspended or (found.namespace, found.name) in self._in_use:
            return False
        until = max(found.in_use_until, self._running_since[found.uid] + found.idle_timeout)
        return until <= self._clock.now()

    async def _suspend(self, namespace: str, found: RoutedObject) -> None:
        try:
            path = sandboxes(namespace, found.name, version=found.api)
            made = await self._api.patch(path, objects.suspend_patch(found))
        except KubeError as error:
            if error.http_status not in (404, 409):  # it is gone, or was changed, or is in use again
                logger.warning("sandbox %s/%s is idle and cannot be suspended: %s", namespace, found.name, error)
            return
        logger.info("sandbox %s/%s is idle and was suspended", namespace, found.name)
        self._reflectors[namespace].learn(made)
