"""What a run printed and showed, kept within bounds for one answer. Pure."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from picod.commands.result_bounds import ResultBounds
from picod.http.request import to_json

_PIECE = 64 << 10  # bytes of output that become JSON at once


class Collected:
    """A Listener that keeps everything for one answer: the first `limit` bytes of each stream, results in bounds."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept = {"stdout": bytearray(), "stderr": bytearray()}
        self._more = {"stdout": False, "stderr": False}
        self._bounds = ResultBounds()
        self._results: list[tuple[str, dict[str, Any]]] = []
        self._clearing = False

    def set_pipes(self, pipes: Iterable[object]) -> None:
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
