"""One stream's output for an answer of bounded size: beginning and end, with lines as a terminal shows them.

The end of long output matters most (the error, the last epoch, the sum), so half of the limit is for it. Output beyond
the limit goes to a file in the workspace, in whole. A thread writes it, and the pipes are paused while more than 4 MiB
wait for the thread, which bounds the memory.
"""

from __future__ import annotations

import asyncio
import codecs
import os
import re
from collections.abc import Callable, Iterator

from picod.http.request import to_json

_MAX_LINE_BYTES = 64 << 10  # of a line without an end yet; longer ones are folded and passed on
_HIGH_BYTES, _LOW_BYTES = 4 << 20, 1 << 20  # bytes queued for the file at which the pipes are paused, and resumed
_PIECE_BYTES = 64 << 10  # of output that are encoded as JSON at a time
_ERASE = re.compile(r"\x1b\[[02]?K")


def fold(line: str) -> str:
    """A line as a terminal shows it: text after a carriage return overwrites the line from its start.

    `10%\\r20%` is `20%`, `abc\\rx` is `xbc`; `ESC [K` and `ESC [2K` erase, as the bars of pip and rich do. Works
    from the end: the last text written to a column wins, so each column is decided once and the work is linear.
    """
    shown = ""
    for text in reversed(line.split("\r")):
        erases = list(_ERASE.finditer(text)) if "\x1b[" in text else []
        if erases:
            last = erases[-1]
            before, after = _ERASE.sub("", text[: last.start()]), text[last.end() :]
            if last.group() == "\x1b[2K":  # the whole line, also what was written just before it
                before = " " * len(before) if after else ""
            text = before + after
        # Only what is longer than everything written after it shows: `abc\rx` is `x`, then `bc`.
        if len(text) > len(shown):
            shown += text[len(shown) :]
        if erases:
            break
    return shown


class LineFolder:
    """Folds the lines of a byte stream. `feed` returns lines that are complete, `finish` the rest."""

    def __init__(self) -> None:
        self._line = b""  # the last line, whose end has not come

    def feed(self, data: bytes) -> bytes:
        """Add bytes; returns what later bytes cannot change any more."""
        # Nearly all output has no carriage return: it passes with one search, and no line is split off.
        if b"\r" not in data and b"\r" not in self._line:
            end = data.rfind(b"\n") + 1
            done, self._line = (self._line + data[:end], data[end:]) if end else (b"", self._line + data)
        else:
            *lines, self._line = (self._line + data).split(b"\n")
            done = b"".join(_fold_bytes(line) + b"\n" for line in lines)
        if len(self._line) > _MAX_LINE_BYTES:
            done += self._shorten()
        return done

    def finish(self) -> bytes:
        """Returns the last, unfinished line at the end of the stream."""
        line, self._line = self._line, b""
        return _fold_bytes(line)

    def _shorten(self) -> bytes:
        """Fold an unfinished line (a progress bar of many updates). Returns and drops it if it is still long."""
        earlier, bar, last = self._line.rpartition(b"\r")
        if bar:
            self._line = _fold_bytes(earlier) + b"\r" + last
        if len(self._line) <= _MAX_LINE_BYTES // 2:
            return b""
        done, self._line = _fold_bytes(self._line), b""
        return done


