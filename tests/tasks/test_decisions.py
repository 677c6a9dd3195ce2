"""What becomes of a task, in virtual time."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.core.tasks import NEVER
from gateway.tasks import decisions
from gateway.tasks.decisions import Failure, Look, Then, look
from gateway.tasks.events import LastEvent
from gateway.tasks.model import Answer, State, Webhook, from_queued, to_queued
from tests.tasks.tasks import DAY_S, T0, ended, run, task


def test_a_task_is_stored_and_read_back_equal() -> None:
    """With all that it can have."""
    one = run(task(webhook=Webhook("https://example.com"), answer=Answer(200, "text/plain", 5)), T0)
    assert from_queued(to_queued(one)) == one
    assert to_queued(one).held
    assert not to_queued(task()).held


def test_a_success_is_the_end() -> None:
    """It is kept for the retention and never due again, but for a webhook."""
    over = ended(run(task(), T0), 200, T0 + 5)
    assert (over.state, over.due_at, over.expires_at, over.holder) == (State.SUCCEEDED, NEVER, T0 + 5 + DAY_S, "")
    hooked = ended(run(task(webhook=Webhook("https://example.com")), T0), 200, T0 + 5)
    assert (hooked.due_at, look(hooked, T0 + 5)) == (T0 + 5, Look.DELIVER)


def test_failures_of_the_agent_are_tried_again_with_growing_pauses_then_dead() -> None:
    """1 s, then 2 s; the third failure makes a dead letter, which is kept a week at least."""
    one, now, pauses = task(), T0, []
    for _ in range(2):
        one = ended(run(one, now), 500, now)
        assert one.state is State.QUEUED
        pauses.append(one.due_at - now)
        now = one.due_at
    assert pauses == [1.0, 2.0]
    dead = ended(run(one, now), 503, now)
    assert (dead.state, dead.attempts, dead.expires_at) == (State.DEAD, 3, now + decisions.DEAD_RETENTION_S)
    fresh = decisions.again(dead, now + 9, now + 99)
    assert (fresh.state, fresh.attempts, fresh.due_at, fresh.error) == (State.QUEUED, 0, now + 9, "")


@pytest.mark.parametrize(("status", "state"), [(400, State.FAILED), (422, State.FAILED), (429, State.QUEUED)])
def test_a_request_that_is_wrong_is_not_tried_again(status: int, state: State) -> None:
    """A 4xx would be the same again, except those that say `later`."""
    assert ended(run(task(), T0), status, T0).state is state


def test_what_could_not_be_tried_costs_no_try_until_the_deadline() -> None:
    """No room for a sandbox: the task waits, however often, but not for ever."""
    one, now, failure = task(), T0, Failure("no room", Then.LATER)
    for _ in range(20):
        one = decisions.failed(run(one, now), failure, now, DAY_S, 1.0)
        assert (one.state, one.attempts) == (State.QUEUED, 0)
        assert 1.0 <= one.due_at - now <= 30.0
        now = one.due_at
    late = decisions.failed(run(one, T0 + 3590), failure, T0 + 3590, DAY_S, 1.0)
    assert (late.state, late.error) == (State.DEAD, "no room")
    assert look(task(), T0 + 3600) is Look.GIVE_UP


def test_a_task_whose_gateway_died_is_due_when_its_lease_ends() -> None:
    """And is begun again as often as it may be, no oftener: a request that kills gateways is a dead letter."""
    one = task()
    for n in range(3):
        assert look(one, one.due_at) is Look.RUN
        one = run(one, T0 + n)
        assert one.due_at == T0 + n + 20
    assert look(one, one.due_at) is Look.GIVE_UP
    dead = decisions.given_up(one, one.due_at, DAY_S)
    assert dead.state is State.DEAD
    assert "3 times" in dead.error
    assert decisions.released(run(task(), T0), T0 + 1).attempts == 0


def test_cancelling_ends_a_task_that_waits_and_marks_one_that_runs() -> None:
    """Whatever the try then brings, the task is cancelled; one that is over stays what it was."""
    assert decisions.cancelled(task(), T0, DAY_S).state is State.CANCELLED
    running = decisions.cancelled(run(task(), T0), T0, DAY_S)
    assert (running.state, running.cancel) == (State.RUNNING, True)
    assert decisions.failed(running, Failure("stopped", Then.RETRY), T0, DAY_S, 0.5).state is State.CANCELLED
    assert look(replace(running, due_at=T0), T0) is Look.GIVE_UP
    assert decisions.given_up(running, T0, DAY_S).state is State.CANCELLED
    over = ended(run(task(), T0), 200, T0)
    assert decisions.cancelled(over, T0, DAY_S) is over


def test_a_session_that_is_gone_is_made_again_only_if_it_was_made_for_the_task() -> None:
    """A session that a client named is not replaced by an empty one."""
    gone = Failure("gone", Then.RETRY, lost_session=True)
    made = decisions.in_session(run(task(), T0), "s")
    assert decisions.failed(made, gone, T0, DAY_S, 1.0).session == ""
    assert decisions.failed(run(task(session="s"), T0), gone, T0, DAY_S, 1.0).session == "s"
    away, one, kept = Failure("its gateway is away", Then.LATER, lost_session=True), made, []
    for _ in range(3):
        one = decisions.failed(one if one.state is State.RUNNING else run(one, T0), away, T0, DAY_S, 1.0)
        kept.append(one.session)
    assert kept == ["s", "s", ""]


def test_a_session_that_was_made_for_a_task_is_occupied_by_it() -> None:
    """As one that it named would be; of sessions that were lost only the latest counts."""
    waiting = task(session="s", keys=("agent", "session s"))
    made = decisions.in_session(decisions.in_session(run(task(), T0), "gone"), "s")
    assert made.keys == waiting.keys
    assert decisions.limits_of(made, "agent", 20, 1) == decisions.limits_of(waiting, "agent", 20, 1)
    assert decisions.limits_of(made, "agent", 20, 1) == {"agent": 20, "session s": 1}


def test_the_tasks_of_a_conversation_wait_for_each_other_and_for_those_of_its_session() -> None:
    """Counted by its name when it has no session yet; a session that is lost is replaced."""
    one = run(task(conversation="conversation c", keys=("agent", "conversation c")), T0)
    assert decisions.limits_of(one, "agent", 20, 1) == {"agent": 20, "conversation c": 1}
    inside = decisions.in_session(one, "s")
    assert decisions.limits_of(inside, "agent", 20, 2) == {"agent": 20, "conversation c": 2, "session s": 2}
    assert not inside.made_session, "it is not put to sleep after each task"
    gone = decisions.failed(inside, Failure("gone", Then.RETRY, lost_session=True), T0, DAY_S, 1.0)
    assert (gone.session, gone.lost_session, gone.conversation) == ("", "s", "conversation c")


def test_a_webhook_is_sent_again_until_it_is_taken_or_given_up() -> None:
    """Eight times with growing pauses; a refusal of the address at once."""
    one = ended(run(task(webhook=Webhook("https://example.com")), T0), 200, T0)
    now = T0
    for n in range(1, decisions.WEBHOOK_ATTEMPTS + 1):
        assert look(one, now) is Look.DELIVER
        one = decisions.undelivered(decisions.delivering(one, now, 20.0), "down", now, 1.0, final=False)
        assert one.webhook is not None
        assert one.webhook.attempts == n
        now = one.due_at
    assert one.webhook is not None
    assert (one.webhook.state, one.due_at, one.webhook.error) == ("failed", NEVER, "down")
    first = decisions.delivering(ended(run(task(webhook=Webhook("https://x")), T0), 200, T0), T0, 20.0)
    assert decisions.undelivered(first, "private", T0, 1.0, final=True).due_at == NEVER
    assert decisions.delivered(first).due_at == NEVER


def test_the_last_event_of_a_stream_in_any_pieces() -> None:
    """Events end with an empty line; comments and other fields are none; what is huge is cut, not kept."""
    stream = b": hi\r\ndata: one\r\n\r\nevent: x\ndata: two\ndata: lines\n\n\n\ndata: not ended"
    for size in (1, 2, 7, 1000):
        events = LastEvent()
        for start in range(0, len(stream), size):
            events.feed(stream[start : start + size])
        assert (events.count, events.last) == (2, "two\nlines")
    huge = LastEvent()
    for _ in range(100):
        huge.feed(b"data: " + b"x" * 100_000 + b"\n")
    huge.feed(b"\n")
    assert (huge.count, len(huge.last)) == (1, 2048)
