"""The agents of the store, in memory; written with a version, so that two who change one do not both succeed."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from gateway.agents.catalog import AgentCatalog
from gateway.agents.mirror import Mirror
from gateway.agents.model import Agent, from_document, to_document
from gateway.core.agent_objects import AgentObject
from gateway.core.documents import Document, DocumentStore
from gateway.core.errors import ConflictError, NotFoundError, StaleWriteError, WakegateError
from gateway.core.identity import current

logger = logging.getLogger(__name__)

KIND = "agent"
FOLLOW_INTERVAL_S = 1.0
_WRITE_ATTEMPTS = 5


class AgentDirectory:
    """The agents of the store, kept in memory, and the only place where they are written.

    `applied()` is awaited after each change, once the catalog has it: the engine then makes and removes pools.
    """

    def __init__(
        self,
        documents: DocumentStore,
        catalog: AgentCatalog,
        applied: Callable[[], Awaitable[None]],
        mirror: Mirror | None = None,
    ) -> None:
        """`mirror`: of a cluster, where each agent is a custom resource too."""
        self._documents = documents
        self._mirror = mirror
        self._catalog = catalog
        self._applied = applied
        self._agents: dict[str, Agent] = {}
        self._revision = -1
        self.unreadable = 0  # agents of the store that this gateway cannot read

    def all(self) -> Sequence[Agent]:
        """Every agent of every tenant, by its id, as last read from the store."""
        return [self._agents[name] for name in sorted(self._agents)]

    def find(self, namespace: str, name: str) -> Agent:
        """The caller's agent. Raises NotFoundError, also for one of another tenant."""
        agent = self._agents.get(f"{namespace}/{name}")
        caller = current()
        if (
            agent is None
            or not (caller.sees_all_tenants or caller.tenant == agent.tenant)
            or not caller.uses(agent.key)
        ):
            raise NotFoundError(f"no agent {namespace[:64]}/{name[:64]}")
        return agent

    async def load(self) -> None:
        """Read all of them, before the engine has any. Raises StoreUnavailableError."""
        revision = await self._documents.revision(KIND)
        found: dict[str, Agent] = {}
        documents = await self._documents.list(KIND)
        for document in documents:
            try:
                found[document.name] = from_document(document.value, document.version)
            except (KeyError, TypeError, ValueError) as error:
                # A later version may have written it. It stays in the store, and its files are not swept while anything
                # is unreadable.
                logger.error("agent %s is unreadable in the store, and is not served: %r", document.name, error)
        self.unreadable = len(documents) - len(found)
        self._agents, self._revision = found, revision
        self._put()

    def _put(self) -> None:
        try:
            self._catalog.put(self._agents.values())
        except WakegateError as error:
            logger.error("agents are as they were: %s", error)

    async def follow(self) -> None:
        """Take over what was changed through any gateway, or in the cluster. Raises UnavailableError."""
        if await self._documents.revision(KIND) != self._revision:
            await self.load()
            await self._applied()
        if self._mirror is not None:
            await self._follow_cluster(self._mirror)

    async def _follow_cluster(self, mirror: Mirror) -> None:
        """Every gateway does; where two do the same, the second finds it done."""
        for agent in mirror.new_agents(self._agents):
            with suppress(StaleWriteError):
                await self._put_new(agent)
        for agent in self.all():
            try:
                if await mirror.is_gone(agent):
                    logger.info("agent %s was deleted in the cluster", agent.id)
                    await self._forget(agent)
                elif (seen := mirror.find(agent)) is not None:
                    await self._meet(mirror, agent, seen)
            except (StaleWriteError, NotFoundError):
                pass  # somebody else is at it: the next look sees what became of it

    async def _meet(self, mirror: Mirror, agent: Agent, seen: AgentObject) -> None:
        followed = mirror.followed(agent, seen)
        if followed is not agent:
            logger.info("agent %s was changed in the cluster: revision %d", agent.id, followed.latest.number)
            agent = await self._record(followed)
        if mirror.is_behind(agent, seen):
            stored = await mirror.write(agent)
            if stored != agent:
                await self._record(stored)

    async def create(self, agent: Agent) -> Agent:
        """Store a new one. Raises StaleWriteError if there is one of that name."""
        if self._mirror is not None:
            agent = await self._mirror.create(agent)
        try:
            await self._put_new(agent)
        except StaleWriteError:
            await self.load()
            found = self._agents.get(agent.id)
            if not agent.uid or found is None or found.uid != agent.uid:
                raise
            # Another gateway saw the custom resource, and made its record before this one did.
            await self._applied()
        return self._agents.get(agent.id, agent)

    async def _put_new(self, agent: Agent) -> None:
        # Of one whose custom resource was deleted a moment ago the record may still be there.
        old = self._agents.get(agent.id) if self._mirror is not None else None
        version = old.version if old is not None else 0
        await self._documents.put(Document(KIND, agent.id, to_document(agent), version))
        await self.load()
        await self._applied()

    async def change(self, agent: Agent, decide: Callable[[Agent], Agent]) -> Agent:
        """Write what `decide` makes of it. Where somebody else was first, what it makes of theirs.

        Raises what `decide` raises; NotFoundError if it was deleted meanwhile.
        """
        # Decided again on what the other one wrote, never written over it: both changes are kept, or this one is
        # refused by them.
        for _ in range(_WRITE_ATTEMPTS):
            changed = decide(agent)
            if changed is agent:
                return agent
            try:
                await self.write(changed)
            except StaleWriteError:
                await self.load()
                await self._look_again(agent.id)
                found = self._agents.get(agent.id)
                if found is None:
                    raise NotFoundError(f"no agent {agent.id}") from None
                agent = found
                continue
            return self._agents.get(agent.id, changed)
        raise StaleWriteError(f"agent {agent.id} is being changed by others; try again")

    def require_sound(self, agent: Agent) -> None:
        """Raises ConflictError if somebody wrote into its custom resource what cannot be served."""
        seen = None if self._mirror is None else self._mirror.find(agent)
        if self._mirror is not None and seen is not None and (problem := self._mirror.problem(seen)):
            raise ConflictError(
                f"agent {agent.id} was changed in the cluster to something that cannot be served;"
                f" correct that first: {problem}"
            )

    async def _look_again(self, agent_id: str) -> None:
        """Take over what was changed in the cluster, and is perhaps why a write was refused."""
        agent = self._agents.get(agent_id)
        if self._mirror is None or agent is None:
            return
        seen = await self._mirror.fresh(agent)
        if seen is not None:
            with suppress(StaleWriteError):
                await self._meet(self._mirror, agent, seen)

    async def write(self, agent: Agent) -> None:
        """Write a new version. Raises StaleWriteError if another was written since this one was read."""
        if self._mirror is not None:
            agent = await self._mirror.write(agent)
        await self._record(agent)

    async def _record(self, agent: Agent) -> Agent:
        written = await self._documents.put(Document(KIND, agent.id, to_document(agent), agent.version))
        # This gateway serves its own change at once; the others see it within FOLLOW_INTERVAL_S.
        found = self._agents[agent.id] = replace(agent, version=written.version)
        self._put()
        await self._applied()
        return found

    async def delete(self, agent: Agent) -> None:
        """Delete the agent; an absent one is no error."""
        if self._mirror is not None:
            await self._mirror.delete(agent)
        await self._forget(agent)

    async def _forget(self, agent: Agent) -> None:
        await self._documents.delete(KIND, agent.id)
        self._agents.pop(agent.id, None)
        self._put()
        await self._applied()
