"""The order of a live run's events, whatever its sources do when they are resumed."""

from __future__ import annotations

import json
from typing import cast

import pytest

from picod.commands import live_run
from picod.commands.live_run import LiveRun
from picod.commands.pending_events import MAX_RESULTS
from picod.http.sse import EventStream


class Eager:
    """A source that delivers what it holds as soon as it is resumed, as a socket with parsed messages does."""

    def __init__(self, run: LiveRun, count: int) -> None:
        self._run, self._left, self._paused = run, iter(range(count)), False

    def grow(self) -> None:
        """Nothing to grow."""

    def pause(self) -> None:
        """Deliver no more until `resume`."""
        self._paused = True

    def resume(self) -> None:
        """Deliver until paused again."""
        self._paused = False
        while not self._paused and (number := next(self._left, None)) is not None:
            self._run.result({"text/plain": str(number)}, "", update=False)


class Collected:
    """The follower's stream: what was written to it, by event."""

    def __init__(self) -> None:
        self.events: list[bytes] = []

    async def raw(self, data: bytes) -> None:
        """Take events."""
        self.events += data.split(b"\n\n")


async def test_results_of_a_source_that_is_resumed_come_after_those_that_are_flushed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a busy machine the next flush is due at once, so that what a source delivers is flushed within a flush."""
    run = LiveRun(lambda _: None, background=False)
    source = Eager(run, 200)
    run.set_pipes([source])
    monkeypatch.setattr(live_run, "_FLUSH_INTERVAL_S", 1000.0)
    for number in range(1 + MAX_RESULTS):  # the first goes out at once, the others wait, and the source is paused
        run.result({"text/plain": f"first {number}"}, "", update=False)
    monkeypatch.setattr(live_run, "_FLUSH_INTERVAL_S", 0.0)
    run.end({})

    stream = Collected()
    await run.follow(cast("EventStream", stream), 0)
    shown = [json.loads(each.split(b"data: ")[1]) for each in stream.events if b"event: result" in each]
    assert [each["data"]["text/plain"] for each in shown] == (
        [f"first {number}" for number in range(1 + MAX_RESULTS)] + [str(number) for number in range(200)]
    )
