"""The objects of a real cluster, spoken to as the simulator's are: by tests, and by the kubelet that both share."""

from __future__ import annotations

import asyncio
import copy
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import aiohttp
import httpx
import orjson

from gateway.provider.kubernetes.client import cut
from tests.support.kube.simulator.objects import BY_PLURAL, PODS, ApiError, Change, Kind, Object, merge

log = logging.getLogger(__name__)

STRATEGIC = "application/strategic-merge-patch+json"
_TRIES = 20


def path_of(kind: Kind, namespace: str | None = None, name: str = "", sub: str = "") -> str:
    """Of a collection, an object or a subresource of it."""
    parts = [f"/apis/{kind.group}/{kind.version}" if kind.group else f"/api/{kind.version}"]
    if namespace and kind.namespaced:
        parts.append(f"namespaces/{namespace}")
    return "/".join(filter(None, (*parts, kind.plural, name, sub)))


class Store:
    """What the server has, asked anew each time; blocking."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def close(self) -> None:
        """Close the connections to the API server."""
        self._client.close()

    def ask(self, method: str, path: str, body: Any = None, content_type: str = "application/json") -> Object:
        """Send a request, again if the server answers 429. Raises ApiError."""
        content = None if body is None else orjson.dumps(body)
        for _ in range(_TRIES):
            reply = self._client.request(method, path, content=content, headers={"content-type": content_type})
            if reply.status_code != 429:
                break
            time.sleep(0.25)  # a server that has just started fills its caches
        answer: Object = reply.json() if reply.headers.get("content-type", "").startswith("application/json") else {}
        if reply.status_code >= 300:
            raise ApiError(reply.status_code, answer.get("reason") or "", answer.get("message") or reply.text)
        return answer

    def get(self, kind: Kind, namespace: str, name: str) -> Object:
        """Raises ApiError 404."""
        return self.ask("GET", path_of(kind, namespace, name))

    def all(self, kind: Kind, namespace: str | None = None) -> list[Object]:
        """In the order of names. What a list leaves out of its items is put back."""
        items = self.ask("GET", path_of(kind, namespace))["items"]
        return [{"kind": kind.kind, "apiVersion": kind.api_version, **item} for item in items]

    def create(self, kind: Kind, namespace: str, body: Object) -> Object:
        """Create an object. Raises ApiError."""
        whole = {"kind": kind.kind, "apiVersion": kind.api_version, **body}
        return self.ask("POST", path_of(kind, namespace), whole)

    def update(self, kind: Kind, namespace: str, name: str, change: Callable[[Object], Object]) -> Object:
        """Put `change(the present object)` in its place, spec and status each by its own way. Raises ApiError."""
        for _ in range(_TRIES):
            old = self.get(kind, namespace, name)
            new = change(copy.deepcopy(old))
            with suppress(_ConflictError):
                return self._put(kind, namespace, name, old, new)
        raise AssertionError(f"{kind.plural} {name} changes all the time")

    def _put(self, kind: Kind, namespace: str, name: str, old: Object, new: Object) -> Object:
        present = old
        try:
            if kind.status and new.get("status") != old.get("status"):
                present = self.ask("PUT", path_of(kind, namespace, name, "status"), old | {"status": new["status"]})
            rest = new | {"metadata": new["metadata"] | {"resourceVersion": present["metadata"]["resourceVersion"]}}
            if not kind.status or {**new, "status": None} != {**old, "status": None}:
                present = self.ask("PUT", path_of(kind, namespace, name), rest)
        except ApiError as error:
            if error.reason == "Conflict":
                raise _ConflictError from error
            raise
        return present

    def remove(self, kind: Kind, namespace: str, name: str) -> None:
        """At once, without grace. Raises ApiError."""
        self.delete(kind, namespace, name, grace=0)

    def delete(self, kind: Kind, namespace: str, name: str, *, grace: int | None = None) -> None:
        """As kubectl does. Raises ApiError."""
        options: Object = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background"}
        if grace is not None:
            options["gracePeriodSeconds"] = grace
        self.ask("DELETE", path_of(kind, namespace, name), options)

    def clear(self, kind: Kind, namespace: str | None, spared: tuple[str, ...] = ()) -> None:
        """Delete all of a kind at once, but for those names."""
        for obj in self.all(kind, namespace):
            if obj["metadata"]["name"] not in spared:
                with suppress(ApiError):
                    self.remove(kind, obj["metadata"].get("namespace", ""), obj["metadata"]["name"])


class _ConflictError(Exception):
    pass


class Mirror:
    """What the kubelet knows: a watched copy of pods, ConfigMaps and Secrets; its own writes count at once, and are
    sent in order, as strategic merge patches of the status, which is how kubelets write."""

    def __init__(self, store: Store, url: str, token: str, tls: Any) -> None:
        self._store, self._url, self._token, self._tls = store, url, token, tls
        self._objects: dict[Kind, dict[tuple[str, str], Object]] = {}
        self._own: dict[str, Object] = {}  # status that we set, by UID of the pod
        self._unsent: dict[str, asyncio.Queue[tuple[str, Object | None]]] = {}
        self._listeners: list[Callable[[Kind, Change], None]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Watch pods, config maps and secrets until `aclose`."""
        self._session = aiohttp.ClientSession(
            self._url, headers={"authorization": f"Bearer {self._token}"},
            connector=aiohttp.TCPConnector(ssl=self._tls, limit=0),
        )  # fmt: skip
        for plural in ("pods", "configmaps", "secrets"):
            self._spawn(self._follow(BY_PLURAL[plural]))

    async def aclose(self) -> None:
        """Stop watching and writing, and close the connections."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    # The interface of the simulator's Objects, as far as the kubelet uses it.

    def listen(self, listener: Callable[[Kind, Change], None]) -> None:
        """Call with every change of the copy."""
        self._listeners.append(listener)

    def get(self, kind: Kind, namespace: str, name: str) -> Object:
        """Raises ApiError 404. What is no pod is asked for at once if it is not known: it may be new."""
        found = self._objects.get(kind, {}).get((namespace, name))
        if found is None and kind is not PODS:
            return self._store.get(kind, namespace, name)
        if found is None:
            raise ApiError(404, "NotFound", f'{kind.plural} "{name}" not found')
        own = self._own.get(found["metadata"]["uid"])
        return found if own is None else {**found, "status": _overlaid(found.get("status") or {}, own)}

    def all(self, kind: Kind, namespace: str | None = None) -> list[Object]:
        """In the order of names."""
        known = sorted(self._objects.get(kind, {}))
        return [self.get(kind, *key) for key in known if namespace is None or key[0] == namespace]

    def update(self, kind: Kind, namespace: str, name: str, change: Callable[[Object], Object]) -> Object:
        """A change of a pod's status."""
        assert kind is PODS
        old = self.get(kind, namespace, name)
        new = change(copy.deepcopy(old))
        before, after = old.get("status") or {}, new["status"]
        changed = {key: value for key, value in after.items() if before.get(key) != value}
        if changed:
            uid = old["metadata"]["uid"]
            self._own[uid] = {**self._own.get(uid, {}), **changed}
            patch = {"metadata": {"uid": uid}, "status": changed}
            self._send(old, patch)
        return new

    def remove(self, kind: Kind, namespace: str, name: str) -> None:
        """The pod has ended: take it away once all that was written of it is there."""
        assert kind is PODS
        self._send(self.get(kind, namespace, name), None)

    # The wire.

    def _send(self, pod: Object, patch: Object | None) -> None:
        uid = pod["metadata"]["uid"]
        queue = self._unsent.get(uid)
        if queue is None:
            queue = self._unsent[uid] = asyncio.Queue()
            self._spawn(self._write(path_of(PODS, pod["metadata"]["namespace"], pod["metadata"]["name"]), uid, queue))
        queue.put_nowait((uid, patch))

    async def _write(self, path: str, uid: str, queue: asyncio.Queue[tuple[str, Object | None]]) -> None:
        while True:
            _, patch = await queue.get()
            while patch is not None and not queue.empty():  # what came meanwhile goes with it
                _, more = queue.get_nowait()
                if more is None:
                    queue.put_nowait((uid, None))
                    break
                patch = merge(patch, more)
            if patch is None:
                body: Object = {"gracePeriodSeconds": 0, "preconditions": {"uid": uid}}
                await self._ask("DELETE", path, body, "application/json")
                del self._unsent[uid]
                return
            await self._ask("PATCH", f"{path}/status", patch, STRATEGIC)

    async def _ask(self, method: str, path: str, body: Object, content_type: str) -> None:
        """Until the server has taken or refused it."""
        assert self._session is not None
        while True:
            with suppress(aiohttp.ClientError, OSError, TimeoutError):
                headers = {"content-type": content_type}
                async with self._session.request(method, path, data=orjson.dumps(body), headers=headers) as reply:
                    text = await reply.text()
                    if reply.status not in (200, 202, 404, 409):
                        log.error("kubelet: %s %s: %d %s", method, path, reply.status, text)
                    if reply.status < 500 and reply.status != 429:
                        return
            await asyncio.sleep(0.2)

    async def _follow(self, kind: Kind) -> None:
        while True:
            try:
                version = await self._list(kind)
                await self._watch(kind, version)
            except (aiohttp.ClientError, OSError, TimeoutError, KeyError):
                await asyncio.sleep(0.1)

    async def _list(self, kind: Kind) -> str:
        assert self._session is not None
        async with self._session.get(path_of(kind)) as reply:
            page = orjson.loads(await reply.read())
        present = {(item["metadata"]["namespace"], item["metadata"]["name"]) for item in page["items"]}
        for key in self._objects.setdefault(kind, {}).keys() - present:
            self._take(kind, "DELETED", self._objects[kind][key])
        for item in page["items"]:
            self._take(kind, "MODIFIED", item)
        return str(page["metadata"]["resourceVersion"])

    async def _watch(self, kind: Kind, version: str) -> None:
        assert self._session is not None
        query = {"watch": "1", "resourceVersion": version, "allowWatchBookmarks": "1", "timeoutSeconds": "600"}
        timeout = aiohttp.ClientTimeout(total=None, sock_read=100)
        reply = await self._session.get(path_of(kind), params=query, timeout=timeout)
        rest = b""
        try:
            async for piece in reply.content.iter_any():
                *lines, rest = (rest + piece).split(b"\n")
                for line in lines:
                    event = orjson.loads(line)
                    if event["type"] == "ERROR":
                        return
                    if event["type"] != "BOOKMARK":
                        self._take(kind, event["type"], event["object"])
        finally:
            cut(reply)

    def _take(self, kind: Kind, how: str, obj: Object) -> None:
        metadata = obj["metadata"]
        key, table = (metadata["namespace"], metadata["name"]), self._objects.setdefault(kind, {})
        old = table.get(key)
        if how == "DELETED":
            table.pop(key, None)
            self._own.pop(metadata["uid"], None)
        elif old is not None and old["metadata"]["resourceVersion"] == metadata["resourceVersion"]:
            return
        else:
            table[key] = obj
        for listener in self._listeners:
            listener(kind, Change(0, "ADDED" if old is None else how, old, obj))

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _overlaid(status: Object, own: Object) -> Object:
    """The server's status with ours over it; conditions by their type."""
    conditions = {each["type"]: each for each in (*(status.get("conditions") or []), *(own.get("conditions") or []))}
    return {**status, **own, **({"conditions": list(conditions.values())} if conditions else {})}
