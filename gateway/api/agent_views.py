"""What callers are shown of agents: their records with the sandboxes, sessions and usage of the moment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gateway.agents.directory import AgentDirectory
from gateway.agents.model import Agent
from gateway.agents.sketch import fields_of
from gateway.api.agent_json import agent_document, conditions, metrics_document, phase_of, rollout_document
from gateway.api.session_list import list_sessions
from gateway.core.clock import Clock
from gateway.core.errors import RuntimeNotFoundError
from gateway.core.identity import current
from gateway.core.interfaces import SandboxProvider, SessionStore
from gateway.core.model import Kind, PoolStatus, Runtime, RuntimeKey, Session, SessionState
from gateway.observability.counters import Counters
from gateway.usage.prices import Prices
from gateway.usage.report import Report

_DAY_S = 86400
_SESSIONS_SHOWN = 100


class AgentViews:
    """Documents of agents. `directory` None: this engine has no agents of its own, those of manifests are shown."""

    def __init__(
        self,
        directory: AgentDirectory | None,
        store: SessionStore,
        provider: SandboxProvider,
        counters: Counters,
        clock: Clock,
        prices: Prices | None,
        runtimes: Callable[[], Sequence[Runtime]],
    ) -> None:
        self._directory = directory
        self._store = store
        self._provider = provider
        self._counters = counters
        self._clock = clock
        self._prices = prices
        self._runtimes = runtimes

    async def all(self) -> list[tuple[str, dict[str, Any]]]:
        """Every agent that the caller sees, by id: those of the API and those of manifests."""
        caller = current()
        found: dict[str, dict[str, Any]] = {}
        for agent in self._directory.all() if self._directory is not None else ():
            if (caller.sees_all_tenants or agent.tenant == caller.tenant) and caller.uses(agent.key):
                found[agent.id] = agent_document(agent, await self._pool(agent.key_of(agent.stable)))
        for runtime in self._runtimes():
            key = runtime.key
            # A runtime with a revision is one of an agent's, which is listed already.
            if key.kind is Kind.AGENT_RUNTIME and not key.revision and _is_seen(runtime):
                found[f"{key.namespace}/{key.name}"] = await self._of_manifest(runtime)
        return sorted(found.items())

    async def of_manifest(self, key: RuntimeKey) -> dict[str, Any] | None:
        """The agent that a manifest makes; None where none does, or where the caller does not see it."""
        for runtime in self._runtimes():
            if runtime.key == key and _is_seen(runtime):
                return {**await self._of_manifest(runtime), "spec": runtime.manifest.get("spec", {})}
        return None

    async def _of_manifest(self, runtime: Runtime) -> dict[str, Any]:
        key, pool = runtime.key, await self._pool(runtime.key)
        # A pool that is to have no warm sandbox is as ready as it gets.
        ready = pool is not None and bool(pool.ready or pool.claimed or not pool.target)
        return {
            "namespace": key.namespace, "name": key.name, "owner": runtime.tenant or "",
            "phase": "Running" if ready else "Pending", "revision": None, "managedBy": "manifest",
            "path": f"/v1/namespaces/{key.namespace}/agent-runtimes/{key.name}/invocations/",
        }  # fmt: skip

    async def of(self, agent: Agent) -> dict[str, Any]:
        """One agent as its own page has it: with its spec, its status, and the flat fields of /api/v1/agents."""
        pool = await self._pool(agent.key_of(agent.stable))
        spec = agent.shown.manifest["spec"]
        sessions = await self.sessions(agent, _SESSIONS_SHOWN)
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

    async def sessions(self, agent: Agent, limit: int) -> list[Session]:
        """At most `limit` sessions of all of an agent's revisions that have not ended."""
        return await list_sessions(
            self._store,
            lambda each: each.runtime.base == agent.key and each.state is not SessionState.TERMINATED,
            ended=False,
            limit=limit,
        )

    async def _usage(self, agent: Agent) -> Mapping[str, Any]:
        now = int(self._clock.now())
        report = Report(("runtime",), self._prices)
        name = str(agent.key)
        # An hour beyond now, so that rows of a gateway whose clock is ahead are in it.
        async for key, amounts in self._store.usage.read(now - _DAY_S, now + 3600, sessions=False, tenant=agent.tenant):
            if key.runtime == name:
                report.add(key, amounts)
        return next(report.rows(), {})

    async def _pool(self, key: RuntimeKey) -> PoolStatus | None:
        try:
            return await self._provider.status(key)
        except RuntimeNotFoundError:
            return None


def _is_seen(runtime: Runtime) -> bool:
    """Whether the caller may know of a manifest's agent."""
    return current().sees_runtime(runtime) and current().uses(runtime.key)
