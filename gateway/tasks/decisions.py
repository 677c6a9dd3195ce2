"""What becomes of a task: pure functions of the task, of what happened, and of the time.

A task is run at least once: whoever takes it holds it for a lease, renews that while it runs, and writes the end with
the version compared. If its gateway dies, the lease ends, and the task is due again for any gateway.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from gateway.core.backoff import backoff
from gateway.core.tasks import NEVER
from gateway.tasks.model import Answer, Progress, State, Task, is_session_key, session_key

RETRY_FIRST_S = 1.0
RETRY_LONGEST_S = 300.0
WEBHOOK_ATTEMPTS = 8  # 5 s, doubled up to 10 minutes: some 20 minutes in all
WEBHOOK_FIRST_S = 5.0
WEBHOOK_LONGEST_S = 600.0
DEAD_RETENTION_S = 7 * 86400.0  # at least: somebody has to look at dead letters
CONVERSATION_S = 7 * 86400.0  # after the last task: as long as a hibernated session is kept by default
MAX_ERROR = 500  # characters

# 408, 425, 429: the agent says "later". Other 4xx say that the request is wrong, and it would be wrong again.
_LATER = frozenset((408, 425, 429))


class Then(Enum):
    """What a failure means for the next try."""

    RETRY = "retry"  # it may have run, or the agent failed: counts as a try
    LATER = "later"  # nothing was sent: no sandbox, no room, no gateway; counts only against the deadline
    NEVER = "never"  # it cannot succeed


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a try brought no answer. `lost_session`: the session that was made for it is gone."""

    text: str
    then: Then
    lost_session: bool = False


class Look(Enum):
    """What a task that is due needs."""

    RUN = "run"
    GIVE_UP = "give up"
    DELIVER = "deliver"
    NOTHING = "nothing"


def look(task: Task, now: float) -> Look:
    """What has to be done for a task that is due."""
    if task.state.is_over:
        pending = task.webhook is not None and task.webhook.state == "pending"
        return Look.DELIVER if pending else Look.NOTHING
    return Look.GIVE_UP if task.cancel or task.attempts >= task.max_attempts or now >= task.deadline else Look.RUN


def begun(task: Task, holder: str, now: float, lease: float) -> Task:
    """The task with a try begun by a gateway, which is another's to repeat once the lease has ended."""
    return replace(
        task,
        state=State.RUNNING,
        holder=holder,
        # Counted when it begins and not when it fails: a task that kills its gateway each time is given up too.
        attempts=task.attempts + 1,
        started_at=task.started_at or now,
        due_at=now + lease,
        progress=Progress(),
    )


def renewed(task: Task, progress: Progress, now: float, lease: float) -> Task:
    """The task with a longer lease, and with what its agent has said so far."""
    return replace(task, progress=progress, due_at=now + lease)


def in_session(task: Task, session_id: str) -> Task:
    """A session was made for it, or its conversation has one, which it occupies as one that it named would be."""
    # Of a session of an earlier try, which is lost, it holds nothing by now.
    keys = (*(key for key in task.keys if not is_session_key(key)), session_key(session_id))
    # That of a conversation is left to its idle timeout: the next request may come in a moment.
    return replace(task, session=session_id, made_session=not task.conversation, keys=keys)


def answered(task: Task, answer: Answer, now: float, retention: float, jitter: float) -> Task:
    """The agent has answered. `jitter`: 0 to 1, the share of the pause before another try."""
    task = replace(task, answer=answer, progress=replace(task.progress, bytes=answer.size))
    if answer.status < 400:
        return over(replace(task, error=""), State.SUCCEEDED, now, retention)
    failure = Failure(
        f"the agent answered {answer.status}",
        Then.RETRY if answer.status >= 500 or answer.status in _LATER else Then.NEVER,
    )
    return failed(task, failure, now, retention, jitter)


