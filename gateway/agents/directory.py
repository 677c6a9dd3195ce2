"""The agents of the store, in memory; written with a version, so that two who change one do not both succeed."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from gateway.agents.catalog import AgentCatalog
from gateway.agents.model import Agent, from_document, to_document
from gateway.core.documents import Document, DocumentStore
from gateway.core.errors import NotFoundError, StaleWriteError, WakegateError
from gateway.core.identity import current

logger = logging.getLogger(__name__)

KIND = "agent"
FOLLOW_INTERVAL_S = 1.0
_WRITE_ATTEMPTS = 5


class AgentDirectory:
    """`applied()` is awaited after each change, once the catalog has it: the engine then makes and removes pools."""

    def __init__(self, documents: DocumentStore, catalog: AgentCatalog, applied: Callable[[], Awaitable[None]]) -> None:
        self._documents = documents
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
        """Take over what was changed through any gateway. Raises StoreUnavailableError."""
        if await self._documents.revision(KIND) != self._revision:
            await self.load()
            await self._applied()

    async def create(self, agent: Agent) -> Agent:
        """Store a new one. Raises StaleWriteError if there is one of that name."""
        await self._documents.put(Document(KIND, agent.id, to_document(agent)))
        await self.follow()
        return self._agents.get(agent.id, agent)

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
                found = self._agents.get(agent.id)
                if found is None:
                    raise NotFoundError(f"no agent {agent.id}") from None
                agent = found
                continue
            return self._agents.get(agent.id, changed)
        raise StaleWriteError(f"agent {agent.id} is being changed by others; try again")

    async def write(self, agent: Agent) -> None:
        """Write a new version. Raises StaleWriteError if another was written since this one was read."""
        written = await self._documents.put(Document(KIND, agent.id, to_document(agent), agent.version))
        # This gateway serves its own change at once; the others see it within FOLLOW_INTERVAL_S.
        self._agents[agent.id] = replace(agent, version=written.version)
        self._put()
        await self._applied()

    async def delete(self, agent: Agent) -> None:
        """Delete the agent's record; an absent one is no error."""
        await self._documents.delete(KIND, agent.id)
        self._agents.pop(agent.id, None)
        self._put()
        await self._applied()
