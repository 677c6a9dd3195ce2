"""Keeps agents and a cluster's AgentRuntimes alike: either may be changed, and the other follows.

The custom resource holds what an agent is now, with a note of which revision that is; the store holds its revisions and
its rollout. The custom resource is written first. So whatever ends in between leaves an object that is ahead of the
record, and `sync` takes it over as it takes over what somebody changed with kubectl:

    the object's spec                              what is done
    is that of the revision which should be there  nothing, or its note is corrected
    is that of the revision which its note names   it lags behind: it is written
    is another                                     it becomes the next revision
    is gone                                        the agent's record is deleted
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gateway.agents import rollout
from gateway.agents.manifests import manifest_of
from gateway.agents.model import Agent, Revision, Strategy
from gateway.core.agent_objects import AgentObject, AgentObjects
from gateway.core.clock import Clock
from gateway.core.errors import BadRequestError, NotFoundError, StaleWriteError
from gateway.core.identity import is_tenant
from gateway.core.model import DEFAULT_TENANT

logger = logging.getLogger(__name__)

_MAX_TEXT = 500


def target(agent: Agent) -> int:
    """The revision that its custom resource shows: the one being rolled out, else that of new sessions."""
    return agent.rollout.revision if agent.rollout is not None else agent.stable


def note_of(agent: Agent) -> dict[str, Any]:
    """What stands beside the spec of its custom resource. Enough to make the record anew, but for its history."""
    revision = agent.revision(target(agent)) or agent.latest
    note: dict[str, Any] = {"revision": revision.number, "tenant": agent.tenant, "by": revision.by}
    optional = {"reason": revision.reason, "bundle": revision.bundle, "environment": revision.environment}
    note |= {name: text for name, text in optional.items() if text}
    return note | ({"stopped": True} if agent.stopped else {})


class Mirror:
    """Writes the custom resources of agents, and reads what others wrote there."""

    def __init__(self, objects: AgentObjects, clock: Clock) -> None:
        self.objects = objects
        self._clock = clock
        self._refused: dict[str, str] = {}  # why an object is not taken over, as logged

    def find(self, agent: Agent) -> AgentObject | None:
        """Its custom resource as known."""
        return self.objects.find(agent.namespace, agent.name)

    async def create(self, agent: Agent) -> Agent:
        """Make its custom resource. Raises StaleWriteError if there is one of that name."""
        made = await self.objects.create(agent.namespace, agent.name, agent.latest.manifest["spec"], note_of(agent))
        return _as_stored(agent, made)

    async def write(self, agent: Agent) -> Agent:
        """Have the custom resource say what the record is about to.

        Raises StaleWriteError where somebody else changed it and no revision has that yet; NotFoundError if it is gone.
        """
        seen = self.find(agent) or await self.objects.get(agent.namespace, agent.name)
        if seen is None:
            raise NotFoundError(f"no agent {agent.id}")
        spec, note = _wanted(agent), note_of(agent)
        if seen.spec == spec and seen.note == note:
            return agent
        if _is_foreign(agent, seen):
            if self.problem(seen):
                return agent  # whoever made the mistake corrects it; a rollback must not wait for that
            raise StaleWriteError(f"AgentRuntime {agent.id} was changed in the cluster; try again")
        return _as_stored(agent, await self.objects.replace(seen, spec, note))

    def problem(self, seen: AgentObject) -> str:
        """Why what the object says cannot be served; empty if it can."""
        try:
            self.objects.read(manifest_of(seen.namespace, seen.name, seen.spec))
        except BadRequestError as error:
            return str(error)
        return ""

    async def delete(self, agent: Agent) -> None:
        """Delete its custom resource."""
        seen = await self.objects.get(agent.namespace, agent.name)
        if seen is not None:
            await self.objects.delete(seen)

    def new_agents(self, known: Mapping[str, Agent]) -> list[Agent]:
        """The agents whose custom resources are there, and no record."""
        found = []
        for seen in self.objects.all():
            if seen.note is not None and seen.id not in known and (made := self._imported(seen)) is not None:
                found.append(made)
        return found

    async def is_gone(self, agent: Agent) -> bool:
        """Whether its custom resource is not there any more, or another one of its name that is no agent."""
        seen = self.find(agent)
        if seen is not None and (seen.uid == agent.uid or seen.note is not None):
            return False
        # Read from the API server: this gateway's cache may not have what another one has just made.
        seen = await self.objects.get(agent.namespace, agent.name)
        return seen is None or (seen.uid != agent.uid and seen.note is None)

    async def fresh(self, agent: Agent) -> AgentObject | None:
        """Its custom resource as it is now."""
        return await self.objects.get(agent.namespace, agent.name)

    def followed(self, agent: Agent, seen: AgentObject) -> Agent:
        """The record with the changes that others made to the object; the same object if there are none."""
        if seen.uid != agent.uid:
            agent = replace(agent, uid=seen.uid)
        if not _is_foreign(agent, seen):
            return agent
        number = rollout.next_number(agent)
        revision = self._revision(agent, seen, number)
        if revision is None:
            return agent
        return rollout.begin(agent, revision, Strategy(), revision.at)

    def is_behind(self, agent: Agent, seen: AgentObject) -> bool:
        """Whether the object does not say what the record does."""
        return not _is_foreign(agent, seen) and (seen.spec != _wanted(agent) or seen.note != note_of(agent))

    def _imported(self, seen: AgentObject) -> Agent | None:
        note = seen.note or {}
        number, tenant = note.get("revision"), note.get("tenant")
        number = number if type(number) is int and 0 < number < 1 << 31 else 1
        tenant = tenant if isinstance(tenant, str) and is_tenant(tenant) else DEFAULT_TENANT
        now = self._clock.now()
        agent = Agent(seen.namespace, seen.name, tenant, now, _word(note, "by") or seen.changed_by, uid=seen.uid)
        revision = self._revision(agent, seen, number)
        if revision is None:
            return None
        return replace(rollout.begin(agent, revision, Strategy(), now), stopped=note.get("stopped") is True)

    def _revision(self, agent: Agent, seen: AgentObject, number: int) -> Revision | None:
        """What the object's spec makes. None if it cannot be served: the status of the object says why."""
        problem = self.problem(seen)
        if problem:
            if self._refused.get(seen.id) != problem:
                logger.warning("AgentRuntime %s stays as it was served: %s", seen.id, problem)
            self._refused[seen.id] = problem
            return None
        self._refused.pop(seen.id, None)
        manifest = manifest_of(seen.namespace, seen.name, seen.spec)
        note, now = seen.note or {}, self._clock.now()
        if note.get("revision") == number:  # a gateway wrote the object, and ended before it wrote the record
            texts = {name: _word(note, name) for name in ("reason", "bundle", "environment")}
            return Revision(number, manifest, now, _word(note, "by"), **texts)
        before = agent.latest if agent.revisions else None
        kept = {} if before is None else {"bundle": before.bundle, "environment": before.environment}
        return Revision(number, manifest, now, seen.changed_by or "kubectl", "changed in the cluster", **kept)


def _wanted(agent: Agent) -> Mapping[str, Any]:
    spec: Mapping[str, Any] = (agent.revision(target(agent)) or agent.latest).manifest["spec"]
    return spec


def _is_foreign(agent: Agent, seen: AgentObject) -> bool:
    """Whether the object's spec is no revision's that a gateway would have put there."""
    if seen.spec == _wanted(agent):
        return False
    number = (seen.note or {}).get("revision")
    named = agent.revision(number) if type(number) is int else None
    return named is None or named.manifest["spec"] != seen.spec


def _as_stored(agent: Agent, made: AgentObject) -> Agent:
    """The agent with the spec as the server has it, which fills in defaults: later the two are compared."""
    number = target(agent)
    revisions = tuple(
        replace(each, manifest={**each.manifest, "spec": dict(made.spec)}) if each.number == number else each
        for each in agent.revisions
    )
    return replace(agent, revisions=revisions, uid=made.uid)


def _word(note: Mapping[str, Any], name: str) -> str:
    value = note.get(name)
    return value[:_MAX_TEXT] if isinstance(value, str) else ""
