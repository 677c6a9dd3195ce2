"""Other limits for a pod that runs: its subresource `resize` (Kubernetes 1.33), and what the kubelet makes of that.

The kubelet answers in the pod's status: it has done it, it cannot ever on this node (Infeasible), or not as long as
others need the room (Deferred). What it has not done in time is taken back, so that it does not come as a surprise.
Source: https://kubernetes.io/docs/tasks/configure-pod-container/resize-container-resources/
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from gateway.core.clock import Clock
from gateway.core.errors import ResizeError, ResizeUnsupportedError, SandboxGoneError, WakegateError
from gateway.core.model import Limits, SandboxId
from gateway.provider.kubernetes import names
from gateway.provider.kubernetes.cache import Cache
from gateway.provider.kubernetes.client import KubeApi, KubeError, OutcomeUnknownError
from gateway.provider.kubernetes.pod import PICOD_CONTAINER
from gateway.provider.kubernetes.pod_resources import quantity, with_size
from gateway.provider.kubernetes.pool import Pools

Object = dict[str, Any]

TIMEOUT_S = 15.0  # a kubelet looks at its pods each second, and takes some to change a control group
_POLL_INTERVAL_S = 0.1


class Resizes:
    """Changes the resources of claimed pods while they run, through the pods' subresource `resize`."""

    def __init__(self, api: KubeApi, clock: Clock, cache: Cache, pools: Pools) -> None:
        self._api, self._clock, self._cache, self._pools = api, clock, cache, pools

    async def resize(self, sandbox_id: SandboxId, limits: Limits) -> None:
        """See SandboxResizer.resize_sandbox."""
        pod = await self._cache.find(sandbox_id)
        if pod is None or pod.gone:
            raise SandboxGoneError(f"sandbox {sandbox_id} has ended")
        runtime = self._pools[pod.runtime].runtime
        if runtime is not None and runtime.limits.processes != limits.processes:
            raise ResizeUnsupportedError("processes: in a cluster the kubelet limits them (podPidsLimit)")
        path = names.pods(pod.namespace, pod.name)
        container = container_of(await self._read(path))
        before, after = container.get("resources") or {}, with_size(container.get("resources") or {}, limits)
        if before == after:
            return
        try:
            await self._patch(path, container["name"], after)
        except (OutcomeUnknownError, asyncio.CancelledError):  # the server may have taken it
            await asyncio.shield(self._take_back(path, container["name"], before))
            raise
        except KubeError as error:
            raise await self._refusal(error, path) from error
        try:
            await self._until_done(path, container["name"], after)
        except BaseException:
            await asyncio.shield(self._take_back(path, container["name"], before))
            raise

    async def _read(self, path: str) -> Object:
        """The pod. Raises SandboxGoneError, KubeError."""
        try:
            return await self._api.get(path)
        except KubeError as error:
            if error.http_status == 404:
                raise SandboxGoneError("the sandbox has ended") from error
            raise

    async def _refusal(self, error: KubeError, path: str) -> WakegateError:
        """What the API server's refusal of a resize means for a session."""
        if error.http_status == 404:
            await self._read(path)  # else it is the pod that is not there
            return ResizeUnsupportedError("the cluster has no pod resize, which came with Kubernetes 1.33")
        if error.http_status in (400, 403, 409, 422):
            return ResizeError(f"the cluster refuses it: {error}")
        return error

    async def _patch(self, path: str, container: str, resources: Mapping[str, Any]) -> None:
        body = {"spec": {"containers": [{"name": container, "resources": resources}]}}
        await self._api.patch(f"{path}/resize", body, strategic=True)

    async def _take_back(self, path: str, container: str, resources: Mapping[str, Any]) -> None:
        try:
            await self._patch(path, container, resources)
        except KubeError:
            pass  # the pod is gone; or 1.33, which takes no memory back: the kubelet may still do what it was asked

    async def _until_done(self, path: str, container: str, resources: Mapping[str, Any]) -> None:
        ends = self._clock.monotonic() + TIMEOUT_S
        while True:
            pod = await self._read(path)
            if is_done(pod, container, resources):
                return
            if why := refusal_of(pod):
                raise ResizeError(f"its node cannot give it that: {why}; hibernate the session, it may wake on another")
            if self._clock.monotonic() >= ends:
                why = waiting_of(pod) or "its kubelet has not done it"
                raise ResizeError(
                    f"after {TIMEOUT_S:g} s: {why}; try again later, or hibernate the session: it may wake on another "
                    "node"
                )
            await asyncio.sleep(_POLL_INTERVAL_S)


def container_of(pod: Mapping[str, Any]) -> Mapping[str, Any]:
    """The spec of the container that user code runs in: picod's; of an AgentRuntime the first."""
    containers: list[Mapping[str, Any]] = pod["spec"]["containers"]
    return next((each for each in containers if each["name"] == PICOD_CONTAINER), containers[0])


def is_done(pod: Mapping[str, Any], container: str, resources: Mapping[str, Any]) -> bool:
    """Whether the kubelet reports these limits as what the container has, and no resize as under way."""
    status = pod.get("status") or {}
    for each in status.get("containerStatuses") or ():
        if each.get("name") == container:
            has = (each.get("resources") or {}).get("limits") or {}
            wanted = resources.get("limits") or {}
            same = all(
                quantity(str(has.get(name, ""))) == quantity(str(wanted[name])) for name in _SIZES & wanted.keys()
            )
            return same and not _condition(pod, "PodResizePending") and not _condition(pod, "PodResizeInProgress")
    return False


def refusal_of(pod: Mapping[str, Any]) -> str:
    """Why the kubelet will never do it on this node; "" while it may."""
    pending = _condition(pod, "PodResizePending")
    return _words(pending) if pending.get("reason") == "Infeasible" else ""


def waiting_of(pod: Mapping[str, Any]) -> str:
    """Why it has not been done yet, as the kubelet says; "" where it says nothing."""
    return _words(_condition(pod, "PodResizePending") or _condition(pod, "PodResizeInProgress"))


_SIZES = {"cpu", "memory"}


def _condition(pod: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return next((each for each in conditions if each.get("type") == kind and each.get("status") == "True"), {})


def _words(condition: Mapping[str, Any]) -> str:
    return ": ".join(str(condition[name]) for name in ("reason", "message") if condition.get(name))
