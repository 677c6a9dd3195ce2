"""Agents over HTTP: create, list, change, roll out, stop, start, delete. Errors: `{"error": text, "code": CODE}`.

`/v1/agents` takes the spec of an AgentRuntime, `/api/v1/agents` flat fields (gateway/agents/sketch.py); they are the
same agents.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gateway.agents import rollout
from gateway.agents.bundles import BundleStore
from gateway.agents.catalog import AgentCatalog
from gateway.agents.directory import AgentDirectory
from gateway.agents.manifests import compiled, manifest_of, merged
from gateway.agents.model import Agent, Revision
from gateway.agents.quotas import Machine, check_count, check_fit, check_rights
from gateway.agents.sketch import fields_of, spec_of
from gateway.agents.strategy import read_strategy, strategy_of
from gateway.api.agent_json import (
    agent_document,
    conditions,
    metrics_document,
    phase_of,
    revision_documents,
    rollout_document,
)
from gateway.api.errors import Handler
from gateway.api.http import JSON, read_object
from gateway.api.session_list import list_sessions
from gateway.core.clock import Clock
from gateway.core.errors import (
    BadRequestError,
    ConflictError,
    NotFoundError,
    PermissionDeniedError,
    RuntimeNotFoundError,
    SessionNotFoundError,
    StaleWriteError,
)
from gateway.core.identity import SYSTEM, acting_as, current, is_tenant
from gateway.core.interfaces import SandboxProvider, SessionStore
from gateway.core.model import DEFAULT_TENANT, Kind, PoolStatus, Runtime, RuntimeKey, Session, SessionState
from gateway.identity.tenants import TenantDirectory
from gateway.observability.counters import Counters
from gateway.sessions.lifecycle import Lifecycle
from gateway.sessions.membership import ElsewhereError
from gateway.usage.prices import Prices
from gateway.usage.report import Report

STOPPED = "its agent was stopped"
DELETED = "its agent was deleted"
_DAY_S = 86400
_MAX_LIST = 500
_SESSIONS_SHOWN = 100
_CHANGE_FIELDS = ("spec", "strategy", "reason", "bundle", "environment")


@dataclass(frozen=True, slots=True)
class AgentParts:
    """The parts of a gateway that the handlers of agents use."""

    directory: AgentDirectory
    catalog: AgentCatalog
    machine: Machine
    bundles: BundleStore


class AgentsAPI:
    """Handlers. `parts` None: this engine has no agents of its own; those of manifests are shown."""

    def __init__(
        self,
        parts: AgentParts | None,
        lifecycle: Lifecycle,
        store: SessionStore,
        provider: SandboxProvider,
        tenants: TenantDirectory,
        counters: Counters,
        clock: Clock,
        prices: Prices | None,
        runtimes: Callable[[], Sequence[Runtime]],
    ) -> None:
        self._parts = parts
        self._lifecycle = lifecycle
        self._store = store
        self._provider = provider
        self._tenants = tenants
        self._counters = counters
        self._clock = clock
        self._prices = prices
        self._runtimes = runtimes

    def handlers(self) -> dict[str, Handler]:
        """The handler of each operation of openapi/table.py, by its name."""
        own: dict[str, Handler] = {
            "create_agent": self._create,
            "list_agents": self._list,
            "get_agent": self._get,
            "update_agent": self._update,
            "delete_agent": self._delete,
            "stop_agent": self._stop,
            "start_agent": self._start,
            "list_agent_revisions": self._revisions,
            "get_agent_rollout": self._get_rollout,
            "change_agent_rollout": self._change_rollout,
        }
        flat = ("create_agent", "list_agents", "get_agent", "delete_agent", "stop_agent", "start_agent")
        return own | {f"flat_{name}": own[name] for name in flat} | {"flat_create_agent": self._create_flat}

    # Making and changing.

    async def _create(self, request: Request) -> Response:
        body = await read_object(request)
        if unknown := sorted(body.keys() - {"name", "namespace", "owner", "manifest", *_CHANGE_FIELDS}):
            raise BadRequestError(f"{str(unknown[0])[:64]}: unknown field; expected name, spec and strategy")
        manifest = body.get("manifest")
        if manifest is not None:
            if not isinstance(manifest, Mapping) or "spec" in body:
                raise BadRequestError("manifest: expected an AgentRuntime as an object, and no spec beside it")
            metadata = manifest.get("metadata")
            if manifest.get("kind") != Kind.AGENT_RUNTIME or not isinstance(metadata, Mapping):
                raise BadRequestError("manifest: expected kind: AgentRuntime, with metadata")
            body = {"name": metadata.get("name"), "namespace": metadata.get("namespace"), **body}
            return await self._make(body, manifest.get("spec"))
        return await self._make(body, body.get("spec"))

    async def _create_flat(self, request: Request) -> Response:
        body = await read_object(request)
        return await self._make(body, spec_of(body))

    async def _make(self, body: Mapping[str, Any], spec: Any) -> Response:
        parts, caller = self._required(), current()
        tenant = _owner(body)
        namespace = body.get("namespace") or _namespace_of(tenant)
        if namespace != _namespace_of(tenant) and not caller.sees_all_tenants:
            raise PermissionDeniedError(f"namespace: agents of this tenant are in {_namespace_of(tenant)}")
        key = _key(namespace, body.get("name"))
        if parts.catalog.base.get(key) is not None:
            raise ConflictError(
                f"{key.namespace}/{key.name} comes from a manifest file of this gateway; change it there"
            )
        now = self._clock.now()
        agent = Agent(key.namespace, key.name, tenant, now, caller.subject)
        revision = self._revision(agent, body, spec, {})
        check_count(parts.directory.all(), tenant)
        agent = rollout.begin(agent, revision, read_strategy(body.get("strategy")), now)
        try:
            agent = await parts.directory.create(agent)
        except StaleWriteError:
            raise ConflictError(f"there is an agent {agent.id} already; change it with PATCH, or delete it") from None
        return JSON(await self._document(agent), 201, {"location": f"/v1/agents/{agent.name}"})

    def _revision(self, agent: Agent, body: Mapping[str, Any], spec: Any, old: Mapping[str, Any]) -> Revision:
        """The next revision, checked. `old`: bundle and environment of the one before."""
        parts, caller = self._required(), current()
        if not isinstance(spec, Mapping):
            raise BadRequestError("spec: expected an object, as of an AgentRuntime")
        limits = self._tenants.limits(agent.tenant)
        check_rights(spec, limits, operator=caller.sees_all_tenants)
        manifest = manifest_of(agent.namespace, agent.name, spec)
        check_fit(compiled(manifest), limits, parts.machine)
        digests = {name: _digest(body, name, old.get(name, "")) for name in ("bundle", "environment")}
        for name, digest in digests.items():
            if digest and not parts.bundles.has(digest):
                raise BadRequestError(f"{name}: this gateway has no {digest}; upload it to /v1/agent-bundles first")
        reason = body.get("reason") or ""
        if not isinstance(reason, str) or len(reason) > 500:
            raise BadRequestError("reason: expected text of at most 500 characters")
        return Revision(rollout.next_number(agent), manifest, self._clock.now(), caller.subject, reason, **digests)

    async def _update(self, request: Request) -> Response:
        parts, agent = self._required(), self._named(request)
        body = await read_object(request)
        if unknown := sorted(body.keys() - set(_CHANGE_FIELDS)):
            expected = ", ".join(_CHANGE_FIELDS)
            raise BadRequestError(f"{str(unknown[0])[:64]}: cannot be changed; expected {expected}")
        given = read_strategy(body["strategy"]) if body.get("strategy") is not None else None

        def decide(agent: Agent) -> Agent:
            shown = agent.latest
            spec = merged(shown.manifest["spec"], body.get("spec") or {})
            revision = self._revision(agent, body, spec, {"bundle": shown.bundle, "environment": shown.environment})
            same = replace(revision, number=shown.number, at=shown.at, by=shown.by, reason=shown.reason)
            if same == shown:
                return agent  # nothing changes, so nothing is rolled out
            return rollout.begin(agent, revision, given or strategy_of(agent), self._clock.now())

        return JSON(await self._document(await parts.directory.change(agent, decide)))

    async def _stop(self, request: Request) -> Response:
        parts, agent = self._required(), self._named(request)
        agent = await parts.directory.change(agent, lambda each: each if each.stopped else replace(each, stopped=True))
        await self._end_sessions(agent, STOPPED)
        return JSON(await self._document(agent))

    async def _start(self, request: Request) -> Response:
        parts, agent = self._required(), self._named(request)
        now = self._clock.now()

        def decide(agent: Agent) -> Agent:
            under_way = agent.rollout
            if under_way is not None:
                under_way = replace(under_way, since=now)  # its time did not pass while it was stopped
            return replace(agent, stopped=False, rollout=under_way) if agent.stopped else agent

        return JSON(await self._document(await parts.directory.change(agent, decide)))

    async def _delete(self, request: Request) -> Response:
        parts, agent = self._required(), self._named(request)
        await parts.directory.delete(agent)
        await self._end_sessions(agent, DELETED)
        return Response(status_code=204)

    async def _end_sessions(self, agent: Agent, reason: str) -> None:
        # As the gateway: sessions of the tenant's other people end as well, which the caller may not see.
        with acting_as(SYSTEM):
            for session in await self._sessions(agent, 10_000):
                try:
                    await self._lifecycle.terminate(session.id, reason)
                except ElsewhereError:
                    await self._lifecycle.update(session.id, ttl=0.0)  # the gateway that has it ends it in its sweep
                except SessionNotFoundError:
                    pass

    async def _change_rollout(self, request: Request) -> Response:
        parts, agent = self._required(), self._named(request)
        body = await read_object(request)
        action, to = body.get("action"), body.get("to")
        if body.keys() - {"action", "to"} or (to is not None and (type(to) is not int or action != "undo")):
            raise BadRequestError("expected action, and with undo a revision's number in `to`")
        now, by = self._clock.now(), current().subject
        actions: dict[str, Callable[[Agent], Agent]] = {
            "undo": lambda each: rollout.undo(each, to, by, strategy_of(each), now),
            "pause": lambda each: rollout.pause(each, now, paused=True),
            "resume": lambda each: rollout.pause(each, now, paused=False),
            "promote": lambda each: rollout.take_over(each, now),
        }
        if action not in actions:
            raise BadRequestError(f"action: expected one of {', '.join(actions)}, got {repr(action)[:64]}")
        return JSON(rollout_document(await parts.directory.change(agent, actions[action])))

    # Reading.

    async def _list(self, request: Request) -> Response:
        query = request.query_params
        if unknown := sorted(query.keys() - {"phase", "owner", "namespace", "after", "limit"}):
            raise BadRequestError(
                f"{unknown[0][:64]}: unknown parameter; expected phase, owner, namespace, after or limit"
            )
        limit = query.get("limit", "100")
        if not limit.isascii() or not limit.isdigit() or len(limit) > 3 or not 1 <= int(limit) <= _MAX_LIST:
            raise BadRequestError(f"limit: expected a whole number from 1 to {_MAX_LIST}")
        found: list[tuple[str, dict[str, Any]]] = []
        for name, document in await self._all():
            wanted = all(
                document[field] == query.get(field, document[field]) for field in ("phase", "owner", "namespace")
            )
            if wanted and name > query.get("after", ""):
                found.append((name, document))
        page = found[: int(limit)]
        more = len(found) > len(page)
        return JSON({"agents": [document for _, document in page], "next": page[-1][0] if more else None})

    async def _all(self) -> list[tuple[str, dict[str, Any]]]:
        """Every agent that the caller sees, by id: those of the API and those of manifests."""
        caller = current()
        found: dict[str, dict[str, Any]] = {}
        for agent in self._parts.directory.all() if self._parts is not None else ():
            if (caller.sees_all_tenants or agent.tenant == caller.tenant) and caller.uses(agent.key):
                found[agent.id] = agent_document(agent, await self._pool(agent.key_of(agent.stable)))
        for runtime in self._runtimes():
            key = runtime.key
            if (
                key.kind is Kind.AGENT_RUNTIME
                and not key.revision
                and caller.sees_runtime(runtime)
                and caller.uses(key)
            ):
                found[f"{key.namespace}/{key.name}"] = await self._of_manifest(runtime)
        return sorted(found.items())

    async def _of_manifest(self, runtime: Runtime) -> dict[str, Any]:
        key, pool = runtime.key, await self._pool(runtime.key)
        ready = pool is not None and bool(pool.ready or pool.claimed or not pool.target)
        return {
            "namespace": key.namespace, "name": key.name, "owner": runtime.tenant or "",
            "phase": "Running" if ready else "Pending", "revision": None, "managedBy": "manifest",
            "path": f"/v1/namespaces/{key.namespace}/agent-runtimes/{key.name}/invocations/",
        }  # fmt: skip

    async def _get(self, request: Request) -> Response:
        try:
            return JSON(await self._document(self._named(request)))
        except NotFoundError:
            key = _key(_asked_namespace(request), request.path_params["name"])
            for runtime in self._runtimes():
                if runtime.key == key and current().sees_runtime(runtime) and current().uses(key):
                    return JSON({**await self._of_manifest(runtime), "spec": runtime.manifest.get("spec", {})})
            raise

    async def _revisions(self, request: Request) -> Response:
        return JSON({"revisions": revision_documents(self._named(request))})

    async def _get_rollout(self, request: Request) -> Response:
        return JSON(rollout_document(self._named(request)))

    async def _document(self, agent: Agent) -> dict[str, Any]:
        pool = await self._pool(agent.key_of(agent.stable))
        spec = agent.shown.manifest["spec"]
        sessions = await self._sessions(agent, _SESSIONS_SHOWN)
        keys = [agent.key_of(each.number) for each in agent.revisions]
        counted = [self._counters.runtimes[key] for key in keys if key in self._counters.runtimes]
        return {
            **agent_document(agent, pool),
            "spec": spec,
            "status": {
                "phase": phase_of(agent, pool),
                "conditions": conditions(agent, pool),
                "replicas": {"ready": pool.ready, "starting": pool.starting, "claimed": pool.claimed} if pool else {},
                "sessions": [
                    {"id": each.id, "state": each.state, "revision": each.runtime.revision} for each in sessions
                ],
                "metrics": metrics_document(counted, await self._usage(agent)),
                **rollout_document(agent),
            },
            **fields_of(spec),
        }

    async def _usage(self, agent: Agent) -> Mapping[str, Any]:
        now = int(self._clock.now())
        report = Report(("runtime",), self._prices)
        name = str(agent.key)
        async for key, amounts in self._store.usage.read(now - _DAY_S, now + 3600, sessions=False, tenant=agent.tenant):
            if key.runtime == name:
                report.add(key, amounts)
        return next(report.rows(), {})

    async def _sessions(self, agent: Agent, limit: int) -> list[Session]:
        return await list_sessions(
            self._store,
            lambda each: each.runtime.base == agent.key and each.state is not SessionState.TERMINATED,
            ended=False,
            limit=limit,
        )

    async def _pool(self, key: RuntimeKey) -> PoolStatus | None:
        try:
            return await self._provider.status(key)
        except RuntimeNotFoundError:
            return None

    def _named(self, request: Request) -> Agent:
        name = request.path_params["name"]
        if self._parts is None:
            raise NotFoundError(f"no agent {name[:64]}")
        return self._parts.directory.find(_asked_namespace(request), name)

    def _required(self) -> AgentParts:
        if self._parts is None:
            raise ConflictError("in a cluster agents are AgentRuntimes: apply one with kubectl, and it is served")
        return self._parts


def _owner(body: Mapping[str, Any]) -> str:
    """Whose a new agent is: the caller's tenant's, unless an administrator names another."""
    caller = current()
    owner = body.get("owner") or caller.tenant or DEFAULT_TENANT
    if not isinstance(owner, str) or not is_tenant(owner):
        raise BadRequestError(f"owner: expected a tenant, got {repr(owner)[:64]}")
    if owner != caller.tenant and not caller.sees_all_tenants:
        raise PermissionDeniedError("owner: an agent is its creator's tenant's; only an administrator may name another")
    return owner


def _namespace_of(tenant: str) -> str:
    """Each tenant has a namespace of its name, so that a name that is taken tells nothing of other tenants."""
    return tenant


def _asked_namespace(request: Request) -> str:
    return request.query_params.get("namespace") or _namespace_of(current().tenant or DEFAULT_TENANT)


def _key(namespace: Any, name: Any) -> RuntimeKey:
    for field, value in (("namespace", namespace), ("name", name)):
        if not isinstance(value, str) or not is_tenant(value):  # DNS labels, both
            raise BadRequestError(
                f"{field}: expected a DNS name of at most 63 characters (a-z, 0-9 and '-'), got {repr(value)[:64]}"
            )
    return RuntimeKey(namespace, name, Kind.AGENT_RUNTIME)


def _digest(body: Mapping[str, Any], name: str, old: str) -> str:
    value = body.get(name, old) or ""
    if not isinstance(value, str) or (value and not (value.startswith("sha256:") and len(value) == 71)):
        raise BadRequestError(f"{name}: expected sha256: and 64 hexadecimal digits, got {repr(value)[:80]}")
    return value
