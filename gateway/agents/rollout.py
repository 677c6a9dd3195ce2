"""Decides what becomes of a change to an agent: begun, tried, taken over, undone. Pure; time is an argument.

    starting --ready--> canary --window--> watching --window--> done
        |                  |                   |
        +----- fails ------+------ fails ------+--> back to the revision before

A change that has no canary goes from starting to watching. The first revision of an agent serves from the beginning.
Sessions stay on their revision until they end: whatever leaves service goes to `draining` first.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from gateway.agents.model import MAX_EVENTS, MAX_REVISIONS, Agent, Event, Phase, Revision, Rollout, Strategy
from gateway.core.errors import ConflictError, NotFoundError

_FAILED = "failed: "  # begins the event of a first revision that did
_FAILED_STARTS = 3  # in a row, with none that succeeded


@dataclass(frozen=True, slots=True)
class Health:
    """What is known of a revision under way: its pool, and its requests since its phase began."""

    ready: int = 0  # warm sandboxes that have passed their readiness probe, and those that sessions have
    failures: int = 0  # starts that failed in a row
    last_error: str = ""
    requests: int = 0
    errors: int = 0  # those with a status of 500 or above


def begin(agent: Agent, revision: Revision, strategy: Strategy, now: float) -> Agent:
    """The agent with a new revision, whose rollout begins. One that is under way ends without having been taken over.

    `revision.number` must be `next_number(agent)`.
    """
    agent = _abandon(agent)
    rollout = Rollout(revision.number, agent.stable, Phase.STARTING, now, strategy)
    agent = replace(agent, revisions=(*agent.revisions, revision), rollout=rollout)
    # The first revision has nothing to protect: were it served only once it is ready, requests in its first seconds
    # would be refused, where they can wait for a cold start.
    if not agent.stable:
        agent = replace(agent, stable=revision.number)
    return _noted(_trimmed(agent), now, revision.number, revision.reason or "created")


def is_in_effect(agent: Agent) -> bool:
    """Whether new sessions get the latest revision, or are about to: then the same once more changes nothing.

    Of one that has failed, or was undone, the same once more is a release: its cause may be gone.
    """
    latest, rollout = agent.latest.number, agent.rollout
    if rollout is not None:
        return rollout.revision == latest
    failed = any(each.revision == latest and each.text.startswith(_FAILED) for each in agent.events)
    return agent.stable == latest and not failed


def next_number(agent: Agent) -> int:
    """Of the next revision. Numbers are never used twice."""
    return agent.latest.number + 1 if agent.revisions else 1


def step(agent: Agent, health: Health, now: float) -> Agent:
    """What a look at the rollout's revision changes; the same object where nothing does."""
    rollout = agent.rollout
    if rollout is None or agent.stopped:
        return agent
    reason = failure_of(rollout, health, now)
    if reason:
        return go_back(agent, reason, now)
    # Failures are looked at also while it is paused: a pause holds what goes on by itself, not the way back.
    waited = now - rollout.since >= rollout.strategy.window and not rollout.paused
    match rollout.phase:
        case Phase.STARTING if health.ready and rollout.strategy.has_canary and rollout.previous:
            return _noted(_in_phase(agent, Phase.CANARY, now), now, rollout.revision, "canary begun")
        # One warm sandbox is enough: new sessions that come before the pool is full get cold starts of this revision,
        # as they would of any other. To wait for the whole pool would hold a release up for as long as claims empty it.
        case Phase.STARTING if health.ready and not rollout.paused:
            return take_over(agent, now)
        case Phase.CANARY if waited:
            return take_over(agent, now)
        # Only now does the revision before lose its warm pool. Until then an undo costs nothing: the next session is
        # served by sandboxes that are still warm.
        case Phase.WATCHING if waited:
            return _noted(_drain(replace(agent, rollout=None), rollout.previous), now, rollout.revision, "completed")
    return agent


# In a cluster nobody looks into its pod.
_NO_REASON = "no reason is known; it has to listen on AGENT_HOST, not only on 127.0.0.1, and on AGENT_PORT"


def failure_of(rollout: Rollout, health: Health, now: float) -> str:
    """Why a rollout has failed; empty if it has not."""
    strategy = rollout.strategy
    # Only while none is ready: one bad node among several must not undo a good release.
    if not health.ready and health.failures >= _FAILED_STARTS:
        return f"its sandboxes do not become ready: {health.last_error}"
    if rollout.phase is Phase.STARTING and not health.ready and now - rollout.since >= strategy.start_timeout:
        return f"it was not ready after {strategy.start_timeout:g} s: {health.last_error or _NO_REASON}"
    # From a number of requests on: the first one to fail would otherwise be an error rate of 100 %.
    if health.requests >= strategy.min_requests and health.errors > strategy.max_error_rate * health.requests:
        return f"{health.errors} of {health.requests} requests failed"
    return ""


def take_over(agent: Agent, now: float) -> Agent:
    """All new sessions get the rollout's revision; the one before stays ready for the window. Raises ConflictError."""
    rollout = agent.rollout
    if rollout is None or rollout.phase is Phase.WATCHING:
        raise ConflictError("no change is under way that new sessions do not get yet")
    agent = replace(_in_phase(agent, Phase.WATCHING, now), stable=rollout.revision)
    return _noted(agent, now, rollout.revision, "serves all new sessions")


