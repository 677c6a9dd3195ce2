"""Archives of strangers are read in bounded memory, whatever they say of themselves."""

from __future__ import annotations

import gzip
import io
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Callable

import pytest

from gateway.core.tar import MAX_HEADER_BYTES, read_tar

GIB = 1 << 30


def header(kind: bytes, size: int, name: str = "a") -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


def pax(*records: bytes) -> bytes:
    """An extended header of such records."""
    body = b"".join(b"%d %s\n" % (len(record) + 4, record) for record in records)  # two digits, a space, a newline
    return header(tarfile.XHDTYPE, len(body)) + body.ljust(512, b"\0")


def many_holes() -> bytes:
    """A file of GNU's old sparse format whose list of holes goes on."""
    info = bytearray(header(tarfile.GNUTYPE_SPARSE, 0))
    info[482] = 1
    info[148:156] = b" " * 8
    info[148:156] = b"%06o\0 " % sum(info)
    return bytes(info)


def more_holes() -> bytes:
    block = bytearray(512)
    block[504] = 1
    return bytes(block)


SPARSE = pax(b"GNU.sparse.major=1", b"GNU.sparse.minor=0", b"GNU.sparse.name=aaaa", b"GNU.sparse.realsize=9999")
BOMBS: dict[str, tuple[bytes, bytes]] = {
    "a long name": (header(tarfile.GNUTYPE_LONGNAME, GIB), bytes(512)),
    "a long link": (header(tarfile.GNUTYPE_LONGLINK, GIB), bytes(512)),
    "attributes": (header(tarfile.XHDTYPE, GIB), bytes(512)),
    "attributes of all": (header(tarfile.XGLTYPE, GIB), bytes(512)),
    "a list of holes": (SPARSE + header(tarfile.REGTYPE, GIB) + b"99999999999\n", b"0\n" * 256),
    "an old list of holes": (many_holes(), more_holes()),
    "an unknown type": (header(b"Q", GIB), bytes(512)),
}


def bomb(first: bytes, rest: bytes) -> bytes:
    """A gzip of 64 MiB."""
    pack = zlib.compressobj(9, wbits=31)
    piece = rest * 2048
    return pack.compress(first) + b"".join(pack.compress(piece) for _ in range(64)) + pack.flush()


class Endless:
    """The beginning of an archive, and then the same over and over, a GiB of it."""

    def __init__(self, first: bytes, rest: bytes) -> None:
        self._pending, self._rest = first, rest
        self.given = 0

    def read(self, size: int, /) -> bytes:
        while len(self._pending) < size and self.given < GIB:
            self._pending += self._rest * (size // len(self._rest) + 1)
        data, self._pending = self._pending[:size], self._pending[size:]
        self.given += len(data)
        return data


@pytest.mark.parametrize("kind", BOMBS)
def test_what_stands_before_a_file_is_bounded(kind: str) -> None:
    """However much of it there is."""
    source = Endless(*BOMBS[kind])
    with pytest.raises(tarfile.ReadError):
        list(read_tar(source))
    assert source.given <= MAX_HEADER_BYTES + 2 * tarfile.RECORDSIZE


def test_a_header_of_64_megabytes_is_not_held_in_memory() -> None:
    """tarfile by itself would hold it twice."""
    code = (
        "import io, sys, tarfile, resource\n"
        "from gateway.core.tar import read_tar\n"
        "data = sys.stdin.buffer.read()\n"
        f"resource.setrlimit(resource.RLIMIT_AS, ({120 << 20},) * 2)\n"
        "try: list(read_tar(io.BytesIO(data)))\n"
        "except tarfile.ReadError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], input=bomb(*BOMBS["a long name"]), capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert str(MAX_HEADER_BYTES) in done.stdout.decode()


def plain(**files: bytes) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as made:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            made.addfile(info, io.BytesIO(content))
    return raw.getvalue()


LONG = "n" * 300
FILES = {"empty": b"", "a": b"x" * 511, LONG: b"y" * 512, "large": bytes(range(256)) * 4096, "last": b"z"}


def read_all(data: bytes) -> dict[str, bytes]:
    return {member.name: content.read() for member, content in read_tar(io.BytesIO(data)) if content is not None}


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_files_come_whole_and_in_their_order(pack: Callable[[bytes], bytes]) -> None:
    """Long names too."""
    found = read_all(pack(plain(**FILES)))
    assert found == FILES
    assert list(found) == list(FILES)


@pytest.mark.parametrize(
    "data",
    [b"", b"\x1f\x8b", b"\x1f\x8bgarbage" * 99, gzip.compress(plain(**FILES))[:-200], plain(**FILES)[:3000],
     pax(b"size=-99999999999") + header(tarfile.REGTYPE, 5), pax(b"size=" + b"9" * 60) + header(tarfile.REGTYPE, 5),
     header(tarfile.XHDTYPE, 8000) + b"9" * 8192],
    ids=["nothing", "two bytes", "no gzip", "gzip cut", "cut", "negative size", "huge size", "8000 digits"],
)  # fmt: skip
def test_what_is_no_archive_is_said_to_be_none(data: bytes) -> None:
    """By one kind of error, whatever is wrong."""
    with pytest.raises(tarfile.TarError):
        read_all(data)
