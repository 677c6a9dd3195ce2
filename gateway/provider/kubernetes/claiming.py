"""Claims a warm pod by one PATCH, or starts one for the session (coldstart.py).

The PATCH carries the resourceVersion that this gateway has seen. Of two gateways that claim the same pod, the second
gets 409 and tries another. A lease per pool would add two writes to each claim, and gateways would wait for each other.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping

from gateway.core.background import Tasks
from gateway.core.clock import Clock
from gateway.core.model import RuntimeKey, SandboxId, SessionId
from gateway.provider.kubernetes import build, names
from gateway.provider.kubernetes.abandoned import AbandonedClaims
from gateway.provider.kubernetes.cache import Cache
from gateway.provider.kubernetes.client import KubeApi, KubeError, OutcomeUnknownError
from gateway.provider.kubernetes.coldstart import ColdStarts, Release, start_error
from gateway.provider.kubernetes.pod import Pod, read_pod
from gateway.provider.kubernetes.pool import Pool, Pools

# Gateways choose at random: two that claim from 10 pods at the same time collide in one of 10 claims. Eight refusals in
# a row therefore mean that hardly any pod is left, and further round trips would only delay the cold start.
_CANDIDATES = 8  # tried for one claim before it becomes a cold start


class Claims:
    """Binds warm pods to sessions, and makes a pod where none is left."""

    def __init__(
        self,
        api: KubeApi,
        clock: Clock,
        cache: Cache,
        pools: Pools,
        cold: ColdStarts,
        release: Release,
        tasks: Tasks,
    ) -> None:
        self._api, self._clock, self._cache, self._pools = api, clock, cache, pools
        self._cold, self._release, self._tasks = cold, release, tasks
        self._abandoned = AbandonedClaims(release, tasks)
        self._doubtful: dict[str, Pod] = {}  # by claim: pods that may have been bound by a PATCH that broke off

    async def claim(self, runtime: RuntimeKey, session: SessionId) -> Pod:
        """A warm pod by one PATCH, else a pod made for this session. Raises RuntimeNotFoundError, SandboxStartError."""
        self._pools.require(runtime)
        # Not cancelled with the caller: a PATCH cannot be undone, and a pod that is being made is worth its wait.
        task: asyncio.Task[Pod] = self._tasks.spawn(self._claim(runtime, session))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            self._abandoned.add(runtime, task)
            raise

    async def release_abandoned(self) -> None:
        """Release the pods of claims whose callers have left: the gateway shuts down."""
        await self._abandoned.release_all()

    async def _claim(self, key: RuntimeKey, session: SessionId) -> Pod:
        pool = self._pools.require(key)
        # Written with the claim: after a PATCH whose outcome is unknown, it tells whose claim is on the pod.
        mark = uuid.uuid4().hex
        refused: dict[str, str] = {}
        for attempt in range(_CANDIDATES):
            candidate = pool.take(refused)
            if candidate is None:
                if not refused or attempt == 0 or not await self._look_again(key, refused):
                    break
                continue
            try:
                pod = await self._bind(pool, candidate, session, mark)
            except KubeError as error:
                # Deleted, or written by somebody else: that is about this pod only. Any other error would meet the next
                # one too.
                if error.http_status not in (404, 409):
                    raise start_error(key, str(error)) from error
                refused[candidate.uid] = candidate.version
            else:
                if pod is not None:
                    return pod
                refused[candidate.uid] = candidate.version
            finally:
                pool.give_back(candidate)
        while (start := self._abandoned.take(key)) is not None:
            made = await start  # its error is this claim's too: it would have met the same
            try:
                return await self._rebind(made, session, mark)
            except KubeError as error:
                if error.http_status not in (404, 409):
                    raise start_error(key, str(error)) from error
                self._tasks.spawn(self._release(SandboxId(made.uid)))
        return await self._cold.start(pool, key, session, mark)

    async def _rebind(self, pod: Pod, session: SessionId, mark: str) -> Pod:
        """Give a pod that was made for a claim whose caller left to another session. Raises KubeError."""
        patch = build.make_rebinding(pod.name, pod.restarts, session, mark)
        bound = self._cache.learn(await self._api.patch(names.pods(pod.namespace, pod.name), patch))
        if bound is None or bound.gone or bound.uid != pod.uid:
            raise KubeError(409, "Conflict", f"pod {pod.name} ended before it was used")
        return bound

    async def _bind(self, pool: Pool, candidate: Pod, session: SessionId, mark: str) -> Pod | None:
        """The one PATCH. None: the pod is ending, try another. Raises KubeError, 409 when another write came first."""
        assert pool.runtime is not None
        patch = build.make_claim(
            pool.runtime,
            candidate.version,
            candidate.name,
            candidate.restarts,
            session,
            mark,
            max(0.0, self._clock.now() - (candidate.started_at or candidate.created_at)),
        )
        path = names.pods(candidate.namespace, candidate.name)
        try:
            answer = await self._api.patch(path, patch)
        except OutcomeUnknownError:
            # The server may have applied it. The pod shows whether it did; if it cannot be read now, it is read later.
            try:
                answer = await self._api.get(path)
            except KubeError:
                self._doubtful[mark] = candidate
                raise
        pod = self._cache.learn(answer)
        if pod is None or pod.claim != mark:
            raise KubeError(409, "Conflict", f"pod {candidate.name} changed while it was being claimed")
        # Ours, but ending: possible where the pod was read again after an unknown outcome.
        return None if pod.gone else pod

    async def _look_again(self, key: RuntimeKey, refused: Mapping[str, str]) -> bool:
        """Read refused candidates again: a status update by the kubelet causes 409 too. Returns whether to retry."""
        pods = self._cache.pods[key.namespace]
        stale = [pod for uid, pod in pods.items.items() if refused.get(uid) == pod.version and pod.claimable]
        for pod in stale:
            try:
                self._cache.learn(await self._api.get(names.pods(pod.namespace, pod.name)))
            except KubeError as error:
                if error.http_status != 404:
                    raise start_error(key, str(error)) from error
        return bool(stale)

    async def settle_unknown(self) -> None:
        """Find out what became of claims whose PATCH had an unknown outcome. Raises KubeError."""
        for mark, pod in list(self._doubtful.items()):
            await self._settle(mark, pod)

    async def _settle(self, mark: str, pod: Pod) -> None:
        """Release the pod if the claim did bind it; leave it alone if not. Raises KubeError."""
        try:
            present = read_pod(await self._api.get(names.pods(pod.namespace, pod.name)))
        except KubeError as error:
            if error.http_status != 404:
                raise
            present = None
        # Absent, or claimed by another: then the PATCH did not take effect, and nothing is to be released.
        if present is not None and present.claim == mark:
            await self._release(SandboxId(present.uid))
        self._doubtful.pop(mark, None)
