"""Reads the server-sent events of a run (`"stream": true`): reports progress and assembles one answer.

The answer has the same form as picod's answer without streaming, so that the model's text does not depend on whether a
client watched. A sandbox is hostile: events are bounded, and of endless output the two ends are kept.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gateway.api.sandbox_json import BadAnswerError, parse_object, text_of
from gateway.core.errors import UpstreamBrokenError

Progress = Callable[[str, str], Awaitable[None]]  # (stream, text) of output as it comes
Event = tuple[str, Mapping[str, Any], int]  # its name, its data, its size in bytes

MAX_EVENT_BYTES = 24 << 20  # a picture is one event
MAX_RESULTS_BYTES = 16 << 20  # of all results, as picod keeps them
MAX_RESULTS = 256  # the same
_MAX_SAME_DISPLAY = 16  # results that one display_id updates
_MAX_LINES = 16  # of an event: picod writes three
_KEPT_CHARS = 4 << 20  # of each end of a stream; models are shown less, and a file has the rest


class Ends:
    """Keeps the head and the tail of a text that may be endless."""

    def __init__(self, kept: int = _KEPT_CHARS) -> None:
        self._kept = kept
        self._head: list[str] = []
        self._space = kept  # left in the head
        self._tail: deque[str] = deque()
        self._tail_size = 0
        self._missing = 0

    def add(self, text: str) -> None:
        """Append text, and drop what is neither head nor tail any more. Takes time linear in the text's length."""
        if self._space:
            self._head.append(text[: self._space])
            text = text[self._space :]
            self._space -= len(self._head[-1])
        if not text:
            return
        self._tail.append(text)
        self._tail_size += len(text)
        while self._tail_size - len(self._tail[0]) >= self._kept:
            dropped = len(self._tail.popleft())
            self._tail_size -= dropped
            self._missing += dropped

    def text(self) -> str:
        """The whole text, or both ends with a line between them that says how much is left out."""
        head, tail = "".join(self._head), "".join(self._tail)
        missing = self._missing + max(0, len(tail) - self._kept)
        return f"{head}\n[... {missing:,} characters left out ...]\n{tail[-self._kept :]}" if missing else head + tail


@dataclass(slots=True)
class _Shown:
    """A result, and the size in bytes of its event."""

    data: Any
    size: int


class _Collector:
    """Accumulates the events of one run. Pure. An event's cost does not depend on how many came before it."""

    def __init__(self) -> None:
        self._streams = {"stdout": Ends(), "stderr": Ends()}
        self._results: list[_Shown] = []
        self._displays: dict[str, list[_Shown]] = {}  # by display_id, which updates name
        self._size = 0
        self._omitted = 0
        self._clearing = False
        self._error: Mapping[str, Any] | None = None

    def add(self, name: str, data: Mapping[str, Any], size: int) -> None:
        """Add an event other than `exit`; `size` is its length in bytes."""
        if name in self._streams:
            self._streams[name].add(text_of(data, "text", ""))
        elif name == "result":
            self._add_result(data, size)
        elif name == "clear":
            self._clearing = bool(data.get("wait"))
            if not self._clearing:
                self._clear()
        elif name == "error":
            self._error = data

    def _add_result(self, data: Mapping[str, Any], size: int) -> None:
        if self._clearing:
            self._clear()
        display = text_of(data, "display_id", "")
        if data.get("update"):
            for shown in self._displays.get(display, ()):
                # The update replaces the earlier data, so only the difference in size counts against the bound.
                if self._size - shown.size + size <= MAX_RESULTS_BYTES:
                    self._size += size - shown.size
                    shown.data, shown.size = data.get("data"), size
        elif len(self._results) < MAX_RESULTS and self._size + size <= MAX_RESULTS_BYTES:
            shown = _Shown(data.get("data"), size)
            self._results.append(shown)
            self._size += size
            if display and len(self._displays.setdefault(display, [])) < _MAX_SAME_DISPLAY:
                self._displays[display].append(shown)
        else:
            self._omitted += 1

    def _clear(self) -> None:
        self._results, self._displays, self._size, self._clearing = [], {}, 0, False

    def answer(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """The whole answer, from all events and the data of `exit`."""
        texts = {stream: ends.text() for stream, ends in self._streams.items()}
        answer = {"error": self._error, **data, **texts, "results": [each.data for each in self._results]}
        if self._omitted:
            answer["results_omitted"] = self._omitted
        return answer


async def collect(chunks: AsyncIterator[bytes], progress: Progress) -> dict[str, Any]:
    """Read a run's events until its exit. Raises UpstreamBrokenError if they end before that, BadAnswerError."""
    collector, answer = _Collector(), None
    async for name, data, size in read_events(chunks):
        if answer is not None:
            continue  # to the end, which comes with the exit: only then can the connection be used again
        if name == "exit":
            answer = collector.answer(data)
            continue
        collector.add(name, data, size)
        if name in ("stdout", "stderr"):
            await progress(name, text_of(data, "text", ""))
    if answer is None:
        raise UpstreamBrokenError("the sandbox's event stream ended before the run did")
    return answer


async def read_events(chunks: AsyncIterator[bytes]) -> AsyncIterator[Event]:
    """Parse server-sent events, in the subset of the format that picod writes.

    Raises BadAnswerError for an event that is too large, or whose data is not a JSON object.
    """
    async for events in read_batches(chunks):
        for event in events:
            yield event


async def read_batches(chunks: AsyncIterator[bytes]) -> AsyncIterator[Sequence[Event]]:
    """As `read_events`, those together that came together: what is made of them can be sent in one piece."""
    pending = bytearray()
    async for chunk in chunks:
        await asyncio.sleep(0)  # with endless output a chunk is always ready: let other requests run in between
        searched = max(0, len(pending) - 1)  # the two newlines may be in different chunks
        pending += chunk
        start = 0
        events: list[Event] = []
        while (end := pending.find(b"\n\n", max(start, searched))) >= 0:
            event = bytes(memoryview(pending)[start:end])
            start = end + 2
            # At most so many lines: 24 MiB of line ends would be 25 million of them.
            lines = event.split(b"\n", _MAX_LINES)
            fields = dict(line.split(b": ", 1) for line in lines if b": " in line and line[:1] != b":")
            if b"data" in fields:
                name = fields.get(b"event", b"message").decode("latin-1")
                events.append((name, await parse_object(fields[b"data"]), len(event)))
        del pending[:start]
        if events:
            yield events
        if len(pending) > MAX_EVENT_BYTES:
            raise BadAnswerError(f"an event of the sandbox is larger than {MAX_EVENT_BYTES} bytes")
