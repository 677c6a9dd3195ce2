"""Archives of directories as streams of bytes, both ways. Blocking; archive_api.py runs them in threads.

Every format goes through a tar stream, which pack.py writes and unpack.py reads: paths, links and modes are handled
there only. gzip and zstd compress it, and zip_format.py converts it from and to zip. Memory is flat, whatever the size.
Formats: POSIX pax and GNU tar (tar_members.py), RFC 1952 (gzip), RFC 8878 (zstd).
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Generator, Iterator
from typing import IO, Protocol, cast

from picod.archive.pack import pack
from picod.archive.source import ReadInto, reader
from picod.archive.tar_members import TarballError
from picod.archive.zip_format import zipped

FORMATS = {
    "tar": "application/x-tar",
    "tar.gz": "application/gzip",
    "tar.zst": "application/zstd",
    "zip": "application/zip",
}
"""The content type of each format; the format's name is also the file extension."""

_PIECE_BYTES = 256 << 10
_LEVEL_GZIP, _LEVEL_ZSTD = 4, 1  # fast ones: a download waits for the compression
_MAX_WINDOW_BYTES = 8 << 20  # of memory that a zstd archive can make us allocate; `zstd -19` needs that much
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"  # their magic numbers

Read = Callable[[int], bytes | memoryview]
"""Returns up to the given number of bytes of an upload; none at the end."""


def write_archive(root_fd: int, form: str) -> Generator[bytes, None, None]:
    """Pack a directory into an archive, in pieces, some of them empty. Raises OSError as pack does."""
    if form == "zip":
        yield from zipped(root_fd)
        return
    compress, finish = _compressor(form)
    out = bytearray()
    for piece in pack(root_fd):
        out += compress(piece)
        if len(out) >= _PIECE_BYTES:
            yield bytes(out)
            out.clear()
    yield bytes(out) + finish()


def _compressor(form: str) -> tuple[Callable[[bytearray], bytes | bytearray], Callable[[], bytes]]:
    if form == "tar":
        return lambda piece: piece, bytes
    if form == "tar.gz":
        gzip = zlib.compressobj(_LEVEL_GZIP, wbits=31)  # 15, the window, and 16: with gzip's own header and trailer
        return gzip.compress, gzip.flush
    import zstandard  # on demand: a sandbox that makes no zstd archive does not pay for the library's memory

    zstd = zstandard.ZstdCompressor(level=_LEVEL_ZSTD, write_checksum=True).compressobj()
    return zstd.compress, zstd.flush


def read_tar(first: bytes, read: Read) -> ReadInto:
    """The tar stream in an upload, plain or decompressed; `first` is what was read of the upload already.

    Reading from it raises TarballError, zlib.error and zstandard.ZstdError.
    """
    head = io.BytesIO(first)

    def whole(size: int) -> bytes | memoryview:
        return head.read(size) or read(size)

    if first.startswith(_GZIP):
        return reader(_gunzip(whole))
    if first.startswith(_ZSTD):
        import zstandard

        stream = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES).stream_reader(
            cast("IO[bytes]", _Reading(whole)), read_across_frames=True
        )
        return stream.readinto
    return reader(iter(lambda: bytes(whole(_PIECE_BYTES)), b""))


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes | memoryview: ...


class _Reading(_Readable):
    """Wraps a function in the `read` method that zstandard expects."""

    def __init__(self, read: Read) -> None:
        self._read = read

    def read(self, size: int, /) -> bytes | memoryview:
        return self._read(size)


def _gunzip(read: Read) -> Iterator[bytes]:
    """Decompress all members, at most _PIECE_BYTES at a time. Raises TarballError if the data ends too early."""
    # The bound on the output matters: deflate can expand a piece of 256 KiB to more than 250 MiB (1032:1 at most).
    stream = zlib.decompressobj(wbits=31)
    data = bytes(read(_PIECE_BYTES))
    while data:
        yield stream.decompress(data, _PIECE_BYTES)
        data = stream.unused_data if stream.eof else stream.unconsumed_tail
        if stream.eof:
            data = data or bytes(read(_PIECE_BYTES))
            # The first byte alone: a piece may end between the two of the magic number. zlib checks the second.
            if not data.startswith(_GZIP[:1]):
                return  # the end, or the zeros that fill a tape's block
            stream = zlib.decompressobj(wbits=31)
        data = data or bytes(read(_PIECE_BYTES))
    if not stream.eof:
        raise TarballError("it ends too early")
