"""A model of an API server in memory, for claims on a scale that no cluster of one machine has.

It keeps objects, answers after a latency, lists in pages, refuses stale versions, replays what a watch missed, and
sends each change to every watch as JSON. A pod that is claimed is followed by another one, as a ReplicaSet and a
kubelet bring it about; nothing runs in it. It checks no rights and no schemas, and it is in the process of those that
use it: its CPU is measured alone (`scale_sim.bare`) and taken off.
"""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections import defaultdict
from collections.abc import AsyncGenerator
from typing import Any

import orjson

from gateway.provider.kubernetes import names
from gateway.provider.kubernetes.client import OPENED, KubeError
from tests.support.kube.simulator.kubelet import hollow_pod

NAMESPACE = "default"
PODS = names.pods(NAMESPACE)
LEAD_S = 1.3  # from a pod's creation until it is ready: the cold start that was measured on clusters
EVENTS_OF_A_START = 5  # created, bound, initialized, running, ready
Object = dict[str, Any]
Event = tuple[int, str, bytes]  # version, kind, the object as JSON


class ModelServer:
    """Pods and Deployments of one namespace, and their watches."""

    def __init__(self, latency: float) -> None:
        """`latency`: seconds before each answer."""
        self.latency = latency
        self.objects: dict[str, dict[str, Object]] = defaultdict(dict)  # by collection and name
        self.log: dict[str, list[Event]] = defaultdict(list)
        self.watches: dict[str, list[asyncio.Queue[Event]]] = defaultdict(list)
        self.version = 1000
        self._patterns: dict[str, bytes] = {}

    def put(self, collection: str, obj: Object, kind: str) -> Object:
        """Store it, or take it out, with a new version, and tell the watches."""
        self.version += 1
        obj["metadata"]["resourceVersion"] = str(self.version)
        name = obj["metadata"]["name"]
        if kind == "DELETED":
            self.objects[collection].pop(name, None)
        else:
            self.objects[collection][name] = obj
        event = (self.version, kind, orjson.dumps(obj))
        self.log[collection].append(event)
        for watch in self.watches[collection]:
            watch.put_nowait(event)
        return obj

    def start_pod(self, runtime: str, *, claimed: bool = False, lead: bool = True) -> None:
        """A warm pod in five steps over LEAD_S seconds; at once, without `lead`."""
        if runtime not in self._patterns:  # made once: with its digests it takes a millisecond
            self._patterns[runtime] = orjson.dumps(hollow_pod(runtime, 1))
        pattern = self._patterns[runtime]
        uid = str(uuid.uuid4())

        def step(ready: bool, kind: str) -> None:
            pod = orjson.loads(pattern)
            pod["metadata"] |= {"uid": uid, "name": f"{runtime}-{uid[:13]}"}
            if not claimed:
                pod["metadata"]["labels"][names.POOL] = names.WARM
                for name in (names.SESSION_ID, names.CLAIM, names.START, names.RESTARTS):
                    pod["metadata"]["annotations"].pop(name, None)
            pod["status"]["conditions"][-1]["status"] = str(ready)
            self.put(PODS, pod, kind)

        if not lead:
            step(True, "ADDED")
            return
        last = EVENTS_OF_A_START - 1
        for number in range(EVENTS_OF_A_START):
            kind = "MODIFIED" if number else "ADDED"
            asyncio.get_running_loop().call_later(LEAD_S * number / last, step, number == last, kind)


class ModelApi:
    """What KubeApi is to an engine, over the model."""

    def __init__(self, server: ModelServer) -> None:
        self._server = server
        self.patches = self.conflicts = 0
        self._pages: dict[str, list[Object]] = {}
        self._tokens = itertools.count()

    async def aclose(self) -> None:
        """Nothing is open."""

    async def get(self, path: str, **query: Any) -> Object:
        """An object, or a page of the collection as it was when its first page was asked for."""
        await asyncio.sleep(self._server.latency)
        if path in self._server.objects or path in (PODS, names.deployments(NAMESPACE)):
            rest = self._pages.pop(query.get("continue", ""), None)
            if rest is None:
                rest = list(self._server.objects[path].values())
            page, rest = rest[: query.get("limit", len(rest))], rest[query.get("limit", len(rest)) :]
            metadata = {"resourceVersion": str(self._server.version)}
            if rest:
                token = metadata["continue"] = str(next(self._tokens))
                self._pages[token] = rest
            return _copy({"items": page, "metadata": metadata})
        return _copy(self._present(path))

    async def create(self, path: str, body: Object) -> Object:
        """Only Deployments and policies are created: pods are the ReplicaSet's here."""
        await asyncio.sleep(self._server.latency)
        if body["metadata"]["name"] in self._server.objects[path]:
            raise KubeError(409, "AlreadyExists", "exists")
        made = _copy(body)
        made["metadata"]["uid"] = str(uuid.uuid4())
        return _copy(self._server.put(path, made, "ADDED"))

    async def patch(self, path: str, body: Object) -> Object:
        """A claim: guarded by the version, and the pool gets another pod."""
        await asyncio.sleep(self._server.latency)
        self.patches += 1
        present, given = self._present(path), body["metadata"].get("resourceVersion")
        if given not in (None, present["metadata"]["resourceVersion"]):
            self.conflicts += 1
            raise KubeError(409, "Conflict", "stale")
        made = _copy(present)
        for part in ("labels", "annotations"):
            made["metadata"][part] |= body["metadata"].get(part, {})
        made["spec"] |= body.get("spec", {})
        answer = self._server.put(PODS, made, "MODIFIED")
        self._server.start_pod(made["metadata"]["annotations"][names.RUNTIME])
        return _copy(answer)

    async def replace(self, path: str, body: Object) -> Object:
        """PUT."""
        await asyncio.sleep(self._server.latency)
        return _copy(self._server.put(path.rpartition("/")[0], _copy(body), "MODIFIED"))

    async def delete(self, path: str, **_query: Any) -> None:
        """Two events, as of a real pod: it is ending, and it is gone. Absent is success."""
        await asyncio.sleep(self._server.latency)
        collection, _, name = path.rpartition("/")
        present = self._server.objects[collection].get(name)
        if present is not None:
            ending = _copy(present)
            ending["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
            self._server.put(collection, ending, "MODIFIED")
            self._server.put(collection, _copy(ending), "DELETED")

    async def watch(self, path: str, version: str, **_query: Any) -> AsyncGenerator[tuple[str, Object], None]:
        """What came after the version, and then as it comes; each gateway parses it for itself."""
        mine: asyncio.Queue[Event] = asyncio.Queue()
        missed = [event for event in self._server.log[path] if event[0] > int(version)]
        self._server.watches[path].append(mine)
        yield OPENED, {}
        for _, kind, line in missed:
            yield kind, orjson.loads(line)
        while True:
            _, kind, line = await mine.get()
            yield kind, orjson.loads(line)

    def _present(self, path: str) -> Object:
        collection, _, name = path.rpartition("/")
        found = self._server.objects[collection].get(name)
        if found is None:
            raise KubeError(404, "NotFound", f"{path} is not there")
        return found


def _copy(obj: Object) -> Object:
    """As it goes over the wire: nothing of it is shared."""
    copied: Object = orjson.loads(orjson.dumps(obj))
    return copied
