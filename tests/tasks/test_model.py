"""Tasks as the store keeps them."""

from __future__ import annotations

from dataclasses import replace

from gateway.tasks import decisions
from gateway.tasks.model import Answer, Progress, State, Webhook, from_queued, to_queued
from tests.tasks.tasks import T0, task


def test_a_task_is_read_as_it_was_written() -> None:
    """With all that it may have."""
    full = task(
        session="s", conversation="c", schedule="nightly", state=State.DEAD, answer=Answer(500, "text/plain", 3),
        webhook=Webhook("https://example.com"), progress=Progress(1, 2, "x"), keys=("agent", "session s"),
    )  # fmt: skip
    assert from_queued(to_queued(full)) == full


def test_what_a_later_version_wrote_is_kept_and_what_an_earlier_one_wrote_is_read() -> None:
    """While one version of the gateway replaces the other, both change the same tasks."""
    entry = to_queued(task())
    later = from_queued(replace(entry, value={**entry.value, "priority": 7}))
    assert later.unknown == {"priority": 7}
    assert to_queued(decisions.cancelled(later, T0, 60.0)).value["priority"] == 7
    earlier = {name: value for name, value in entry.value.items() if name not in ("conversation", "lost_session")}
    assert from_queued(replace(entry, value=earlier)) == task()
