"""The keeper of rollouts: what it judges a phase by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gateway.agents.bundles import BundleStore
from gateway.agents.code import FolderCode
from gateway.agents.keeper import AgentKeeper
from gateway.agents.model import Agent, Phase, Revision, Rollout, Strategy
from gateway.core.model import PoolStatus, RuntimeKey
from gateway.observability.counters import Counters
from gateway.testing import ManualClock


class Directory:
    """The agents of a store that only this keeper writes to."""

    unreadable = 0

    def __init__(self, agent: Agent) -> None:
        self.agent = agent

    async def follow(self) -> None:
        """Nobody else changes it."""

    def all(self) -> list[Agent]:
        return [self.agent]

    async def write(self, agent: Agent) -> None:
        self.agent = agent


class ReadyProvider:
    """Every revision has a ready sandbox."""

    async def status(self, key: RuntimeKey) -> PoolStatus:
        return PoolStatus(key, target=1, ready=1, starting=0, claimed=0, failures=0)


async def test_requests_that_fail_between_two_looks_undo_a_canary(tmp_path: Path) -> None:
    """All of them came after the phase had begun and before the keeper looked again."""
    clock = ManualClock()
    strategy = Strategy(header="x-try", header_value="yes", window=60.0, min_requests=5)
    revisions = tuple(Revision(number, {}, clock.now(), "x") for number in (1, 2))
    rollout = Rollout(2, 1, Phase.STARTING, clock.now(), strategy)
    agent = Agent("default", "a", "acme", clock.now(), "x", revisions, stable=1, rollout=rollout)
    directory, counters = Directory(agent), Counters()
    keeper: Any = AgentKeeper(directory, ReadyProvider(), None, counters, clock, FolderCode(BundleStore(tmp_path)))  # type: ignore[arg-type]
    await keeper.tick()
    assert [each.rollout.phase for each in directory.all() if each.rollout] == [Phase.CANARY]
    for _ in range(5):
        counters.of(agent.key_of(2)).live[500] += 1
    clock.advance(1.0)
    await keeper.tick()
    assert [each.rollout for each in directory.all()] == [None]
    assert "5 of 5 requests failed" in directory.agent.events[-1].text
