"""The controllers behind warm pools: Deployment (revisions, rolling update), ReplicaSet (adopt, release, refill,
victims), garbage collector, quota. Sources: the Kubernetes documentation of Deployments, ReplicaSets, pod deletion
cost and garbage collection."""

from __future__ import annotations

import asyncio
import hashlib
import math
from typing import Any

import orjson

from tests.support.kube.simulator import rules
from tests.support.kube.simulator.api import delete
from tests.support.kube.simulator.objects import (
    BY_PLURAL,
    DEPLOYMENTS,
    KINDS,
    PODS,
    REPLICASETS,
    ApiError,
    Change,
    Kind,
    Object,
    Objects,
    controller_of,
    merge,
    now_text,
    owners,
)

HASH = "pod-template-hash"
REVISION = "deployment.kubernetes.io/revision"
COST = "controller.kubernetes.io/pod-deletion-cost"


class Controllers:
    """Runs until cancelled. `lag`: seconds between a change and what is done about it."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects
        self.lag = 0.005
        self._dirty: set[tuple[Kind, str, str]] = set()
        self._dead: set[str] = set()  # whose dependents are still to be deleted
        self._buried: set[str] = set()
        self._ready_since: dict[str, float] = {}
        self._wake = asyncio.Event()
        objects.listen(self._note)

    def admit(self, kind: Kind, obj: Object) -> None:
        """Raise ApiError 403 when a ResourceQuota's `pods` is used up."""
        if kind is not PODS:
            return
        namespace = obj["metadata"]["namespace"]
        for quota in self.objects.all(BY_PLURAL["resourcequotas"], namespace):
            limit = int(quota["spec"]["hard"].get("pods", 1 << 30))
            used = sum(p["status"]["phase"] not in ("Failed", "Succeeded") for p in self.objects.all(PODS, namespace))
            if used >= limit:
                name, of = obj["metadata"]["name"], quota["metadata"]["name"]
                raise ApiError(
                    403,
                    "Forbidden",
                    f'pods "{name}" is forbidden: exceeded quota: {of}, requested: pods=1, used: pods={used}, '
                    f"limited: pods={limit}",
                )

    async def run(self) -> None:
        """Reconcile what changed, again and again."""
        while True:
            await self._wake.wait()
            await asyncio.sleep(self.lag)
            self._wake.clear()
            self._collect()
            dirty, self._dirty = self._dirty, set()
            for kind, namespace, name in sorted(dirty, key=lambda item: item[0].plural):
                try:
                    obj = self.objects.get(kind, namespace, name)
                except ApiError:
                    continue
                if "deletionTimestamp" not in obj["metadata"]:
                    self._deployment(obj) if kind is DEPLOYMENTS else self._replica_set(obj)

    def _note(self, kind: Kind, change: Change) -> None:
        metadata = change.new["metadata"]
        if change.type == "DELETED":
            self._dead.add(metadata["uid"])
            self._buried.add(metadata["uid"])
        elif owners(change.new) and all(owner["uid"] in self._buried for owner in owners(change.new)):
            self._dead.add(owners(change.new)[0]["uid"])  # it came, or was given to its owner, after that had died
        if kind in (DEPLOYMENTS, REPLICASETS):
            self._dirty.add((kind, metadata["namespace"], metadata["name"]))
        if kind in (PODS, REPLICASETS):
            for obj in filter(None, (change.old, change.new)):
                if owner := controller_of(obj):
                    of = BY_PLURAL[owner["kind"].lower() + "s"]
                    self._dirty.add((of, metadata["namespace"], owner["name"]))
        self._wake.set()

    def _collect(self) -> None:
        """Delete what only dead owners own."""
        while self._dead:
            self._dead.pop()
            for kind in KINDS:
                for obj in self.objects.all(kind):
                    if owners(obj) and all(owner["uid"] in self._buried for owner in owners(obj)):
                        delete(self.objects, kind, obj["metadata"].get("namespace", ""), obj["metadata"]["name"])

    # Deployments.

    def _deployment(self, deployment: Object) -> None:
        namespace = deployment["metadata"]["namespace"]
        sets = [rs for rs in self.objects.all(REPLICASETS, namespace) if _owned_by(rs, deployment)]
        template = deployment["spec"]["template"]
        current = next((rs for rs in sets if _template(rs) == template), None)
        revision = 1 + max((_revision(rs) for rs in sets if rs is not current), default=0)
        if current is None:
            current = self._new_set(deployment, template)
        if _revision(current) < revision:
            notes = {**deployment["metadata"].get("annotations", {}), REVISION: str(revision)}
            current = self._change(REPLICASETS, current, {"metadata": {"annotations": notes}})
            self._change(DEPLOYMENTS, deployment, {"metadata": {"annotations": {REVISION: str(revision)}}})
        self._roll(deployment, current, [rs for rs in sets if rs["metadata"]["uid"] != current["metadata"]["uid"]])
        self._report(deployment, current)

    def _new_set(self, deployment: Object, template: Object) -> Object:
        digest = hashlib.sha256(orjson.dumps(template, option=orjson.OPT_SORT_KEYS)).hexdigest()[:10]
        labels = {**template["metadata"].get("labels", {}), HASH: digest}
        metadata = deployment["metadata"]
        body = {
            "metadata": {
                "name": f"{metadata['name']}-{digest}",
                "labels": labels,
                "annotations": dict(metadata.get("annotations", {})),
                "ownerReferences": [_reference(deployment)],
            },
            "spec": {
                "replicas": 0,
                "minReadySeconds": deployment["spec"].get("minReadySeconds", 0),
                "selector": {"matchLabels": {**deployment["spec"]["selector"]["matchLabels"], HASH: digest}},
                "template": {**template, "metadata": {**template["metadata"], "labels": labels}},
            },
            "status": {"replicas": 0},
        }
        return self.objects.create(REPLICASETS, metadata["namespace"], body)

    def _roll(self, deployment: Object, current: Object, old: list[Object]) -> None:
        wanted = deployment["spec"]["replicas"]
        rolling = deployment["spec"]["strategy"].get("rollingUpdate", {})
        surge = _share(rolling.get("maxSurge", "25%"), wanted, math.ceil)
        unavailable = _share(rolling.get("maxUnavailable", "25%"), wanted, math.floor)
        others = sum(rs["spec"]["replicas"] for rs in old)
        most = wanted + (surge if others else 0) - others
        replicas = wanted if not others else min(wanted, max(current["spec"]["replicas"], most))
        if replicas != current["spec"]["replicas"]:
            self._change(REPLICASETS, current, {"spec": {"replicas": replicas}})
        # As the deployment controller bounds it: first those that are not available go, then as many as can be spared.
        missing = replicas - current["status"].get("availableReplicas", 0)
        if others + replicas - (wanted - unavailable) - missing <= 0:
            return
        cleanup = others + replicas - (wanted - unavailable) - missing
        spare = sum(rs["status"].get("availableReplicas", 0) for rs in [current, *old]) - (wanted - unavailable)
        for rs in old:
            has = rs["spec"]["replicas"]
            sick = min(cleanup, max(0, has - rs["status"].get("availableReplicas", 0)))
            fewer = min(has, sick + max(0, spare))
            cleanup -= sick
            spare -= max(0, fewer - sick)
            if fewer:
                self._change(REPLICASETS, rs, {"spec": {"replicas": has - fewer}})

    def _report(self, deployment: Object, current: Object) -> None:
        namespace = deployment["metadata"]["namespace"]
        sets = [rs for rs in self.objects.all(REPLICASETS, namespace) if _owned_by(rs, deployment)]
        ready = sum(rs["status"].get("readyReplicas", 0) for rs in sets)
        failure = [c for rs in sets for c in rs["status"].get("conditions", []) if c["type"] == "ReplicaFailure"]
        status: Object = {
            "observedGeneration": deployment["metadata"].get("generation", 1),
            "replicas": sum(rs["status"].get("replicas", 0) for rs in sets),
            "updatedReplicas": current["status"].get("replicas", 0),
            "readyReplicas": ready,
            "availableReplicas": sum(rs["status"].get("availableReplicas", 0) for rs in sets),
            "unavailableReplicas": max(0, deployment["spec"]["replicas"] - ready),
            "conditions": failure,
        }
        self._change(DEPLOYMENTS, deployment, {"status": {k: v for k, v in status.items() if v}}, status=True)

    # ReplicaSets.

    def _replica_set(self, rs: Object) -> None:
        namespace, selector = rs["metadata"]["namespace"], rs["spec"]["selector"]["matchLabels"]
        mine = []
        for pod in self.objects.all(PODS, namespace):
            if pod["status"]["phase"] in ("Failed", "Succeeded") or "deletionTimestamp" in pod["metadata"]:
                continue
            owner, fits = controller_of(pod), rules.matches(selector, pod["metadata"].get("labels") or {})
            if owner is None and fits:
                mine.append(self._change(PODS, pod, {"metadata": {"ownerReferences": [_reference(rs)]}}))
            elif owner is not None and owner["uid"] == rs["metadata"]["uid"]:
                if fits:
                    mine.append(pod)
                else:
                    rest = [each for each in owners(pod) if each["uid"] != owner["uid"]] or None
                    self._change(PODS, pod, {"metadata": {"ownerReferences": rest}})
        failure: list[Object] = []
        for _ in range(rs["spec"]["replicas"] - len(mine)):
            try:
                mine.append(self._new_pod(rs))
            except ApiError as error:
                failure = [{"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate",
                            "message": error.message, "lastTransitionTime": now_text()}]  # fmt: skip
                asyncio.get_running_loop().call_later(0.5, self._again, rs)
                break
        for pod in sorted(mine, key=_victim_rank)[: len(mine) - rs["spec"]["replicas"]]:
            delete(self.objects, PODS, namespace, pod["metadata"]["name"])
            mine.remove(pod)
        ready = sum(is_ready(pod) for pod in mine)
        available = sum(self._is_available(pod, rs) for pod in mine)
        status = {"replicas": len(mine), "readyReplicas": ready, "availableReplicas": available, "conditions": failure}
        self._change(REPLICASETS, rs, {"status": {k: v for k, v in status.items() if v}}, status=True)

    def _is_available(self, pod: Object, rs: Object) -> bool:
        """Ready for minReadySeconds; who is not yet is looked at again then."""
        now, uid = asyncio.get_running_loop().time(), pod["metadata"]["uid"]
        if not is_ready(pod):
            self._ready_since.pop(uid, None)
            return False
        left = self._ready_since.setdefault(uid, now) + rs["spec"].get("minReadySeconds", 0) - now
        if left > 0:
            asyncio.get_running_loop().call_later(left + 0.01, self._again, rs)
        return bool(left <= 0)

    def _again(self, rs: Object) -> None:
        self._dirty.add((REPLICASETS, rs["metadata"]["namespace"], rs["metadata"]["name"]))
        self._wake.set()

    def _new_pod(self, rs: Object) -> Object:
        template, namespace = rs["spec"]["template"], rs["metadata"]["namespace"]
        metadata = {k: v for k, v in template["metadata"].items() if k in ("labels", "annotations")}
        name = f"{rs['metadata']['name']}-{self.objects.version:05x}"
        pod: Object = {
            "metadata": {**metadata, "name": name, "namespace": namespace, "ownerReferences": [_reference(rs)]},
            "spec": orjson.loads(orjson.dumps(template["spec"])),
        }
        rules.fill(PODS, pod)
        self.admit(PODS, pod)
        return self.objects.create(PODS, namespace, pod)

    def _change(self, kind: Kind, obj: Object, patch: Object, *, status: bool = False) -> Object:
        metadata = obj["metadata"]

        def change(present: Object) -> Object:
            return {**present, "status": patch["status"]} if status else merge(present, patch)

        return self.objects.update(kind, metadata["namespace"], metadata["name"], change)


def is_ready(pod: Object) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", []))


def _victim_rank(pod: Object) -> tuple[Any, ...]:
    """Lowest first: unassigned, pending, not ready, cheap by deletion cost, young."""
    cost = int((pod["metadata"].get("annotations") or {}).get(COST, 0))
    phase = {"Pending": 0, "Unknown": 1}.get(pod["status"]["phase"], 2)
    age = -int(pod["metadata"]["resourceVersion"])
    return bool(pod["spec"].get("nodeName")), phase, is_ready(pod), cost, age


def _reference(owner: Object) -> Object:
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def _owned_by(obj: Object, owner: Object) -> bool:
    found = controller_of(obj)
    return found is not None and found["uid"] == owner["metadata"]["uid"]


def _revision(rs: Object) -> int:
    return int((rs["metadata"].get("annotations") or {}).get(REVISION, 0))


def _template(rs: Object) -> Object:
    template = rs["spec"]["template"]
    labels = {k: v for k, v in template["metadata"].get("labels", {}).items() if k != HASH}
    return {**template, "metadata": {**template["metadata"], "labels": labels}}


def _share(value: int | str, of: int, rounded: Any) -> int:
    return int(rounded(of * int(value[:-1]) / 100)) if isinstance(value, str) else value
