"""What is remembered of one request while somebody wants to know: the access log, tracing. Off: no record is made.

The server's cycle begins a record with the request's head and finishes it with the last byte of the answer; the proxy
notes on it what it learns in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import Any, Protocol

from gateway.core.model import RuntimeKey, SessionId, StartKind


class Record:
    """One request, as far as it is known. Times in seconds, sizes in bytes."""

    __slots__ = (
        "began", "cut", "request_id", "runtime", "scope", "sent", "session", "span", "stages", "start", "status",
        "traceparent",
    )  # fmt: skip

    def __init__(self, scope: Any) -> None:
        self.scope = scope
        self.began = perf_counter()
        self.request_id = b""
        self.session: SessionId | None = None
        self.runtime: RuntimeKey | None = None
        self.start: StartKind | None = None
        self.status = 0  # 0: no answer was begun
        self.sent = 0  # bytes of body, framing included where it is chunked
        self.cut = False  # the answer was broken off, or the client left
        self.stages: Sequence[tuple[str, float]] = ()  # in their order
        self.span: Any = None  # tracing's own
        self.traceparent = b""  # the header that goes on in place of the client's, when there is a span

    def saw(self, session: SessionId | None, runtime: RuntimeKey | None, start: StartKind | None) -> None:
        """Whose request it is, and how its sandbox came to be."""
        self.session, self.runtime, self.start = session, runtime, start

    def finish(self, observer: Observer, *, cut: bool = False) -> None:
        """The answer is sent, or (`cut`) will never be whole."""
        self.cut = cut
        observer.finished(self)

    @property
    def seconds(self) -> float:
        """From its head until now."""
        return perf_counter() - self.began


class Observer(Protocol):
    """Wants to know of requests. Called on the event loop: must not block."""

    def began(self, record: Record) -> None:
        """Its head is here."""
        ...

    def finished(self, record: Record) -> None:
        """Its answer is sent, or will never be."""
        ...


class Observers:
    """Several as one."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = observers

    def began(self, record: Record) -> None:
        """Tell all, the first one first."""
        for observer in self._observers:
            observer.began(record)

    def finished(self, record: Record) -> None:
        """Tell all, the first one first."""
        for observer in self._observers:
            observer.finished(record)
