"""The upkeep of warm pools: a runtime's Deployment, and the NetworkPolicy beside it, made, changed, resized, dropped.

ReplicaSets refill the pools, and the Deployment controller rolls them when their template changes.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from gateway.core.model import Runtime, RuntimeKey
from gateway.provider.kubernetes import build, names
from gateway.provider.kubernetes.cache import Cache
from gateway.provider.kubernetes.client import KubeApi, KubeError, OutcomeUnknownError
from gateway.provider.kubernetes.egress import make_egress
from gateway.provider.kubernetes.marking import Marks
from gateway.provider.kubernetes.pool import Pool
from gateway.provider.kubernetes.template import PodDefaults, is_trusted, make_template

logger = logging.getLogger(__name__)


class Deployments:
    """Writes them. What is changed of one pool is changed in turn (`Pool.changing`)."""

    def __init__(self, api: KubeApi, defaults: PodDefaults, cache: Cache, marks: Marks) -> None:
        self._api, self._defaults, self._cache, self._marks = api, defaults, cache, marks

    async def serve(self, runtime: Runtime, pool: Pool) -> None:
        """Create or update what the runtime needs; a refusal as invalid is kept in `pool.refused`. Raises KubeError."""
        async with pool.changing:
            await self._serve(runtime, pool)

    async def restore(self, key: RuntimeKey, pool: Pool) -> None:
        """Recreate a Deployment that was deleted from outside. Raises KubeError."""
        # While the pool is being changed, a Deployment that is missing is perhaps just being made: ten thousand pods
        # keep a starting gateway busy for longer than the housekeeping waits. The next look tells.
        if pool.deployment is not None or pool.changing.locked():
            return
        async with pool.changing:
            # Looked at in here only: one who waited before us may have dropped the runtime, which would come back, or
            # changed it, which would be undone.
            if pool.runtime is not None and pool.deployment is None and not pool.refused:
                # Deleted by hand; or by the garbage collector, for a runtime that was deleted and made again.
                logger.warning("%s: its Deployment is missing; making it again", key)
                await self._serve(pool.runtime, pool)

    async def drop(self, key: RuntimeKey, pool: Pool) -> None:
        """Delete the runtime's Deployment and NetworkPolicy. Raises KubeError."""
        async with pool.changing:
            # First, so that no claim begins on a pool that is being taken down.
            pool.runtime = None
            await self._api.delete(names.deployments(key.namespace, names.deployment_name(key)))
            await self._api.delete(names.network_policies(key.namespace, names.deployment_name(key)))
            pool.egress = None

    async def resize(self, key: RuntimeKey, pool: Pool, warm: int) -> None:
        """Scale to `warm` pods. Those to go are marked first, so that none is being claimed. Raises KubeError."""
        async with pool.changing:
            if pool.deployment is None or pool.deployment.replicas == max(0, warm):
                return
            if warm < pool.deployment.replicas:
                await self._marks.mark(pool.victims(max(0, warm)))
            # The subresource changes the number and nothing else, so it cannot undo a new template of another gateway.
            # It needs no version: of two sizes that gateways ask for, the last one holds.
            path = names.deployments(key.namespace, names.deployment_name(key), "scale")
            scale = await self._api.patch(path, {"spec": {"replicas": max(0, warm)}})
            if pool.deployment is not None:  # else it was deleted meanwhile
                # Taken in at once: until the watch brings the event, the next resize would be compared with the old
                # number.
                version, replicas = scale["metadata"]["resourceVersion"], int(scale["spec"].get("replicas") or 0)
                known = replace(pool.deployment, version=version, replicas=replicas)
                self._cache.deployments[key.namespace].put(known)

    async def _serve(self, runtime: Runtime, pool: Pool) -> None:
        try:
            await self._reconcile(runtime, pool)
            pool.refused = ""
        except KubeError as error:
            # The server's judgement of the object itself: the same again cannot succeed until the runtime is changed.
            # All else, such as 403 and 5xx, is raised, and engine.py tries again.
            if error.http_status not in (400, 422):
                raise
            pool.refused = f"Invalid: {error}"
            logger.warning("%s: %s", runtime.key, error)

    async def _reconcile(self, runtime: Runtime, pool: Pool) -> None:
        earlier, pool.runtime = pool.runtime, runtime
        pool.template = make_template(runtime, self._defaults)
        await self._allow_egress(runtime, pool)
        digest = pool.template["metadata"]["annotations"][names.TEMPLATE]
        pool.deployment = pool.deployment or self._cache.deployment(runtime.key)
        # Only a changed warmPoolSize sets the number of replicas. A new image keeps the one that the autoscaler has
        # ordered.
        resized = earlier is not None and earlier.pool.size != runtime.pool.size
        if pool.deployment is None:
            await self._create(runtime, pool)
        elif pool.deployment.applied != digest or resized:
            await self._change(runtime, pool, runtime.pool.size if resized else None)

    async def _allow_egress(self, runtime: Runtime, pool: Pool) -> None:
        """What its sandboxes may reach: in force before the first of them is made."""
        wanted = make_egress(
            runtime, trusted=is_trusted(runtime, self._defaults), service=self._defaults.egress_service
        )
        if wanted == pool.egress:
            return
        name, namespace = names.deployment_name(runtime.key), runtime.key.namespace
        path = names.network_policies(namespace, name)
        if wanted is None:
            await self._api.delete(path)
        else:
            try:
                await self._api.create(names.network_policies(namespace), wanted)
            except KubeError as error:
                if error.reason != "AlreadyExists" and not isinstance(error, OutcomeUnknownError):
                    raise
                await self._api.replace(path, wanted)  # unconditional: it says all there is to say
        pool.egress = wanted

    async def _create(self, runtime: Runtime, pool: Pool) -> None:
        body = build.make_deployment(runtime, pool.template, runtime.pool.size)
        try:
            answer = await self._api.create(names.deployments(runtime.key.namespace), body)
        except KubeError as error:
            if error.reason != "AlreadyExists" and not isinstance(error, OutcomeUnknownError):
                raise
            # Another gateway was first, or our own request took effect although its answer is missing.
            answer = await self._api.get(names.deployments(runtime.key.namespace, body["metadata"]["name"]))
        self._cache.deployments[runtime.key.namespace].learn(answer)

    async def _change(self, runtime: Runtime, pool: Pool, replicas: int | None) -> None:
        """By PUT: a merge patch could not take away what the new template no longer has."""
        path = names.deployments(runtime.key.namespace, names.deployment_name(runtime.key))
        while True:
            # Again until nobody writes in between: the Deployment's controller writes its status at any time.
            present = await self._api.get(path)
            present["spec"] |= {"template": pool.template, **build.ROLLING}
            notes = {
                name: text for name, text in present["metadata"].get("annotations", {}).items() if name != names.GANG
            }
            present["metadata"]["annotations"] = {**notes, **build.gang_notes(pool.template)}
            present["metadata"]["labels"][names.APPLIED] = pool.template["metadata"]["annotations"][names.TEMPLATE]
            if replicas is not None:
                present["spec"]["replicas"] = replicas
            try:
                self._cache.deployments[runtime.key.namespace].learn(await self._api.replace(path, present))
                return
            except KubeError as error:
                if error.reason != "Conflict":
                    raise
