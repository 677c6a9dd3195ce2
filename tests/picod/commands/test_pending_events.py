"""What a run's events are combined to, and how many of them a stream has at most."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from picod.commands.pending_events import MAX_RESULTS, Clear, PendingEvents, Result, Text
from tests.support.interpreters import Event, events, interpreter_process, printed
from tests.support.picod import Executor


def test_text_of_a_stream_is_one_event_between_results() -> None:
    """In the order in which things happened, as far as a result stands between."""
    pending = PendingEvents()
    for stream, text in (("stdout", "a"), ("stderr", "!"), ("stdout", "b")):
        pending.add_text(stream, text)
    pending.add_result(Result({"text/plain": "1"}, "", update=False))
    pending.add_text("stdout", "c")
    assert pending.take() == [
        Text("stdout", ["a", "b"]),
        Text("stderr", ["!"]),
        Result({"text/plain": "1"}, "", update=False),
        Text("stdout", ["c"]),
    ]
    assert pending.take() == []


def test_only_the_last_state_of_a_display_goes_out() -> None:
    """Of updates of one id the last, in the place of the first; of an animation the last picture."""
    pending = PendingEvents()
    for state in "123":
        pending.add_result(Result({"text/plain": state}, "bar", update=True))
    assert pending.take() == [Result({"text/plain": "3"}, "bar", update=True)]
    for state in "123":
        pending.add_clear(wait=True)
        pending.add_result(Result({"text/plain": state}, "", update=False))
    assert pending.take() == [Clear(wait=True), Result({"text/plain": "3"}, "", update=False)]


def test_results_that_nothing_follows_are_not_taken_back() -> None:
    """clear_output(wait=True) waits for the next result; without it the earlier ones stand."""
    pending = PendingEvents()
    shown = Result({"text/plain": "1"}, "", update=False)
    pending.add_result(shown)
    pending.add_clear(wait=True)
    assert pending.take() == [shown, Clear(wait=True)]
    pending.add_result(shown)
    pending.add_clear(wait=False)
    assert pending.take() == [Clear(wait=False)]


def test_many_results_are_full() -> None:
    """So that their source waits."""
    pending = PendingEvents()
    for number in range(MAX_RESULTS):
        assert not pending.is_full
        pending.add_result(Result({"text/plain": str(number)}, "", update=False))
    assert pending.is_full


@pytest.fixture(scope="module")
def picod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Executor]:
    """One picod for all tests of this module."""
    with interpreter_process(tmp_path_factory.mktemp("home")) as executor:
        yield executor


def stream(picod: Executor, code: str, **fields: object) -> list[Event]:
    """Run code with `stream` and return all events."""
    with picod.client.stream("POST", "/api/run_code", json={"code": code, "stream": True, **fields}) as reply:
        return list(events(reply))


def test_endless_updates_are_few_events(picod: Executor) -> None:
    """20 a second at most, and the last one is the state at the end."""
    heard = stream(picod, "bar = display(0, display_id=True)\nfor n in range(20_000): bar.update(n)\nNone")
    results = [event for event in heard if event.kind == "result"]
    assert results[-1].data["data"] == {"text/plain": "19999"}
    assert len(results) < 20 * heard[-1].data["duration"] + 20


def test_small_prints_are_few_events(picod: Executor) -> None:
    """Two hundred thousand flushes give every byte, in events that a client can follow."""
    heard = stream(picod, "for n in range(200_000): print(n % 10, end='', flush=True)")
    assert printed(heard) == "0123456789" * 20_000
    assert len(heard) < 20 * heard[-1].data["duration"] + 20


def test_results_of_a_stream_are_all_there(picod: Executor) -> None:
    """The kernel waits where it shows more than may go out; nothing is lost, and the end comes after all of it."""
    heard = stream(picod, "for n in range(1000): display(n)\nprint('end')")
    assert [e.data["data"]["text/plain"] for e in heard if e.kind == "result"] == [str(n) for n in range(1000)]
    assert heard[-1].kind == "exit"
    assert printed(heard) == "end\n"


def test_follower_that_stands_still_holds_results_too(picod: Executor) -> None:
    """Results wait in the kernel, not in picod's memory, and come when the follower reads on."""
    code = "for n in range(300): display({'text/plain': str(n) + 'x' * 100_000}, raw=True)"
    before = picod.reset_peak()
    with picod.client.stream("POST", "/api/run_code", json={"code": code, "stream": True}) as reply:
        heard = events(reply)
        next(heard)
        assert picod.client.get("/api/contexts").status_code == 200
        rest = list(heard)
    results = [event for event in rest if event.kind == "result"]
    assert len(results) == 300
    assert picod.memory("VmHWM") - before < 30 << 20