def _fold_bytes(line: bytes) -> bytes:
    text = line.removesuffix(b"\r")  # of a line that ends in CR LF
    if b"\r" not in text:
        return line
    return fold(text.rstrip(b"\r").decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")


class Printed:
    """The bounded output of one stream. `open_file` opens the file for all of it (OSError, ValueError).

    `path` is the file's name for the answer. `hold` is called with True to pause the pipes and with False to resume
    them.
    """

    def __init__(
        self, limit: int, *, path: str, max_file: int, open_file: Callable[[], int], hold: Callable[[bool], None]
    ) -> None:
        self._limit = limit
        self._path = path
        self._folder = LineFolder()
        self._head = bytearray()
        self._tail = bytearray()
        self._size = 0
        self._file = _File(open_file, max_file, hold)

    @property
    def size(self) -> int:
        """Bytes that are kept in memory."""
        return len(self._head) + len(self._tail)

    def take(self, data: bytes) -> None:
        """Add bytes that the run printed."""
        self._keep(self._folder.feed(data))

    async def finish(self) -> None:
        """End the stream; the file, if there is one, is complete afterwards."""
        self._keep(self._folder.finish())
        tail_bytes = self._limit - self._limit // 2
        if len(self._tail) > tail_bytes:
            del self._tail[:-tail_bytes]
        await self._file.close()

    def fields(self, name: str) -> dict[str, object]:
        """Fields `NAME_truncated` and `NAME_file` of the answer; none when it has all of the output."""
        if self._size <= self._limit:
            return {}
        return {f"{name}_truncated": True} | ({f"{name}_file": self._path} if self._file.is_complete else {})

    def as_json(self) -> Iterator[bytes]:
        """The output as the inside of a JSON string, in pieces: escaping may need six bytes for one (`\\u0000`)."""
        yield from _escape(self._head, at_end=not self._tail)
        if self._size > self._limit:
            left_out = self._size - len(self._head) - len(self._tail)
            where = f"; all of it is in {self._path}" if self._file.is_complete else ""
            yield to_json(f"\n[... {left_out:,} bytes left out{where} ...]\n")[1:-1]
        start = 0
        while start < min(4, len(self._tail)) and self._tail[start] & 0xC0 == 0x80:
            start += 1  # continuation bytes of a UTF-8 character that was cut in two
        yield from _escape(self._tail[start:], at_end=True)

    def _keep(self, data: bytes) -> None:
        if not data:
            return
        # The moment when it becomes too long: the file gets all of the beginning, of which memory keeps the first half;
        # the second half is the beginning of what may turn out to be the end.
        if self._size <= self._limit < self._size + len(data):
            self._file.write(bytes(self._head))
            self._tail += self._head[self._limit // 2 :]
            del self._head[self._limit // 2 :]
        self._size += len(data)
        if self._size <= self._limit:
            self._head += data
            return
        self._file.write(data)
        self._tail += data
        tail_bytes = self._limit - self._limit // 2
        if len(self._tail) > 2 * tail_bytes:  # not on each call: a deletion at the front moves all bytes after it
            del self._tail[:-tail_bytes]


class _File:
    """A file that a thread appends to, up to `max_bytes`; opened with the first bytes."""

    def __init__(self, open_file: Callable[[], int], max_bytes: int, hold: Callable[[bool], None]) -> None:
        self.is_complete = False
        self._open = open_file
        self._left = max_bytes
        self._hold = hold
        self._fd: int | None = None
        self._failed = False
        self._waiting: list[bytes] = []
        self._size = 0  # bytes of `_waiting`
        self._held = False
        self._work: asyncio.Task[None] | None = None

    def write(self, data: bytes) -> None:
        """Queue bytes for the thread; pauses the pipes when too many are queued."""
        if self._failed:
            return
        self._waiting.append(data)
        self._size += len(data)
        if self._size > _HIGH_BYTES and not self._held:
            self._held = True
            self._hold(True)
        if self._work is None or self._work.done():
            self._work = asyncio.get_running_loop().create_task(self._write_all())

    async def close(self) -> None:
        """Wait until all is written."""
        while self._waiting and not self._failed:
            if self._work is None or self._work.done():
                self._work = asyncio.get_running_loop().create_task(self._write_all())
            await self._work
        if self._work is not None:
            await self._work
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
            self.is_complete = not self._failed

    async def _write_all(self) -> None:
        while self._waiting and not self._failed:
            # Everything that came meanwhile in one write: a thread switch for each line would cost more than the line.
            data, self._waiting, self._size = b"".join(self._waiting), [], 0
            await asyncio.to_thread(self._append, data)
            if self._held and self._size <= _LOW_BYTES:
                self._held = False
                self._hold(False)
        self._waiting, self._size = [], 0
        if self._held:
            self._held = False
            self._hold(False)

    def _append(self, data: bytes) -> None:
        """Write to the file; runs on a thread. A failure truncates the file and ends further writes."""
        try:
            if self._fd is None:
                self._fd = self._open()
            with memoryview(data)[: self._left] as view:
                done = 0
                while done < len(view):
                    done += os.write(self._fd, view[done:])
                self._left -= done
        except (
            OSError,
            ValueError,
        ):  # disk full or quota: a partial file would pass for all of the output, and its space is needed
            self._failed = True
            if self._fd is not None:
                try:
                    os.ftruncate(self._fd, 0)
                except OSError:
                    pass


def _escape(data: bytes | bytearray, *, at_end: bool) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for start in range(0, len(data), _PIECE_BYTES):
        yield to_json(decoder.decode(data[start : start + _PIECE_BYTES]))[1:-1]
    yield to_json(decoder.decode(b"", final=at_end))[1:-1]
