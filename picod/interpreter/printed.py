"""What a run prints on one stream, for an answer of bounded size: lines as a terminal shows them, beginning and end.

The end of long output is what matters most (the error, the last epoch, the sum), so half of the room is for it. When
the stream is longer than that, a file in the workspace gets all of it; a thread writes it, and the pipes wait for the
thread, so that memory stays flat.
"""

from __future__ import annotations

import asyncio
import codecs
import os
import re
from collections.abc import Callable, Iterator

from picod.http.request import to_json

_MAX_LINE_BYTES = 64 << 10  # of a line that is held until its end is known
_HIGH_BYTES, _LOW_BYTES = 4 << 20, 1 << 20  # waiting for the file when the pipes are held, and let go again
_PIECE_BYTES = 64 << 10  # of output that become JSON at once
_ERASE = re.compile(r"\x1b\[[02]?K")


def fold(line: str) -> str:
    """What is left of a line on a terminal: each carriage return begins it anew, what is longer shows through.

    `10%\\r20%` is `20%`, `abc\\rx` is `xbc`; `ESC [K` and `ESC [2K` erase, as the bars of pip and rich do. Read from
    the end, where a cell has the last text that was written there, so that the work grows with the length only.
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
        if len(text) > len(shown):
            shown += text[len(shown) :]
        if erases:
            break
    return shown


class LineFolder:
    """Folds a stream of bytes. `feed` returns what can change no more, `finish` the rest."""

    def __init__(self) -> None:
        self._line = b""  # the last line, whose end has not come

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes."""
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
        """The end of the stream has come."""
        line, self._line = self._line, b""
        return _fold_bytes(line)

    def _shorten(self) -> bytes:
        """Fold the line so far, which a bar of many updates never ends. Returns it when it is as long after that."""
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
    """One stream. `open_file` makes the file for the whole, and may raise OSError or ValueError; `path` is its name.

    `hold` is called with True when the pipes are to wait, and with False when they need not any more.
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
        """Something was printed."""
        self._keep(self._folder.feed(data))

    async def finish(self) -> None:
        """All was printed; the file, if there is one, is complete after this."""
        self._keep(self._folder.finish())
        room = self._limit - self._limit // 2
        if len(self._tail) > room:
            del self._tail[:-room]
        await self._file.close()

    def fields(self, name: str) -> dict[str, object]:
        """`NAME_truncated` and `NAME_file`, when there is more than the answer has."""
        if self._size <= self._limit:
            return {}
        return {f"{name}_truncated": True} | ({f"{name}_file": self._path} if self._file.is_complete else {})

    def as_json(self) -> Iterator[bytes]:
        """The inside of a JSON string, in pieces: all at once it might be six times as much."""
        yield from _escape(self._head, at_end=not self._tail)
        if self._size > self._limit:
            left_out = self._size - len(self._head) - len(self._tail)
            where = f"; all of it is in {self._path}" if self._file.is_complete else ""
            yield to_json(f"\n[... {left_out:,} bytes left out{where} ...]\n")[1:-1]
        start = 0
        while start < min(4, len(self._tail)) and self._tail[start] & 0xC0 == 0x80:
            start += 1  # the rest of a character that the cut went through
        yield from _escape(self._tail[start:], at_end=True)

    def _keep(self, data: bytes) -> None:
        if not data:
            return
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
        room = self._limit - self._limit // 2
        if len(self._tail) > 2 * room:  # not each time: a deletion at the front moves all that follows
            del self._tail[:-room]


class _File:
    """A file that a thread appends to, up to `max_bytes`; made when the first bytes come."""

    def __init__(self, open_file: Callable[[], int], max_bytes: int, hold: Callable[[bool], None]) -> None:
        self.is_complete = False
        self._open = open_file
        self._room = max_bytes
        self._hold = hold
        self._fd: int | None = None
        self._failed = False
        self._waiting: list[bytes] = []
        self._size = 0  # bytes of `_waiting`
        self._held = False
        self._work: asyncio.Task[None] | None = None

    def write(self, data: bytes) -> None:
        """Append soon."""
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
        """On a thread."""
        try:
            if self._fd is None:
                self._fd = self._open()
            with memoryview(data)[: self._room] as view:
                done = 0
                while done < len(view):
                    done += os.write(self._fd, view[done:])
                self._room -= done
        except (OSError, ValueError):  # no room: half a file would pass for the whole, and its room is needed
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
