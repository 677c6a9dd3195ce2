"""Carries rollouts out: looks at each that is under way, and writes what `rollout.step` decides."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass

from gateway.agents import rollout
from gateway.agents.bundles import UNUSED_S
from gateway.agents.code import CodeStore
from gateway.agents.directory import AgentDirectory
from gateway.agents.model import Agent, Phase
from gateway.agents.rollout import Health
from gateway.core.clock import Clock
from gateway.core.errors import NotFoundError, RuntimeNotFoundError, StaleWriteError
from gateway.core.identity import SYSTEM, acting_as
from gateway.core.interfaces import SandboxProvider, SessionStore
from gateway.core.model import RuntimeKey, SessionState
from gateway.observability.counters import Counters

logger = logging.getLogger(__name__)

_SWEEP_TICKS = 300
# An empty Redis names no file either; a week leaves time to bring it back from a backup before its files go.
_LOST_S = 7 * 86400.0
_DRAIN_TICKS = 5  # between two looks for sessions of a draining revision


@dataclass(slots=True)
class _Baseline:
    """From which counts of a revision's requests a phase is judged, and what they were at the latest look."""

    phase: tuple[int, Phase, float]
    requests: int
    errors: int
    seen: tuple[int, int] = (0, 0)


class AgentKeeper:
    """The loop that looks at rollouts under way, and writes what `rollout.step` decides.

    Every gateway looks, each at the requests that it has served itself; the store lets one of them decide.
    """

    def __init__(
        self,
        directory: AgentDirectory,
        provider: SandboxProvider,
        store: SessionStore,
        counters: Counters,
        clock: Clock,
        code: CodeStore,
        *,
        always: Collection[str] = (),
    ) -> None:
        """`always`: digests that something else than a revision names."""
        self._directory = directory
        self._provider = provider
        self._store = store
        self._counters = counters
        self._clock = clock
        self._code, self._always = code, frozenset(always)
        self._baselines: dict[str, _Baseline] = {}
        self._ticks = 0

    async def tick(self) -> None:
        """One look at everything. Raises UnavailableError."""
        await self._directory.follow()
        self._ticks += 1
        # Files lie on this machine, so each gateway sweeps its own, and not at each tick, as it lists them all.
        if self._ticks % _SWEEP_TICKS == 0:
            await self._sweep()
        for agent in self._directory.all():
            if agent.rollout is not None and not agent.stopped:
                await self._step(agent)
            else:
                self._baselines.pop(agent.id, None)
            if agent.draining and self._ticks % _DRAIN_TICKS == 0:
                await self._end_drained(agent)

    async def _sweep(self) -> None:
        """Delete the files that no revision names; late where nothing names any, since records may have been lost."""
        if self._directory.unreadable:
            return  # what those agents name is not known
        revisions = [revision for agent in self._directory.all() for revision in agent.revisions]
        used = {digest for each in revisions for digest in (each.bundle, each.environment) if digest}
        before = self._clock.now() - (UNUSED_S if used else _LOST_S)
        await self._code.sweep(used | self._always, before)

    async def _step(self, agent: Agent) -> None:
        health = await self._health(agent)
        changed = rollout.step(agent, health, self._clock.now())
        if changed is not agent:
            logger.info("agent %s, revision %d: %s", agent.id, changed.events[-1].revision, changed.events[-1].text)
            try:
                await self._directory.write(changed)
            except StaleWriteError:
                pass  # another gateway decided, or its owner changed it: the next look sees that

    async def _health(self, agent: Agent) -> Health:
        assert agent.rollout is not None
        under_way = agent.rollout
        key = agent.key_of(under_way.revision)
        try:
            status = await self._provider.status(key)
        except RuntimeNotFoundError:
            return Health()
        requests, errors = counts(self._counters, key)
        phase = (under_way.revision, under_way.phase, under_way.since)
        baseline = self._baselines.get(agent.id)
        if baseline is None or baseline.phase != phase:
            # From the look before: a phase begins between two looks, and what fails in its first second counts too. Of
            # a revision that was never looked at, from now: an agent of this name may have been deleted before.
            before = requests, errors
            if baseline is not None and baseline.phase[0] == under_way.revision:
                before = baseline.seen
            baseline = self._baselines[agent.id] = _Baseline(phase, *before)
        baseline.seen = requests, errors
        return Health(
            status.ready + status.claimed,
            status.failures,
            status.last_error,
            requests - baseline.requests,
            errors - baseline.errors,
        )

    async def _end_drained(self, agent: Agent) -> None:
        over = [number for number in agent.draining if not await self._has_sessions(agent.key_of(number))]
        if over:
            with acting_as(SYSTEM):
                try:
                    await self._directory.change(agent, lambda found: rollout.drained(found, over))
                except NotFoundError:
                    return
            # Or each revision that there ever was would stay in memory and in /metrics.
            for number in over:
                self._counters.forget(agent.key_of(number))

    async def _has_sessions(self, key: RuntimeKey) -> bool:
        # A state at a time, for one record each: the store has an index by state and runtime, and a session that has
        # ended, whose record is kept for an hour, must not hold the revision.
        for state in SessionState:
            if state is not SessionState.TERMINATED:
                async for _ in self._store.sessions(state=state, runtime=key, limit=1):
                    return True
        return False


def counts(counters: Counters, key: RuntimeKey) -> tuple[int, int]:
    """Requests of a runtime that this gateway has answered, and those of them with a status of 500 or above."""
    found = counters.runtimes.get(key)
    if found is None:
        return 0, 0
    requests = errors = 0
    for (_, status), count in found.requests().items():
        requests += count
        errors += count if status.startswith("5") else 0
    return requests, errors
