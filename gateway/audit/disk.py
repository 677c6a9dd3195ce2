"""The audit trail's files as bytes: the ends of one, those that are full, and writes that are on the disk."""

from __future__ import annotations

import os
from pathlib import Path

from gateway.audit.chain import MAX_LINE_BYTES, decode

_TAIL_BYTES = 2 * (MAX_LINE_BYTES + 1)  # of a file, in which its last whole line is


def ends_of(path: Path, size: int) -> tuple[bytes, bytes, bytes]:
    """(first line, last line that is one, what comes after it) of a file, read in bounded pieces."""
    with open(path, "rb") as file:
        opening = file.readline(MAX_LINE_BYTES + 1)
        file.seek(max(0, size - _TAIL_BYTES))
        tail = file.read()
    end = len(tail)
    while (newline := tail.rfind(b"\n", 0, end)) >= 0:
        begin = tail.rfind(b"\n", 0, newline) + 1
        if decode(tail[begin:newline]) is not None:
            return opening.rstrip(b"\n"), tail[begin:newline], tail[newline + 1 :]
        end = newline
    return b"", b"", tail


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of the data: one call may write a part of it, on a disk that fills. Raises OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk: syncing a file does not store the entry that names it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def full_files(path: Path) -> list[Path]:
    """The full files of a trail whose current file is `path`, oldest first."""
    # By the time of their last line: the names begin with the chain's random id, so they do not sort by age.
    return sorted(path.parent.glob(f"{_escaped(path.name)}.????????-????????????"), key=_age)


def _age(path: Path) -> tuple[int, str]:
    return path.stat().st_mtime_ns, path.name


def _escaped(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)
