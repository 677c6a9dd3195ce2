"""Encodes and parses the members of a tar archive, for pack.py and unpack.py. Pure: no file is touched here.

POSIX pax interchange format (IEEE 1003.1, `pax`): a 512-byte ustar header, preceded by an extended header ("x") when
something does not fit into it: a time with nanoseconds, a name over 100 bytes, 8 GiB of data. Sparse files are in GNU's
sparse format 1.0 (GNU tar manual, appendix "Storing Sparse Files"): the map of data regions comes as decimal lines at
the beginning of the data. Attributes are `SCHILY.xattr.NAME`, with `=` and `%` in NAME as %3D and %25, as in GNU tar.
So `zstd -d | tar -x` reads what picod writes, and picod reads what `tar --format=posix` writes.

Names are bytes throughout, since Linux defines no encoding for them. Global headers ("g") are skipped; their keys
`WAKEGATE.*` are reserved for what a session has besides files. Why this is not the tarfile module: docs/adr/0008.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass, field
from typing import NamedTuple

BLOCK = 512
END = bytes(2 * BLOCK)
FILE, HARD_LINK, SYMLINK, DIRECTORY, FIFO = b"0", b"1", b"2", b"5", b"6"
KINDS = {FILE, HARD_LINK, SYMLINK, DIRECTORY, FIFO}
EXTENDED, GLOBAL = b"x", b"g"
LONG_NAME, LONG_LINK = b"L", b"K"  # GNU's own extension for names over 100 bytes; read, never written

# The bits that make a program run as its owner. Nothing in a sandbox heeds them, but whoever unpacks one of its files
# as root elsewhere would get a program that runs as root.
SET_ID_BITS = stat.S_ISUID | stat.S_ISGID

_NS_PER_S = 1_000_000_000
_MAX_OCTAL = 8**11  # the first number that eleven octal digits cannot express
_MAX_TIME_S = 10**15 - 1  # before and after 1970
_XATTR = b"SCHILY.xattr."


class TarballError(ValueError):
    """The archive is broken, or holds something that a workspace cannot. The message is for the client."""


@dataclass(slots=True)
class Member:
    """One file of any kind. `size` is the number of data bytes that follow in the archive, including a sparse map.

    `real_size` is the size of a sparse file, None for any other. `link` is a symlink's target, or the first name of a
    hard link.
    """

    path: bytes
    kind: bytes = FILE
    mode: int = 0o644
    mtime_ns: int = 0
    size: int = 0
    link: bytes = b""
    real_size: int | None = None
    xattrs: dict[bytes, bytes] = field(default_factory=dict)


class Head(NamedTuple):
    """The fields of a ustar header, without those of an extended header before it."""

    kind: bytes
    path: bytes
    mode: int
    size: int
    mtime: int  # seconds
    link: bytes


def padding(size: int) -> int:
    """The number of zero bytes after `size` bytes of data, up to a whole block."""
    return -size % BLOCK


def encode(member: Member) -> bytes:
    """The header of a member, with an extended header before it if one is needed. Data and padding come after."""
    records: list[bytes] = []
    path, link = member.path, member.link
    if member.kind == DIRECTORY:
        path += b"/"
    if len(path) > 100:
        records.append(_record(b"path", path))
    if len(link) > 100:
        records.append(_record(b"linkpath", link))
    seconds, rest = divmod(member.mtime_ns, _NS_PER_S)
    # A ustar header has whole seconds from 1970 to 2242 (8**11 s): anything else goes into the extended header.
    if rest or not 0 <= seconds < _MAX_OCTAL:
        records.append(_record(b"mtime", _format_time(member.mtime_ns)))
        seconds = min(max(seconds, 0), _MAX_OCTAL - 1)
    size = member.size
    if size >= _MAX_OCTAL:
        records.append(_record(b"size", b"%d" % size))
        size = 0
    if member.real_size is not None:
        records += [
            _record(b"GNU.sparse.major", b"1"),
            _record(b"GNU.sparse.minor", b"0"),
            _record(b"GNU.sparse.name", member.path),
            _record(b"GNU.sparse.realsize", b"%d" % member.real_size),
        ]
    for name, value in member.xattrs.items():
        records.append(_record(_XATTR + name.replace(b"%", b"%25").replace(b"=", b"%3D"), value))
    head = _head(member.kind, path, member.mode, size, seconds, link)
    if not records:
        return head
    # POSIX takes paths in pax records for UTF-8 unless a record before them says otherwise.
    if not _is_text(path) or not _is_text(link):
        records.insert(0, _record(b"hdrcharset", b"BINARY"))
    data = b"".join(records)
    return b"".join((_head(EXTENDED, b"pax", 0o644, len(data), 0, b""), data, bytes(padding(len(data))), head))


def encode_sparse_map(regions: list[tuple[int, int]]) -> bytes:
    """GNU's map of (offset, length), padded to whole blocks."""
    lines = [b"%d\n" % len(regions), *(b"%d\n%d\n" % region for region in regions)]
    data = b"".join(lines)
    return data + bytes(padding(len(data)))


