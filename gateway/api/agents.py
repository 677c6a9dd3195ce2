"""Agents over HTTP: create, list, change, roll out, stop, start, delete. Errors: `{"error": text, "code": CODE}`.

`/v1/agents` takes the spec of an AgentRuntime, `/api/v1/agents` flat fields (gateway/agents/sketch.py); they are the
same agents. `agent_requests` reads what is asked, `agent_views` makes what is answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gateway.agents import rollout
from gateway.agents.catalog import AgentCatalog
from gateway.agents.code import CodeStore
from gateway.agents.directory import AgentDirectory
from gateway.agents.environments import EnvironmentBuilder
from gateway.agents.manifests import manifest_of, merged
from gateway.agents.model import Agent, Revision
from gateway.agents.quotas import Machine, check_count, check_fit, check_reach, check_rights
from gateway.agents.sketch import spec_of
from gateway.agents.strategy import read_strategy, strategy_of
from gateway.api.agent_json import revision_documents, rollout_document
from gateway.api.agent_requests import (
    agent_key,
    asked_namespace,
    check_change,
    new_key,
    owner_of,
    read_creation,
    read_digest,
    read_list_query,
    read_move,
    read_reason,
    read_rollout_action,
)
from gateway.api.agent_views import AgentViews
from gateway.api.errors import Handler
from gateway.api.http import JSON, read_object
from gateway.core.clock import Clock
from gateway.core.errors import (
    BadRequestError,
    ConflictError,
    NotFoundError,
    SessionNotFoundError,
    StaleWriteError,
    WakegateError,
    without_host_paths,
)
from gateway.core.identity import SYSTEM, acting_as, current, is_tenant
from gateway.core.interfaces import SandboxProvider, SessionStore
from gateway.core.model import Runtime, Session
from gateway.identity.tenants import TenantDirectory
from gateway.observability.counters import Counters
from gateway.sessions.hibernation import Hibernator
from gateway.sessions.lifecycle import Lifecycle
from gateway.sessions.membership import ElsewhereError
from gateway.usage.prices import Prices

STOPPED = "its agent was stopped"
DELETED = "its agent was deleted"
_CODE = ("bundle", "environment")  # fields with digests
_MAX_SESSIONS_ENDED = 10_000
_MOVES_AT_ONCE = 4  # a parked workspace is a rename; one that is copied takes a disk's time


@dataclass(frozen=True, slots=True)
class AgentParts:
    """The parts of a gateway that the handlers of agents use."""

    directory: AgentDirectory
    catalog: AgentCatalog
    machine: Machine
    read: Callable[[Mapping[str, Any]], Runtime]  # a manifest's runtime; raises BadRequestError
    namespaces: tuple[str, ...] = ()  # where agents can be; (): each tenant's own
    code: CodeStore | None = None
    environments: EnvironmentBuilder | None = None


class AgentsAPI:
    """The handlers of agents, their revisions and their rollouts.

    `parts` None: this engine has no agents of its own; those of manifests are shown.
    """

    def __init__(
        self,
        parts: AgentParts | None,
        lifecycle: Lifecycle,
        hibernator: Hibernator,
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
        self._hibernator = hibernator
        self._tenants = tenants
        self._clock = clock
        directory = None if parts is None else parts.directory
        self._views = AgentViews(directory, store, provider, counters, clock, prices, runtimes)

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
        return await self._make(*read_creation(await read_object(request)))

    async def _create_flat(self, request: Request) -> Response:
        body = await read_object(request)
        return await self._make(body, spec_of(body))

    async def _make(self, body: Mapping[str, Any], spec: Any) -> Response:
        parts = self._required()
        tenant = owner_of(body)
        key = new_key(body, tenant, parts.namespaces)
        if parts.catalog.base.get(key) is not None:
            raise ConflictError(f"{key.namespace}/{key.name} comes from a manifest; {_change_there(parts)}")
        now = self._clock.now()
        agent = Agent(key.namespace, key.name, tenant, now, current().subject)
        await self._check_code(body, {})
        revision = self._revision(agent, body, spec, {})
        check_count(parts.directory.all(), tenant)
        agent = rollout.begin(agent, revision, read_strategy(body.get("strategy")), now)
        try:
            agent = await parts.directory.create(agent)
        except StaleWriteError:
            raise ConflictError(f"there is an agent {agent.id} already; change it with PATCH, or delete it") from None
        return JSON(await self._views.of(agent), 201, {"location": f"/v1/agents/{agent.name}"})

    def _revision(self, agent: Agent, body: Mapping[str, Any], spec: Any, old: Mapping[str, Any]) -> Revision:
        """The next revision, checked. `old`: bundle and environment of the one before."""
        parts, caller = self._required(), current()
        if not isinstance(spec, Mapping):
            raise BadRequestError("spec: expected an object, as of an AgentRuntime")
        limits = self._tenants.limits(agent.tenant)
        check_rights(spec, limits, operator=caller.sees_all_tenants)
        manifest = manifest_of(agent.namespace, agent.name, spec)
        runtime = parts.read(manifest)
        if parts.namespaces:
            check_reach(runtime)
        check_fit(runtime, limits, parts.machine)
        digests = {name: read_digest(body, name, old.get(name, "")) for name in _CODE}
        number, reason = rollout.next_number(agent), read_reason(body)
        return Revision(number, manifest, self._clock.now(), caller.subject, reason, **digests)

    async def _check_code(self, body: Mapping[str, Any], old: Mapping[str, Any]) -> None:
        """Raise BadRequestError for digests that are not here, or of other tenants.

        `old`: those of the revision before.
        """
        code = self._required().code
        for name in _CODE:
            digest = read_digest(body, name, "")
            known = not digest or digest == old.get(name)
            if not known and (code is None or not await code.has(digest, current().tenant)):
                raise BadRequestError(
                    f"{name}: this gateway has no {digest}; make it with POST /v1/agent-{name}s first"
                )

    async def _update(self, request: Request) -> Response:
        parts, agent = self._required(), self._named(request)
        body = await read_object(request)
        check_change(body)
        parts.directory.require_sound(agent)
        await self._check_code(body, _code_of(agent.latest))
        given = read_strategy(body["strategy"]) if body.get("strategy") is not None else None

        def decide(agent: Agent) -> Agent:
            # Merged with what is stored when this is written: a change that came in between is kept.
            shown = agent.latest
            spec = merged(shown.manifest["spec"], body.get("spec") or {})
            revision = self._revision(agent, body, spec, _code_of(shown))
            same = replace(revision, number=shown.number, at=shown.at, by=shown.by, reason=shown.reason)
            if same == shown and rollout.is_in_effect(agent):
                return agent  # nothing changes, so nothing is rolled out
            return rollout.begin(agent, revision, given or strategy_of(agent), self._clock.now())

        return JSON(await self._views.of(await parts.directory.change(agent, decide)))

    async def _change_rollout(self, request: Request) -> Response:
        parts, agent = self._required(), self._named(request)
        body = await read_object(request)
        if body.get("action") == "move":
            discard = read_move(body, in_cluster=bool(parts.namespaces))
            return JSON({**rollout_document(agent), **await self._move(agent, discard)})
        change = read_rollout_action(body, current().subject, self._clock.now())
        return JSON(rollout_document(await parts.directory.change(agent, change)))

    async def _move(self, agent: Agent, discard: bool) -> dict[str, Any]:
        """Move the sessions of earlier revisions to that of new sessions; each that cannot be stays where it is."""
        if agent.stopped:
            raise ConflictError(f"agent {agent.id} is stopped; its sessions have ended")
        behind = rollout.left_behind(agent)
        moved: list[str] = []
        kept: list[dict[str, str]] = []
        slots = asyncio.Semaphore(_MOVES_AT_ONCE)

        async def move(session: Session) -> None:
            async with slots:
                try:
                    await self._hibernator.move(session.id, agent.key_of(agent.stable), discard=discard)
                    moved.append(session.id)
                except SessionNotFoundError:
                    pass  # it ended by itself
                except WakegateError as error:
                    kept.append({"session": session.id, "reason": without_host_paths(str(error))})

        # As the gateway: they are the sessions of all of the tenant's people.
        with acting_as(SYSTEM):
            sessions = await self._views.sessions(agent, _MAX_SESSIONS_ENDED)
            await asyncio.gather(*(move(each) for each in sessions if each.runtime.revision in behind))
        return {"moved": sorted(moved), "kept": sorted(kept, key=lambda each: each["session"])}

    # Stopping, starting and deleting.

    async def _stop(self, request: Request) -> Response:
        parts, agent = self._required(), self._named(request)
        agent = await parts.directory.change(agent, lambda each: each if each.stopped else replace(each, stopped=True))
        await self._end_sessions(agent, STOPPED)
        return JSON(await self._views.of(agent))

    async def _start(self, request: Request) -> Response:
        parts, agent = self._required(), self._named(request)
        now = self._clock.now()

        def decide(agent: Agent) -> Agent:
            under_way = agent.rollout
            if under_way is not None:
                under_way = replace(under_way, since=now)  # its time did not pass while it was stopped
            return replace(agent, stopped=False, rollout=under_way) if agent.stopped else agent

        return JSON(await self._views.of(await parts.directory.change(agent, decide)))

    async def _delete(self, request: Request) -> Response:
        parts, agent = self._required(), self._named(request)
        # The record first: sessions that are made while the others end would keep the agent alive.
        await parts.directory.delete(agent)
        await self._end_sessions(agent, DELETED)
        return Response(status_code=204)

    async def _end_sessions(self, agent: Agent, reason: str) -> None:
        # As the gateway: sessions of the tenant's other people end as well, which the caller may not see.
        with acting_as(SYSTEM):
            for session in await self._views.sessions(agent, _MAX_SESSIONS_ENDED):
                try:
                    await self._lifecycle.terminate(session.id, reason)
                except ElsewhereError:
                    await self._lifecycle.update(session.id, ttl=0.0)  # the gateway that has it ends it in its sweep
                except SessionNotFoundError:
                    pass

    # Reading.

    async def _list(self, request: Request) -> Response:
        query = read_list_query(request)
        found = [(name, document) for name, document in await self._views.all() if query.matches(name, document)]
        page = found[: query.limit]
        more = len(found) > len(page)
        return JSON({"agents": [document for _, document in page], "next": page[-1][0] if more else None})

    async def _get(self, request: Request) -> Response:
        try:
            return JSON(await self._views.of(self._named(request)))
        except NotFoundError:
            namespaces = () if self._parts is None else self._parts.namespaces
            key = agent_key(asked_namespace(request, namespaces), request.path_params["name"])
            document = await self._views.of_manifest(key)
            if document is None:
                raise
            return JSON(document)

    async def _revisions(self, request: Request) -> Response:
        return JSON({"revisions": revision_documents(self._named(request))})

    async def _get_rollout(self, request: Request) -> Response:
        return JSON(rollout_document(self._named(request)))

    def _named(self, request: Request) -> Agent:
        """The agent in the request's path. Raises NotFoundError, also for one that the caller does not see."""
        name = request.path_params["name"]
        if self._parts is None:
            raise NotFoundError(f"no agent {name[:64]}")
        namespace = asked_namespace(request, self._parts.namespaces)
        try:
            return self._parts.directory.find(namespace, name)
        except NotFoundError:
            if request.method == "GET" or self._parts.namespaces == () or not is_tenant(name):
                raise
            runtime = self._parts.catalog.base.get(agent_key(namespace, name))
            if runtime is None or not current().sees_runtime(runtime) or not current().uses(runtime.key):
                raise
        raise ConflictError(f"{namespace}/{name} comes from a manifest; {_change_there(self._parts)}")

    def _required(self) -> AgentParts:
        if self._parts is None:
            raise ConflictError("this engine has no agents but those of manifests")
        return self._parts


def _change_there(parts: AgentParts) -> str:
    if not parts.namespaces:
        return "change it in its file"
    return (
        "change it with kubectl, or make it an agent of the API: kubectl annotate agentruntime NAME"
        " wakegate.io/agent={}"
    )


def _code_of(revision: Revision) -> dict[str, str]:
    return {"bundle": revision.bundle, "environment": revision.environment}
