"""Reads tar archives that strangers made, in bounded memory: plain or gzip, files in the order in which they come.

tarfile takes an archive's word for the size of what stands before a file. A name of 10 GB, a list of a billion holes or
the dictionary of an xz archive is read into memory whole, and a gzip of 10 MB is enough for that. Here nothing but a
file's own bytes may be larger than MAX_HEADER_BYTES.
Formats: POSIX.1-2001 (pax), GNU tar, RFC 1952 (gzip).
"""

from __future__ import annotations

import gzip
import sys
import tarfile
import zlib
from collections.abc import Iterator
from typing import IO, Protocol, cast

MAX_HEADER_BYTES = 64 << 10  # before one file: its names and attributes
# What tarfile reads at a time, the end of which may be the beginning of the next file.
_RECORD_BYTES = tarfile.RECORDSIZE
_GZIP_MAGIC = b"\x1f\x8b"


class Source(Protocol):
    """What an archive is read from, forward only."""

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes; fewer at the end only."""
        ...


def read_tar(source: Source) -> Iterator[tuple[tarfile.TarInfo, IO[bytes] | None]]:
    """Each member with its content, which is to be read before the next one is asked for; None: it is no file.

    Raises tarfile.TarError for what is no archive, is cut off, or has a larger header; sparse files are refused, of
    which a few bytes stand for as many zeros as they say. What reading the source raises is passed on.
    """
    bounded = _Bounded(source)
    try:
        with tarfile.open(fileobj=cast("IO[bytes]", bounded), mode="r|", errorlevel=2) as archive:
            while (member := archive.next()) is not None:
                if member.issparse():
                    raise tarfile.ReadError(f"{member.name[:200]!r} is a sparse file, which is not taken")
                bounded.limit(None)
                yield member, archive.extractfile(member) if member.isreg() else None
                bounded.limit(MAX_HEADER_BYTES)
                # It keeps what it has read, with a copy of the attributes that hold for all.
                archive.members.clear()  # type: ignore[attr-defined]
    except (ValueError, OverflowError, RecursionError) as error:  # numbers and names that are none
        raise tarfile.ReadError(f"a header is wrong: {error}") from error


class _Bounded:
    """A source, unpacked if it is gzip, that gives no more than its limit until that is set anew."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._unpacked: gzip.GzipFile | None = None
        self._first: bytes | None = None
        self._left = 0
        self.limit(MAX_HEADER_BYTES)

    def limit(self, size: int | None) -> None:
        """From now on give `size` bytes, and what tarfile reads in advance; None: any number."""
        self._left = sys.maxsize if size is None else size + _RECORD_BYTES

    def read(self, size: int) -> bytes:
        """Up to `size` bytes. Raises tarfile.ReadError."""
        if self._first is None:
            self._first = self._source.read(len(_GZIP_MAGIC))
            if self._first == _GZIP_MAGIC:
                self._unpacked = gzip.GzipFile(fileobj=cast("IO[bytes]", _Prefixed(self._first, self._source)))
                self._first = b""
        if self._left <= 0:
            raise tarfile.ReadError(f"a file's header is larger than {MAX_HEADER_BYTES} bytes")
        data = self._read(min(size, self._left))
        self._left -= len(data)
        return data

    def _read(self, size: int) -> bytes:
        if self._unpacked is None:
            first, self._first = (self._first or b"")[:size], (self._first or b"")[size:]
            return first + self._source.read(size - len(first)) if len(first) < size else first
        try:
            return self._unpacked.read(size)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise tarfile.ReadError(f"its gzip is wrong: {error}") from error


class _Prefixed:
    """A source of which the first bytes were read already."""

    def __init__(self, first: bytes, source: Source) -> None:
        self._first, self._source = first, source

    def read(self, size: int) -> bytes:
        """As Source.read; what was looked at in advance comes first."""
        if self._first:
            first, self._first = self._first[:size], self._first[size:]
            return first
        return self._source.read(size)
