"""What is known of one runtime's pods, and the decisions over them: whom to hand out, whom to remove. Plain and
synchronous; times are Clock.monotonic seconds unless stated otherwise."""

from __future__ import annotations

import asyncio
import random
from collections import Counter, defaultdict, deque
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from gateway.core.backoff import backoff
from gateway.core.errors import RuntimeNotFoundError
from gateway.core.model import Runtime, RuntimeKey
from gateway.provider.kubernetes import names
from gateway.provider.kubernetes.pod import Pod

MAX_FAILURES = 3  # failures in a row; PoolStatus.settled counts the same
_FIRST_BACKOFF_S, _MAX_BACKOFF_S = 0.5, 30.0
_LEAD_TIMES = 64


@dataclass(frozen=True, slots=True)
class Deployment:
    """A warm pool's Deployment as the cache keeps it."""

    uid: str
    namespace: str
    name: str
    version: str
    replicas: int
    applied: str  # digest of the template that a gateway put there
    template: str  # digest of the template that is there; another one after `kubectl rollout undo`
    failure: str  # why its ReplicaSet cannot make pods, e.g. a quota


def read_deployment(obj: Mapping[str, Any]) -> Deployment:
    """The record of a Deployment."""
    metadata, spec = obj["metadata"], obj["spec"]
    failures = [
        f"{each.get('reason')}: {each.get('message')}"
        for each in (obj.get("status") or {}).get("conditions") or []
        if each.get("type") == "ReplicaFailure" and each.get("status") == "True"
    ]
    return Deployment(
        uid=metadata["uid"],
        namespace=metadata["namespace"],
        name=metadata["name"],
        version=metadata["resourceVersion"],
        replicas=int(spec.get("replicas") or 0),
        applied=(metadata.get("labels") or {}).get(names.APPLIED, ""),
        template=(spec["template"]["metadata"].get("annotations") or {}).get(names.TEMPLATE, ""),
        failure=failures[0] if failures else "",
    )


