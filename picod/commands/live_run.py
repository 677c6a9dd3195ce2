"""One run that can be followed: its events, kept for a client that comes back, and the pace of what it prints.

While a client follows, the pipes wait for it: memory is flat at any speed. A run in the background is never held up;
the last 4 MiB of its events are kept, and a client that comes later gets the number that it has missed (`lost`).
"""

from __future__ import annotations

import asyncio
import codecs
import itertools
import os
import time
from base64 import b64encode
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from picod.commands.pending_events import Clear, PendingEvents, Result, Text
from picod.commands.result_bounds import ResultBounds, shareable_json
from picod.http.request import to_json
from picod.http.sse import EventStream, Notifier

_dumps: Callable[[str], bytes]
try:
    from orjson import dumps as _dumps  # text as JSON at memory speed; without orjson the standard library does it
except ImportError:
    _dumps = to_json

_KEPT_BYTES = 4 << 20  # of events, kept for a client that comes back
_FLUSH_INTERVAL_S = 0.05  # between two flushes, while much happens: 20 a second look continuous to a reader
_FLUSH_CHARS = 64 << 10  # of text that is waiting, after which a flush does not wait for its turn
# Bytes that the follower has not taken: above the first its sources are paused, at the second they are resumed. The
# distance keeps a client that reads at a steady pace from switching them with every event.
_PAUSE_BYTES, _RESUME_BYTES = 1 << 20, 256 << 10
_WRITE_BYTES = 128 << 10  # at most in one write; larger ones would be mapped and unmapped each time (keep_heap_small)


class Source(Protocol):
    """What a run's events come from, and can be made to wait: a pipe, a kernel's channel."""

    def pause(self) -> None:
        """Stop reading until `resume`; the writer then blocks on a full pipe."""

    def resume(self) -> None:
        """Continue reading after `pause`."""

    def grow(self) -> None:
        """Make room for much output at once, where there is a way to."""


