"""Log lines, for people (console) or for programs (JSON, one object a line), on stderr; and the access log.

Library and gateway code log through the standard library; structlog renders all of it in one shape. Lines that belong
to a request carry its `request_id`. The access log goes past the standard library: it is written once per request.
"""

from __future__ import annotations

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
    """Send everything that is logged to the stream (default stderr) in one shape."""
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
        logging.getLogger("httpx").setLevel(logging.WARNING)  # our own control calls: a line each tells nobody anything


class AccessLog:
    """One line per request: an Observer (observability/request_record.py)."""

    def __init__(self, form: LogFormat, stream: BinaryIO | None = None) -> None:
        stream = stream or sys.stderr.buffer
        chain: list[Processor] = [_stamp, _renderer(form, _coloured(stream))]
        if form == "console":
            chain.append(lambda _, __, line: str(line).encode())
        # Bound once: the proxy that wrap_logger gives would make a logger anew for each line.
        self._log = structlog.wrap_logger(structlog.BytesLogger(stream), processors=chain).bind()

    def began(self, record: Record) -> None:
        """Nothing is written yet."""

    def finished(self, record: Record) -> None:
        """Write the line. The query is left out: it may hold what is nobody's business."""
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
    """On a terminal, unless NO_COLOR is set to anything (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR")


_MULTILINE = frozenset(("exception", "exc_info", "stack"))  # rendered as tracebacks


def printable(text: str) -> str:
    """The text with control characters escaped: a path, or what a sandbox answers, must not write lines of its own or
    move an operator's cursor. What most lines are is returned as it is.
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _escaped(_: object, __: str, event: EventDict) -> EventDict:
    for key, value in event.items():
        if type(value) is str and key not in _MULTILINE and not value.isprintable():
            event[key] = printable(value)
    return event


def _renderer(form: LogFormat, colours: bool) -> Processor:
    if form == "json":
        return lambda _, __, event: orjson.dumps(event, default=str)  # which escapes by itself
    # Plain tracebacks: the pretty ones that structlog takes where rich is installed hold the event loop for a quarter
    # of a second each, and print local variables, keys among them.
    console = structlog.dev.ConsoleRenderer(
        colors=colours, pad_event_to=0, exception_formatter=structlog.dev.plain_traceback
    )
    return lambda logger, name, event: console(logger, name, _escaped(logger, name, event))