class Pool:
    """What this gateway knows of one runtime: its warm and claimed pods, its Deployment, and its start failures."""

    def __init__(self, silent: Set[str] = frozenset()) -> None:
        """`silent`: nodes that are not to be used (lost_nodes.py), which change."""
        self.silent = silent
        self.runtime: Runtime | None = None  # None: not served (any more)
        self.template: dict[str, Any] = {}
        self.egress: dict[str, Any] | None = {}  # the NetworkPolicy in force; {}: not looked at yet
        self.deployment: Deployment | None = None
        self.warm: dict[str, Pod] = {}  # in the Deployment's selector, whatever their state
        self.claimed: dict[str, Pod] = {}
        self.changing = asyncio.Lock()  # resize and apply, one at a time
        self.refused = ""  # why the server does not take what is made for the runtime
        self.failures = 0  # cold starts in a row
        self.last_error = ""
        self.marking = False  # a look at outdated pods is under way
        self.logged_problem = ""  # the last one written to the log
        self.losses = 0
        self.last_loss, self.lost_at = "", 0.0
        self.retry_at: float | None = None
        self._taken: set[str] = set()  # being claimed by us at this moment
        self._born: dict[str, float] = {}  # when a pod was first seen, while it is not ready
        self._lead_times: deque[float] = deque(maxlen=_LEAD_TIMES)
        self._versions: Counter[str] = Counter()  # warm pods by the digest of their template

    @property
    def target(self) -> int:
        """Replicas that the Deployment asks for."""
        return self.deployment.replicas if self.deployment is not None else 0

    @property
    def ready(self) -> list[Pod]:
        """Warm pods that can be claimed now."""
        return [
            pod
            for uid, pod in self.warm.items()
            if pod.claimable and uid not in self._taken and pod.node not in self.silent
        ]

    @property
    def problems(self) -> list[str]:
        """Why warm pods cannot get ready, one line each."""
        found = [self.refused] if self.refused else []
        found += [pod.problem for pod in self.warm.values() if pod.problem]
        if self.deployment is not None and self.deployment.failure and len(self.warm) < self.target:
            found.append(self.deployment.failure)
        return found

    def note(self, old: Pod | None, new: Pod | None, now: float, *, live: bool) -> None:
        """A pod changed. `live`: reported by the watch, so that times between two changes mean something."""
        uid = (new or old).uid  # type: ignore[union-attr]  # one of them is there
        if (before := self.warm.pop(uid, None)) is not None:
            self._versions[before.template] -= 1
            if not self._versions[before.template]:
                del self._versions[before.template]
        self.claimed.pop(uid, None)
        if new is not None and new.claimed:
            self.claimed[uid] = new
        elif new is not None:
            self.warm[uid] = new
            self._versions[new.template] += 1
        if old is None and new is not None and not new.ready and live:
            self._born[uid] = now
        elif (born := self._born.get(uid)) is not None and (new is None or new.ready or new.deleting):
            del self._born[uid]
            if new is not None and new.ready:
                self._lead_times.append(now - born)

    def take(self, refused: Mapping[str, str]) -> Pod | None:
        """Choose a candidate for a claim; no other claim of this gateway gets it until `give_back`.

        `refused`: the version of each UID at which the server answered 409. During a rollout, pods of the old template
        come first: they are about to end anyway, and the rollout waits for ready pods of the new one. Among equals the
        choice is random, so that gateways which claim at the same time rarely collide.
        """
        ready = [pod for pod in self.ready if refused.get(pod.uid) != pod.version]
        chosen = [pod for pod in ready if not self._is_present(pod)] if self._rolls else []
        chosen = chosen or ready
        if not chosen:
            return None
        pod = random.choice(chosen)  # noqa: S311 - no secret
        self._taken.add(pod.uid)
        return pod

    def give_back(self, pod: Pod) -> None:
        """Release a candidate after an attempt, successful or not."""
        self._taken.discard(pod.uid)

    def victims(self, warm: int) -> list[Pod]:
        """Pods to mark so that `warm` remain: those that are not ready yet first, then the youngest."""
        alive = [pod for pod in self.warm.values() if not pod.deleting and not pod.victim and not pod.ended]
        count = len(alive) - warm
        ranked = sorted(
            (pod for pod in alive if pod.uid not in self._taken), key=lambda pod: (pod.ready, -pod.created_at, pod.name)
        )
        return ranked[: max(0, count)]

    def outdated(self) -> list[Pod]:
        """Warm pods of another version than the Deployment's, to be marked now: one for each of the present version
        that is ready, as the roll will soon remove so many. The others can be claimed until then."""
        # Asked at each event of a pod: going through the pool each time would make filling it cost the square of its
        # size.
        if not self._rolls:
            return []
        old, fresh = [], 0
        for pod in self.warm.values():
            if pod.deleting or pod.ended:
                continue
            if not self._is_present(pod):
                if not pod.victim:
                    old.append(pod)
            elif pod.claimable:
                fresh += 1
        surplus = len(old) - max(0, self.target - fresh)
        if surplus <= 0:
            return []  # mostly: sorting is what a look at a large pool takes longest for
        old.sort(key=lambda pod: (pod.ready, -pod.created_at, pod.name))
        return [pod for pod in old[:surplus] if pod.uid not in self._taken]

    @property
    def _rolls(self) -> bool:
        """Whether a warm pod is of another version than the Deployment's."""
        return self.deployment is not None and any(each != self.deployment.template for each in self._versions)

    def _is_present(self, pod: Pod) -> bool:
        """Whether it is of the Deployment's version."""
        return self.deployment is None or pod.template == self.deployment.template

    def spared(self) -> Sequence[Pod]:
        """Marked ones that neither a shrink nor a roll wants any more."""
        alive = [pod for pod in self.warm.values() if not pod.deleting]
        if len(alive) > self.target:
            return []
        return [pod for pod in alive if pod.victim and self._is_present(pod)]

    def lost(self, now: float, reason: str) -> None:
        """Count a claimed pod that ended without being released."""
        self.losses, self.last_loss, self.lost_at = self.losses + 1, reason, now

    # Cold starts.

    def refusal(self, now: float) -> float | None:
        """Seconds until starts are tried again after repeated failures; None while they may be tried."""
        if self.failures < MAX_FAILURES or self.retry_at is None or now >= self.retry_at:
            return None
        return self.retry_at - now

    def failed(self, now: float, reason: str) -> None:
        """Count a failed cold start at `now`; several in a row pause further attempts."""
        self.failures += 1
        self.last_error = reason
        self.retry_at = now + backoff(self.failures, first=_FIRST_BACKOFF_S, longest=_MAX_BACKOFF_S)

    def started(self) -> None:
        """Forget the failures in a row: the runtime starts again."""
        self.failures, self.last_error, self.retry_at = 0, "", None

    def lead_time(self, q: float) -> float | None:
        """The q-quantile (nearest rank) of recent times from a pod's creation to Ready, seconds."""
        if not self._lead_times:
            return None
        ordered = sorted(self._lead_times)
        return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


class Pools(defaultdict[RuntimeKey, Pool]):
    """Pools by runtime, including runtimes that were deleted while pods of theirs still run."""

    def __init__(self) -> None:
        self.silent: set[str] = set()  # nodes that do not report, though the cluster takes them for ready
        super().__init__(lambda: Pool(self.silent))

    def require(self, key: RuntimeKey) -> Pool:
        """The pool of a runtime. Raises RuntimeNotFoundError if it is not served."""
        pool = self.get(key)
        if pool is None or pool.runtime is None:
            raise RuntimeNotFoundError(f"{key} not found")
        return pool
