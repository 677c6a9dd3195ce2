"""The parts that serve agents, made for this machine or for a cluster: they differ in where files of agents are."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from gateway.agents.catalog import AgentCatalog
from gateway.agents.code import CodeStore
from gateway.agents.directory import AgentDirectory
from gateway.agents.keeper import AgentKeeper
from gateway.agents.manifests import compiled
from gateway.agents.mirror import Mirror
from gateway.agents.stored_code import StoredCode
from gateway.api.agents import AgentParts
from gateway.app.agents import (
    A_CLUSTER,
    make_cluster_environments,
    make_code,
    make_environments,
    make_stored_code,
    this_machine,
)
from gateway.app.cluster_skills import PackedSkill, keep_skills
from gateway.core.agent_objects import AgentObjects
from gateway.core.clock import Clock
from gateway.core.interfaces import SandboxCaller, SandboxProvider, SessionStore, SnapshotStore
from gateway.core.settings import Settings
from gateway.observability.counters import Counters
from gateway.sessions.lifecycle import Lifecycle


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentNeeds:
    """The other parts of a gateway that agents are served with."""

    store: SessionStore
    provider: SandboxProvider
    lifecycle: Lifecycle
    caller: SandboxCaller
    counters: Counters
    clock: Clock

    def keeper(self, directory: AgentDirectory, code: CodeStore, always: Sequence[str] = ()) -> AgentKeeper:
        """What keeps the agents of a directory; `always`: files that stay though no agent names them."""
        return AgentKeeper(directory, self.provider, self.store, self.counters, self.clock, code, always=always)


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentPlatform:
    """What a gateway runs for its agents. `parts`: what their API is made of.

    `stored_code`: where a cluster's sandboxes get files from; None: all of them are on this machine.
    `apply_runtimes` has the engine serve what the directory holds now; raises WakegateError.
    """

    directory: AgentDirectory
    keeper: AgentKeeper
    parts: AgentParts
    apply_runtimes: Callable[[], Awaitable[None]]
    stored_code: StoredCode | None = None
    skills: Sequence[PackedSkill] = ()

    async def load(self) -> None:
        """Read the agents from the store and have the files of skills in place. Raises WakegateError."""
        await self.directory.load()
        if self.stored_code is not None:
            await keep_skills(self.stored_code, self.skills)


def make_agents(settings: Settings, catalog: AgentCatalog, needs: AgentNeeds) -> AgentPlatform:
    """Of this machine: the files of agents are in the state folder, and sandboxes mount them."""

    async def apply() -> None:
        await needs.provider.apply(catalog.served())

    code = make_code(settings)
    directory = AgentDirectory(needs.store.documents, catalog, apply)
    environments = make_environments(settings, code, needs.lifecycle, needs.caller)
    return AgentPlatform(
        directory=directory,
        keeper=needs.keeper(directory, code),
        parts=AgentParts(directory, catalog, this_machine(settings), compiled, (), code, environments),
        apply_runtimes=apply,
    )


def make_cluster_agents(
    settings: Settings,
    catalog: AgentCatalog,
    *,
    objects: AgentObjects,
    files: SnapshotStore,
    skills: Sequence[PackedSkill],
    needs: AgentNeeds,
) -> AgentPlatform:
    """Of a cluster: agents are custom resources (`objects`), and pods get their `files` pushed when they start."""

    async def apply() -> None:
        await objects.serve(catalog.hosted())

    code = make_stored_code(settings, files, needs.store.documents, needs.clock)
    directory = AgentDirectory(needs.store.documents, catalog, apply, Mirror(objects, needs.clock))
    kept = [each.digest for each in skills]
    environments = make_cluster_environments(settings, code, needs.lifecycle, needs.caller, objects)
    return AgentPlatform(
        directory=directory,
        keeper=needs.keeper(directory, code, kept),
        parts=AgentParts(directory, catalog, A_CLUSTER, objects.read, tuple(objects.namespaces), code, environments),
        apply_runtimes=apply,
        stored_code=code,
        skills=skills,
    )
