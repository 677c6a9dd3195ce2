"""The last server-sent event of a stream that is read as it comes, for the progress of a task."""

from __future__ import annotations

MAX_LAST = 2048  # characters that are kept of an event's data
_MAX_BYTES = 4 * MAX_LAST  # of a line, and of the data of one event: UTF-8 takes four for a character at most


class LastEvent:
    """Counts events with data and keeps the data of the last one.

    Source: WHATWG HTML, 9.2.6; for streams whose lines end with LF or CRLF, as those of every known server do.
    """

    def __init__(self) -> None:
        self.count = 0
        self.last = ""
        self._line = bytearray()  # as much as is kept of a line that has not ended
        self._data = bytearray()
        self._has_data = False

    def feed(self, chunk: bytes) -> None:
        """Read the next piece of the stream, in time proportional to its length."""
        *ended, rest = chunk.split(b"\n")
        for part in ended:
            self._add(part)
            self._end_line(bytes(self._line).removesuffix(b"\r"))
            self._line.clear()
        self._add(rest)

    def _add(self, part: bytes) -> None:
        self._line += part[: max(0, _MAX_BYTES - len(self._line))]

    def _end_line(self, line: bytes) -> None:
        if line.startswith(b"data:"):
            if self._has_data:
                self._data += b"\n"
            self._data += line[5:].removeprefix(b" ")
            del self._data[_MAX_BYTES:]
            self._has_data = True
        elif not line and self._has_data:
            self.count += 1
            self.last = self._data.decode("utf-8", "replace")[:MAX_LAST]
            self._data.clear()
            self._has_data = False
