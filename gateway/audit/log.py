"""From the event loop to the trail: events are queued here, and a thread writes them in batches.

At most LINGER_S and one fdatasync lie between an event and the disk. What cannot be written is tried again every second
and waits in a bounded queue; what finds the queue full is counted, and a `gap` line tells how many there were.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from gateway.audit.event import AuditEvent, event_fields, timestamp
from gateway.audit.file import Entry
from gateway.audit.repeats import Repeats
from gateway.core.clock import Clock
from gateway.core.errors import SettingsError, UnavailableError

logger = logging.getLogger(__name__)

QUEUED = 10_000  # events; of an ordinary 400 bytes each, 4 MB
HEAD_EVERY_LINES = 1000
HEAD_EVERY_S = 30.0
LINGER_S = 0.02  # for others to join a batch: fewer fdatasyncs
_RETRY_S = 1.0
_LOOK_S = 5.0  # between looks at whether a head is due, where no event comes
_REPEAT_S = 60.0  # between log lines of the same problem
_JOIN_S = 10.0


class AuditUnavailableError(UnavailableError):
    """What was asked for has to be recorded, and cannot be."""

    code = "AUDIT_UNAVAILABLE"
    retry_after = 2.0


class Sink(Protocol):
    """Where lines go: AuditFile or AuditStream. All of it blocks, and raises OSError."""

    unsigned: int

    @property
    def path(self) -> Path | None:
        """The current file; None: what is written cannot be read back."""
        ...

    def open(self) -> int:
        """Find where the chain stands, and begin one if there is none."""
        ...

    def append(self, entries: Sequence[Entry]) -> None:
        """Write lines; after an OSError it is called with the same ones."""
        ...

    def sign_head(self) -> None:
        """Write a signed line, unless nothing was written since the last one."""
        ...

    def close(self) -> None:
        """Sign what is not signed yet, and release the file."""
        ...


class AuditLog:
    """Takes events on the event loop. `refuse`: while they cannot be written, what would make one is refused.

    State: the queue and the number of lost events, both under the lock; what is wrong with the sink.
    """

    def __init__(self, sink: Sink, clock: Clock, *, where: str, refuse: bool, text: bool = False) -> None:
        """`where`: the file's name, for messages. `text`: record code and commands, not only their hash."""
        self.text = text
        self.refusals = Repeats(clock)  # of all surfaces: a client that repeats itself does so through any of them
        self.problem = ""  # empty: events are written
        self.written = 0
        self.lost = 0
        self.failures = 0  # attempts to write that failed
        self._sink = sink
        self._clock = clock
        self._where = where
        self._refuse = refuse
        self._lock = threading.Lock()
        self._queue: list[AuditEvent] = []
        self._gap = 0  # events lost since the latest gap line
        self._wake = threading.Event()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
        self._said_at = -_REPEAT_S
        self._signed_at = clock.monotonic()

    def __repr__(self) -> str:
        return f"<AuditLog {self._where} written={self.written} lost={self.lost} {self.problem}>"

    def start(self) -> None:
        """Open the sink; then write in a thread. Raises SettingsError. Blocks for a moment."""
        try:
            self._sink.open()
        except OSError as error:
            raise SettingsError([f"--audit-log {self._where}: cannot be written: {error.strerror or error}"]) from error
        self._thread.start()

    def record(self, event: AuditEvent) -> None:
        """Queue an event. Never blocks and never fails: a queue that is full counts it as lost."""
        with self._lock:
            if len(self._queue) < QUEUED:
                self._queue.append(event)
            else:
                self.lost += 1
                self._gap += 1
        self._wake.set()

    def check(self) -> None:
        """Raise AuditUnavailableError where an event could not be written and has to be."""
        if self.problem and self._refuse:
            raise AuditUnavailableError("requests are refused while the audit trail cannot be written; try again later")

    @property
    def path(self) -> Path | None:
        """The current file; None: the trail cannot be read back."""
        return self._sink.path

    @property
    def queued(self) -> int:
        """Events that wait for the thread, without those that it is trying to write."""
        return len(self._queue)

    @property
    def unready(self) -> str:
        """Why a gateway that has to record everything cannot serve; empty if it can."""
        return self.problem if self._refuse else ""

    async def aclose(self) -> None:
        """Write what is queued, sign it, close."""
        self._ending.set()
        self._wake.set()
        await asyncio.to_thread(self._thread.join, _JOIN_S)

    def _run(self) -> None:
        batch: list[Entry] = []
        while batch or self._queue or not self._ending.is_set():
            if not batch:
                self._wake.wait(_LOOK_S)
                self._ending.wait(LINGER_S)  # and not sleep: the end of the gateway need not wait
                batch = self._take()
            if self.problem and not batch:
                batch = [self._gap_entry(0)]  # tries whether it works again, and then says that it did not
            if self._append(batch):
                batch = []
                self._sign_if_due()
            elif self._ending.is_set():
                break
            else:
                self._ending.wait(_RETRY_S)
        self._finish(batch)

    def _take(self) -> list[Entry]:
        """What is queued, as lines; a gap line stands where events were lost: after those that found a place."""
        self._wake.clear()
        with self._lock:
            events, self._queue = self._queue, []
            gap, self._gap = self._gap, 0
        entries = [self._entry(event) for event in events]
        return [*entries, self._gap_entry(gap)] if gap else entries

    def _append(self, batch: list[Entry]) -> bool:
        """Write lines; False: not yet, and they are to come again."""
        if not batch:
            return True
        try:
            self._sink.append(batch)
        except OSError as error:
            self._trouble(error)
            return False
        self.written += len(batch)
        if self.problem:
            logger.warning("%s: audit events are written again", self._where)
            self.problem = ""
            self._said_at = -_REPEAT_S
        return True

    def _sign_if_due(self) -> None:
        now = self._clock.monotonic()
        if self._sink.unsigned < HEAD_EVERY_LINES and now - self._signed_at < HEAD_EVERY_S:
            return
        try:
            self._sink.sign_head()
            self._signed_at = now
        except OSError as error:
            self._trouble(error)

    def _trouble(self, error: OSError) -> None:
        now = self._clock.monotonic()
        self.failures += 1
        self.problem = f"the audit trail {self._where} cannot be written: {error.strerror or error}"
        if now - self._said_at >= _REPEAT_S:
            self._said_at = now
            logger.error("%s; %d events wait, %d were lost", self.problem, len(self._queue), self.lost)

    def _finish(self, batch: list[Entry]) -> None:
        unwritten = len(batch) + len(self._queue)
        if unwritten:
            logger.error("%s: %d audit events could not be written before the end", self._where, unwritten)
        try:
            self._sink.close()
        except OSError as error:
            self._trouble(error)

    def _gap_entry(self, lost: int) -> Entry:
        return "gap", {"time": timestamp(self._clock.now()), "lost": lost}

    def _entry(self, event: AuditEvent) -> Entry:
        try:
            return "event", event_fields(event)
        except Exception:  # one event that cannot be rendered must not stop all others; it is as good as lost
            logger.exception("an audit event could not be rendered: %s", event.action)
            return self._gap_entry(1)
