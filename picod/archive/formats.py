"""Archives of directories as streams of bytes, both ways. Blocking; archive_api.py runs them in threads.

A tar stream is always in the middle: pack.py writes it and unpack.py reads it, and all care about paths, links and
modes is there. Around it stand gzip, zstd, and zip (zip_format.py) in terms of tar. Memory is flat, whatever the size.
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
"""Each format, which is also the extension, and its content type."""

_PIECE_BYTES = 256 << 10
_LEVEL_GZIP, _LEVEL_ZSTD = 4, 1
_MAX_WINDOW_BYTES = 8 << 20  # bytes of memory a zstd archive may make us take; `zstd -19` needs that much
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"  # how they begin

Read = Callable[[int], bytes | memoryview]
"""Up to so many bytes of an upload; none at the end."""


def write_archive(root_fd: int, form: str) -> Generator[bytes, None, None]:
    """A directory as an archive, in pieces; some are empty. Raises OSError as pack does."""
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
        gzip = zlib.compressobj(_LEVEL_GZIP, wbits=31)
        return gzip.compress, gzip.flush
    import zstandard

    zstd = zstandard.ZstdCompressor(level=_LEVEL_ZSTD, write_checksum=True).compressobj()
    return zstd.compress, zstd.flush


def read_tar(first: bytes, read: Read) -> ReadInto:
    """The tar stream in an upload, of which `first` was read already, whatever it is compressed with.

    What it returns raises TarballError, zlib.error and zstandard.ZstdError.
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
    """A function as an object to read from."""

    def __init__(self, read: Read) -> None:
        self._read = read

    def read(self, size: int, /) -> bytes | memoryview:
        return self._read(size)


def _gunzip(read: Read) -> Iterator[bytes]:
    """Member after member, never much at a time, however well it is packed. Raises TarballError when it is cut off."""
    stream = zlib.decompressobj(wbits=31)
    data = bytes(read(_PIECE_BYTES))
    while data:
        yield stream.decompress(data, _PIECE_BYTES)
        data = stream.unused_data if stream.eof else stream.unconsumed_tail
        if stream.eof:
            data = data or bytes(read(_PIECE_BYTES))
            if not data.startswith(_GZIP[:1]):
                return  # the end, or the zeros that fill a tape's block
            stream = zlib.decompressobj(wbits=31)
        data = data or bytes(read(_PIECE_BYTES))
    if not stream.eof:
        raise TarballError("it ends too early")