def parse_head(block: bytes) -> Head:
    """Parse a ustar header of 512 bytes. Raises TarballError."""
    # The field itself counts as eight spaces, 8 * 32 = 256.
    checksum = _octal(block[148:156])
    if checksum != sum(block[:148]) + 256 + sum(block[156:]):
        raise TarballError("it is not a tar archive, or it is damaged: the checksum of a header is wrong")
    path = _text(block[:100])
    if block[257:263] == b"ustar\0" and block[345]:
        path = _text(block[345:500]) + b"/" + path
    kind = block[156:157]
    return Head(
        FILE if kind == b"\0" else kind,
        path,
        _octal(block[100:108]) & 0o7777,
        _size(block[124:136]),
        min(max(_octal(block[136:148]), -_MAX_TIME_S), _MAX_TIME_S),
        _text(block[157:257]),
    )


def parse_records(data: bytes) -> dict[bytes, bytes]:
    """Parse the records of an extended header. Raises TarballError."""
    records: dict[bytes, bytes] = {}
    while data:
        digits, _, _ = data.partition(b" ")
        if not digits.isdigit() or len(digits) > 10:  # int() of a hostile megabyte of digits takes quadratic time
            raise TarballError("an extended header is damaged: a record without its length")
        length = int(digits)
        key, equals, value = data[len(digits) + 1 : length].partition(b"=")
        if not equals or length > len(data) or not value.endswith(b"\n"):
            raise TarballError("an extended header is damaged: a record of the wrong length")
        records[key] = value[:-1]
        data = data[length:]
    return records


def member_of(head: Head, records: dict[bytes, bytes]) -> Member:
    """The member of a header and the records of the extended header before it. Raises TarballError."""
    member = Member(
        path=records.get(b"path", head.path),
        kind=head.kind,
        mode=head.mode,
        mtime_ns=_parse_time(records[b"mtime"]) if b"mtime" in records else head.mtime * _NS_PER_S,
        size=_decimal(records[b"size"], "size") if b"size" in records else head.size,
        link=records.get(b"linkpath", head.link),
    )
    if b"GNU.sparse.major" in records:
        if (records[b"GNU.sparse.major"], records.get(b"GNU.sparse.minor")) != (b"1", b"0") or head.kind != FILE:
            raise TarballError("a sparse file is in another form than GNU's format 1.0")
        member.path = records.get(b"GNU.sparse.name", member.path)
        member.real_size = _decimal(records.get(b"GNU.sparse.realsize", b""), "size of a sparse file")
    elif any(key.startswith(b"GNU.sparse.") for key in records):
        raise TarballError("a sparse file is in another form than GNU's format 1.0")
    for key, value in records.items():
        if key.startswith(_XATTR):
            member.xattrs[key[len(_XATTR) :].replace(b"%3D", b"=").replace(b"%25", b"%")] = value
    return member


def _head(kind: bytes, path: bytes, mode: int, size: int, seconds: int, link: bytes) -> bytes:
    block = bytearray(
        b"%b%07o\0%07o\0%07o\0%011o\0%011o\0        %b%bustar\00000"
        % (path[:100].ljust(100, b"\0"), mode & 0o7777, 0, 0, size, seconds, kind, link[:100].ljust(100, b"\0"))
    )
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block.ljust(BLOCK, b"\0"))


def _record(key: bytes, value: bytes) -> bytes:
    # The length includes its own digits: 97 bytes and two digits are 99, but 98 and two are 100, which needs three.
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %b=%b\n" % (length, key, value)


def _format_time(ns: int) -> bytes:
    seconds, rest = divmod(abs(ns), _NS_PER_S)
    return b"%b%d.%09d" % (b"-" if ns < 0 else b"", seconds, rest)


def _parse_time(text: bytes) -> int:
    whole, _, fraction = text.removeprefix(b"-").partition(b".")
    if not whole.isdigit() or len(whole) > 15 or (fraction and not fraction.isdigit()):
        raise TarballError(f"a time is not a number: {_shown(text)}")
    ns = int(whole) * _NS_PER_S + int(fraction[:9].ljust(9, b"0"))  # no float: it has 16 digits, and this needs 19
    return -ns if text.startswith(b"-") else ns


def _decimal(text: bytes, what: str) -> int:
    if not text.isdigit() or len(text) > 18:
        raise TarballError(f"the {what} is not a number: {_shown(text)}")
    return int(text)


def _size(field: bytes) -> int:
    size = _octal(field)
    if not 0 <= size < 1 << 63:
        raise TarballError("it is not a tar archive, or it is damaged: a size in a header makes no sense")
    return size


def _octal(field: bytes) -> int:
    if field[0] & 0x80:  # GNU tar writes larger and negative numbers in base 256, as two's complements
        number = int.from_bytes(field, "big")
        return number - (1 << 8 * len(field)) if field[0] & 0x40 else number - (1 << 8 * len(field) - 1)
    digits = field.split(b"\0", 1)[0].strip()
    try:
        return int(digits or b"0", 8)
    except ValueError:
        raise TarballError("it is not a tar archive, or it is damaged: a number in a header is not octal") from None


def _text(field: bytes) -> bytes:
    return field.split(b"\0", 1)[0]


def _is_text(name: bytes) -> bool:
    try:
        name.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _shown(text: bytes) -> str:
    return repr(text[:100].decode("utf-8", "replace"))