def failed(task: Task, failure: Failure, now: float, retention: float, jitter: float) -> Task:
    """A try brought no answer, or one that is no success."""
    task = replace(task, error=failure.text[:MAX_ERROR], holder="")
    patient = failure.then is Then.LATER and task.held_back < 2  # its gateway may be started again in a moment
    # Its files are gone with the session, so another try begins in a new one, and the answer says which was lost.
    if failure.lost_session and (task.made_session or task.conversation) and not patient:
        task = replace(task, session="", made_session=False, lost_session=task.session)
    if task.cancel:
        return over(task, State.CANCELLED, now, retention)
    if failure.then is Then.NEVER:
        return over(task, State.FAILED, now, retention)
    if failure.then is Then.LATER:
        held_back = task.held_back + 1
        # Nothing was sent, so nothing was tried. The pause grows to 30 s at most: room may come at any moment.
        task = replace(task, attempts=task.attempts - 1, held_back=held_back)
        pause = backoff(held_back, first=RETRY_FIRST_S, longest=RETRY_LONGEST_S / 10)
    else:
        task = replace(task, held_back=0)
        pause = backoff(task.attempts, first=RETRY_FIRST_S, longest=RETRY_LONGEST_S)
    # Between half and the whole of the pause: a hundred tasks that failed together would otherwise come back together.
    due_at = now + pause * (0.5 + jitter / 2)
    if task.attempts >= task.max_attempts or due_at >= task.deadline:
        return over(task, State.DEAD, now, retention)
    return replace(task, state=State.QUEUED, due_at=due_at)


def given_up(task: Task, now: float, retention: float) -> Task:
    """It is due and may not be tried again: its gateway died with the last try, or its time is over."""
    if task.cancel:
        return over(task, State.CANCELLED, now, retention)
    if task.state is State.RUNNING:
        text = f"the gateway that ran it ended, {task.attempts} times in all"
        task = replace(task, error=text if task.attempts >= task.max_attempts else "its gateway ended, and its time")
    elif now >= task.deadline:
        task = replace(task, error=f"it was not run in time{': ' if task.error else ''}{task.error}"[:MAX_ERROR])
    return over(task, State.DEAD, now, retention)


def released(task: Task, now: float) -> Task:
    """Its gateway shuts down: another one begins it again, and that is no failure of the task's."""
    return replace(task, state=State.QUEUED, holder="", attempts=task.attempts - 1, due_at=now)


def cancelled(task: Task, now: float, retention: float) -> Task:
    """Somebody wants it stopped. One that runs is stopped by the gateway that runs it."""
    if task.state.is_over or task.cancel:
        return task
    if task.state is State.RUNNING:
        return replace(task, cancel=True)
    return over(replace(task, cancel=True), State.CANCELLED, now, retention)


def again(task: Task, now: float, deadline: float) -> Task:
    """Somebody wants a task that is over tried again, from the start."""
    # Its receiver was told of the first end, and is told of the second.
    webhook = task.webhook if task.webhook is None else replace(task.webhook, state="pending", attempts=0, error="")
    return replace(
        task,
        state=State.QUEUED,
        due_at=now,
        deadline=deadline,
        attempts=0,
        held_back=0,
        cancel=False,
        error="",
        answer=None,
        progress=Progress(),
        finished_at=0.0,
        expires_at=NEVER,
        webhook=webhook,
    )


def over(task: Task, state: State, now: float, retention: float) -> Task:
    """It has ended. A webhook makes it due once more."""
    kept = max(retention, DEAD_RETENTION_S) if state is State.DEAD else retention
    return replace(
        task,
        state=state,
        holder="",
        finished_at=now,
        # The queue is ordered by this alone, so a task that is over leaves it by never being due.
        due_at=now if task.webhook is not None else NEVER,
        expires_at=now + kept,
    )


def delivering(task: Task, now: float, lease: float) -> Task:
    """A gateway sends its webhook; if it dies, another one does so after the lease."""
    assert task.webhook is not None
    return replace(task, due_at=now + lease, webhook=replace(task.webhook, attempts=task.webhook.attempts + 1))


def delivered(task: Task) -> Task:
    """Its receiver has taken the webhook."""
    assert task.webhook is not None
    return replace(task, due_at=NEVER, webhook=replace(task.webhook, state="delivered", error=""))


def undelivered(task: Task, why: str, now: float, jitter: float, *, final: bool) -> Task:
    """Its receiver has not. `final`: it is refused, and would be again."""
    assert task.webhook is not None
    webhook = replace(task.webhook, error=why[:MAX_ERROR])
    if final or webhook.attempts >= WEBHOOK_ATTEMPTS:
        return replace(task, due_at=NEVER, webhook=replace(webhook, state="failed"))
    pause = backoff(webhook.attempts, first=WEBHOOK_FIRST_S, longest=WEBHOOK_LONGEST_S)
    return replace(task, due_at=now + pause * (0.5 + jitter / 2), webhook=webhook)


def limits_of(task: Task, agent: str, per_agent: int, per_session: int) -> dict[str, int]:
    """How many tasks may hold each of its keys at a time."""
    limits = {agent: per_agent, task.conversation: per_session}
    if task.session:
        limits[session_key(task.session)] = per_session
    return {key: limit for key, limit in limits.items() if key in task.keys}
