"""The newest lines about one session, read from the end of a trail's files at a bounded cost. All of it blocks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from gateway.audit.chain import MAX_LINE_BYTES, decode
from gateway.audit.disk import full_files

# Of all files together: some 40,000 lines of the ordinary 400 bytes, in 10 ms where the page cache has them.
MAX_READ_BYTES = 16 << 20
MAX_FOUND_BYTES = 1 << 20  # of lines that are returned; a line may have 640 KB
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Found:
    """Events of a session, the newest first. `complete`: older ones than these are in none of the files."""

    events: list[dict[str, Any]]
    complete: bool


def newest_events(path: Path, session: str, limit: int, wanted: Callable[[dict[str, Any]], bool] = bool) -> Found:
    """At most `limit` events of a session from the trail whose current file is `path`. Raises OSError.

    Only those that are `wanted`: what others were refused must not take the place of what the caller may read.

    They are as the files have them: whether somebody changed the files is for `wakegate audit verify` to say.
    """
    # As orjson writes it. A quote within another text is escaped, so what follows it is this line's session, or a field
    # of its detail, which is looked at below.
    needle = b'"session":' + orjson.dumps(session)
    reader, events, size = _Reader(), list[dict[str, Any]](), 0
    for block in reader.blocks(path):
        for line in reversed(list(_lines_with(needle, block))):
            fields = decode(line)
            if fields is None or fields["type"] != "event" or fields.get("session") != session or not wanted(fields):
                continue
            size += len(line)
            if len(events) == limit or (events and size > MAX_FOUND_BYTES):
                return Found(events, complete=False)
            events.append(fields)
    return Found(events, complete=reader.left > 0)


def _lines_with(needle: bytes, block: bytes) -> Iterator[bytes]:
    at = block.find(needle)
    while at >= 0:
        begin = block.rfind(b"\n", 0, at) + 1
        end = block.find(b"\n", at)
        end = len(block) if end < 0 else end
        yield block[begin:end]
        at = block.find(needle, end)


class _Reader:
    """Reads files backwards. `left`: how many bytes it may still read."""

    def __init__(self) -> None:
        self.left = MAX_READ_BYTES

    def blocks(self, path: Path) -> Iterator[bytes]:
        """Whole lines, in blocks from the newest to the oldest."""
        current: os.stat_result | None = None
        for file in _newest_first(path):
            try:
                descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:
                continue  # the oldest is deleted when one is put aside
            try:
                stat = os.fstat(descriptor)
                # Put aside after it was opened as the current one, so it is among the full ones as well.
                if current is None or not os.path.samestat(current, stat):
                    current = current or stat
                    yield from self._blocks_of(descriptor, stat.st_size)
            finally:
                os.close(descriptor)

    def _blocks_of(self, descriptor: int, end: int) -> Iterator[bytes]:
        rest = b""  # the end of a line whose beginning is in the block before
        while end > 0 and self.left > 0:
            begin = max(0, end - _BLOCK_BYTES)
            block = os.pread(descriptor, end - begin, begin) + rest
            self.left -= end - begin
            end = begin
            cut = block.find(b"\n") + 1 if begin else 0
            if begin and not cut:
                rest = block if len(block) <= MAX_LINE_BYTES else b""  # longer than any line that was written
            else:
                rest = block[:cut]
                yield block[cut:]


def _newest_first(path: Path) -> Iterator[Path]:
    # The current file is opened before the full ones are listed, so one that is put aside in between is not missed.
    yield path
    yield from reversed(full_files(path))
