"""The record of one request, for the access log and tracing. With both off, no record is created.

The server's cycle creates the record when a request's head arrives and finishes it with the last byte of the response;
the proxy fills in what it learns in between: session, runtime, start kind, stages.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import Any, Protocol

from gateway.core.errors import WakegateError
from gateway.core.identity import Identity
from gateway.core.model import RuntimeKey, SessionId, StartKind


class BodyReader(Protocol):
    """Is shown a request's body on its way to a sandbox."""

    def feed(self, piece: bytes | bytearray | memoryview) -> None:
        """The next piece. It must not be kept: the buffer is used again."""
        ...


class Record:
    """What is known about a request so far. Times in seconds, sizes in bytes."""

    __slots__ = (
        "began", "body", "cut", "error", "identity", "path", "request_id", "runtime", "sandbox", "scope", "sent",
        "session", "span", "stages", "start", "status", "traceparent",
    )  # fmt: skip

    def __init__(self, scope: Any) -> None:
        self.scope = scope
        self.began = perf_counter()
        self.request_id = b""
        self.identity: Identity | None = None  # who sent it, once that is known
        self.body: BodyReader | None = None  # set by an observer that wants to see the body
        self.error: WakegateError | None = None  # what the gateway answered it with, in place of the sandbox
        self.path = b""  # the sandbox's, where it is for one
        self.session: SessionId | None = None
        self.runtime: RuntimeKey | None = None
        self.sandbox = ""  # "namespace/name" of a Sandbox that is no session's (agent-sandbox)
        self.start: StartKind | None = None
        self.status = 0  # 0: no response was started
        self.sent = 0  # bytes of the body, including chunked framing
        self.cut = False  # the response was aborted, or the client disconnected
        self.stages: Sequence[tuple[str, float]] = ()  # (name, seconds) in order
        self.span: Any = None  # set and read by Tracing
        self.traceparent = b""  # replaces the client's traceparent header if there is a span

    def saw(self, session: SessionId | None, runtime: RuntimeKey | None, start: StartKind | None) -> None:
        """Set the session, its runtime and the start kind, once they are resolved."""
        self.session, self.runtime, self.start = session, runtime, start

    def finish(self, observer: Observer, *, cut: bool = False) -> None:
        """Notify the observer that the response is complete, or (`cut`) was aborted."""
        self.cut = cut
        observer.finished(self)

    @property
    def seconds(self) -> float:
        """Time since the request's head arrived."""
        return perf_counter() - self.began


class Observer(Protocol):
    """Receives the start and end of each request. Called on the event loop, so it must not block."""

    def began(self, record: Record) -> None:
        """Called when the request's head has been parsed."""
        ...

    def finished(self, record: Record) -> None:
        """Called once, when the response is complete or has been aborted."""
        ...


class Observers:
    """Combines several observers into one."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = observers

    def began(self, record: Record) -> None:
        """Notify the observers in order: tracing comes first, and sets the trace id that the access log prints."""
        for observer in self._observers:
            observer.began(record)

    def finished(self, record: Record) -> None:
        """Notify the observers in the same order as `began`."""
        for observer in self._observers:
            observer.finished(record)
