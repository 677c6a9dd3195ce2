"""A followed run gives the same answer as one that is not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.api.sandbox_json import BadAnswerError
from gateway.api.tools import run_events
from gateway.api.tools.run_events import Ends, collect, read_events
from gateway.core.errors import UpstreamBrokenError


def event(name: str, data: Any) -> bytes:
    return b"id: x:1\nevent: %b\ndata: %b\n\n" % (name.encode(), orjson.dumps(data))


RUN = b": hello\n\n" + b"".join([
    event("start", {"run_id": "x"}),
    event("stdout", {"text": "a\n"}),
    event("stderr", {"text": "ü: ß\n\n"}),
    event("result", {"data": {"text/plain": "old"}, "display_id": "d"}),
    event("stdout", {"text": "b\n"}),
    event("result", {"data": {"text/plain": "1"}}),
    event("result", {"data": {"text/plain": "new"}, "display_id": "d", "update": True}),
    event("error", {"name": "E", "value": "v", "traceback": []}),
    event("exit", {"duration": 1.5, "execution_count": 3}),
])  # fmt: skip
ANSWER = {
    "stdout": "a\nb\n",
    "stderr": "ü: ß\n\n",
    "results": [{"text/plain": "new"}, {"text/plain": "1"}],
    "error": {"name": "E", "value": "v", "traceback": []},
    "duration": 1.5,
    "execution_count": 3,
}


async def in_pieces(data: bytes, cuts: list[int]) -> AsyncIterator[bytes]:
    ends = sorted({cut % len(data) for cut in cuts} | {len(data)})
    start = 0
    for end in ends:
        yield data[start:end]
        start = end


async def ignore(_: str, __: str) -> None:
    return None


@given(st.lists(st.integers(min_value=0), max_size=20))
async def test_events_are_read_wherever_chunks_end(cuts: list[int]) -> None:
    """Between, and within, lines and characters."""
    told: list[tuple[str, str]] = []

    async def tell(stream: str, text: str) -> None:
        told.append((stream, text))

    assert await collect(in_pieces(RUN, cuts), tell) == ANSWER
    assert told == [("stdout", "a\n"), ("stderr", "ü: ß\n\n"), ("stdout", "b\n")]


async def test_cleared_results_are_removed() -> None:
    """At once, or when the next one comes."""
    old, new, end = event("result", {"data": {"a": 1}}), event("result", {"data": {"a": 2}}), event("exit", {})
    now = await collect(in_pieces(old + event("clear", {"wait": False}) + end, []), ignore)
    assert now["results"] == []
    later = event("clear", {"wait": True})
    assert (await collect(in_pieces(old + later + end, []), ignore))["results"] == [{"a": 1}]
    assert (await collect(in_pieces(old + later + new + end, []), ignore))["results"] == [{"a": 2}]


async def test_hostile_event_stream_ends_in_an_error_or_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken off, nonsense, endless events and results: an error or a bound, never a hang nor unbounded memory."""
    with pytest.raises(UpstreamBrokenError):
        await collect(in_pieces(event("stdout", {"text": "a"}), []), ignore)
    for odd in (b"data: {\n\n", b"event: stdout\ndata: 5\n\n"):
        with pytest.raises(BadAnswerError, match=r"."):
            await collect(in_pieces(odd, []), ignore)
    monkeypatch.setattr(run_events, "MAX_EVENT_BYTES", 1000)
    monkeypatch.setattr(run_events, "MAX_RESULTS_BYTES", 200)
    with pytest.raises(BadAnswerError, match="larger than 1000"):
        [each async for each in read_events(in_pieces(b"data: " + b"x" * 3000, [500, 1500, 2500]))]
    many = event("result", {"data": {"text/plain": "x" * 50}}) * 10 + event("exit", {})
    assert len((await collect(in_pieces(many, []), ignore))["results"]) == 1


async def test_endless_updates_of_a_display_cost_one_display() -> None:
    """Time and memory of each update are the same however many came before."""
    shown = event("result", {"display_id": "d", "data": {"n": 0}})
    updates = b"".join(event("result", {"display_id": "d", "update": True, "data": {"n": n}}) for n in range(20_000))
    answer = await collect(in_pieces(shown + updates + event("exit", {}), []), ignore)
    assert answer["results"] == [{"n": 19_999}]


@given(st.lists(st.text(max_size=30), max_size=20))
def test_head_and_tail_of_long_text_are_kept(texts: list[str]) -> None:
    """All of a short text; of a long one its first and last letters, and how many are missing."""
    ends = Ends(20)
    for text in texts:
        ends.add(text)
    whole = "".join(texts)
    if len(whole) <= 40:
        assert ends.text() == whole
    else:
        assert ends.text() == f"{whole[:20]}\n[... {len(whole) - 40:,} characters left out ...]\n{whole[-20:]}"
