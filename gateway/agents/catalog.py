"""The runtimes that are served where agents can be created: those of the manifests, and one per revision in service."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from gateway.agents.model import Agent, Revision
from gateway.agents.rollout import choose, served
from gateway.core.errors import ConflictError
from gateway.core.interfaces import RuntimeCatalog
from gateway.core.model import PoolMode, PoolSpec, Runtime, RuntimeKey
from gateway.core.request_headers import has_header

Compile = Callable[[Agent, Revision], Runtime]


class AgentCatalog:
    """A RuntimeCatalog over another one. `compile_revision(agent, revision)` makes a runtime under the agent's key."""

    def __init__(
        self,
        base: RuntimeCatalog,
        compile_revision: Compile,
        chance: Callable[[], float] = random.random,
        hidden: Sequence[Runtime] = (),
        *,
        hosted: bool = False,
    ) -> None:
        """`hidden`: runtimes of the gateway's own, which are served but not listed.

        `hosted`: `base` has the revisions too, once the engine does; until then they are not served.
        """
        self.base = base
        self._hosted = hosted
        self._hidden = {runtime.key: runtime for runtime in hidden}
        self._compile = compile_revision
        self._chance = chance
        self._agents: dict[RuntimeKey, Agent] = {}
        self._runtimes: dict[RuntimeKey, Runtime] = {}
        self._sources: dict[RuntimeKey, tuple[Revision, str, str, bool]] = {}  # what each of them was made from

    def put(self, agents: Iterable[Agent]) -> None:
        """Serve these from now on, in place of those before."""
        known, sources = self._runtimes, self._sources
        # A manifest of the operator's wins over an agent of its name, which may be older than it.
        self._agents = {agent.key: agent for agent in agents if self.base.get(agent.key) is None}
        self._runtimes, self._sources = {}, {}
        for agent in self._agents.values():
            # A draining revision has sessions but no pool: they wake on what they were made of, and no new one begins
            # there.
            for number in {*served(agent), *agent.draining}:
                key, revision = agent.key_of(number), agent.revision(number)
                if revision is not None:
                    # The same object while the revision is served: the engine replaces pools of runtimes that differ.
                    pooled = number in served(agent)
                    made = known.get(key)
                    source = (revision, agent.tenant, agent.uid, pooled)
                    if made is None or sources.get(key) != source:
                        made = self._made(agent, revision, pooled=pooled)
                    self._runtimes[key], self._sources[key] = made, source

    def _made(self, agent: Agent, revision: Revision, *, pooled: bool) -> Runtime:
        runtime = replace(self._compile(agent, revision), key=agent.key_of(revision.number), tenant=agent.tenant)
        if not pooled:
            return replace(runtime, pool=PoolSpec())
        # One at least: what has never started cannot be said to be ready, and the first request should not find out.
        pool = runtime.pool
        if pool.mode is PoolMode.FIXED and pool.size < 1:
            return replace(runtime, pool=replace(pool, size=1, max=max(1, pool.max)))
        return replace(runtime, pool=replace(pool, size=max(1, pool.size), max=max(1, pool.max)))

    def _ready(self, key: RuntimeKey) -> Runtime | None:
        """A revision's runtime, as it is served."""
        return self.base.get(key) if self._hosted and key in self._runtimes else self._runtimes.get(key)

    def revisions(self) -> Sequence[Runtime]:
        """The runtimes of all revisions that are to be served."""
        return list(self._runtimes.values())

    def hosted(self) -> Sequence[Runtime]:
        """The same, and those that only the gateway uses."""
        return [*self._runtimes.values(), *self._hidden.values()]

    def agent(self, key: RuntimeKey) -> Agent | None:
        """The agent of that key, with or without a revision."""
        return self._agents.get(key.base)

    def get(self, key: RuntimeKey) -> Runtime | None:
        """The runtime; of an agent without a revision, that of most new sessions. None while it is stopped."""
        agent = self._agents.get(key)
        if agent is not None:
            return self._ready(agent.key_of(agent.stable))
        return self._ready(key) or self.base.get(key) or self._hidden.get(key)

    def choose(self, key: RuntimeKey) -> Runtime | None:
        """The runtime for a new session. Raises ConflictError for an agent that is stopped."""
        agent = self._agents.get(key)
        if agent is None:
            return self._ready(key) or self.base.choose(key) or self._hidden.get(key)
        if agent.stopped:
            raise ConflictError(f"agent {agent.id} is stopped; start it with POST /v1/agents/{agent.name}/start")
        rollout = agent.rollout
        # The header is asked of the request under way (core/request_headers.py): the lifecycle that calls this knows of
        # no HTTP.
        wanted = rollout.strategy if rollout is not None else None
        tries = wanted is not None and bool(wanted.header) and has_header(wanted.header, wanted.header_value)
        return self._ready(agent.key_of(choose(agent, self._chance(), tries_canary=tries)))

    def served(self) -> Sequence[Runtime]:
        """What the engine has to serve: all, and the gateway's own."""
        return [*self.all(), *self._hidden.values()]

    def all(self) -> Sequence[Runtime]:
        """All runtimes that clients may ask for, sorted by key."""
        own = [runtime for key in self._runtimes if (runtime := self._ready(key)) is not None]
        return sorted((*self.base.all(), *own), key=lambda runtime: runtime.key)