def go_back(agent: Agent, reason: str, now: float) -> Agent:
    """Undo the rollout under way: new sessions get the revision before. The first revision has none before it."""
    rollout = agent.rollout
    if rollout is None:
        return agent
    # It stays in service: a revision that fails some requests is of more use than an agent that answers none.
    if not rollout.previous:
        return _noted(replace(agent, rollout=None), now, rollout.revision, f"{_FAILED}{reason}")
    agent = replace(agent, stable=rollout.previous, rollout=None)
    return _noted(_drain(agent, rollout.revision), now, rollout.revision, f"rolled back: {reason}")


def undo(agent: Agent, to: int | None, by: str, strategy: Strategy, now: float) -> Agent:
    """Go back: to the revision before, or to that numbered `to`.

    While a rollout is under way, and nothing else was named, its revision before is still ready: new sessions get it at
    once. Otherwise what the revision was is rolled out as a new one. Raises ConflictError, NotFoundError.
    """
    rollout = agent.rollout
    if rollout is not None and rollout.previous and to in (None, rollout.previous):
        return go_back(agent, f"undone by {by}", now)
    if to is None:
        before = [each.number for each in agent.revisions if each.number < agent.stable]
        if not before:
            raise ConflictError(f"revision {agent.stable} is the only one that is kept; there is nothing to go back to")
        to = before[-1]
    old = agent.revision(to)
    if old is None:
        kept = ", ".join(str(each.number) for each in agent.revisions)
        raise NotFoundError(f"revision {to} is not kept; there are {kept}")
    if to == agent.stable:
        raise ConflictError(f"revision {to} is the one in service")
    # A new number and not the old one again: what served when stays readable, and an undo can itself be undone.
    made = replace(old, number=next_number(agent), at=now, by=by, reason=f"undo to revision {to}")
    return begin(agent, made, replace(strategy, weight=0.0, header=""), now)


def left_behind(agent: Agent) -> frozenset[int]:
    """The revisions whose sessions may be moved to that of new sessions. Those of a canary are there on purpose."""
    rollout = agent.rollout
    kept = {agent.stable}
    if rollout is not None and rollout.phase is not Phase.WATCHING:
        kept.add(rollout.revision)
    return frozenset(each.number for each in agent.revisions) - kept


def pause(agent: Agent, now: float, *, paused: bool) -> Agent:
    """Hold a rollout where it is, or let it go on; its window then begins anew. Raises ConflictError."""
    rollout = agent.rollout
    if rollout is None:
        raise ConflictError("no change is under way")
    if rollout.paused == paused:
        return agent
    # `since` is moved when it goes on, not when it stops: after a pause of an hour a window of ten minutes would be
    # over at once, with nothing seen of the time in it.
    agent = replace(agent, rollout=replace(rollout, paused=paused, since=rollout.since if paused else now))
    return _noted(agent, now, rollout.revision, "paused" if paused else "resumed")


def drained(agent: Agent, numbers: Collection[int]) -> Agent:
    """Without those of `draining` that no session is of any more."""
    left = tuple(number for number in agent.draining if number not in numbers)
    return agent if left == agent.draining else _trimmed(replace(agent, draining=left))


def served(agent: Agent) -> tuple[int, ...]:
    """The revisions that have a warm pool."""
    if agent.stopped:
        return ()
    rollout = agent.rollout
    found = {agent.stable} | ({rollout.revision, rollout.previous} if rollout is not None else set())
    return tuple(sorted(found - {0}))


def choose(agent: Agent, chance: float, *, tries_canary: bool = False) -> int:
    """The revision of a new session. `chance`: from 0 to below 1; `tries_canary`: its request has the header."""
    rollout = agent.rollout
    if rollout is None or rollout.phase is not Phase.CANARY:
        return agent.stable
    # Drawn per session and not per request: one conversation never sees two revisions.
    return rollout.revision if tries_canary or chance * 100 < rollout.strategy.weight else agent.stable


def _in_phase(agent: Agent, phase: Phase, now: float) -> Agent:
    assert agent.rollout is not None
    return replace(agent, rollout=replace(agent.rollout, phase=phase, since=now))


def _abandon(agent: Agent) -> Agent:
    """End a rollout that another change replaces: whichever of its two revisions is not in service drains."""
    rollout = agent.rollout
    if rollout is None:
        return agent
    # 2 replaces 1 and is watched: 2 is stable, and 3 sends 1 away. 2 was still a canary: 1 is stable, and 3 sends 2
    # away.
    other = rollout.previous if agent.stable == rollout.revision else rollout.revision
    return _drain(replace(agent, rollout=None), other)


def _drain(agent: Agent, number: int) -> Agent:
    if not number or number in agent.draining:
        return agent
    return replace(agent, draining=(*agent.draining, number))


def _trimmed(agent: Agent) -> Agent:
    """Without the oldest revisions beyond MAX_REVISIONS that nothing needs."""
    needed = {agent.stable, *agent.draining, *served(agent)}
    # Old ones only, and only those that no session is of: a sandbox's runtime is read from its revision until it ends.
    spare = [each.number for each in agent.revisions if each.number not in needed]
    dropped = set(spare[: max(0, len(agent.revisions) - MAX_REVISIONS)])
    return replace(agent, revisions=tuple(each for each in agent.revisions if each.number not in dropped))


def _noted(agent: Agent, now: float, revision: int, text: str) -> Agent:
    return replace(agent, events=(*agent.events, Event(now, revision, text[:500]))[-MAX_EVENTS:])
