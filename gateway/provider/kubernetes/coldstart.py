"""Cold starts: a pod made for one claim, and the wait until it is ready. A pod that does not get there is released."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from gateway.core.clock import Clock
from gateway.core.errors import RuntimeNotFoundError, SandboxStartError
from gateway.core.model import Kind, RuntimeKey, SandboxId, SessionId
from gateway.provider.kubernetes import build, names
from gateway.provider.kubernetes.cache import Cache
from gateway.provider.kubernetes.client import ApiAwayError, KubeApi, KubeError, OutcomeUnknownError
from gateway.provider.kubernetes.pod import Pod
from gateway.provider.kubernetes.pool import Pool
from gateway.provider.kubernetes.reach import is_ready

logger = logging.getLogger(__name__)

# Intervals at which a pod is asked: 0.1 s at first, 1 s after some 20 s, so that 1,000 pods which wait for a node cost
# 1,000 connections a second at most.
_ASK_INTERVAL_S, _ASK_BACKOFF, _MAX_ASK_INTERVAL_S = 0.1, 1.05, 1.0

Release = Callable[[SandboxId], Coroutine[Any, Any, None]]


class ColdStarts:
    """Makes pods, and learns their state through `pod_changed`."""

    def __init__(self, api: KubeApi, clock: Clock, cache: Cache, release: Release, timeout: float) -> None:
        """`timeout`: seconds that a pod may take to get ready."""
        self._api, self._clock, self._cache, self._release, self._timeout = api, clock, cache, release, timeout
        self._waiting: dict[str, asyncio.Future[Pod]] = {}  # cold pods by UID, until they are ready or never will be

    async def start(self, pool: Pool, key: RuntimeKey, session: SessionId, mark: str) -> Pod:
        """A ready pod that is bound to the session from its first moment; `mark` is the claim's.

        Raises RuntimeNotFoundError, SandboxStartError.
        """
        now = self._clock.monotonic()
        pause = pool.refusal(now)
        # After three failures in a row the answer is immediate. Otherwise each client that waits would make one more
        # pod that cannot start, and hold its request for the whole timeout.
        if pause is not None:
            raise start_error(key, pool.last_error, pause)
        if pool.runtime is None:
            raise RuntimeNotFoundError(f"{key} is no longer served")
        pod: Pod | None = None
        try:
            pod = await self._create(pool, await self._template(pool), session, mark)
            ready = await self._until_ready(pod)
        except BaseException as error:
            # Also when the claim was cancelled: nobody else knows of the pod. Shielded, so that a second cancellation
            # during the shutdown does not leave it behind.
            if pod is not None:
                await asyncio.shield(self._release(SandboxId(pod.uid)))
            if not isinstance(error, KubeError | SandboxStartError):
                raise
            logger.warning("a sandbox of %s could not be started: %s", key, error)
            # An API server that is away tells nothing about the runtime, so it does not count against it.
            if not isinstance(error, ApiAwayError):
                pool.failed(self._clock.monotonic(), str(error))
            raise start_error(key, str(error), pool.refusal(self._clock.monotonic())) from error
        pool.started()
        return ready

    async def _template(self, pool: Pool) -> Mapping[str, Any]:
        """What the pod is made from: the runtime's own, or the Deployment's where a rollout was undone.

        Otherwise sessions that find the pool empty would still get the version that was taken back. The cache has
        the templates' digests only, so it is read; that costs one request while a rollout stays undone.
        """
        known = pool.deployment
        if known is None or known.template == known.applied:
            return pool.template
        present = await self._api.get(names.deployments(known.namespace, known.name))
        template: Mapping[str, Any] = present["spec"]["template"]
        return template

    async def _create(self, pool: Pool, template: Mapping[str, Any], session: SessionId, mark: str) -> Pod:
        runtime = pool.runtime
        assert runtime is not None
        name = names.cold_name(runtime.key, uuid.uuid4().hex[:10])
        body = build.make_cold_pod(runtime, dict(template), name, session, mark)
        build.keep_off(body["spec"], pool.silent)
        try:
            answer = await self._api.create(names.pods(runtime.key.namespace), body)
        except OutcomeUnknownError:
            # The name has 40 random bits, so a pod of that name is the one that we asked for.
            answer = await self._api.get(names.pods(runtime.key.namespace, name))  # 404: it was not made
        pod = self._cache.learn(answer)
        if pod is None:
            raise SandboxStartError(f"pod {name} was deleted as it was made")
        return pod

    async def _until_ready(self, pod: Pod) -> Pod:
        """The pod once it is ready. Raises SandboxStartError with what kept it from that."""
        waiter = self._waiting[pod.uid] = asyncio.get_running_loop().create_future()
        pods = self._cache.pods[pod.namespace]
        asking = asyncio.create_task(self._ask(pod)) if pod.runtime.kind is Kind.CODE_INTERPRETER else None
        try:
            # The pod may have become ready before the waiter existed: that event has passed and will not come again.
            self.pod_changed(pod.uid, pods.items.get(pod.uid))
            async with asyncio.timeout(self._timeout):
                ready: Pod = await waiter
                return ready
        except TimeoutError:
            last = pods.items.get(pod.uid, pod)
            reason = last.problem or ("its node has not started it" if last.node else "it has no node yet")
            raise SandboxStartError(f"not ready within {self._timeout:g} s: {reason}") from None
        finally:
            del self._waiting[pod.uid]
            if asking is not None:
                asking.cancel()

    async def _ask(self, pod: Pod) -> None:
        """Ask picod itself whether it is ready, and end the wait when it is.

        A kubelet probes once a second, the shortest period there is, and its report takes a watch event: picod is ready
        0.5 s before that on average, which is a third of a cold start. Only of our own pods, whose probe is known.
        """
        pause = _ASK_INTERVAL_S
        pods = self._cache.pods[pod.namespace]
        while True:
            present = pods.items.get(pod.uid)
            if present is not None and present.ip and not present.gone and await is_ready(present):
                waiter = self._waiting.get(pod.uid)
                if waiter is not None and not waiter.done():
                    waiter.set_result(present)
                return
            await asyncio.sleep(pause)
            pause = min(pause * _ASK_BACKOFF, _MAX_ASK_INTERVAL_S)

    def is_starting(self, uid: str) -> bool:
        """Whether a claim waits for this pod."""
        return uid in self._waiting

    def pod_changed(self, uid: str, pod: Pod | None) -> None:
        """Tell the claim that waits for it, if one does, when its wait is over. None: it was deleted."""
        waiter = self._waiting.get(uid)
        if waiter is None or waiter.done():
            return
        if pod is None or pod.gone:
            waiter.set_exception(SandboxStartError(pod.gone if pod is not None else "its pod was deleted"))
        elif pod.ready and pod.ip:
            waiter.set_result(pod)
        elif pod.problem and not pod.problem.startswith("Unschedulable"):
            # A pod that fits nowhere may fit in a minute, when the cluster has grown; the others are worth no wait.
            waiter.set_exception(SandboxStartError(pod.problem))

    def cancel_all(self) -> None:
        """End all waits: the gateway is shutting down."""
        for waiter in self._waiting.values():
            if not waiter.done():
                waiter.set_exception(SandboxStartError("this gateway is shutting down"))


def start_error(runtime: RuntimeKey, reason: str, pause: float | None = None) -> SandboxStartError:
    """What a claim that got no sandbox raises. `pause`: seconds before another is worth a try, if that is known."""
    # Retry-After is in whole seconds: less than one would be sent as 0, an invitation to try again at once.
    return SandboxStartError(f"a sandbox of {runtime} could not be started: {reason}", retry_after=max(1.0, pause or 0))
