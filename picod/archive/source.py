"""Reads the bytes of an archive, which come in pieces from an upload, a decompressor or a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from picod.archive.tar_members import TarballError

ReadInto = Callable[[memoryview], int]
"""Fills a buffer as far as it can and returns the number of bytes; 0 at the end."""

_PIECE_BYTES = 256 << 10


class TooLargeArchiveError(TarballError):
    """The archive unpacks to more than the limit."""


class Source:
    """The archive's bytes, read through one buffer of _PIECE_BYTES."""

    def __init__(self, read_into: ReadInto) -> None:
        self._read_into = read_into
        self._buffer = memoryview(bytearray(_PIECE_BYTES))
        self._start = self._end = 0

    def some(self, most: int) -> memoryview:
        """At least one byte and at most `most`; valid until the next call. Raises TarballError at the end."""
        if self._start == self._end:
            self._start, self._end = 0, self._read_into(self._buffer)
            if not self._end:
                raise TarballError("it ends too early")
        piece = self._buffer[self._start : min(self._end, self._start + most)]
        self._start += len(piece)
        return piece

    def take(self, size: int) -> bytes:
        """Exactly `size` bytes. Raises TarballError."""
        piece = self.some(size) if size else b""
        if len(piece) == size:
            return bytes(piece)
        whole = bytearray(piece)
        while len(whole) < size:
            whole += self.some(size - len(whole))
        return bytes(whole)

    def expect_end(self, tail: bytes) -> None:
        """Read to the end: only zeros and then `tail` may follow. Raises TarballError."""
        last = bytearray()
        while self._start < self._end or (count := self._read_into(self._buffer)):
            if self._start == self._end:
                self._start, self._end = 0, count
            last += self._buffer[self._start : self._end]
            self._start = self._end
            # The last bytes are held back, as they may be `tail`; all before them must be zeros, the padding of tar.
            if last.count(0, 0, len(last) - len(tail)) < len(last) - len(tail):
                raise TarballError("something follows its end")
            del last[: -len(tail)]
        if last != tail:
            raise TarballError("it ends too early")


def reader(pieces: Iterator[bytes]) -> ReadInto:
    """A ReadInto that takes its bytes from an iterator of pieces."""
    rest = memoryview(b"")

    def read_into(buffer: memoryview) -> int:
        nonlocal rest
        while not rest:
            piece = next(pieces, None)
            if piece is None:
                return 0
            rest = memoryview(piece)
        count = min(len(rest), len(buffer))
        buffer[:count] = rest[:count]
        rest = rest[count:]
        return count

    return read_into


def counted(read_into: ReadInto, limit: int) -> ReadInto:
    """A ReadInto that raises TooLargeArchiveError after `limit` bytes: the packed size bounds nothing."""
    count = 0

    def read(buffer: memoryview) -> int:
        nonlocal count
        size = read_into(buffer)
        count += size
        if count > limit:
            raise TooLargeArchiveError(f"it unpacks to more than {limit} bytes")
        return size

    return read
