"""Bodies in chunks, read strictly. Pure. Source: RFC 9112, section 7.1."""

from __future__ import annotations

import re

_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[\t -~]*)?")
_MAX_LINE_BYTES = 1 << 10
_MAX_TRAILERS_BYTES = 16 << 10


class BadChunkError(ValueError):
    """A body whose chunks cannot be understood."""


class Chunks:
    """Takes a body apart as it comes. Extensions and trailers are dropped."""

    def __init__(self) -> None:
        self.done = False
        self._line = b""
        self._left = 0  # of the present chunk
        self._state = "size"
        self._trailers = 0

    def feed(self, data: bytes) -> bytes:
        """The content in these bytes. What follows the end is dropped. Raises BadChunkError."""
        found: list[bytes] = []
        at = 0
        while at < len(data) and not self.done:
            if self._state == "data":
                piece = data[at : at + self._left]
                found.append(piece)
                at += len(piece)
                self._left -= len(piece)
                if not self._left:
                    self._state = "end"
                continue
            end = data.find(b"\n", at)
            self._line += data[at : end + 1 if end >= 0 else len(data)]
            if len(self._line) > _MAX_LINE_BYTES:
                raise BadChunkError("a line of its chunks is too long")
            if end < 0:
                break
            at = end + 1
            line, self._line = self._line, b""
            self._take_line(line)
        return b"".join(found)

    def _take_line(self, line: bytes) -> None:
        # A bare line feed ends a line for some servers and not for others. So does a size such as 0x10, or +10.
        if not line.endswith(b"\r\n"):
            raise BadChunkError("a line of its chunks does not end with CR LF")
        line = line[:-2]
        if self._state == "size":
            match = _SIZE.fullmatch(line)
            if match is None:
                raise BadChunkError("the size of a chunk is not a number")
            self._left = int(match[1], 16)
            self._state = "data" if self._left else "trailers"
        elif self._state == "end":
            if line:
                raise BadChunkError("a chunk is longer than its size")
            self._state = "size"
        else:
            # Trailers are read, so that the end is found, and dropped: they would be fields that nobody has decided
            # about.
            self._trailers += len(line) + 2
            if self._trailers > _MAX_TRAILERS_BYTES:
                raise BadChunkError("its trailers are too large")
            self.done = not line
