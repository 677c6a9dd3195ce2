"""The client side of the wire: uvicorn's httptools protocol with the manners that a gateway needs.

Adds to it: a bound on the time and the size of a request's head, errors in our JSON shape, and a way for the app to cut
a connection whose response cannot be finished (`scope["extensions"]["wakegate.cut"]`), so that the client sees that it
is not whole and the log stays free of tracebacks. Framing that could be read in two ways is refused by llhttp in its
strict mode: both Content-Length and Transfer-Encoding, bad chunk sizes, bare LF.
"""

from __future__ import annotations

import asyncio
from typing import Any

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from gateway.errors import BadRequestError, RequestTimeoutError, WakegateError
from gateway.routing.answers import error_body

MAX_HEAD = 64 * 1024  # bytes of request line and headers
MAX_HEADERS = 256


class HeadTooLargeError(WakegateError):
    """A request head over the bounds."""

    status = 431
    code = "HEAD_TOO_LARGE"


class GatewayProtocol(HttpToolsProtocol):
    """One client connection. `head_timeout` is set on a subclass by `protocol_class`."""

    head_timeout = 30.0

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._head_timer: asyncio.TimerHandle | None = None
        self._head_size = 0
        self._in_head = True
        self._extensions: Any = {"wakegate.cut": self.cut, "websocket.http.response": {}}

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_arrived()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            self._head_size += len(data)
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._head_arrived()
            if self._should_upgrade():
                self.handle_websocket_upgrade()
            # Any other Upgrade is ours to ignore (RFC 9110 7.8): the request was handed to the app already.
        except httptools.HttpParserError as error:
            self._refuse(_parser_problem(error))
        else:
            if self._in_head:  # still: most heads come in one piece and need no timer
                if self._head_size > MAX_HEAD:
                    self._refuse(HeadTooLargeError(f"the request's head is larger than {MAX_HEAD} bytes"))
                elif self._head_timer is None:
                    self._await_head()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self.scope["extensions"] = self._extensions

    def on_headers_complete(self) -> None:
        self._head_arrived()
        if len(self.headers) > MAX_HEADERS:
            raise HeadTooLargeError(f"the request has more than {MAX_HEADERS} header fields")
        super().on_headers_complete()

    def cut(self) -> None:
        """Break the connection off: what was sent of the response is not whole."""
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.abort()

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(self.head_timeout, self._head_is_late)

    def _head_arrived(self) -> None:
        self._in_head = False
        self._head_size = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self._in_head and self._head_size:
            self._refuse(RequestTimeoutError(f"the request's head did not arrive within {self.head_timeout:g} s"))
        else:
            self.transport.close()

    def _refuse(self, error: WakegateError) -> None:
        """Answer in place of the app and close; if an answer is under way, cut it."""
        if self.transport.is_closing():
            return
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            self.cut()
            return
        body = error_body(error)
        self.transport.write(
            b"%bcontent-type: application/json; charset=utf-8\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"
            % (STATUS_LINE[error.status], len(body), body)
        )
        self.transport.close()


def protocol_class(head_timeout: float) -> type[GatewayProtocol]:
    """GatewayProtocol with its head timeout set, in the form that uvicorn's `http` option takes."""
    return type("GatewayProtocol", (GatewayProtocol,), {"head_timeout": head_timeout})


def _parser_problem(error: httptools.HttpParserError) -> WakegateError:
    cause = error.__context__
    if isinstance(error, httptools.HttpParserCallbackError) and isinstance(cause, WakegateError):
        return cause
    if isinstance(error, httptools.HttpParserCallbackError):
        return BadRequestError("the request's target is not a path")
    return BadRequestError(f"the request is not well-formed HTTP/1.1: {error}")
