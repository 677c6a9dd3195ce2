"""Runs that are followed as they happen: /api/execute and /api/run_code with `stream`, and /api/runs to come back.

A run's events are kept for a while, so that a client whose connection broke goes on where it was: by GET
/api/runs/{id}, or by the same POST again, each with Last-Event-ID. While a client follows, the pipes wait for it:
memory is flat at any speed. A client that leaves ends its run, unless that was started in the background: such a
run is never held up, and the last 4 MiB of its events are kept.
"""

from __future__ import annotations

import asyncio
import codecs
import itertools
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from picod.commands.pending_events import Clear, PendingEvents, Result, Text
from picod.commands.result_bounds import ResultBounds
from picod.http.json_fields import wrong_type
from picod.http.request import ClientGoneError, Request, RequestError, to_json
from picod.http.sse import EventStream, Notifier

_dumps: Callable[[str], bytes]
try:
    from orjson import dumps as _dumps  # text as JSON at memory speed; where it is missing the library's own does
except ImportError:
    _dumps = to_json

_KEPT = 4 << 20  # bytes of events of one run
_KEPT_ALL = 16 << 20  # of runs that have ended
_KEPT_SECONDS = 300.0
_KEPT_RUNS = 64
_MAX_BACKGROUND = 16
_INTERVAL_S = 0.05  # between two moments at which events go out, while many happen
_TEXT_CHARS = 64 << 10  # of text that go out before that
_HIGH, _LOW = 1 << 20, 256 << 10  # bytes that wait for a client when the pipes are held, and let go again
_BATCH = 128 << 10  # bytes in one write; larger ones would be mapped and unmapped each time (syscalls.keep_heap_small)


@dataclass(frozen=True, slots=True)
class Following:
    """What a request says of streaming. `after` is the last event that the client has of `run_id`."""

    stream: bool = False
    background: bool = False
    run_id: str = ""
    after: int = 0


def read_following(fields: Mapping[str, Any], request: Request, struct: str) -> Following:
    """From `stream`, `background` and Last-Event-ID. Raises RequestError 400."""
    flags = {}
    for name in ("stream", "background"):
        value = fields.get(name)
        if value is not None and not isinstance(value, bool):
            raise wrong_type(value, struct, name, "bool")
        flags[name] = bool(value)
    if flags["background"] and not flags["stream"]:
        raise RequestError(400, "background goes with stream: true; POST /api/processes starts a process by itself")
    run_id, after = read_event_id(request) if flags["stream"] else ("", 0)
    return Following(flags["stream"], flags["background"], run_id, after)


def read_event_id(request: Request) -> tuple[str, int]:
    """Run and number of Last-Event-ID; empty and 0 without one. Raises RequestError 400."""
    text = request.header(b"last-event-id")
    if not text:
        return "", 0
    run_id, _, number = text.partition(":")
    if not (number.isascii() and number.isdigit() and len(number) < 16):
        raise RequestError(400, "Last-Event-ID must be the id of an event, such as 4f2a...:17")
    return run_id, int(number)


class Source(Protocol):
    """What a run's events come from, and can be made to wait: a pipe, a kernel's channel."""

    def pause(self) -> None:
        """Stop reading until `resume`; the writer then blocks on a full pipe."""

    def resume(self) -> None:
        """Read on after `pause`, from where it stopped."""

    def grow(self) -> None:
        """Make ready for a flood."""


