"""The API server's HTTP: paths, verbs, patches, watches, Status errors; and what tests want of it: latency, outages,
counts of writes."""

from __future__ import annotations

import asyncio
import copy
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple
from urllib.parse import parse_qs

import orjson

from tests.support.kube.simulator import metrics, rules
from tests.support.kube.simulator.objects import (
    BY_PLURAL,
    DEPLOYMENTS,
    KINDS,
    PODS,
    ApiError,
    Change,
    Kind,
    Object,
    Objects,
    merge,
    now_text,
)

Send = Callable[[Any], Awaitable[None]]
BOOKMARK_S = 1.0  # a real server sends one about every minute


ADMIN = b"Bearer admin"  # of a person with all rights; everybody else is the gateway's account


class Call(NamedTuple):
    """One request to the API, parsed."""

    method: str
    kind: Kind
    namespace: str | None
    name: str | None
    subresource: str | None
    query: dict[str, str]
    body: Any
    content_type: str


class Asked(NamedTuple):
    """What authorization looks at. `resource` is `plural` or `plural/sub`; `name` is empty for collections."""

    namespace: str
    group: str
    resource: str
    verb: str
    name: str


class ApiServer:
    """The API server: an ASGI app over Objects."""

    def __init__(self, objects: Objects, admit: Callable[[Kind, Object], None]) -> None:
        """`admit(kind, object)` raises ApiError for what a quota forbids."""
        self.objects = objects
        self.latency = 0.0  # seconds before each answer
        self.failing: ApiError | None = None  # every request gets it
        self.hanging: asyncio.Event | None = None  # requests wait for it
        self.denied: set[tuple[str, str]] = set()  # (verb, plural) that RBAC refuses
        self.roles: dict[str, list[Any]] | None = None  # by namespace the rules of Roles; None: everything is allowed
        self.asked: set[Asked] = set()
        self.counts: Counter[tuple[str, str]] = Counter()  # (verb, plural[/subresource])
        self.slow_answers = False  # writes are done, and never answered
        self.resizes = True  # pods have the subresource, as from 1.33 on
        self.conflicts = 0
        self.watches = 0  # streams open now
        self.metrics: metrics.Metrics | None = None  # metrics.k8s.io; None: not installed
        self._admit = admit
        self._cut: set[asyncio.Event] = set()

    def cut_watches(self) -> None:
        """End all watch streams, as a restarting server or a balancer does."""
        for event in self._cut:
            event.set()

    def writes(self, plural: str = "") -> int:
        """How many writes there were, of one kind or all."""
        return sum(
            n for (verb, what), n in self.counts.items()
            if verb in ("create", "patch", "update", "delete") and what.split("/")[0].startswith(plural)
        )  # fmt: skip

    async def __call__(self, scope: Any, receive: Any, send: Send) -> None:
        """Answer one request, after its faults and RBAC have been applied."""
        if scope["type"] != "http":
            return
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        try:
            if self.hanging is not None:
                await self.hanging.wait()
            if self.latency:
                await asyncio.sleep(self.latency)
            if self.failing is not None:
                raise self.failing
            answer = await self._answer(scope, body, receive, send)
            if self.slow_answers and scope["method"] != "GET":
                await _disconnected(receive)
                return
            if answer is not None:
                await _reply(send, *answer)
        except ApiError as error:
            self.conflicts += error.reason == "Conflict"
            extra = [(b"retry-after", str(error.retry_after).encode())] if error.retry_after is not None else []
            await _reply(send, error.status, _status(error), extra)

    async def _answer(self, scope: Any, body: bytes, receive: Any, send: Send) -> tuple[int, Any] | None:
        path, method = scope["path"], scope["method"]
        query = {key: values[-1] for key, values in parse_qs(scope["query_string"].decode()).items()}
        if path == "/version":
            return 200, {"major": "1", "minor": "34", "gitVersion": "v1.34.0"}
        if path == "/simulator/counts":
            return 200, {f"{verb} {what}": n for (verb, what), n in self.counts.items()} | {"conflicts": self.conflicts}
        if path in ("/readyz", "/livez", "/healthz"):
            return 200, "ok"
        if path.endswith("/selfsubjectaccessreviews"):
            return 201, self._review(orjson.loads(body))
        if path.endswith("/selfsubjectrulesreviews"):
            return 201, self._rules(orjson.loads(body))
        if (namespace := metrics.namespace_of(path)) is not None:
            return self._measure(namespace, query)
        headers = dict(scope["headers"])
        content_type = headers.get(b"content-type", b"").decode().split(";")[0]
        call = _parse(method, path, query, orjson.loads(body) if body else None, content_type)
        verb = _verb(call)
        what = call.kind.plural + (f"/{call.subresource}" if call.subresource else "")
        self.counts[verb, what] += 1
        asked = Asked(call.namespace or "", call.kind.group, what, verb, call.name or "")
        self.asked.add(asked)
        if headers.get(b"authorization") != ADMIN and not self._allows(asked):
            raise ApiError(403, "Forbidden", f'User "system:serviceaccount:wakegate:wakegate" cannot {verb} {what}')
        if verb == "watch":
            await self._watch(call, receive, send)
            return None
        return getattr(self, f"_{verb}")(call)  # type: ignore[no-any-return]

    def _measure(self, namespace: str, query: dict[str, str]) -> tuple[int, Any]:
        """What metrics-server behind the aggregation layer answers; not found where there is none."""
        asked = Asked(namespace, metrics.GROUP, "pods", "list", "")
        self.asked.add(asked)
        if not self._allows(asked):
            raise ApiError(403, "Forbidden", f"cannot list pods.{metrics.GROUP}")
        if self.metrics is None:
            raise ApiError(404, "NotFound", "the server could not find the requested resource")
        pods = [pod for pod in self.objects.all(PODS, namespace) if _wanted(query, pod)]
        return 200, metrics.pod_metrics_list(pods, self.metrics)

    def _review(self, body: Any) -> Object:
        of = body["spec"]["resourceAttributes"]
        what = of["resource"] + (f"/{of['subresource']}" if of.get("subresource") else "")
        asked = Asked(of["namespace"], of["group"], what, of["verb"], of.get("name", ""))
        answer: Object = body | {"status": {"allowed": self._allows(asked)}}
        return answer

    def _rules(self, body: Any) -> Object:
        """A SelfSubjectRulesReview. What every account may ask of itself is among the rules, as in real clusters."""
        everybody = [
            {"apiGroups": ["authorization.k8s.io"], "resources": ["selfsubjectaccessreviews"], "verbs": ["create"]}
        ]
        everything = [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]
        own = everything if self.roles is None else self.roles.get(body["spec"]["namespace"], [])
        answer: Object = body | {
            "status": {"resourceRules": [*everybody, *own], "nonResourceRules": [], "incomplete": False}
        }
        return answer

    def _allows(self, asked: Asked) -> bool:
        """RBAC: a rule grants what all its lists hold; with resourceNames those only, and so never a `create`."""
        if (asked.verb, asked.resource) in self.denied:
            return False
        if self.roles is None:
            return True
        return any(
            asked.group in rule["apiGroups"]
            and asked.resource in rule["resources"]
            and asked.verb in rule["verbs"]
            and (not rule.get("resourceNames") or asked.name in rule["resourceNames"])
            for rule in self.roles.get(asked.namespace, [])
        )

    def _get(self, call: Call) -> tuple[int, Any]:
        obj = self.objects.get(call.kind, call.namespace or "", call.name or "")
        return 200, _scale(obj) if call.subresource == "scale" else obj

    def _list(self, call: Call) -> tuple[int, Any]:
        items = [obj for obj in self.objects.all(call.kind, call.namespace) if _wanted(call.query, obj)]
        start, limit = int(call.query.get("continue", 0)), int(call.query.get("limit", 0))
        metadata: Object = {"resourceVersion": str(self.objects.version)}
        if limit and len(items) > start + limit:
            metadata["continue"] = str(start + limit)
            metadata["remainingItemCount"] = len(items) - start - limit
        items = items[start : start + limit] if limit else items
        return 200, {
            "kind": f"{call.kind.kind}List",
            "apiVersion": call.kind.api_version,
            "metadata": metadata,
            "items": [{k: v for k, v in item.items() if k not in ("kind", "apiVersion")} for item in items],
        }

    def _create(self, call: Call) -> tuple[int, Any]:
        body = copy.deepcopy(call.body)
        for generated in ("status",):
            body.pop(generated, None)
        if not body["metadata"].get("name"):
            body["metadata"]["name"] = body["metadata"]["generateName"] + format(self.objects.version, "05x")
        rules.check(call.kind, body)
        rules.fill(call.kind, body)
        self._admit(call.kind, body | {"metadata": body["metadata"] | {"namespace": call.namespace}})
        return 201, self.objects.create(call.kind, call.namespace or "", body)

    def _patch(self, call: Call) -> tuple[int, Any]:
        if call.content_type not in ("application/merge-patch+json", "application/strategic-merge-patch+json"):
            raise ApiError(415, "UnsupportedMediaType", f"the simulator takes merge patches, not {call.content_type}")
        if call.subresource == "scale":
            replicas = call.body["spec"]["replicas"]
            return 200, _scale(self._change(call, lambda obj: merge(obj, {"spec": {"replicas": replicas}})))
        if call.subresource == "resize":
            if call.kind is not PODS or not self.resizes:
                raise ApiError(404, "NotFound", "the server could not find the requested resource")
            return 200, self._change(call, lambda obj: rules.with_containers(obj, call.body["spec"]["containers"]))
        return 200, self._change(call, lambda obj: merge(obj, call.body))

    def _update(self, call: Call) -> tuple[int, Any]:
        body = copy.deepcopy(call.body)
        if call.kind is not PODS and call.subresource is None:
            rules.fill(call.kind, body)
        return 200, self._change(call, lambda _: body)

    def _change(self, call: Call, change: Callable[[Object], Object]) -> Object:
        def whole(obj: Object) -> Object:
            new = change(obj)
            if call.subresource == "status":
                return obj | {"status": new.get("status"), "metadata": obj["metadata"] | {
                    "resourceVersion": new["metadata"].get("resourceVersion")}}  # fmt: skip
            if call.kind.status:
                new = new | {"status": obj.get("status", {})}
            for name in ("resourceVersion", "uid", "creationTimestamp", "namespace"):
                if name in obj["metadata"]:
                    new["metadata"].setdefault(name, obj["metadata"][name])
            # A stale version is told before anything is validated, as the server's storage does.
            if new["metadata"]["resourceVersion"] == obj["metadata"]["resourceVersion"]:
                (rules.check_resize if call.subresource == "resize" else rules.check_update)(call.kind, obj, new)
            return new

        changed = self.objects.update(call.kind, call.namespace or "", call.name or "", whole)
        if call.kind is not PODS and "deletionTimestamp" in changed["metadata"] and not _finalizers(changed):
            return self.objects.remove(call.kind, call.namespace or "", call.name or "")
        return changed

    def _delete(self, call: Call) -> tuple[int, Any]:
        namespace, name = call.namespace or "", call.name or ""
        obj = self.objects.get(call.kind, namespace, name)
        options = call.body or {}
        wanted = options.get("preconditions") or {}
        for field in ("uid", "resourceVersion"):
            if wanted.get(field) not in (None, obj["metadata"][field]):
                raise ApiError(409, "Conflict", f"Precondition failed: {field} in precondition: {wanted[field]}")
        grace = options.get("gracePeriodSeconds", call.query.get("gracePeriodSeconds"))
        return 200, delete(self.objects, call.kind, namespace, name, None if grace is None else int(grace))

    async def _watch(self, call: Call, receive: Any, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        cut = asyncio.Event()
        self._cut.add(cut)
        self.watches += 1
        gone = asyncio.ensure_future(_disconnected(receive))
        ends = asyncio.get_running_loop().time() + float(call.query.get("timeoutSeconds", 1800))
        version = int(call.query.get("resourceVersion") or 0)
        quiet = False  # for BOOKMARK_S
        try:
            while not cut.is_set() and not gone.done() and asyncio.get_running_loop().time() < ends:
                moved = self.objects.changed.setdefault(call.kind, asyncio.Event())
                try:
                    changes = self.objects.since(call.kind, version)
                except ApiError as error:
                    await _line(send, "ERROR", _status(error))
                    return
                for change in changes:
                    version = change.version
                    await self._tell(call, change, send)
                # Never over a write of the moment since the wait was over: a bookmark says that all before it was told.
                if quiet and not changes and call.query.get("allowWatchBookmarks") in ("true", "1", "True"):
                    version = self.objects.version
                    blank = {"metadata": {"resourceVersion": str(version), "creationTimestamp": None}}
                    await _line(
                        send, "BOOKMARK", {"kind": call.kind.kind, "apiVersion": call.kind.api_version, **blank}
                    )
                waits = {asyncio.ensure_future(e.wait()) for e in (moved, cut)} | {gone}
                done, _ = await asyncio.wait(waits, timeout=BOOKMARK_S, return_when="FIRST_COMPLETED")
                for wait in waits - {gone}:
                    wait.cancel()
                quiet = not done
        finally:
            gone.cancel()
            self._cut.discard(cut)
            self.watches -= 1
        await send({"type": "http.response.body", "body": b""})

    async def _tell(self, call: Call, change: Change, send: Send) -> None:
        """A change as this watcher's selectors see it: what leaves the selection is DELETED for it."""
        if call.namespace is not None and change.new["metadata"].get("namespace") != call.namespace:
            return
        was = change.old is not None and _wanted(call.query, change.old)
        now = change.type != "DELETED" and _wanted(call.query, change.new)
        if was or now:
            await _line(send, "MODIFIED" if was and now else "ADDED" if now else "DELETED", change.new)


def evict(objects: Objects, namespace: str, name: str) -> None:
    """As the eviction subresource does, which `kubectl drain` uses: a condition that says why, then a delete."""
    said = {
        "type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI",
        "message": "Eviction API: evicting", "lastTransitionTime": now_text(),
    }  # fmt: skip

    def disrupted(pod: Object) -> Object:
        pod["status"]["conditions"] = [*pod["status"].get("conditions", []), said]
        return pod

    objects.update(PODS, namespace, name, disrupted)
    delete(objects, PODS, namespace, name)


def delete(objects: Objects, kind: Kind, namespace: str, name: str, grace: int | None = None) -> Object:
    """Delete as the server does: a pod on a node is first told to end, and its kubelet takes it away."""
    obj = objects.get(kind, namespace, name)
    if kind is PODS and obj["spec"].get("nodeName") and obj["status"].get("phase") not in ("Succeeded", "Failed"):
        seconds = obj["spec"].get("terminationGracePeriodSeconds", 30) if grace is None else grace

        def ending(pod: Object) -> Object:
            """The time is when the grace is over; a shorter grace brings it forward, a longer one changes nothing."""
            before = pod["metadata"].get("deletionGracePeriodSeconds")
            if before is None or seconds < before:
                pod["metadata"]["deletionTimestamp"] = now_text(seconds)
                pod["metadata"]["deletionGracePeriodSeconds"] = seconds
            return pod

        if seconds > 0:
            return objects.update(kind, namespace, name, ending)
    if _finalizers(obj):  # it goes with the last of them

        def waiting(each: Object) -> Object:
            each["metadata"].setdefault("deletionTimestamp", now_text())
            return each

        return objects.update(kind, namespace, name, waiting)
    return objects.remove(kind, namespace, name)


def _finalizers(obj: Object) -> list[str]:
    found: list[str] = obj["metadata"].get("finalizers") or []
    return found


def _parse(method: str, path: str, query: dict[str, str], body: Any, content_type: str) -> Call:
    parts = path.strip("/").split("/")
    parts = parts[2:] if parts[0] == "api" else parts[3:]
    namespace = None
    if len(parts) > 2 and parts[0] == "namespaces":
        namespace, parts = parts[1], parts[2:]
    kind = BY_PLURAL.get(parts[0]) if parts else None
    if kind is None or not path.startswith(f"/apis/{kind.group}/" if kind.group else "/api/v1"):
        raise ApiError(404, "NotFound", "the server could not find the requested resource")
    name = parts[1] if len(parts) > 1 else None
    return Call(method, kind, namespace, name, parts[2] if len(parts) > 2 else None, query, body, content_type)


def _verb(call: Call) -> str:
    if call.method == "GET":
        if call.query.get("watch") in ("1", "true", "True"):
            return "watch"
        return "get" if call.name else "list"
    return {"POST": "create", "PATCH": "patch", "PUT": "update", "DELETE": "delete"}[call.method]


def _wanted(query: dict[str, str], obj: Object) -> bool:
    return rules.selects(query.get("labelSelector", ""), obj["metadata"].get("labels") or {}) and (
        rules.fields_select(query.get("fieldSelector", ""), obj)
    )


def _scale(deployment: Object) -> Object:
    assert deployment["kind"] == DEPLOYMENTS.kind
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {key: deployment["metadata"][key] for key in ("name", "namespace", "uid", "resourceVersion")},
        "spec": {"replicas": deployment["spec"]["replicas"]},
        "status": {"replicas": deployment["status"].get("replicas", 0)},
    }


def _status(error: ApiError) -> Object:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": error.message,
        "reason": error.reason,
        "code": error.status,
        **({"details": {"retryAfterSeconds": error.retry_after}} if error.retry_after is not None else {}),
    }


async def _reply(send: Send, status: int, body: Any, extra: Any = ()) -> None:
    headers = [(b"content-type", b"application/json"), *extra]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": orjson.dumps(body)})


async def _line(send: Send, kind: str, obj: Object) -> None:
    line = orjson.dumps({"type": kind, "object": obj}) + b"\n"
    await send({"type": "http.response.body", "body": line, "more_body": True})


async def _disconnected(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


assert {kind.plural for kind in KINDS} == set(BY_PLURAL)
