"""Reads the server-sent events of a run of picod's (`"stream": true`): progress as they come, one answer in the end.

The answer has the form of the one that picod gives without streaming, so that what a model reads does not depend on
whether it was streamed. A sandbox is hostile: events are bounded, and of endless output both ends are kept.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gateway.api.sandbox_json import BadAnswerError, parse_object, text_of
from gateway.core.errors import UpstreamBrokenError

Progress = Callable[[str, str], Awaitable[None]]  # (stream, text) of output as it comes

MAX_EVENT_BYTES = 24 << 20  # a picture is one event
MAX_RESULTS_BYTES = 16 << 20  # of all results, as picod keeps them
MAX_RESULTS = 256  # the same
_MAX_SAME_DISPLAY = 16  # results that one display_id updates
_KEPT_CHARS = 4 << 20  # of each end of a stream; models are shown less, and a file has the rest


class Ends:
    """The head and the tail of a text that may be endless."""

    def __init__(self, kept: int = _KEPT_CHARS) -> None:
        self._kept = kept
        self._head: list[str] = []
        self._space = kept  # left in the head
        self._tail: deque[str] = deque()
        self._tail_size = 0
        self._missing = 0

    def add(self, text: str) -> None:
        """Append text; what is neither head nor tail any more is dropped. Costs as much as the text is long."""
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
        """All, or both ends with a line between them that says how much is missing."""
        head, tail = "".join(self._head), "".join(self._tail)
        missing = self._missing + max(0, len(tail) - self._kept)
        return f"{head}\n[... {missing:,} characters left out ...]\n{tail[-self._kept :]}" if missing else head + tail


@dataclass(slots=True)
class _Shown:
    """A result and its size in bytes as it came."""

    data: Any
    size: int


class _Collector:
    """What a run's events have come to. Pure; each event costs the same however many came before it."""

    def __init__(self) -> None:
        self._streams = {"stdout": Ends(), "stderr": Ends()}
        self._results: list[_Shown] = []
        self._displays: dict[str, list[_Shown]] = {}  # by display_id, which updates name
        self._size = 0
        self._omitted = 0
        self._clearing = False
        self._error: Mapping[str, Any] | None = None

    def add(self, name: str, data: Mapping[str, Any], size: int) -> None:
        """One event other than `exit`; `size` is its length in bytes."""
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
                # The place of an old form is taken by the new one: sizes are exchanged, not added up.
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
        """The whole answer, from what came and the `exit` event."""
        texts = {stream: ends.text() for stream, ends in self._streams.items()}
        answer = {"error": self._error, **data, **texts, "results": [each.data for each in self._results]}
        if self._omitted:
            answer["results_omitted"] = self._omitted
        return answer


async def collect(chunks: AsyncIterator[bytes], progress: Progress) -> dict[str, Any]:
    """Read a run's events to its end. Raises UpstreamBrokenError when they break off, BadAnswerError for nonsense."""
    collector = _Collector()
    async for name, data, size in read_events(chunks):
        if name == "exit":
            return collector.answer(data)
        collector.add(name, data, size)
        if name in ("stdout", "stderr"):
            await progress(name, text_of(data, "text", ""))
    raise UpstreamBrokenError("the sandbox's events broke off before the run's end")


async def read_events(chunks: AsyncIterator[bytes]) -> AsyncIterator[tuple[str, Mapping[str, Any], int]]:
    """(event, data, bytes of it) of a stream as WHATWG HTML has it, as far as picod makes use of it.

    Raises BadAnswerError for an event that is too large, or whose data is not a JSON object.
    """
    pending = bytearray()
    async for chunk in chunks:
        await asyncio.sleep(0)  # a sandbox that always has more to say must not keep other requests from their turn
        searched = max(0, len(pending) - 1)  # an end may be cut in two
        pending += chunk
        start = 0
        while (end := pending.find(b"\n\n", max(start, searched))) >= 0:
            event = bytes(memoryview(pending)[start:end])
            start = end + 2
            fields = dict(line.split(b": ", 1) for line in event.split(b"\n") if b": " in line and line[:1] != b":")
            if b"data" in fields:
                name = fields.get(b"event", b"message").decode("latin-1")
                yield name, await parse_object(fields[b"data"]), len(event)
        del pending[:start]
        if len(pending) > MAX_EVENT_BYTES:
            raise BadAnswerError(f"an event of the sandbox is larger than {MAX_EVENT_BYTES} bytes")
