"""The latest bytes of several streams, in the order they came, bounded. Used for logs and scrollback. Pure."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

# Pieces of one stream are merged up to this size: otherwise a thousand prints of one byte would be a thousand objects.
_MERGE_BYTES = 4096


class Piece(NamedTuple):
    """Bytes of one stream. `offset` counts the bytes of all streams before them, since the beginning."""

    offset: int
    stream: str
    data: bytes


class Ring:
    """Keeps the last `limit` bytes. `start` is the offset of the first byte that is kept, `end` of the next to come."""

    def __init__(self, limit: int) -> None:
        self.start = self.end = 0
        self._limit = limit
        self._pieces: deque[Piece] = deque()

    def append(self, stream: str, data: bytes) -> None:
        """Append to a stream; the oldest bytes of all streams are dropped beyond the limit."""
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
            if excess < len(first.data):  # cut and not dropped whole: the ring keeps exactly its limit
                self._pieces.appendleft(Piece(first.offset + excess, first.stream, first.data[excess:]))
            self.start = self._pieces[0].offset

    def since(self, offset: int) -> list[Piece]:
        """What is kept from `offset` on; the first piece begins later if the bytes there were dropped."""
        found: list[Piece] = []
        for piece in reversed(self._pieces):
            if piece.offset + len(piece.data) <= offset:
                break
            skip = max(0, offset - piece.offset)
            found.append(Piece(piece.offset + skip, piece.stream, piece.data[skip:]))
        return found[::-1]
