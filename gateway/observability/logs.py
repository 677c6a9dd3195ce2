"""Logging to stderr, for people (console) or for programs (JSON, one object per line), and the access log.

Gateway and libraries log through the standard library; structlog renders all of it in one format. Lines that belong to
a request carry its `request_id`. The access log bypasses the standard library, because it writes a line per request.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from typing import Any, BinaryIO, Literal, TextIO

import orjson
import structlog
from structlog.typing import EventDict, Processor

from gateway.observability.request_record import Record

LogFormat = Literal["console", "json"]

_stamp: Processor = structlog.processors.TimeStamper(fmt="iso", utc=True)


def configure(level: str, form: LogFormat, stream: TextIO | None = None) -> None:
    """Replace the root logger's handlers by one that renders to `stream` (default stderr)."""
    stream = stream or sys.stderr
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[
                structlog.contextvars.merge_contextvars,
                structlog.stdlib.add_log_level,
                structlog.stdlib.add_logger_name,
                _stamp,
            ],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *((structlog.processors.format_exc_info,) if form == "json" else ()),
                _renderer(form, _coloured(stream)),
                *((lambda _, __, line: line.decode(),) if form == "json" else ()),
            ],
        )
    )
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    if root.level > logging.DEBUG:
        # httpx logs each request at INFO, which here are the gateway's own calls to picod.
        logging.getLogger("httpx").setLevel(logging.WARNING)


class AccessLog:
    """One line per request: an Observer (observability/request_record.py)."""

    def __init__(self, form: LogFormat, stream: BinaryIO | None = None) -> None:
        stream = stream or sys.stderr.buffer
        chain: list[Processor] = [_stamp, _renderer(form, _coloured(stream))]
        if form == "console":
            chain.append(lambda _, __, line: str(line).encode())
        # Bound once: the lazy proxy that wrap_logger returns would build a logger for each line.
        self._log = structlog.wrap_logger(structlog.BytesLogger(stream), processors=chain).bind()

    def began(self, record: Record) -> None:
        """Do nothing: the line is written when the response is complete."""

    def finished(self, record: Record) -> None:
        """Write the line. The query string is left out: it may contain credentials, as signed URLs do."""
        scope = record.scope
        fields: dict[str, Any] = {
            "level": "info",
            "method": scope.get("method", "WEBSOCKET"),
            "path": scope["path"],
            "status": record.status or 499,
            "ms": round(record.seconds * 1e3, 3),
            "bytes": record.sent,
            "client": scope["client"][0] if scope["client"] else None,
            "request_id": record.request_id.decode("latin-1"),
        }
        if record.session is not None:
            fields["session"] = record.session
        if record.runtime is not None:
            fields["runtime"] = str(record.runtime)
        if record.start is not None:
            fields["start"] = record.start.value
        if record.traceparent:
            fields["trace_id"] = record.traceparent.split(b"-")[1].decode()
        if record.cut:
            fields["cut"] = True
        self._log.info("request", **fields)


def _coloured(stream: TextIO | BinaryIO) -> bool:
    """Whether to colour: on a terminal, unless NO_COLOR is set and not empty (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR")


_MULTILINE = frozenset(("exception", "exc_info", "stack"))  # rendered as tracebacks


def printable(text: str) -> str:
    """The text with control characters escaped.

    Paths and texts from a sandbox are logged; they must not forge log lines or send escape sequences to an operator's
    terminal. Printable text, the usual case, is returned unchanged.
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _escaped(_: object, __: str, event: EventDict) -> EventDict:
    for key, value in event.items():
        if type(value) is str and key not in _MULTILINE and not value.isprintable():
            event[key] = printable(value)
    return event


def _renderer(form: LogFormat, colours: bool) -> Processor:
    if form == "json":
        return lambda _, __, event: orjson.dumps(event, default=str)  # JSON strings are escaped anyway

    def traceback(stream: TextIO, exception: structlog.typing.ExcInfo) -> None:
        # The reason may be a sandbox's words: a line of them, indented, does not pass for one of the log.
        written = io.StringIO()
        structlog.dev.plain_traceback(written, exception)
        stream.write("\n".join("  " + printable(line) if line else "" for line in written.getvalue().split("\n")))

    # Plain tracebacks: those that structlog formats with rich, where that is installed, block the event loop for a
    # quarter of a second each and print local variables, among them keys.
    console = structlog.dev.ConsoleRenderer(colors=colours, pad_event_to=0, exception_formatter=traceback)
    return lambda logger, name, event: console(logger, name, _escaped(logger, name, event))
