"""What becomes of a change to an agent, in virtual time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gateway.agents.model import MAX_REVISIONS, Agent, Phase, Revision, Strategy, from_document, to_document
from gateway.agents.rollout import (
    Health,
    begin,
    choose,
    drained,
    go_back,
    is_in_effect,
    left_behind,
    next_number,
    pause,
    served,
    step,
    take_over,
    undo,
)
from gateway.agents.strategy import read_strategy
from gateway.core.errors import BadRequestError, ConflictError, NotFoundError

READY = Health(ready=1)
PLAIN = Strategy()
CANARY = Strategy(weight=20, window=60)


def test_sessions_that_may_be_moved_are_those_of_neither_the_revision_that_serves_nor_a_canary() -> None:
    """Sessions of a canary are there on purpose; once it has taken over, those of the revision before are behind."""
    agent = change(new(), CANARY)
    assert left_behind(agent) == frozenset()
    agent = step(step(agent, READY, 101.0), READY, 161.0)
    assert (agent.stable, left_behind(agent)) == (2, frozenset({1}))
    assert left_behind(go_back(agent, "it fails", 170.0)) == frozenset({2})


def change(agent: Agent, strategy: Strategy = PLAIN, now: float = 100.0) -> Agent:
    number = next_number(agent)
    return begin(agent, Revision(number, {"spec": {"n": number}}, now, "ada"), strategy, now)


def new() -> Agent:
    """An agent whose first revision has proved itself."""
    agent = change(Agent("default", "greeter", "default", 0.0, "ada"), now=0.0)
    agent = step(agent, READY, 1.0)
    agent = step(agent, READY, 61.0)
    assert (agent.stable, agent.rollout) == (1, None)
    return agent


def test_first_revision_serves_from_the_beginning_and_has_nothing_to_go_back_to() -> None:
    """Also when it fails: an event says so."""
    agent = change(Agent("default", "greeter", "default", 0.0, "ada"))
    assert (agent.stable, served(agent)) == (1, (1,))
    failed = step(agent, Health(failures=3, last_error="exit status 1"), 101.0)
    assert failed.rollout is None
    assert failed.stable == 1
    assert "exit status 1" in failed.events[-1].text


def test_the_same_again_is_a_release_where_the_latest_revision_failed_or_was_undone() -> None:
    """Its cause may be gone; while it is tried, and once it serves, the same again changes nothing."""
    first = change(Agent("default", "greeter", "default", 0.0, "ada"))
    assert is_in_effect(first)
    assert not is_in_effect(step(first, Health(failures=3, last_error="no packages"), 101.0))
    agent = new()
    assert is_in_effect(agent)
    agent = change(agent)
    assert is_in_effect(agent)
    taken = step(agent, READY, 130.0)
    assert is_in_effect(step(taken, READY, 190.0))
    for undone in (go_back(agent, "it fails", 110.0), undo(taken, None, "ada", PLAIN, 140.0)):
        assert not is_in_effect(undone)
    assert is_in_effect(undo(step(taken, READY, 190.0), 1, "ada", PLAIN, 200.0))


def test_new_sessions_stay_with_the_old_revision_until_the_new_one_is_ready() -> None:
    """It then serves all, the old one is kept for the window, and drains after it."""
    agent = change(new())
    assert (agent.stable, served(agent)) == (1, (1, 2))
    assert step(agent, Health(), 120.0) is agent
    agent = step(agent, READY, 130.0)
    assert agent.rollout is not None
    assert (agent.stable, agent.rollout.phase, served(agent)) == (2, Phase.WATCHING, (1, 2))
    assert step(agent, READY, 189.0) is agent
    agent = step(agent, READY, 190.0)
    assert (agent.stable, agent.rollout, agent.draining, served(agent)) == (2, None, (1,), (2,))
    assert drained(agent, [1]).draining == ()


@pytest.mark.parametrize(
    ("health", "at", "reason"),
    [
        (Health(failures=3, last_error="no module agent"), 101.0, "no module agent"),
        (Health(failures=1), 160.0, "not ready after 60 s"),
    ],
)
def test_a_revision_that_does_not_become_ready_never_serves(health: Health, at: float, reason: str) -> None:
    """The change is dropped with its reason."""
    agent = step(change(new()), health, at)
    assert (agent.stable, agent.rollout, agent.draining) == (1, None, (2,))
    assert reason in agent.events[-1].text


@pytest.mark.parametrize("phase", [Phase.CANARY, Phase.WATCHING])
def test_errors_within_the_window_bring_the_old_revision_back(phase: Phase) -> None:
    """In the canary and after it; a rate that is low, or of too few requests, does not."""
    agent = step(change(new(), CANARY if phase is Phase.CANARY else Strategy()), READY, 110.0)
    assert agent.rollout is not None
    assert agent.rollout.phase is phase
    assert step(agent, Health(1, requests=9, errors=9), 120.0) is agent
    assert step(agent, Health(1, requests=100, errors=10), 120.0) is agent
    agent = step(agent, Health(1, requests=100, errors=11), 120.0)
    assert (agent.stable, agent.rollout, agent.draining) == (1, None, (2,))
    assert "11 of 100 requests failed" in agent.events[-1].text


def test_canary_gets_its_share_of_new_sessions_and_those_with_its_header() -> None:
    """Before and after it, all sessions are of one revision."""
    agent = change(new(), CANARY)
    assert choose(agent, 0.0) == 1
    agent = step(agent, READY, 110.0)
    assert [choose(agent, chance) for chance in (0.0, 0.19, 0.2, 0.99)] == [2, 2, 1, 1]
    assert choose(agent, 0.99, tries_canary=True) == 2
    assert choose(step(agent, READY, 170.0), 0.99) == 2


def test_paused_canary_waits_and_still_goes_back_when_it_fails() -> None:
    """Once it goes on, the window begins anew."""
    agent = pause(step(change(new(), CANARY), READY, 110.0), 120.0, paused=True)
    assert step(agent, READY, 10_000.0) is agent
    assert step(agent, Health(1, requests=10, errors=10), 10_000.0).rollout is None
    agent = pause(agent, 10_000.0, paused=False)
    assert step(agent, READY, 10_059.0) is agent
    assert step(agent, READY, 10_060.0).stable == 2


def test_undo_during_the_window_switches_back_at_once_and_after_it_makes_a_new_revision() -> None:
    """A revision never changes, and none is used twice."""
    agent = step(change(new()), READY, 110.0)
    assert undo(agent, None, "ada", Strategy(), 111.0).stable == 1
    done = step(agent, READY, 200.0)
    again = undo(done, None, "bob", Strategy(), 300.0)
    assert again.rollout is not None
    assert (again.latest.number, again.latest.manifest, again.latest.by) == (3, done.revisions[0].manifest, "bob")
    with pytest.raises(ConflictError):
        undo(new(), None, "ada", Strategy(), 1.0)
    with pytest.raises(NotFoundError):
        undo(done, 9, "ada", Strategy(), 1.0)


def test_a_change_during_a_rollout_replaces_it_and_what_it_had_drains() -> None:
    """So that sessions of every revision live on."""
    trying = step(change(new(), CANARY), READY, 110.0)
    agent = change(trying, now=120.0)
    assert (agent.stable, agent.draining, served(agent)) == (1, (2,), (1, 3))
    watching = step(change(new()), READY, 110.0)
    agent = change(watching, now=120.0)
    assert (agent.stable, agent.draining, served(agent)) == (2, (1,), (2, 3))


def test_old_revisions_are_dropped_but_not_those_in_use() -> None:
    """An agent that is changed a thousand times is a small document."""
    agent = replace(new(), draining=(1,))
    for at in range(50):
        agent = step(change(agent, now=at * 100.0), READY, at * 100.0 + 1)
        agent = drained(step(agent, READY, at * 100.0 + 99), [agent.stable - 1] if agent.stable > 2 else [])
    assert len(agent.revisions) <= MAX_REVISIONS + 2
    assert agent.revision(1) is not None or 1 not in agent.draining
    assert agent.revision(agent.stable) is not None


def test_promotion_needs_a_change_and_a_stopped_agent_waits() -> None:
    """No clock runs while it is stopped."""
    with pytest.raises(ConflictError):
        take_over(new(), 1.0)
    agent = replace(change(new()), stopped=True)
    assert step(agent, Health(failures=9), 9999.0) is agent
    assert served(agent) == ()
    assert go_back(new(), "x", 1.0) == new()


def test_an_agent_is_read_from_the_store_as_it_was_written() -> None:
    """With its rollout."""
    agent = step(change(new(), CANARY), READY, 110.0)
    assert from_document(to_document(agent), 7) == agent
    assert from_document(to_document(agent), 7).version == 7


@pytest.mark.parametrize(
    "canary", [{"header": "x y", "value": "1"}, {"header": "x:"}, {"value": "1"}, {"header": "x\n"}, {"header": 1}]
)
def test_canary_needs_the_name_of_a_header(canary: dict[str, Any]) -> None:
    """One that no request can have would be a canary that nobody meets."""
    with pytest.raises(BadRequestError, match="canary"):
        read_strategy({"canary": canary})
    assert read_strategy({"canary": {"header": "X-Try"}}).header == "x-try"
