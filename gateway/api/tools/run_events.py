"""Reads the server-sent events of a run of picod's (`"stream": true`): progress as they come, one answer in the end.

The answer has the form of the one that picod gives without streaming, so that what a model reads does not depend on
whether it was streamed. A sandbox is hostile: events are bounded, and of endless output both ends are kept.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import orjson

from gateway.core.errors import UpstreamBrokenError

Progress = Callable[[str, str], Awaitable[None]]  # (stream, text) of output as it comes

MAX_EVENT_BYTES = 24 << 20  # a picture is one event
MAX_RESULTS_BYTES = 16 << 20  # of all results, as picod keeps them
_KEPT_CHARS = 128 << 10  # of each end of a stream: more than any model is shown


class Ends:
    """The beginning and the end of a text that may be endless."""

    def __init__(self, kept: int = _KEPT_CHARS) -> None:
        self._kept = kept
        self._head = ""
        self._tail = ""
        self._size = 0

    def add(self, text: str) -> None:
        """Append text; what is neither head nor tail any more is dropped."""
        self._size += len(text)
        room = self._kept - len(self._head)
        self._head += text[:room] if room else ""
        rest = text[room:] if room else text
        if rest:
            self._tail = (self._tail + rest)[-self._kept :]

    def text(self) -> str:
        """All, or both ends with what is missing said between them."""
        missing = self._size - len(self._head) - len(self._tail)
        return f"{self._head}\n[... {missing:,} characters left out ...]\n{self._tail}" if missing else self._whole()

    def _whole(self) -> str:
        return self._head + self._tail


async def collect(chunks: AsyncIterator[bytes], progress: Progress) -> dict[str, Any]:
    """Read a run's events to its end. Raises UpstreamBrokenError when they break off, ValueError for nonsense."""
    streams = {"stdout": Ends(), "stderr": Ends()}
    results: list[tuple[str, Any]] = []
    size = 0
    clearing = False
    answer: dict[str, Any] = {"error": None}
    async for name, data, length in read_events(chunks):
        if not isinstance(data, dict):
            raise ValueError(f"the event {name} is not an object")
        if name in streams:
            text = str(data.get("text") or "")
            streams[name].add(text)
            await progress(name, text)
        elif name == "result":
            if clearing:
                results, size, clearing = [], 0, False
            display, size = str(data.get("display_id") or ""), size + length
            if data.get("update"):
                results = [(each, data.get("data") if each == display else old) for each, old in results]
            elif size <= MAX_RESULTS_BYTES:
                results.append((display, data.get("data")))
        elif name == "clear":
            clearing = bool(data.get("wait"))
            results, size = (results, size) if clearing else ([], 0)
        elif name == "error":
            answer["error"] = data
        elif name == "exit":
            texts = {stream: ends.text() for stream, ends in streams.items()}
            return {**answer, **data, **texts, "results": [each for _, each in results]}
    raise UpstreamBrokenError("the sandbox's events broke off before the run's end")


async def read_events(chunks: AsyncIterator[bytes]) -> AsyncIterator[tuple[str, Any, int]]:
    """(event, data, bytes of it) of a stream as WHATWG HTML has it, as far as picod makes use of it."""
    pending = bytearray()
    async for chunk in chunks:
        pending += chunk
        if b"\n\n" not in chunk and b"\n\n" not in pending[-len(chunk) - 1 :]:
            if len(pending) > MAX_EVENT_BYTES:
                raise ValueError(f"an event is larger than {MAX_EVENT_BYTES} bytes")
            continue
        *whole, rest = bytes(pending).split(b"\n\n")
        pending = bytearray(rest)
        for event in whole:
            fields = dict(line.split(b": ", 1) for line in event.split(b"\n") if b": " in line and line[:1] != b":")
            if b"data" in fields:
                yield fields.get(b"event", b"message").decode("latin-1"), orjson.loads(fields[b"data"]), len(event)
