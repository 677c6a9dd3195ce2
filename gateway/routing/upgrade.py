"""Requests with an Upgrade field: which of them become WebSockets, and how the body of every other one is read.

RFC 9110 7.8 lets a server ignore Upgrade, and we do unless a WebSocket is asked for in the one form that it has: `curl
--http2` and Java's HttpClient send `Upgrade: h2c` with ordinary requests. llhttp takes whatever follows such a head for
another protocol and stops; httptools has no way to tell it otherwise. So the rest is given to a fresh parser that has
read a stand-in head with the same body framing. Rejected: cutting the Upgrade field out of the data before it is
parsed, which needs a parser of our own in front of the parser, and the two could disagree.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, Protocol

import httptools

Headers = Sequence[tuple[bytes, bytes]]

_FRAMING = (b"content-length", b"transfer-encoding")


def is_websocket(method: str, version: str, headers: Headers) -> bool:
    """Whether a request whose head asks for an upgrade asks for a WebSocket: GET, HTTP/1.1, no body (RFC 6455 4.1)."""
    if method != "GET" or version != "1.1":
        return False
    tokens = [value.strip().lower() for name, value in headers if name == b"upgrade"]
    return tokens == [b"websocket"] and not any(
        name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0")) for name, value in headers
    )


class ParserCallbacks(Protocol):
    """What httptools calls on the way through a request."""

    def on_message_begin(self) -> None:
        """A request begins."""
        ...

    def on_url(self, url: bytes) -> None:
        """A piece of its target."""
        ...

    def on_header(self, name: bytes, value: bytes) -> None:
        """A field of its head, or a trailer."""
        ...

    def on_headers_complete(self) -> None:
        """Its head is read."""
        ...

    def on_body(self, body: bytes) -> None:
        """A piece of its body."""
        ...

    def on_message_complete(self) -> None:
        """All of it is read."""
        ...


def request_parser(callbacks: ParserCallbacks) -> Any:
    """An httptools.HttpRequestParser with uvicorn's leniency: a pipelined request after one that asked to close."""
    parser = httptools.HttpRequestParser(callbacks)
    with contextlib.suppress(AttributeError):  # as uvicorn does where httptools can
        parser.set_dangerous_leniencies(lenient_data_after_close=True)
    return parser


def parser_behind_head(callbacks: ParserCallbacks, headers: Headers) -> Any:
    """A parser for what follows a head that was read already: a body of the framing that it names, and more requests.

    Calls `on_message_complete` at once where the head announces no body.
    """
    framing = [b"%b: %b\r\n" % field for field in headers if field[0] in _FRAMING]
    behind = _BehindHead(callbacks)
    parser = request_parser(behind)
    if framing:
        parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n" % b"".join(framing))
    else:
        callbacks.on_message_complete()
    behind.is_behind = True
    return parser


class _BehindHead:
    """Callbacks that skip the stand-in head, and pass everything else on."""

    def __init__(self, callbacks: ParserCallbacks) -> None:
        self.is_behind = False
        self._callbacks = callbacks
        self.on_body = callbacks.on_body
        self.on_message_complete = callbacks.on_message_complete

    def on_message_begin(self) -> None:
        if self.is_behind:
            self._callbacks.on_message_begin()

    def on_url(self, url: bytes) -> None:
        if self.is_behind:
            self._callbacks.on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.is_behind:
            self._callbacks.on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.is_behind:
            self._callbacks.on_headers_complete()