class LiveRun:
    """One run and its events: start, stdout, stderr, result, clear, comm, error, exit. A Listener of kernel.py.

    Event ids are RUN:NUMBER, numbers count from 1 without gaps. `stop` is called to end the run early, with the reason.
    """

    def __init__(self, stop: Callable[[str], None], *, background: bool, comms: bool = False) -> None:
        self.id = os.urandom(8).hex()
        self.background = background
        self._comms = comms
        self.started_at = time.time()
        self.ended_at: float | None = None
        self.kept = 0  # bytes
        self._stop = stop
        self._events: deque[tuple[int, bytes]] = deque()  # (`_total` at its end, the event)
        self._number = 0  # of the last event
        self._total = 0  # bytes of all events so far
        self._sent = 0  # bytes that the follower has, of all events so far
        self._changed = Notifier()
        self._follower: object | None = None
        self._sources: tuple[Source, ...] = ()
        self._pending = PendingEvents()
        self._flushed_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._paused = False
        self._decoders = {name: codecs.getincrementaldecoder("utf-8")("replace") for name in ("stdout", "stderr")}
        self._bounds = ResultBounds()

    def describe(self) -> dict[str, object]:
        """The run as the API shows it."""
        return {
            "id": self.id,
            "running": self.ended_at is None,
            "background": self.background,
            "events": self._number,
            "started_at": self.started_at,
            "ended_at": self.ended_at,
        }

    # What the run reports.

    def begin(self, **fields: object) -> None:
        """Add the `start` event: the run's id and `fields`."""
        self._add(b"start", to_json({"run_id": self.id, **fields}))

    def set_pipes(self, pipes: Iterable[Source]) -> None:
        """Set the sources that are paused while the follower is slow, or while too many results are waiting."""
        self._sources = tuple(pipes)
        for source in self._sources:
            source.grow()
        self._balance()

    def output(self, stream: str, data: bytes) -> None:
        """Add output as a `stdout` or `stderr` event; half a character is kept for the next one."""
        text = self._decoders[stream].decode(data)
        if text:
            self._pending.add_text(stream, text)
            self._flush_soon()

    def result(self, data: Mapping[str, Any] | None, display_id: str, *, update: bool, is_value: bool = False) -> None:
        """Add a `result` event, within the same bounds as in an answer."""
        kept = self._bounds.admit(data)
        if kept is not None:
            self._bounds.release(kept)  # bounds are per event here: of many events the last ones are kept
            self._pending.add_result(Result(kept, display_id, update, is_value))
            self._flush_soon()

    def clear(self, *, wait: bool) -> None:
        """Add a `clear` event: the code removes its results so far."""
        self._pending.add_clear(wait=wait)
        self._flush_soon()

    def comm(self, kind: str, content: Mapping[str, Any], buffers: Sequence[bytes]) -> None:
        """Add a `comm` event, if the run's client asked for those: a message to a widget's front end."""
        if not self._comms:
            return
        self._flush()  # what was printed before it comes before it
        if shareable_json(content) is None:
            return
        event = {"type": kind, "content": content, "buffers": [b64encode(each).decode() for each in buffers]}
        self._add(b"comm", to_json(event))

    def end(self, fields: Mapping[str, object]) -> None:
        """Add the last events: `error` if `fields` has one, and `exit` with the other fields."""
        self._flush()
        for name, decoder in self._decoders.items():
            rest = decoder.decode(b"", final=True)
            if rest:
                self._add(name.encode(), b'{"text":%b}' % _dumps(rest))
        if fields.get("error"):
            self._add(b"error", to_json(fields["error"]))
        rest_fields = {name: value for name, value in fields.items() if name != "error"}
        self.ended_at = time.time()
        self._add(b"exit", to_json(rest_fields | self._bounds.fields()))

    def stop(self, reason: str) -> None:
        """Ask a run that has not ended to end, for `reason`."""
        if self.ended_at is None:
            self._stop(reason)

    # What the follower gets.

    async def follow(self, stream: EventStream, after: int) -> None:
        """Send all events after number `after`, to the end of the run. A newer follower takes the older's place."""
        me = self._follower = object()
        first = self._number - len(self._events) + 1  # the oldest that is kept
        if after + 1 < first:
            await stream.raw(b"event: lost\ndata: %b\n\n" % to_json({"events": first - after - 1}))
            after = first - 1
        after = min(after, self._number)  # a number that was never given out: follow from now on
        try:
            while self._follower is me:
                after = await self._send_on(stream, after)
                if after == self._number:
                    if self.ended_at is not None:
                        return
                    await stream.until(self._changed.wait())
        finally:
            if self._follower is me:
                self._follower = None
                self._balance()

    async def _send_on(self, stream: EventStream, after: int) -> int:
        """Send the events after number `after`, in one write. Returns the number of the last that was sent."""
        first = self._number - len(self._events) + 1
        batch, size = [], 0
        for total, event in itertools.islice(self._events, max(0, after + 1 - first), None):
            batch.append(event)
            size += len(event)
            self._sent = total
            if size >= _WRITE_BYTES:
                break
        if batch:
            await stream.raw(batch[0] if len(batch) == 1 else b"".join(batch))
            self._balance()
        return max(after, first - 1) + len(batch)

    def _flush_soon(self) -> None:
        """Flush now if the last flush is _FLUSH_INTERVAL_S ago, else when it will be.

        So each line of a slow program is sent at once, and a program that prints a thousand lines a second causes 20
        writes.
        """
        loop = asyncio.get_running_loop()
        if self._pending.text_size >= _FLUSH_CHARS or loop.time() >= self._flushed_at + _FLUSH_INTERVAL_S:
            self._flush()
        else:
            if self._timer is None:
                self._timer = loop.call_at(self._flushed_at + _FLUSH_INTERVAL_S, self._flush)
            self._balance()

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._flushed_at = asyncio.get_running_loop().time()
        for event in self._pending.take():
            match event:
                case Text(stream, parts):
                    self._append(stream.encode(), b'{"text":%b}' % _dumps("".join(parts)))
                case Result(data, display_id, update, is_value):
                    more: dict[str, object] = {"display_id": display_id, "update": update} if display_id else {}
                    if is_value:
                        more["value"] = True
                    self._append(b"result", to_json({"data": data, **more}))
                case Clear(wait):
                    self._append(b"clear", to_json({"wait": wait}))
        self._announce()

    def _add(self, kind: bytes, payload: bytes) -> None:
        self._append(kind, payload)
        self._announce()

    def _announce(self) -> None:
        # Never between two events of one flush: a source that is resumed delivers at once what it holds, and on a busy
        # machine, where the next flush is due by then, that went out before the rest of this one.
        self._balance()
        self._changed.notify_all()

    def _append(self, kind: bytes, payload: bytes) -> None:
        self._number += 1
        event = b"id: %b:%d\nevent: %b\ndata: %b\n\n" % (self.id.encode(), self._number, kind, payload)
        self._total += len(event)
        self.kept += len(event)
        self._events.append((self._total, event))
        while self.kept > _KEPT_BYTES and len(self._events) > 1:
            total, oldest = self._events[0]
            if self._follower is not None and total > self._sent:
                break  # the follower has yet to get it; it is bounded, for the sources are paused meanwhile
            self._events.popleft()
            self.kept -= len(oldest)

    def _balance(self) -> None:
        """Pause the sources while the follower lags or too many results are waiting; resume them afterwards."""
        waiting = self._total - self._sent if self._follower is not None else 0
        is_full = self._pending.is_full
        if (waiting > _PAUSE_BYTES or is_full) and not self._paused:
            self._paused = True
            for source in self._sources:
                source.pause()
        elif waiting <= _RESUME_BYTES and not is_full and self._paused:
            self._paused = False
            for source in self._sources:
                source.resume()
                if self._paused:
                    break  # what it delivered was too much again, and has paused them all
