"""SandboxProvider on Kubernetes: Deployments are the warm pools, ReplicaSets refill them, a claim is one PATCH.

The decisions are pool.py's, what is written into the cluster build.py's, how it is read pod.py's; watches keep local
copies (reflector.py), so that neither a claim nor `find` ever lists. Any number of gateways do this side by side: what
two of them want at once, the resourceVersion in each PATCH decides.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping, Sequence
from typing import Any

from gateway.clock import Clock
from gateway.errors import RuntimeNotFoundError, SandboxStartError
from gateway.model import PoolStatus, Runtime, RuntimeKey, Sandbox, SandboxEvent, SandboxId, SessionId
from gateway.provider.kubernetes import build, names
from gateway.provider.kubernetes.build import PodDefaults
from gateway.provider.kubernetes.client import ApiAwayError, KubeApi, KubeError, OutcomeUnknownError
from gateway.provider.kubernetes.pod import Pod, read_pod
from gateway.provider.kubernetes.pool import Deployment, Pool, read_deployment
from gateway.provider.kubernetes.reflector import Reflector

log = logging.getLogger(__name__)

_GRACE_S = 1  # of a sandbox that is deleted: picod has nothing to finish
_CANDIDATES = 8  # tried for one claim before it becomes a cold start
_HOUSEKEEPING_S = 2.0
_BACK_S, _LOOK_S = 10.0, 0.05  # how long a crashed picod may take to be back, and how often that is looked at
_CONNECT_S = 2.0
_RECENT_S = 600.0  # so long the status tells of a sandbox that was lost
_FORGOTTEN_S = 600.0  # a claimed pod that ended so long ago and that nobody released is deleted


class KubernetesProvider:
    """Sandboxes as pods of some namespaces. All methods run on one event loop."""

    def __init__(
        self,
        api: KubeApi,
        clock: Clock,
        defaults: PodDefaults,
        namespaces: Sequence[str],
        *,
        start_timeout: float = 120.0,
    ) -> None:
        """`start_timeout`: seconds that a pod made for a claim may take to get ready."""
        self._api, self._clock, self._defaults = api, clock, defaults
        self._start_timeout = start_timeout
        self._pools: defaultdict[RuntimeKey, Pool] = defaultdict(Pool)
        self._pods = {
            namespace: Reflector(api, names.pods(namespace), read_pod, self._pod_changed, labelSelector=names.SELECTOR)
            for namespace in namespaces
        }
        self._deployments = {
            namespace: Reflector(
                api,
                names.deployments(namespace),
                read_deployment,
                self._deployment_changed,
                labelSelector=names.SELECTOR,
            )
            for namespace in namespaces
        }
        self._waiting: dict[str, asyncio.Future[Pod]] = {}  # cold pods by UID, until they are ready or never will be
        self._released: set[str] = set()  # by our own hand: their end is no news
        self._undeleted: dict[str, Pod] = {}  # whose DELETE the server did not take yet
        self._doubtful: dict[str, Pod] = {}  # by claim: pods that may have been bound by a PATCH that broke off
        self._watchers: set[asyncio.Queue[SandboxEvent | None]] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._refreshing: asyncio.Task[None] | None = None
        self._running = False

    async def start(self) -> None:
        """Read what is in the cluster, and follow it. Raises KubeError when it cannot be read."""
        reflectors: list[Reflector[Any]] = [*self._deployments.values(), *self._pods.values()]
        try:
            for reflector in reflectors:
                await reflector.refresh()
        except BaseException:
            await self._api.aclose()
            raise
        self._running = True
        for reflector in reflectors:
            self._spawn(reflector.run())
        self._spawn(self._keep_house())

    async def aclose(self) -> None:
        """Stop following. Pods stay: they are the cluster's, and other gateways' too."""
        if not self._running:
            return
        self._running = False
        for waiter in self._waiting.values():
            if not waiter.done():
                waiter.set_exception(SandboxStartError("this gateway is shutting down"))
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for queue in self._watchers:
            queue.put_nowait(None)
        for reflector in self._pods.values():
            reflector.items.clear()
        self._pools.clear()
        await self._api.aclose()

    async def apply(self, runtimes: Iterable[Runtime]) -> None:
        """Serve these from now on; Deployments are made or changed where they differ from what was last applied.

        Warm pods of a changed runtime roll; claimed ones stay as they are. A runtime whose pods the server refuses as
        invalid has that as its trouble, and keeps no other from being served. Raises KubeError.
        """
        wanted = {runtime.key: runtime for runtime in runtimes}
        for key in [key for key, pool in self._pools.items() if pool.runtime is not None and key not in wanted]:
            await self._drop(key)
        for key, runtime in wanted.items():
            await self._serve(runtime, self._pools[key])

    async def claim(self, runtime: RuntimeKey, session_id: SessionId) -> Sandbox:
        """A warm pod by one PATCH, else a pod made for this session. Raises RuntimeNotFoundError, SandboxStartError."""
        self._pool(runtime)
        # To its end even if the caller leaves: a PATCH cannot be taken back, and what it bound must be released then.
        task: asyncio.Task[Pod] = self._spawn(self._claim(runtime, session_id))
        try:
            return (await asyncio.shield(task)).sandbox()
        except asyncio.CancelledError:
            task.add_done_callback(self._release_unwanted)
            raise

    async def release(self, sandbox_id: SandboxId) -> None:
        """Delete its pod. Absent is success; a server that is away is asked again until it takes the deletion."""
        pod = await self._known(sandbox_id)
        if pod is not None:
            self._released.add(pod.uid)
            self._undeleted[pod.uid] = pod
            self._pods[pod.namespace].put(pod.as_deleting())
            await self._delete(pod)

    async def resize(self, runtime: RuntimeKey, warm: int) -> None:
        """Set the number of warm pods. Who is to go is marked first, so that no pod being claimed is chosen.

        Raises RuntimeNotFoundError, KubeError.
        """
        pool = self._pool(runtime)
        async with pool.changing:
            if pool.deployment is None or pool.deployment.replicas == max(0, warm):
                return
            if warm < pool.deployment.replicas:
                await asyncio.gather(*(self._mark(pod) for pod in pool.victims(max(0, warm))))
            path = names.deployments(runtime.namespace, names.deployment_name(runtime), "scale")
            scale = await self._api.patch(path, {"spec": {"replicas": max(0, warm)}})
            self._deployment_known(pool, runtime, replicas=int(scale["spec"].get("replicas") or 0), answer=scale)

    async def status(self, runtime: RuntimeKey) -> PoolStatus:
        """The pool now, from memory. Raises RuntimeNotFoundError."""
        pool = self._pool(runtime)
        ready, troubles = len(pool.ready), pool.troubles
        now = self._clock.monotonic()
        waits = pool.retry_at is not None and pool.retry_at > now
        return PoolStatus(
            runtime=runtime,
            target=pool.target,
            ready=ready,
            starting=max(0, pool.target - ready),
            claimed=sum(not pod.gone for pod in pool.claimed.values()),
            # The kubelet tells of trouble after several tries of its own: that counts as having given up for now.
            failures=max(pool.failures, 3 * bool(troubles), len(troubles)),
            last_error=troubles[0] if troubles else pool.last_error or self.trouble,
            retry_at=self._clock.now() + pool.retry_at - now if waits and pool.retry_at is not None else None,
            lead_time_p50=pool.lead_time(0.5),
            lead_time_p90=pool.lead_time(0.9),
            losses=pool.losses,
            last_loss=pool.last_loss if pool.losses and now - pool.lost_at < _RECENT_S else "",
        )

    async def find(self, sandbox_id: SandboxId) -> Sandbox | None:
        """The sandbox while it lives: from memory, and from the server only if this UID was never heard of."""
        pod = await self._known(sandbox_id)
        return None if pod is None or pod.gone else pod.sandbox()

    async def find_remains(self, sandbox_id: SandboxId) -> Sandbox | None:
        """The sandbox as long as its picod can be asked for its files, though it may have ended for `find`.

        That is while it is being evicted, and after its picod crashed: the kubelet starts it again on the same
        workspace, which is waited for. A kubelet tells of a crash up to a second late, so the pod is asked, too.
        """
        ends = self._clock.monotonic() + _BACK_S
        while (pod := await self._known(sandbox_id)) is not None and pod.uid not in self._released:
            # One that lives is there though a probe of it was not answered in time.
            if (not pod.gone or pod.reachable) and not await _refuses(pod):
                return pod.sandbox()
            if pod.ended or pod.deleting or self._clock.monotonic() >= ends:
                return None
            await asyncio.sleep(_LOOK_S)
        return None

    async def list(self) -> Sequence[Sandbox]:
        """All that live, warm ones included."""
        return [pod.sandbox() for pods in self._pods.values() for pod in pods.items.values() if not pod.gone]

    def watch(self) -> AsyncIterator[SandboxEvent]:
        """Claimed sandboxes that end without `release`, from this call on; every gateway hears of every one."""
        queue: asyncio.Queue[SandboxEvent | None] = asyncio.Queue()
        self._watchers.add(queue)
        return self._events(queue)

    def pods(self, namespace: str) -> Reflector[Pod]:
        """What is known of a namespace's pods, for tools that measure. Raises KeyError."""
        return self._pods[namespace]

    @property
    def trouble(self) -> str:
        """Why what we know of the cluster may be old; "" while it is fresh."""
        reflectors: list[Reflector[Any]] = [*self._pods.values(), *self._deployments.values()]
        return next((reflector.trouble for reflector in reflectors if reflector.trouble), "")

    # Claiming.

    async def _claim(self, key: RuntimeKey, session: SessionId) -> Pod:
        pool = self._pool(key)
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
                if error.http_status not in (404, 409):
                    raise _start_error(key, str(error)) from error
                refused[candidate.uid] = candidate.version
            else:
                if pod is not None:
                    return pod
                refused[candidate.uid] = candidate.version
            finally:
                pool.give_back(candidate)
        return await self._start_cold(pool, key, session, mark)

    async def _bind(self, pool: Pool, candidate: Pod, session: SessionId, mark: str) -> Pod | None:
        """The one PATCH. None: it is ending, try another. Raises KubeError, with 409 when somebody was faster."""
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
            # It may have been done. Whether it was, the pod itself says; if it cannot be asked now, it is asked later.
            try:
                answer = await self._api.get(path)
            except KubeError:
                self._doubtful[mark] = candidate
                raise
        pod = self._learn(answer)
        if pod is None or pod.claim != mark:
            raise KubeError(409, "Conflict", f"pod {candidate.name} changed while it was being claimed")
        return None if pod.gone else pod

    async def _look_again(self, key: RuntimeKey, refused: Mapping[str, str]) -> bool:
        """All candidates were refused: perhaps only the kubelet had written their status. Returns whether to go on."""
        pods = self._pods[key.namespace]
        stale = [pod for uid, pod in pods.items.items() if refused.get(uid) == pod.version and pod.claimable]
        for pod in stale:
            try:
                self._learn(await self._api.get(names.pods(pod.namespace, pod.name)))
            except KubeError as error:
                if error.http_status != 404:
                    raise _start_error(key, str(error)) from error
        return bool(stale)

    async def _start_cold(self, pool: Pool, key: RuntimeKey, session: SessionId, mark: str) -> Pod:
        now = self._clock.monotonic()
        pause = pool.refusal(now)
        if pause is not None:
            raise _start_error(key, pool.last_error, pause)
        if pool.runtime is None:
            raise RuntimeNotFoundError(f"{key} is no longer served")
        pod: Pod | None = None
        try:
            pod = await self._create(pool.runtime, pool.template, session, mark)
            ready = await self._until_ready(pod)
        except BaseException as error:
            if pod is not None:
                await asyncio.shield(self.release(SandboxId(pod.uid)))
            if not isinstance(error, KubeError | SandboxStartError):
                raise
            log.warning("a sandbox of %s could not be started: %s", key, error)
            if not isinstance(error, ApiAwayError):
                pool.failed(self._clock.monotonic(), str(error))
            raise _start_error(key, str(error), pool.refusal(self._clock.monotonic())) from error
        pool.started()
        return ready

    async def _create(self, runtime: Runtime, template: Mapping[str, Any], session: SessionId, mark: str) -> Pod:
        name = names.cold_name(runtime.key, uuid.uuid4().hex[:10])
        body = build.make_cold_pod(runtime, dict(template), name, session, mark)
        try:
            answer = await self._api.create(names.pods(runtime.key.namespace), body)
        except OutcomeUnknownError:
            answer = await self._api.get(names.pods(runtime.key.namespace, name))  # 404: it was not made
        pod = self._learn(answer)
        if pod is None:
            raise SandboxStartError(f"pod {name} was deleted as it was made")
        return pod

    async def _until_ready(self, pod: Pod) -> Pod:
        """The pod once it is ready. Raises SandboxStartError with what kept it from that."""
        waiter = self._waiting[pod.uid] = asyncio.get_running_loop().create_future()
        pods = self._pods[pod.namespace]
        try:
            self._tell_waiter(pod.uid, pods.items.get(pod.uid))
            async with asyncio.timeout(self._start_timeout):
                ready: Pod = await waiter
                return ready
        except TimeoutError:
            last = pods.items.get(pod.uid, pod)
            reason = last.trouble or ("its node has not started it" if last.node else "it has no node yet")
            raise SandboxStartError(f"not ready within {self._start_timeout:g} s: {reason}") from None
        finally:
            del self._waiting[pod.uid]

    def _tell_waiter(self, uid: str, pod: Pod | None) -> None:
        waiter = self._waiting.get(uid)
        if waiter is None or waiter.done():
            return
        if pod is None or pod.gone:
            waiter.set_exception(SandboxStartError(pod.gone if pod is not None else "its pod was deleted"))
        elif pod.ready and pod.ip:
            waiter.set_result(pod)
        elif pod.trouble and not pod.trouble.startswith("Unschedulable"):
            # A pod that fits nowhere may fit in a minute, when the cluster has grown; the others are worth no wait.
            waiter.set_exception(SandboxStartError(pod.trouble))

    def _release_unwanted(self, task: asyncio.Task[Pod]) -> None:
        if not task.cancelled() and task.exception() is None and self._running:
            self._spawn(self.release(SandboxId(task.result().uid)))

    # Pools.

    async def _serve(self, runtime: Runtime, pool: Pool) -> None:
        """What the server refuses as invalid is the pool's trouble. Raises KubeError."""
        try:
            async with pool.changing:
                await self._bring_about(runtime, pool)
            pool.refused = ""
        except KubeError as error:
            if error.http_status not in (400, 422):
                raise
            pool.refused = f"Invalid: {error}"
            log.warning("%s: %s", runtime.key, error)

    async def _bring_about(self, runtime: Runtime, pool: Pool) -> None:
        earlier, pool.runtime = pool.runtime, runtime
        pool.template = build.make_template(runtime, self._defaults)
        await self._allow_egress(runtime, pool)
        digest = pool.template["metadata"]["annotations"][names.TEMPLATE]
        pool.deployment = pool.deployment or self._deployment_of(runtime.key)
        resized = earlier is not None and earlier.pool.size != runtime.pool.size
        if pool.deployment is None:
            await self._create_deployment(runtime, pool)
        elif pool.deployment.applied != digest or resized:
            await self._change_deployment(runtime, pool, runtime.pool.size if resized else None)

    async def _allow_egress(self, runtime: Runtime, pool: Pool) -> None:
        """What its sandboxes may reach: in force before the first of them is made."""
        wanted = build.make_egress(runtime)
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

    async def _create_deployment(self, runtime: Runtime, pool: Pool) -> None:
        body = build.make_deployment(runtime, pool.template, runtime.pool.size)
        try:
            answer = await self._api.create(names.deployments(runtime.key.namespace), body)
        except KubeError as error:
            if error.reason != "AlreadyExists" and not isinstance(error, OutcomeUnknownError):
                raise
            answer = await self._api.get(names.deployments(runtime.key.namespace, body["metadata"]["name"]))
        self._deployments[runtime.key.namespace].learn(answer)

    async def _change_deployment(self, runtime: Runtime, pool: Pool, replicas: int | None) -> None:
        """By PUT: a merge patch could not take away what the new template no longer has."""
        path = names.deployments(runtime.key.namespace, names.deployment_name(runtime.key))
        while True:
            present = await self._api.get(path)
            present["spec"] |= {"template": pool.template, **build.ROLLING}
            present["metadata"]["labels"][names.APPLIED] = pool.template["metadata"]["annotations"][names.TEMPLATE]
            if replicas is not None:
                present["spec"]["replicas"] = replicas
            try:
                self._deployments[runtime.key.namespace].learn(await self._api.replace(path, present))
                return
            except KubeError as error:
                if error.reason != "Conflict":
                    raise

    async def _drop(self, key: RuntimeKey) -> None:
        pool = self._pools[key]
        async with pool.changing:
            pool.runtime = None
            await self._api.delete(names.deployments(key.namespace, names.deployment_name(key)))
            await self._api.delete(names.network_policies(key.namespace, names.deployment_name(key)))
            pool.egress = None

    async def _mark(self, pod: Pod) -> None:
        """Mark a victim, of a shrink or a roll. One that changed meanwhile is left alone: it may have been claimed."""
        await self._annotate(pod, build.make_victim(pod.version))

    async def _annotate(self, pod: Pod, patch: dict[str, Any]) -> None:
        try:
            self._learn(await self._api.patch(names.pods(pod.namespace, pod.name), patch))
        except KubeError as error:
            if error.http_status not in (404, 409):
                raise

    def _deployment_known(self, pool: Pool, key: RuntimeKey, *, replicas: int, answer: Mapping[str, Any]) -> None:
        old = pool.deployment
        if old is not None:
            known = Deployment(
                old.uid,
                old.namespace,
                old.name,
                answer["metadata"]["resourceVersion"],
                replicas,
                old.applied,
                old.template,
                old.failure,
            )
            self._deployments[key.namespace].put(known)

    # Following the cluster.

    def _pod_changed(self, old: Pod | None, new: Pod | None) -> None:
        pod = new or old
        assert pod is not None
        pool = self._pools[pod.runtime]
        pool.note(old, new, self._clock.monotonic(), live=self._running)
        self._look_for_outdated(pool)
        self._tell_waiter(pod.uid, new)
        if new is None:
            self._undeleted.pop(pod.uid, None)
        ended = old is not None and old.claimed and not old.gone and (new is None or bool(new.gone))
        if ended and pod.uid not in self._released and pod.uid not in self._waiting:
            self._tell(pod, new.gone if new is not None else "its pod was deleted")
        if new is None:
            self._released.discard(pod.uid)

    def _deployment_changed(self, old: Deployment | None, new: Deployment | None) -> None:
        for key, pool in self._pools.items():
            either = new or old
            assert either is not None
            if key.namespace == either.namespace and names.deployment_name(key) == either.name:
                pool.deployment = new
                self._look_for_outdated(pool)

    def _look_for_outdated(self, pool: Pool) -> None:
        if self._running and not pool.marking and pool.outdated():
            pool.marking = True
            self._spawn(self._mark_outdated(pool))

    async def _mark_outdated(self, pool: Pool) -> None:
        """Let nobody claim the old pods that a roll is about to remove."""
        try:
            while marked := pool.outdated():
                await asyncio.gather(*(self._mark(pod) for pod in marked))
                if pool.outdated() == marked:
                    return  # they changed meanwhile; the watch tells how, and then they are looked at again
        except KubeError as error:
            log.debug("outdated pods: %s", error)
        finally:
            pool.marking = False

    def _tell(self, pod: Pod, reason: str) -> None:
        log.info("sandbox %s (pod %s) of session %s ended: %s", pod.uid, pod.name, pod.session, reason)
        pool = self._pools[pod.runtime]
        pool.losses, pool.last_loss, pool.lost_at = pool.losses + 1, reason, self._clock.monotonic()
        for queue in self._watchers:
            queue.put_nowait(SandboxEvent(SandboxId(pod.uid), SessionId(pod.session), reason))

    def _learn(self, answer: dict[str, Any]) -> Pod | None:
        return self._pods[answer["metadata"]["namespace"]].learn(answer)

    async def _known(self, sandbox_id: SandboxId) -> Pod | None:
        """From memory; a UID that was never heard of may be another gateway's newest, so the server is asked once."""
        for attempt in range(2):
            for pods in self._pods.values():
                pod = pods.items.get(sandbox_id)
                if pod is not None or pods.is_dead(sandbox_id):
                    return pod
            if attempt == 0 and self._running:
                if self._refreshing is None or self._refreshing.done():
                    self._refreshing = self._spawn(self._refresh())
                await asyncio.shield(self._refreshing)
        return None

    async def _refresh(self) -> None:
        for pods in self._pods.values():
            await pods.refresh()

    async def _delete(self, pod: Pod) -> None:
        try:
            await self._api.delete(names.pods(pod.namespace, pod.name), uid=pod.uid, grace=_GRACE_S)
            self._undeleted.pop(pod.uid, None)
        except KubeError as error:
            log.warning("pod %s could not be deleted, trying again: %s", pod.name, error)

    async def _settle(self, mark: str, pod: Pod) -> None:
        """Delete a pod that our broken claim did bind; leave one that it did not. Raises KubeError."""
        try:
            present = read_pod(await self._api.get(names.pods(pod.namespace, pod.name)))
        except KubeError as error:
            if error.http_status != 404:
                raise
            present = None
        if present is not None and present.claim == mark:
            await self.release(SandboxId(present.uid))
        self._doubtful.pop(mark, None)

    async def _keep_house(self) -> None:
        """Deletions that failed, claims in doubt, marks that are no longer meant, ended pods that everybody forgot,
        Deployments that somebody deleted."""
        while True:
            await asyncio.sleep(_HOUSEKEEPING_S)
            try:
                await self._tidy()
            except KubeError as error:
                log.debug("housekeeping: %s", error)

    async def _tidy(self) -> None:
        for pod in list(self._undeleted.values()):
            await self._delete(pod)
        for mark, pod in list(self._doubtful.items()):
            await self._settle(mark, pod)
        for key, pool in list(self._pools.items()):
            trouble = next(iter(pool.troubles), "")
            if trouble != pool.told:
                pool.told = trouble
                log.warning("%s: %s", key, trouble) if trouble else log.info("%s: well again", key)
            if pool.runtime is not None and pool.deployment is None and not pool.refused:
                # Deleted by hand; or by the garbage collector, for a runtime that was deleted and made again.
                log.warning("%s: its Deployment was deleted; making it again", key)
                await self._serve(pool.runtime, pool)
            await self._mark_outdated(pool)
            for pod in pool.spared():
                await self._annotate(pod, build.make_spared(pod.version))
            for pod in list(pool.claimed.values()):
                if pod.ended and not pod.deleting and pod.created_at + _FORGOTTEN_S < self._clock.now():
                    await self._delete(pod)

    # Helpers.

    def _deployment_of(self, key: RuntimeKey) -> Deployment | None:
        name = names.deployment_name(key)
        items = self._deployments[key.namespace].items.values() if key.namespace in self._deployments else ()
        return next((each for each in items if each.name == name), None)

    def _pool(self, key: RuntimeKey) -> Pool:
        pool = self._pools.get(key)
        if pool is None or pool.runtime is None:
            raise RuntimeNotFoundError(f"{key} not found")
        return pool

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _events(self, queue: asyncio.Queue[SandboxEvent | None]) -> AsyncIterator[SandboxEvent]:
        try:
            while (event := await queue.get()) is not None:
                yield event
        finally:
            self._watchers.discard(queue)


async def _refuses(pod: Pod) -> bool:
    """Whether its machine answers that nobody listens there. Silence is not that: a wait would be no use."""
    try:
        async with asyncio.timeout(_CONNECT_S):
            _, writer = await asyncio.open_connection(pod.ip, pod.port)
    except ConnectionRefusedError:
        return True
    except (OSError, TimeoutError):
        return False
    writer.close()
    return False


def _start_error(runtime: RuntimeKey, reason: str, pause: float | None = None) -> SandboxStartError:
    return SandboxStartError(f"a sandbox of {runtime} could not be started: {reason}", retry_after=max(1.0, pause or 0))
