"""The latest bytes of several streams, in the order they came, bounded. Pure; logs and scrollback are made of it."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

_MERGE_BYTES = (
    4096  # bytes up to which pieces of one stream become one: a thousand prints of a byte are no thousand objects
)


class Piece(NamedTuple):
    """Bytes of one stream. `offset` counts the bytes of all streams before them, since the beginning."""

    offset: int
    stream: str
    data: bytes


class Ring:
    """Keeps the last `limit` bytes. `start` and `end` are the offsets of the first byte kept and behind the last."""

    def __init__(self, limit: int) -> None:
        self.start = self.end = 0
        self._limit = limit
        self._pieces: deque[Piece] = deque()

    def append(self, stream: str, data: bytes) -> None:
        """Add to a stream; the oldest bytes go when it is too much."""
        if not data:
            return
        last = self._pieces[-1] if self._pieces else None
        if last is not None and last.stream == stream and len(last.data) + len(data) <= _MERGE_BYTES:
            self._pieces[-1] = Piece(last.offset, stream, last.data + data)
        else:
            self._pieces.append(Piece(self.end, stream, data))
        self.end += len(data)
        while self.end - self.start > self._limit:
            first = self._pieces.popleft()
            excess = self.end - self._limit - first.offset
            if excess < len(first.data):
                self._pieces.appendleft(Piece(first.offset + excess, first.stream, first.data[excess:]))
            self.start = self._pieces[0].offset

    def since(self, offset: int) -> list[Piece]:
        """What is kept from an offset on; it begins later when the bytes there have gone already."""
        found: list[Piece] = []
        for piece in reversed(self._pieces):
            if piece.offset + len(piece.data) <= offset:
                break
            skip = max(0, offset - piece.offset)
            found.append(Piece(piece.offset + skip, piece.stream, piece.data[skip:]))
        return found[::-1]
