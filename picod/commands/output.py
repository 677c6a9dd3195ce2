"""One output stream of a command: kept up to a limit, the whole of it in a file beyond that, memory flat.

A stream has three stages. *Keeping*: the loop reads the pipe into memory. *Spilling*: there is more than the answer has
room for, so a thread writes all of it to a file in the workspace, and the full pipe slows the command down. *Sinking*:
the command has ended but a child that it left behind still holds the pipe; closing our end would kill that child at its
next print, so what it prints is read slowly and dropped.
"""

from __future__ import annotations

import asyncio
import codecs
import fcntl
import os
from collections.abc import Callable, Iterator
from typing import Literal

_READ_BYTES = 64 << 10
_SPILL_PIPE_BYTES = 1 << 20  # a bigger pipe while spilling: fewer turns between loop and thread
_SPILL_TURN_BYTES = 16 << 20  # bytes after which a spilling thread lets other streams have it
_SINK_INTERVAL_S = 0.02  # between reads of a sink: 3 MB/s at most, so that a forgotten `yes &` costs little


class Stream:
    """Reads `fd` (non-blocking, owned from now on) until `finish` or `close`; one of the two must be awaited.

    After `finish`: `kept` holds the first `limit` bytes, `truncated` says that there was more, `spilled` that the file
    which `open_spill` opened holds the whole (its first `max_spill` bytes).
    """

    def __init__(self, fd: int, *, limit: int, max_spill: int, open_spill: Callable[[], int]) -> None:
        self.kept = bytearray()
        self.truncated = False
        self.spilled = False
        self._fd = fd
        self._limit = limit
        self._max_spill = max_spill
        self._open_spill = open_spill
        self._loop = asyncio.get_running_loop()
        self._at_end = False
        self._stopping = asyncio.Event()
        self._spiller: asyncio.Task[None] | None = None
        self._spill_fd = -1
        self._spill_room = 0
        self._loop.add_reader(fd, self._keep)

    async def finish(self) -> None:
        """Read what is in the pipe now and stop: the command has ended.

        Everything that the command itself wrote is in the pipe by now; what its children still print is not waited for.
        """
        if self._spiller is None:
            room = fcntl.fcntl(self._fd, fcntl.F_GETPIPE_SZ)
            while room > 0 and (taken := self._keep()) > 0:
                room -= taken
        await self._stop()
        if self._at_end:
            self.close_now()
        else:
            _Sink(self._fd)
            self._fd = -1

    async def close(self) -> None:
        """Stop at once, without reading what is left in the pipe."""
        await self._stop()
        self.close_now()

    def close_now(self) -> None:
        """Close the pipe and drop what is in it. A second call does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def text(self) -> Iterator[str]:
        """What was kept, in pieces; bytes that are no UTF-8 become U+FFFD."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for start in range(0, len(self.kept), _READ_BYTES):
            yield decoder.decode(self.kept[start : start + _READ_BYTES])
        yield decoder.decode(b"", final=not self.truncated)  # a character cut in two by the limit is dropped

    async def _stop(self) -> None:
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
        self._stopping.set()
        if self._spiller is not None:
            await self._spiller

    def _keep(self) -> int:
        """Read once into memory. Returns the bytes taken; 0 at the end, or when there is nothing, or when spilling."""
        if self._spiller is not None:
            return 0
        try:
            data = os.read(self._fd, _READ_BYTES)
        except BlockingIOError:
            return 0
        if not data:
            self._at_end = True
            self._loop.remove_reader(self._fd)
            return 0
        # The piece that crosses the limit is divided: its second part opens the file, after all that was kept.
        room = self._limit - len(self.kept)
        self.kept += data[:room]
        if len(data) > room:
            self.truncated = True
            self._loop.remove_reader(self._fd)
            self._spiller = self._loop.create_task(self._spill(data[room:]))
        return len(data)

    async def _spill(self, rest: bytes) -> None:
        try:
            fcntl.fcntl(self._fd, fcntl.F_SETPIPE_SZ, _SPILL_PIPE_BYTES)
        except OSError:
            pass  # the user's share of pipe memory is used up: the pipe keeps its size
        try:
            await asyncio.to_thread(self._begin_spill, rest)
            while not self._at_end:
                last = self._stopping.is_set()
                await asyncio.to_thread(self._drain, _SPILL_PIPE_BYTES if last else _SPILL_TURN_BYTES)
                if last:
                    break
                await self._readable_or_stopping()
        finally:
            if self._spill_fd >= 0:
                os.close(self._spill_fd)

    async def _readable_or_stopping(self) -> None:
        if self._at_end or self._stopping.is_set():
            return
        stopping = self._loop.create_task(self._stopping.wait())
        readable: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_reader(self._fd, _settle, readable)
        either: set[asyncio.Future[None] | asyncio.Task[Literal[True]]] = {stopping, readable}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._loop.remove_reader(self._fd)
            stopping.cancel()

    def _begin_spill(self, rest: bytes) -> None:
        try:
            self._spill_fd = self._open_spill()
        except (OSError, ValueError):
            return  # the answer says truncated and names no file
        self.spilled = True
        self._spill_room = self._max_spill
        self._write(self.kept)
        self._write(rest)

    def _drain(self, most: int) -> None:
        """Move what is in the pipe to the file; on a thread."""
        while most > 0:
            try:
                data = os.read(self._fd, _READ_BYTES)
            except BlockingIOError:
                return
            if not data:
                self._at_end = True
                return
            self._write(data)
            most -= len(data)

    def _write(self, data: bytes | bytearray) -> None:
        with memoryview(data)[: self._spill_room] as view:
            done = 0
            while done < len(view):
                try:
                    done += os.write(self._spill_fd, view[done:])
                except OSError:  # the disk is full: half a file could be taken for the whole, and its space is needed
                    os.ftruncate(self._spill_fd, 0)
                    self.spilled = False
                    self._spill_room = 0
                    return
            self._spill_room -= done


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class _Sink:
    """Reads a pipe slowly and drops the data, until its last writer is gone. The loop holds the only reference."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(fd, self._drop)

    def _drop(self) -> None:
        self._loop.remove_reader(self._fd)
        try:
            data = os.read(self._fd, _READ_BYTES)
        except BlockingIOError:
            data = b"-"
        if data:
            self._loop.call_later(_SINK_INTERVAL_S, self._loop.add_reader, self._fd, self._drop)
        else:
            os.close(self._fd)
