"""Converts between zip and tar: `zipped` packs a directory into a zip stream, `zip_as_tar` reads a zip from a file.

A zip ends with its directory, so an upload has to be on disk before it can be read. zipfile reads it, with a bound on
the size of the directory, which it holds in memory. Source of the format: PKWARE's APPNOTE 6.3.
"""

from __future__ import annotations

import calendar
import io
import os
import stat
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from picod.archive.pack import pack
from picod.archive.source import Source, reader
from picod.archive.tar_members import (
    BLOCK,
    DIRECTORY,
    END,
    EXTENDED,
    FIFO,
    FILE,
    SYMLINK,
    Member,
    TarballError,
    encode,
    member_of,
    padding,
    parse_head,
    parse_records,
)

if TYPE_CHECKING:
    from zipfile import ZipFile, ZipInfo

_PIECE_BYTES = 256 << 10
_MAX_DIRECTORY_BYTES = 8 << 20  # some hundred thousand names, each of which becomes an object
_MAX_LINK_BYTES = 4096
_STORED, _DEFLATED = 0, 8  # the two methods whose decompression needs little memory
_ENCRYPTED, _UTF8 = 1, 1 << 11  # flags
_UNIX = 3
_FIRST_TIME_S, _LAST_TIME_S = 315_532_800, 4_354_819_198  # the times that a zip can express: 1980 to 2107
_MAGIC = (b"PK\3\4", b"PK\5\6")
_NS_PER_S = 1_000_000_000


def is_zip(first: bytes) -> bool:
    """Whether a file that begins like this is a zip archive."""
    return first.startswith(_MAGIC)


def zipped(root_fd: int) -> Iterator[bytes]:
    """Pack a directory into a zip, in pieces. Raises OSError as pack does.

    What zip cannot express is left out: FIFOs, attributes, owners. A file with several names is stored several times.
    """
    from zipfile import ZIP_DEFLATED, ZipFile

    out = _Out()
    source = Source(reader(bytes(piece) for piece in pack(root_fd, plain=True)))
    with ZipFile(out, "w", ZIP_DEFLATED) as archive:
        for member in _members(source):
            left = member.size
            if member.kind != FIFO:
                # The header is written before the data, so its 32-bit or 64-bit form is chosen by the size known now.
                with archive.open(_info(member), "w", force_zip64=left > 1 << 31) as entry:
                    entry.write(member.link)
                    while left:
                        piece = source.some(left)
                        left -= len(piece)
                        entry.write(piece)
                        if len(out.buffer) >= _PIECE_BYTES:
                            yield out.take()
            source.take(padding(member.size))
            if len(out.buffer) >= _PIECE_BYTES:
                yield out.take()
    yield out.take()


class _Out(io.RawIOBase):
    """What zipfile writes to: a buffer that is emptied meanwhile, so it cannot seek."""

    def __init__(self) -> None:
        self.buffer = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        self.buffer += data
        return len(data)

    def take(self) -> bytes:
        data = bytes(self.buffer)
        self.buffer.clear()
        return data


def _members(source: Source) -> Iterator[Member]:
    """The members of a stream from pack; the caller reads the data of each before it requests the next."""
    records: dict[bytes, bytes] = {}
    while any(block := source.take(BLOCK)):
        head = parse_head(block)
        if head.kind == EXTENDED:
            records = parse_records(source.take(head.size))
            source.take(padding(head.size))
        else:
            yield member_of(head, records)
            records = {}


def _info(member: Member) -> ZipInfo:
    from zipfile import ZIP_DEFLATED, ZipInfo

    kind = {DIRECTORY: stat.S_IFDIR, SYMLINK: stat.S_IFLNK}.get(member.kind, stat.S_IFREG)
    seconds = min(max(member.mtime_ns // _NS_PER_S, _FIRST_TIME_S), _LAST_TIME_S)
    name = member.path.rstrip(b"/") + (b"/" if member.kind == DIRECTORY else b"")
    info = ZipInfo(name.decode("utf-8", "backslashreplace"), time.gmtime(seconds)[:6])
    info.create_system = _UNIX
    info.external_attr = (kind | member.mode) << 16 | (0x10 if member.kind == DIRECTORY else 0)
    info.compress_type = ZIP_DEFLATED if member.size else _STORED
    return info


def zip_as_tar(fd: int) -> Iterator[bytes]:
    """Convert a zip in an open file to a tar stream, in pieces. Raises TarballError if it is broken or unsupported."""
    import struct
    import zlib
    from zipfile import BadZipFile, ZipFile

    try:
        with _Bounded(fd) as file, ZipFile(file) as archive:
            for info in archive.infolist():
                yield from _as_tar(archive, info)
        yield END
    except TarballError:
        raise
    except (BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise TarballError(f"it is not a zip archive, or it is damaged: {error}") from error


class _Bounded(io.FileIO):
    """The file, with a bound on one read: zipfile reads the directory at once, of whatever size the archive claims."""

    # zipfile.ZipFile has no option for such a bound.
    def __init__(self, fd: int) -> None:
        super().__init__(fd, "rb", closefd=False)
        self._size = os.fstat(fd).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(0, self._size - self.tell())
        wanted = left if size is None or size < 0 else min(size, left)
        if wanted > _MAX_DIRECTORY_BYTES:
            raise TarballError(f"its directory is larger than {_MAX_DIRECTORY_BYTES} bytes; send a tar")
        return super().read(wanted) or b""


def _as_tar(archive: ZipFile, info: ZipInfo) -> Iterator[bytes]:
    shown = repr(info.filename[:200])
    if info.flag_bits & _ENCRYPTED:
        raise TarballError(f"{shown} is encrypted")
    if info.compress_type not in (_STORED, _DEFLATED):
        raise TarballError(f"{shown} is compressed with a method other than deflate")
    mode = info.external_attr >> 16 if info.create_system == _UNIX else 0
    member = Member(_name(info), mode=mode & 0o777, mtime_ns=_seconds(info) * _NS_PER_S)
    if info.is_dir():
        member.kind, member.mode = DIRECTORY, member.mode or 0o755
        member.path = member.path.rstrip(b"/")
        yield encode(member)
        return
    if stat.S_ISLNK(mode):
        member.kind = SYMLINK
        with archive.open(info) as entry:
            member.link = entry.read(_MAX_LINK_BYTES + 1)
        if len(member.link) > _MAX_LINK_BYTES:
            raise TarballError(f"{shown} is a link that is too long")
        yield encode(member)
        return
    member.kind, member.mode, member.size = FILE, member.mode or 0o644, info.file_size
    yield encode(member)
    left = member.size
    with archive.open(info) as entry:
        while piece := entry.read(_PIECE_BYTES):
            left -= len(piece)
            if left < 0:  # more than was announced: the tar header with the size is out already
                break
            yield piece
    if left:
        raise TarballError(f"{shown} is not of the size that the archive says")
    yield bytes(padding(member.size))


def _name(info: ZipInfo) -> bytes:
    """A name as bytes. Unix programs store those of the file system without a flag; zipfile decodes them as cp437."""
    if not info.flag_bits & _UTF8 and info.create_system == _UNIX:
        return info.filename.encode("cp437")
    return info.filename.encode("utf-8", "surrogateescape")


def _seconds(info: ZipInfo) -> int:
    try:
        return calendar.timegm((*info.date_time, 0, 0, 0))
    except ValueError:
        return _FIRST_TIME_S  # for example a month 0
