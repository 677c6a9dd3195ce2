"""SandboxProvider on Kubernetes: Deployments are the warm pools, ReplicaSets refill them, a claim is one PATCH.

This is the way in, and what joins the parts: claims are claiming.py's, with cold starts in coldstart.py; the upkeep of
pools is deployments.py's, with marks on their pods in marking.py; how sandboxes end is endings.py's. They look at what
cache.py knows of the cluster, and decide as pool.py says. Here each change of a pod or a Deployment is handed to those
whom it concerns, and the housekeeping does what was left undone. Any number of gateways do this side by side: what two
of them want at once, the resourceVersion in each PATCH decides.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence

from gateway.core.background import Tasks
from gateway.core.clock import Clock
from gateway.core.model import Limits, PoolStatus, Runtime, RuntimeKey, Sandbox, SandboxEvent, SandboxId, SessionId
from gateway.core.usage import SandboxLoad, SandboxUsage
from gateway.provider.kubernetes import names
from gateway.provider.kubernetes.cache import Cache
from gateway.provider.kubernetes.claiming import Claims
from gateway.provider.kubernetes.client import KubeApi, KubeError
from gateway.provider.kubernetes.coldstart import ColdStarts
from gateway.provider.kubernetes.consumption import Consumption
from gateway.provider.kubernetes.delivery import Deliveries
from gateway.provider.kubernetes.deployments import Deployments
from gateway.provider.kubernetes.endings import Endings
from gateway.provider.kubernetes.lost_nodes import LostNodes
from gateway.provider.kubernetes.marking import Marks
from gateway.provider.kubernetes.pod import Pod
from gateway.provider.kubernetes.pool import Deployment, Pool, Pools
from gateway.provider.kubernetes.reach import accepts, refuses
from gateway.provider.kubernetes.reflector import Reflector
from gateway.provider.kubernetes.resizing import Resizes
from gateway.provider.kubernetes.template import PodDefaults

logger = logging.getLogger(__name__)

_HOUSEKEEPING_INTERVAL_S = 2.0
# How long a crashed picod may take to be back, and how often that is looked at. A kubelet starts a container again at
# once after its first crash, and only after 10 s, 20 s and so on if it goes on crashing: then nothing is waited for.
_RESTART_TIMEOUT_S, _POLL_INTERVAL_S = 10.0, 0.05
_LOSS_SHOWN_S = 600.0  # how long the status reports a sandbox that was lost


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
        self._api, self._clock = api, clock
        self._tasks, self._pools = Tasks(), Pools()
        self._cache = Cache(api, namespaces, self._tasks, self._pod_changed, self._deployment_changed)
        self._endings = Endings(api, clock, self._cache, self._tasks)
        release = self._endings.release
        self._cold = ColdStarts(api, clock, self._cache, release, start_timeout)
        self._claims = Claims(api, clock, self._cache, self._pools, self._cold, release, self._tasks)
        self._marks = Marks(api, self._cache, self._tasks)
        self._lost_nodes = LostNodes(api, self._cache, self._endings, clock, self._tasks, self._pools.silent)
        self._consumption = Consumption(api, clock, self._cache)
        self._resizes = Resizes(api, clock, self._cache, self._pools)
        self.deliveries = Deliveries(self._cache, self._tasks)
        self._deployments = Deployments(api, defaults, self._cache, self._marks)

    async def start(self) -> None:
        """Read what is in the cluster, and follow it. Raises KubeError when it cannot be read."""
        try:
            await self._cache.load()
        except BaseException:
            await self._api.aclose()
            raise
        self._tasks.running = True
        self._cache.follow()
        for pods in self._cache.pods.values():
            for pod in pods.items.values():
                self.deliveries.look(pod)
        self._tasks.spawn(self._run_housekeeping())

    async def aclose(self) -> None:
        """Stop following. Pods stay: they are the cluster's, and other gateways' too."""
        if not self._tasks.running:
            await self._api.aclose()
            return
        await self._claims.release_abandoned()
        self._cold.cancel_all()
        await self._tasks.aclose()
        self._endings.end_watches()
        self._cache.forget_pods()
        self._pools.clear()
        await self._api.aclose()

    async def apply(self, runtimes: Iterable[Runtime]) -> None:
        """Serve these from now on; Deployments are made or changed where they differ from what was last applied.

        Warm pods of a changed runtime roll; claimed ones stay as they are. A runtime whose pods the server refuses as
        invalid has that as its problem, and keeps no other from being served. Raises KubeError.
        """
        wanted = {runtime.key: runtime for runtime in runtimes}
        for key in [key for key, pool in self._pools.items() if pool.runtime is not None and key not in wanted]:
            await self._deployments.drop(key, self._pools[key])
        for key, runtime in wanted.items():
            await self._deployments.serve(runtime, self._pools[key])

    async def dismantle(self, runtimes: Iterable[RuntimeKey]) -> None:
        """Delete what there is for runtimes that must not be served, e.g. from before a rule. Raises KubeError."""
        for key in runtimes:
            if self._pools[key].runtime is not None or self._cache.deployment(key) is not None:
                await self._deployments.drop(key, self._pools[key])

    async def claim(self, runtime: RuntimeKey, session_id: SessionId) -> Sandbox:
        """A warm pod by one PATCH, else a pod made for this session. Raises RuntimeNotFoundError, SandboxStartError."""
        return (await self._claims.claim(runtime, session_id)).sandbox()

    async def release(self, sandbox_id: SandboxId) -> None:
        """Delete its pod. Absent is success; a server that is away is asked again until it takes the deletion."""
        await self._endings.release(sandbox_id)

    async def resize(self, runtime: RuntimeKey, warm: int) -> None:
        """Set the number of warm pods. Who is to go is marked first, so that no pod being claimed is chosen.

        Raises RuntimeNotFoundError, KubeError.
        """
        await self._deployments.resize(runtime, self._pools.require(runtime), warm)

    async def resize_sandbox(self, sandbox_id: SandboxId, limits: Limits) -> None:
        """Give its pod other limits while it runs. See SandboxResizer."""
        await self._resizes.resize(sandbox_id, limits)

    async def status(self, runtime: RuntimeKey) -> PoolStatus:
        """The pool now, from memory. Raises RuntimeNotFoundError."""
        pool = self._pools.require(runtime)
        ready, problems = len(pool.ready), pool.problems
        now = self._clock.monotonic()
        waits = pool.retry_at is not None and pool.retry_at > now
        return PoolStatus(
            runtime=runtime,
            target=pool.target,
            ready=ready,
            # From the target and not from the pods that exist: where a quota is used up, the ReplicaSet has made none.
            starting=max(0, pool.target - ready),
            claimed=sum(not pod.gone for pod in pool.claimed.values()),
            # The kubelet reports a problem after several tries of its own: that counts as having given up for now.
            failures=max(pool.failures, 3 * bool(problems), len(problems)),
            last_error=problems[0] if problems else pool.last_error or self._cache.problem,
            retry_at=self._clock.now() + pool.retry_at - now if waits and pool.retry_at is not None else None,
            lead_time_p50=pool.lead_time(0.5),
            lead_time_p90=pool.lead_time(0.9),
            losses=pool.losses,
            last_loss=pool.last_loss if pool.losses and now - pool.lost_at < _LOSS_SHOWN_S else "",
        )

    async def find(self, sandbox_id: SandboxId) -> Sandbox | None:
        """The sandbox while it lives: from memory, and from the server only if this UID was never heard of."""
        pod = await self._cache.find(sandbox_id)
        return None if pod is None or pod.gone else pod.sandbox()

    async def find_remains(self, sandbox_id: SandboxId) -> Sandbox | None:
        """The sandbox as long as its picod can be asked for its files, though it may have ended for `find`.

        That is while it is being evicted, and after its picod crashed: the kubelet starts it again on the same
        workspace, which is waited for. A kubelet tells of a crash up to a second late, so the pod is asked, too.
        """
        ends = self._clock.monotonic() + _RESTART_TIMEOUT_S
        pod = await self._cache.find(sandbox_id)
        if pod is not None and (pod.node_away or pod.deleting) and not await accepts(pod):
            return None  # else a session would wait for the copy of files that nobody can send
        while (pod := await self._cache.find(sandbox_id)) is not None and not self._endings.is_released(pod.uid):
            # One that lives is there though a probe of it was not answered in time.
            if (not pod.gone or pod.reachable) and not await refuses(pod):
                return pod.sandbox()
            if pod.ended or pod.deleting or self._clock.monotonic() >= ends:
                return None
            await asyncio.sleep(_POLL_INTERVAL_S)
        return None

    async def list(self) -> Sequence[Sandbox]:
        """All that live, warm ones included."""
        return [pod.sandbox() for pods in self._cache.pods.values() for pod in pods.items.values() if not pod.gone]

    def watch(self) -> AsyncIterator[SandboxEvent]:
        """Claimed sandboxes that end without `release`, from this call on; every gateway receives every one."""
        return self._endings.watch()

    def count_loss(self, event: SandboxEvent) -> None:
        """Show in the pool's status that this sandbox was lost. See LossCounter."""
        self._endings.count_loss(event)

    def suspect(self, sandbox_id: SandboxId) -> None:
        """See whether its pod was lost with its node. See UnreachableWatcher."""
        for pods in self._cache.pods.values():
            if (pod := pods.items.get(sandbox_id)) is not None:
                self._lost_nodes.suspect(self._pools[pod.runtime], pod)

    # EngineMeter.

    async def usage(self, sandboxes: Sequence[SandboxId]) -> Mapping[SandboxId, SandboxUsage]:
        """Busy cores and memory, as the cluster's metrics have them; left out while they have nothing new."""
        return await self._consumption.usage(sandboxes)

    async def load(self, sandbox_id: SandboxId) -> SandboxLoad | None:
        """See LoadReader: busy cores and memory as the cluster's metrics last had them."""
        if await self.find(sandbox_id) is None:
            return None
        return self._consumption.latest(sandbox_id)

    async def parked_bytes(self, _: str) -> int:
        """Nothing is parked in a cluster: hibernated workspaces are snapshots."""
        return 0

    def pods(self, namespace: str) -> Reflector[Pod]:
        """What is known of a namespace's pods, for tools that measure. Raises KeyError."""
        return self._cache.pods[namespace]

    # Following the cluster.

    def _pod_changed(self, old: Pod | None, new: Pod | None) -> None:
        pod = new or old
        assert pod is not None
        pool = self._pools[pod.runtime]
        # The pool first: the others decide by what it knows.
        pool.note(old, new, self._clock.monotonic(), live=self._tasks.running)
        self._marks.look_for_outdated(pool)
        self._cold.pod_changed(pod.uid, new)
        self._endings.pod_changed(pool, old, new, starting=self._cold.is_starting(pod.uid))
        self.deliveries.look(new)

    def _deployment_changed(self, old: Deployment | None, new: Deployment | None) -> None:
        for key, pool in self._pools.items():
            either = new or old
            assert either is not None
            # Compared and not parsed: the name of a long runtime is cut and ends in a digest.
            if key.namespace == either.namespace and names.deployment_name(key) == either.name:
                pool.deployment = new
                self._marks.look_for_outdated(pool)

    async def _run_housekeeping(self) -> None:
        """Retry what failed, and look for what no event tells of.

        Deletions that failed, claims whose outcome is unknown, marks that are no longer needed, pods that ended and
        were never released, Deployments that were deleted from outside, nodes that do not report.
        """
        while True:
            await asyncio.sleep(_HOUSEKEEPING_INTERVAL_S)
            try:
                await self._clean_up_once()
            except KubeError as error:
                logger.debug("housekeeping: %s", error)

    async def _clean_up_once(self) -> None:
        # Deletions first: they free what new pods need.
        await self._endings.delete_again()
        await self._claims.settle_unknown()
        for key, pool in list(self._pools.items()):
            _log_problem(key, pool)
            await self._deployments.restore(key, pool)
            await self._marks.mark_outdated(pool)
            await self._marks.spare(pool)
            await self._endings.delete_orphans(pool)
            self._lost_nodes.look(pool)


def _log_problem(key: RuntimeKey, pool: Pool) -> None:
    """Log a pool's problem once, and once when it is over."""
    problem = next(iter(pool.problems), "")
    if problem != pool.logged_problem:
        pool.logged_problem = problem
        logger.warning("%s: %s", key, problem) if problem else logger.info("%s: recovered", key)
