"""Agents of the API as custom resources: AgentRuntimes with an annotation that says of which revision their spec is.

A write is a PUT of the object as it was just read, with its resourceVersion: what somebody changed meanwhile is never
written over. Rejected: server-side apply. It decides field by field who owns what, and a revision is the whole spec.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import orjson

from gateway.core.agent_objects import AgentObject
from gateway.core.errors import BadRequestError, PermissionDeniedError, StaleWriteError
from gateway.core.model import Kind, Runtime, RuntimeKey
from gateway.core.units import parse_quantity
from gateway.provider.kubernetes import names
from gateway.provider.kubernetes.catalog import WatchedCatalog, agent_object
from gateway.provider.kubernetes.client import KubeApi, KubeError
from gateway.provider.kubernetes.pod_resources import with_limits
from gateway.provider.kubernetes.trust import foreign, untrusted
from gateway.runtimes.manifest import parse_runtime

Object = dict[str, Any]

_WRITE_ATTEMPTS = 5  # a gateway's status may come in between, every two seconds
_KIND = Kind.AGENT_RUNTIME


class CustomResources:
    """AgentObjects over the API server. `serve`: has the engine serve what the catalog hosts."""

    def __init__(
        self, api: KubeApi, catalog: WatchedCatalog, namespaces: Sequence[str], serve: Callable[[], Awaitable[None]]
    ) -> None:
        self._api, self._catalog, self._serve = api, catalog, serve
        self.namespaces = tuple(namespaces)

    def all(self) -> Sequence[AgentObject]:
        """See AgentObjects."""
        return self._catalog.agents()

    def find(self, namespace: str, name: str) -> AgentObject | None:
        """See AgentObjects."""
        declared = self._catalog.declared.get(RuntimeKey(namespace, name, _KIND))
        return None if declared is None else declared.agent

    async def get(self, namespace: str, name: str) -> AgentObject | None:
        """See AgentObjects."""
        present = await self._present(namespace, name)
        return None if present is None else agent_object(present)

    async def create(self, namespace: str, name: str, spec: Mapping[str, Any], note: Mapping[str, Any]) -> AgentObject:
        """See AgentObjects."""
        body: Object = {
            "apiVersion": names.API_VERSION,
            "kind": _KIND.value,
            "metadata": {"namespace": namespace, "name": name, "annotations": {names.AGENT: _text(note)}},
            "spec": dict(spec),
        }
        try:
            made = await self._api.create(names.runtimes(_KIND, namespace), body, fieldManager=names.MANAGER)
        except KubeError as error:
            if error.reason == "AlreadyExists":
                raise StaleWriteError(f"there is an AgentRuntime {namespace}/{name} already") from None
            raise _refusal(error, "create") from None
        return self._learn(made)

    async def replace(self, seen: AgentObject, spec: Mapping[str, Any], note: Mapping[str, Any]) -> AgentObject:
        """See AgentObjects."""
        path = names.runtimes(_KIND, seen.namespace, seen.name)
        for _ in range(_WRITE_ATTEMPTS):
            present = await self._present(seen.namespace, seen.name)
            now = None if present is None else agent_object(present)
            if present is None or now is None or (now.uid, now.spec, now.note) != (seen.uid, seen.spec, seen.note):
                break
            present |= {"apiVersion": names.API_VERSION, "kind": _KIND.value, "spec": dict(spec)}
            notes = present["metadata"].setdefault("annotations", {})
            notes[names.AGENT] = _text(note)
            try:
                return self._learn(await self._api.replace(path, present, fieldManager=names.MANAGER))
            except KubeError as error:
                if error.reason != "Conflict":
                    raise _refusal(error, "update") from None
        raise StaleWriteError(f"AgentRuntime {seen.id} was changed in the cluster meanwhile; try again")

    async def delete(self, seen: AgentObject) -> None:
        """See AgentObjects."""
        try:
            await self._api.delete(names.runtimes(_KIND, seen.namespace, seen.name), uid=seen.uid)
        except KubeError as error:
            raise _refusal(error, "delete") from None

    def read(self, manifest: Mapping[str, Any]) -> Runtime:
        """See AgentObjects. Its pod has no more rights than any user's, also with --kube-trust-manifests."""
        problems: list[str] = []
        runtime = parse_runtime(manifest, "agent", problems, engine="kubernetes")
        if runtime is not None:
            problems += [*untrusted(runtime), *foreign(runtime)]
        if runtime is None or problems:
            raise BadRequestError("; ".join(problem.removeprefix("agent: ") for problem in problems))
        return with_sizes(runtime)

    async def serve(self, runtimes: Sequence[Runtime]) -> None:
        """See AgentObjects."""
        self._catalog.host(runtimes)
        await self._serve()

    async def _present(self, namespace: str, name: str) -> Object | None:
        try:
            return await self._api.get(names.runtimes(_KIND, namespace, name))
        except KubeError as error:
            if error.http_status == 404:
                return None
            raise _refusal(error, "get") from None

    def _learn(self, answer: Object) -> AgentObject:
        """At once, and not when the watch tells: what was made is there for who asks next."""
        self._catalog.learn(_KIND, answer)
        return agent_object(answer)


def with_sizes(runtime: Runtime) -> Runtime:
    """The runtime with the cores and the memory of its pod's containers, by which tenants' limits count it."""
    pod = runtime.manifest["spec"]["podTemplate"]["spec"]
    limits = [with_limits(each.get("resources") or {}, 1)["limits"] for each in pod.get("containers") or ()]
    try:
        cpus = sum(parse_quantity(each["cpu"]) for each in limits)
        memory = sum(parse_quantity(each["memory"]) for each in limits)
    except ValueError as error:
        raise BadRequestError(f"spec.podTemplate.spec.containers: resources.limits: {error}") from None
    return replace(runtime, limits=replace(runtime.limits, cpus=cpus, memory=int(memory)))


def _text(note: Mapping[str, Any]) -> str:
    return orjson.dumps(note, option=orjson.OPT_SORT_KEYS).decode()


def _refusal(error: KubeError, verb: str) -> Exception:
    """What a caller is told where the server did not do it."""
    if error.http_status == 403:
        return PermissionDeniedError(
            f"this gateway's account may not {verb} AgentRuntimes in the cluster: {error}; apply the Role of"
            " manifests/sandboxes/access.yaml"
        )
    if error.http_status in (400, 422):
        return BadRequestError(f"the cluster refuses it: {error}")
    return error