class LiveRun:
    """One run and its events: start, stdout, stderr, result, clear, error, exit. A Listener of kernel.py.

    Event ids are RUN:NUMBER, numbers count from 1 without gaps. `stop` is called to end the run early, with the reason.
    """

    def __init__(self, stop: Callable[[str], None], *, background: bool) -> None:
        self.id = os.urandom(8).hex()
        self.background = background
        self.started_at = time.time()
        self.ended_at: float | None = None
        self.kept = 0  # bytes
        self._stop = stop
        self._events: deque[tuple[int, bytes]] = deque()  # (all bytes up to its end, the event)
        self._number = 0  # of the last event
        self._total = 0  # bytes of all events so far
        self._sent = 0  # bytes that the follower has, of all events so far
        self._changed = Notifier()
        self._follower: object | None = None
        self._sources: tuple[Source, ...] = ()
        self._pending = PendingEvents()
        self._flushed_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._held = False
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

    # What happens.

    def begin(self, **fields: object) -> None:
        """Add the `start` event: the run's id and `fields`."""
        self._add(b"start", to_json({"run_id": self.id, **fields}))

    def set_pipes(self, pipes: Iterable[Source]) -> None:
        """What is to wait when the follower is slow, or when more happens than may go out."""
        self._sources = tuple(pipes)
        for source in self._sources:
            source.grow()
        self._balance()

    def output(self, stream: str, data: bytes) -> None:
        """Add output as a `stdout` or `stderr` event; a character that is cut is kept for the next."""
        text = self._decoders[stream].decode(data)
        if text:
            self._pending.add_text(stream, text)
            self._flush_soon()

    def result(self, data: Mapping[str, Any] | None, display_id: str, *, update: bool) -> None:
        """A result, within the same bounds as in an answer."""
        kept = self._bounds.admit(data)
        if kept is not None:
            self._bounds.release(kept)  # only what one event may hold is bounded; of many, the ring keeps the last
            self._pending.add_result(Result(kept, display_id, update))
            self._flush_soon()

    def clear(self, *, wait: bool) -> None:
        """The code takes its results back."""
        self._pending.add_clear(wait=wait)
        self._flush_soon()

    def end(self, fields: Mapping[str, object]) -> None:
        """The last events: `error` if fields name one, and `exit` with the others."""
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

    # Who follows.

    async def follow(self, stream: EventStream, after: int) -> None:
        """Send all events after number `after`, to the end of the run. A newer follower takes the older's place."""
        me = self._follower = object()
        first = self._number - len(self._events) + 1  # the oldest that is kept
        if after + 1 < first:
            await stream.raw(b"event: lost\ndata: %b\n\n" % to_json({"events": first - after - 1}))
            after = first - 1
        after = min(after, self._number)
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
        """Send what is there after event `after`, up to a batch. Returns the number of the last that was sent."""
        first = self._number - len(self._events) + 1
        batch, size = [], 0
        for total, event in itertools.islice(self._events, max(0, after + 1 - first), None):
            batch.append(event)
            size += len(event)
            self._sent = total
            if size >= _BATCH:
                break
        if batch:
            await stream.raw(batch[0] if len(batch) == 1 else b"".join(batch))
            self._balance()
        return max(after, first - 1) + len(batch)

    def _flush_soon(self) -> None:
        """Let what happened go out: now when the last time was a while ago, else together with what comes until then.

        So the first line of a slow program comes at once, and a fast one has 20 times a second.
        """
        loop = asyncio.get_running_loop()
        if self._pending.text_size >= _TEXT_CHARS or loop.time() >= self._flushed_at + _INTERVAL_S:
            self._flush()
        else:
            if self._timer is None:
                self._timer = loop.call_at(self._flushed_at + _INTERVAL_S, self._flush)
            self._balance()

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._flushed_at = asyncio.get_running_loop().time()
        for event in self._pending.take():
            match event:
                case Text(stream, parts):
                    self._add(stream.encode(), b'{"text":%b}' % _dumps("".join(parts)))
                case Result(data, display_id, update):
                    more = {"display_id": display_id, "update": update} if display_id else {}
                    self._add(b"result", to_json({"data": data, **more}))
                case Clear(wait):
                    self._add(b"clear", to_json({"wait": wait}))
        self._balance()

    def _add(self, kind: bytes, payload: bytes) -> None:
        self._number += 1
        event = b"id: %b:%d\nevent: %b\ndata: %b\n\n" % (self.id.encode(), self._number, kind, payload)
        self._total += len(event)
        self.kept += len(event)
        self._events.append((self._total, event))
        while self.kept > _KEPT and len(self._events) > 1:
            total, oldest = self._events[0]
            if self._follower is not None and total > self._sent:
                break
            self._events.popleft()
            self.kept -= len(oldest)
        self._balance()
        self._changed.notify_all()

    def _balance(self) -> None:
        """Hold the sources while a follower has much to take, or much is to go out; let them go when it did."""
        waiting = self._total - self._sent if self._follower is not None else 0
        is_full = self._pending.is_full
        if (waiting > _HIGH or is_full) and not self._held:
            self._held = True
            for source in self._sources:
                source.pause()
        elif waiting <= _LOW and not is_full and self._held:
            self._held = False
            for source in self._sources:
                source.resume()


class Runs:
    """The runs of this sandbox that can be followed: those that run, and those that ended not long ago."""

    def __init__(self) -> None:
        self._runs: dict[str, LiveRun] = {}

    def all(self) -> list[LiveRun]:
        """The runs that are kept, oldest first."""
        self._forget()
        return list(self._runs.values())

    def add(self, run: LiveRun) -> None:
        """Keep it. Raises RequestError 429 when too many run in the background."""
        self._forget()
        if run.background and sum(each.background and each.ended_at is None for each in self._runs.values()) >= (
            _MAX_BACKGROUND
        ):
            raise RequestError(429, f"{_MAX_BACKGROUND} runs go on in the background; DELETE /api/runs/ID ends one")
        self._runs[run.id] = run

    def require(self, run_id: str) -> LiveRun:
        """One by its id. Raises RequestError 404."""
        run = self._runs.get(run_id)
        if run is None:
            raise RequestError(404, f"there is no run {run_id[:64]!r}: it ended some time ago, or in another sandbox")
        return run

    def _forget(self) -> None:
        ended = [run for run in self._runs.values() if run.ended_at is not None]
        kept = sum(run.kept for run in ended)
        for index, run in enumerate(ended):  # the oldest first
            old = time.time() - (run.ended_at or 0) > _KEPT_SECONDS
            if not old and kept <= _KEPT_ALL and len(ended) - index <= _KEPT_RUNS:
                return
            kept -= run.kept
            del self._runs[run.id]


async def serve(request: Request, run: LiveRun, after: int = 0) -> None:
    """Answer with the run's events. A client that leaves ends the run, unless it is in the background."""
    try:
        async with EventStream(request) as stream:
            await run.follow(stream, after)
    except ClientGoneError:
        if not run.background:
            run.stop("the client left")
        raise
