"""What a run printed and showed, kept within bounds for one answer. Pure."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from picod.http.request import to_json

MAX_RESULTS = 256
MAX_RESULT_BYTES = 16 << 20  # of all results together, as JSON
_MAX_TEXT = 1 << 20  # characters of one text representation
_CUTTABLE = (
    "text/plain",
    "text/markdown",
    "text/latex",
)  # half of these is of use; half of HTML or of a picture is not


_PIECE = 64 << 10  # bytes of output that become JSON at once


class Bounds:
    """Keeps results below the bounds, and says what it took away."""

    def __init__(self) -> None:
        self.truncated: list[dict[str, object]] = []
        self.omitted = 0
        self._count = 0
        self._bytes = 0

    @property
    def size(self) -> int:
        """Bytes of what was admitted."""
        return self._bytes

    def admit(self, data: Mapping[str, Any] | None) -> dict[str, Any] | None:
        """The result as it may be answered, or None when nothing of it may."""
        if data is None or self._count >= MAX_RESULTS:
            self.omitted += 1
            return None
        kept: dict[str, Any] = {}
        for mime, value in data.items():
            size = _size(value)
            if size is None:
                continue
            cut = min(size, _MAX_TEXT) if isinstance(value, str) and mime in _CUTTABLE else size
            if self._bytes + cut > MAX_RESULT_BYTES:
                self._note(mime, size, 0)
                continue
            if cut < size:
                self._note(mime, size, cut)
            kept[mime] = value[:cut] if cut < size else value
            self._bytes += cut
        if not kept and data:
            self.omitted += 1
            return None
        self._count += 1
        return kept

    def release(self, kept: Mapping[str, Any]) -> None:
        """An admitted result is not to be answered after all."""
        self._count -= 1
        self._bytes -= sum(_size(value) or 0 for value in kept.values())

    def _note(self, mime: str, size: int, kept: int) -> None:
        if len(self.truncated) < MAX_RESULTS:
            self.truncated.append({"result": self._count, "mime": mime, "size": size, "kept": kept})

    def said(self) -> dict[str, object]:
        """The fields that tell the caller what is missing; empty when nothing is."""
        said: dict[str, object] = {}
        if self.truncated:
            said["results_truncated"] = self.truncated
        if self.omitted:
            said["results_omitted"] = self.omitted
        return said


def _size(value: Any) -> int | None:
    """Characters of a text, or of a value as JSON; None where JSON has no words for it."""
    if isinstance(value, str):
        return len(value)
    try:
        return len(json.dumps(value, allow_nan=False))
    except (ValueError, RecursionError):
        return None


class Collected:
    """A Listener that keeps everything for one answer: the first `limit` bytes of each stream, results in bounds."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept = {"stdout": bytearray(), "stderr": bytearray()}
        self._more = {"stdout": False, "stderr": False}
        self._bounds = Bounds()
        self._results: list[tuple[str, dict[str, Any]]] = []
        self._clearing = False

    def feeds(self, outlets: Iterable[object]) -> None:
        """Nothing is held: what has no room is dropped."""

    def output(self, stream: str, data: bytes) -> None:
        """Keep what has room."""
        kept = self._kept[stream]
        room = self._limit - len(kept)
        kept += data[:room]
        if len(data) > room:
            self._more[stream] = True

    def result(self, data: Mapping[str, Any] | None, display_id: str, *, update: bool) -> None:
        """Keep it, or put it in the place of the one that it updates."""
        if self._clearing:
            self.clear(wait=False)
        if update:  # an animation is one result, however long it is
            for index, (known, old) in enumerate(self._results):
                if known == display_id:
                    self._bounds.release(old)
                    kept = self._bounds.admit(data)
                    self._results[index] = (display_id, kept if kept is not None else {})
            return
        kept = self._bounds.admit(data)
        if kept is not None:
            self._results.append((display_id, kept))

    def clear(self, *, wait: bool) -> None:
        """Forget the results so far."""
        self._clearing = wait
        if not wait:
            for _, kept in self._results:
                self._bounds.release(kept)
            self._results.clear()

    @property
    def size(self) -> int:
        """About as many bytes as the answer will have at least."""
        return sum(map(len, self._kept.values())) + self._bounds.size

    def answer(self, rest: Mapping[str, object]) -> Iterator[bytes]:
        """The answer as JSON, with the fields of `rest`, in pieces: all at once it might be six times as much."""
        for name, opening in (("stdout", b'{"stdout":"'), ("stderr", b'","stderr":"')):
            yield opening
            yield from self._escaped(name)
        yield b'","results":['
        for index, (_, data) in enumerate(self._results):
            yield (b"," if index else b"") + to_json(data)
        truncated = {f"{name}_truncated": True for name, more in self._more.items() if more}
        yield b"]," + to_json({**truncated, **self._bounds.said(), **rest})[1:]

    def _escaped(self, name: str) -> Iterator[bytes]:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        kept = self._kept[name]
        for start in range(0, len(kept), _PIECE):
            yield to_json(decoder.decode(kept[start : start + _PIECE]))[1:-1]
        yield to_json(decoder.decode(b"", final=not self._more[name]))[1:-1]
