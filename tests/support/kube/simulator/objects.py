"""What etcd and the registry behind an API server do: versions, conflicts, history for watches, deletion with grace.

Semantics: Kubernetes API concepts (resource versions, watch, bookmarks, 410), RFC 7386 (merge patch).
"""

from __future__ import annotations

import asyncio
import copy
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

Object = dict[str, Any]


class ApiError(Exception):
    """A failure as the API server words it: HTTP status, `reason`, message."""

    def __init__(self, status: int, reason: str, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.reason, self.message, self.retry_after = status, reason, message, retry_after


@dataclass(frozen=True)
class Kind:
    """A kind of object that the API server has."""

    group: str  # "" is core
    version: str
    plural: str
    kind: str
    namespaced: bool = True
    status: bool = False  # has the status subresource

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version


AGENTCUBE = "runtime.agentcube.volcano.sh"
KINDS = [
    Kind("", "v1", "pods", "Pod", status=True),
    Kind("", "v1", "configmaps", "ConfigMap"),
    Kind("", "v1", "secrets", "Secret"),
    Kind("", "v1", "events", "Event"),
    Kind("", "v1", "nodes", "Node", namespaced=False, status=True),
    Kind("", "v1", "namespaces", "Namespace", namespaced=False),
    Kind("", "v1", "resourcequotas", "ResourceQuota"),
    Kind("apps", "v1", "deployments", "Deployment", status=True),
    Kind("apps", "v1", "replicasets", "ReplicaSet", status=True),
    Kind("coordination.k8s.io", "v1", "leases", "Lease"),
    Kind("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy"),
    Kind("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", namespaced=False),
    Kind(AGENTCUBE, "v1alpha1", "codeinterpreters", "CodeInterpreter", status=True),
    Kind(AGENTCUBE, "v1alpha1", "agentruntimes", "AgentRuntime", status=True),
    Kind("extensions.agents.x-k8s.io", "v1beta1", "sandboxclaims", "SandboxClaim", status=True),
    Kind("agents.x-k8s.io", "v1beta1", "sandboxes", "Sandbox", status=True),
]
BY_PLURAL = {kind.plural: kind for kind in KINDS}
PODS, DEPLOYMENTS, REPLICASETS = (BY_PLURAL[name] for name in ("pods", "deployments", "replicasets"))


@dataclass(frozen=True)
class Change:
    """One write: what the object was before and is after. `kind` is ADDED, MODIFIED or DELETED."""

    version: int
    type: str
    old: Object | None
    new: Object


@dataclass
class _Table:
    objects: dict[tuple[str, str], Object] = field(default_factory=dict)
    history: deque[Change] = field(default_factory=deque)
    oldest: int = 0  # versions up to here are compacted away


def now_text(later: float = 0) -> str:
    """The time, or that of some seconds later, as the API writes it: whole seconds."""
    return (datetime.now(UTC) + timedelta(seconds=later)).strftime("%Y-%m-%dT%H:%M:%SZ")


def merge(base: Any, patch: Any) -> Any:
    """Apply a JSON merge patch (RFC 7386). Returns the result."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    result = dict(base) if isinstance(base, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge(result.get(key), value)
    return result


def owners(obj: Mapping[str, Any]) -> list[Object]:
    found: list[Object] = obj["metadata"].get("ownerReferences") or []
    return found


def controller_of(obj: Mapping[str, Any]) -> Object | None:
    return next((owner for owner in owners(obj) if owner.get("controller")), None)


class Objects:
    """All objects of the cluster. Writes are synchronous; who wants to know listens or waits for `changed`."""

    def __init__(self, history: int = 50_000) -> None:
        self.version = 1
        self._tables = {kind: _Table() for kind in KINDS}
        self._keep = history
        self._listeners: list[Callable[[Kind, Change], None]] = []
        self.changed: dict[Kind, asyncio.Event] = {}

    def listen(self, listener: Callable[[Kind, Change], None]) -> None:
        """Call with every change, at once."""
        self._listeners.append(listener)

    def get(self, kind: Kind, namespace: str, name: str) -> Object:
        """An object by its name. Raises ApiError 404."""
        found = self._tables[kind].objects.get((namespace, name))
        if found is None:
            group = f".{kind.group}" if kind.group else ""
            raise ApiError(404, "NotFound", f'{kind.plural}{group} "{name}" not found')
        return found

    def all(self, kind: Kind, namespace: str | None = None) -> list[Object]:
        """In the order of names, as lists are."""
        table = self._tables[kind].objects
        return [table[key] for key in sorted(table) if namespace is None or key[0] == namespace]

    def since(self, kind: Kind, version: int) -> list[Change]:
        """Changes after a version. Raises ApiError 410 when that is too long ago."""
        table = self._tables[kind]
        if version < table.oldest:
            raise ApiError(410, "Expired", f"too old resource version: {version} ({table.oldest})")
        found: list[Change] = []
        for change in reversed(table.history):
            if change.version <= version:
                break
            found.append(change)
        return found[::-1]

    def compact(self) -> None:
        """Forget history: who watches from an older version gets 410."""
        self.version += 1
        for table in self._tables.values():
            table.history.clear()
            table.oldest = self.version

    def create(self, kind: Kind, namespace: str, body: Object) -> Object:
        """Raises ApiError 409 AlreadyExists."""
        obj = copy.deepcopy(body)
        metadata = obj.setdefault("metadata", {})
        if not metadata.get("name"):
            metadata["name"] = metadata["generateName"] + uuid.uuid4().hex[:5]
        key = (namespace, metadata["name"])
        if key in self._tables[kind].objects:
            raise ApiError(409, "AlreadyExists", f'{kind.plural} "{metadata["name"]}" already exists')
        obj["apiVersion"], obj["kind"] = kind.api_version, kind.kind
        if kind.namespaced:
            metadata["namespace"] = namespace
        metadata["uid"] = str(uuid.uuid4())
        metadata["creationTimestamp"] = now_text()
        if kind.status:
            metadata["generation"] = 1
        return self._write(kind, key, "ADDED", None, obj)

    def place(self, plural: str, obj: Object) -> None:
        """Put a whole object there before anybody looks."""
        self.version += 1
        obj["metadata"]["resourceVersion"] = str(self.version)
        self._tables[BY_PLURAL[plural]].objects[obj["metadata"]["namespace"], obj["metadata"]["name"]] = obj

    def update(self, kind: Kind, namespace: str, name: str, change: Callable[[Object], Object]) -> Object:
        """Put `change(copy of the present object)` in its place; nothing is written when nothing differs.

        Raises ApiError 409 if the changed object carries another resourceVersion than the present one.
        """
        old = self.get(kind, namespace, name)
        new = change(copy.deepcopy(old))
        if new["metadata"].get("resourceVersion") != old["metadata"]["resourceVersion"]:
            raise ApiError(
                409,
                "Conflict",
                f'Operation cannot be fulfilled on {kind.plural} "{name}": the object has been modified; please apply '
                "your changes to the latest version and try again",
            )
        if new["metadata"].get("uid") != old["metadata"]["uid"]:
            raise ApiError(409, "Conflict", "Precondition failed: UID in precondition differs")
        if new == old:
            return old
        if kind.status and new.get("spec") != old.get("spec"):
            new["metadata"]["generation"] = old["metadata"].get("generation", 1) + 1
        return self._write(kind, (namespace, name), "MODIFIED", old, new)

    def remove(self, kind: Kind, namespace: str, name: str) -> Object:
        """Take it away at once. Raises ApiError 404."""
        old = self.get(kind, namespace, name)
        return self._write(kind, (namespace, name), "DELETED", old, copy.deepcopy(old))

    def _write(self, kind: Kind, key: tuple[str, str], how: str, old: Object | None, new: Object) -> Object:
        self.version += 1
        new["metadata"]["resourceVersion"] = str(self.version)
        table = self._tables[kind]
        if how == "DELETED":
            del table.objects[key]
        else:
            table.objects[key] = new
        change = Change(self.version, how, old, new)
        table.history.append(change)
        if len(table.history) > self._keep:
            table.oldest = table.history.popleft().version
        for listener in self._listeners:
            listener(kind, change)
        event = self.changed.pop(kind, None)
        if event is not None:
            event.set()
        return new
