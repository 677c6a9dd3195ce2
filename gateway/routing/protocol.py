"""The client side of the wire: uvicorn's httptools protocol with the manners that a gateway needs.

Adds to it: a bound on the time and the size of a request's head, errors in our JSON shape, and a way for the app to cut
a connection whose response cannot be finished (`scope["extensions"]["wakegate.cut"]`), so that the client sees that it
is not whole and the log stays free of tracebacks. Framing that could be read in two ways is refused by llhttp in its
strict mode: both Content-Length and Transfer-Encoding, bad chunk sizes, bare LF.
"""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import unquote

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.utils import get_client_addr, get_path_with_query_string
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
        self.cycle: GatewayCycle = None  # type: ignore[assignment]  # uvicorn's word for: no request yet
        self._head_timer: asyncio.TimerHandle | None = None
        self._head_size = 0
        self._in_head = True
        self._idle_since: float | None = None
        self._extensions: Any = {
            "wakegate.cut": self.cut,
            "wakegate.respond": self.respond,
            "websocket.http.response": {},
        }

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_arrived()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            self._head_size += len(data)
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
        """uvicorn's, less what a proxied request does not need, and with a cycle that writes head and body at once."""
        self._head_arrived()
        if len(self.headers) > MAX_HEADERS:
            raise HeadTooLargeError(f"the request has more than {MAX_HEADERS} header fields")
        parser, scope = self.parser, self.scope
        version = parser.get_http_version()
        scope["method"] = parser.get_method().decode("ascii")
        if version != "1.1":
            scope["http_version"] = version
        if parser.should_upgrade() and self._should_upgrade():
            return
        scope["raw_path"], scope["path"], scope["query_string"] = _split_target(self.url)
        running = self.cycle
        self.cycle = cycle = GatewayCycle(
            scope=scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=version != "1.0" and parser.should_keep_alive(),
            on_response=self.on_response_complete,
        )
        cycle.tasks = self.tasks
        if running is None or running.response_complete:
            self._start_asgi_task(cycle, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, self.app))

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
            return
        # One timer per connection, looked at when it fires: arming and cancelling one per request costs 3 us.
        self._idle_since = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def timeout_keep_alive_handler(self) -> None:
        self.timeout_keep_alive_task = None
        if self.transport.is_closing():
            return
        idle = self._idle_since is not None and not self._in_head and self.cycle.response_complete
        left = (
            self.timeout_keep_alive - (self.loop.time() - (self._idle_since or 0.0))
            if idle
            else self.timeout_keep_alive
        )
        if left <= 0:
            self.transport.close()
        else:
            self.timeout_keep_alive_task = self.loop.call_later(left, self.timeout_keep_alive_handler)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        # The cycle takes its task out of the set itself: a done callback would cost a turn of the loop.
        task = self.loop.create_task(cycle.run_asgi(app))
        cycle.task = task  # type: ignore[attr-defined]
        self.tasks.add(task)

    def respond(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> bool:
        """A whole response in one call, for an app that has it at hand (`scope["extensions"]["wakegate.respond"]`).

        False: the client does not keep up, so the response has to go the ordinary way, which waits.
        """
        cycle = self.cycle
        if self.flow.write_paused or cycle.response_started:
            return False
        if not cycle.disconnected:
            cycle.begin(status, headers)
            cycle.write_body(body, more=False)
        return True

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


class GatewayCycle(RequestResponseCycle):
    """One request and its response. Writes the head together with the first piece of the body: one call in place of two.

    Header fields are not searched for forbidden bytes again: they come from llhttp, which refused them, or from us.
    """

    _head = b""
    task: asyncio.Task[None]
    tasks: set[asyncio.Task[None]]

    async def send(self, message: Any) -> None:
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        if self.response_started:
            self.write_body(message.get("body", b""), more=message.get("more_body", False))
        else:
            self.begin(message["status"], message["headers"])

    async def run_asgi(self, app: Any) -> None:
        try:
            await super().run_asgi(app)
        finally:
            self.tasks.discard(self.task)

    def write_body(self, body: bytes, *, more: bool) -> None:
        """A piece of the body; with the first one goes the head."""
        if self.scope["method"] == "HEAD":
            self.expected_content_length = 0
            body = b""
        elif self.chunked_encoding:
            if body:
                body = b"%x\r\n%b\r\n" % (len(body), body)
            if not more:
                body += b"0\r\n\r\n"
        else:
            self.expected_content_length -= len(body)
            if self.expected_content_length < 0:
                raise RuntimeError("the response's body is longer than its Content-Length")
        if self._head:
            body, self._head = self._head + body, b""
        if body:
            self.transport.write(body)
        if not more:
            self._finish()

    def begin(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """The head; it is written with the first piece of the body."""
        self.response_started = True
        self.waiting_for_100_continue = False
        lines = [STATUS_LINE[status]]
        has_connection = False
        for name, value in (*self.default_headers, *headers):
            if name == b"content-length":
                self.expected_content_length = int(value)
                self.chunked_encoding = False
            elif name == b"transfer-encoding":
                self.chunked_encoding = True
            elif name == b"connection":
                has_connection = True
                self.keep_alive = self.keep_alive and value.lower() != b"close"
            lines.append(b"%b: %b\r\n" % (name, value))
        if not self.keep_alive and not has_connection:
            lines.append(b"connection: close\r\n")
        if self.chunked_encoding is None and self.scope["method"] != "HEAD" and status not in (204, 304):
            if self.scope["http_version"] == "1.0":
                self.keep_alive = False  # RFC 9112 7.1: chunked is not sent to 1.0; the connection's end ends the body
                self.expected_content_length = 1 << 62
            else:
                self.chunked_encoding = True
                lines.append(b"transfer-encoding: chunked\r\n")
        if self.scope["method"] == "HEAD" or status == 304:
            self.expected_content_length = 0
        lines.append(b"\r\n")
        self._head = b"".join(lines)
        if self.access_log:
            self.access_logger.info(
                '%s - "%s %s HTTP/%s" %d',
                get_client_addr(self.scope),
                self.scope["method"],
                get_path_with_query_string(self.scope),
                self.scope["http_version"],
                status,
            )

    def _finish(self) -> None:
        if self.chunked_encoding is False and self.expected_content_length:
            raise RuntimeError("the response's body is shorter than its Content-Length")
        self.response_complete = True
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()


def _split_target(url: bytes) -> tuple[bytes, str, bytes]:
    """(raw path, decoded path, query) of a request target. Raises HttpParserInvalidURLError."""
    if not url.startswith(b"/"):
        # Absolute form (RFC 9112 3.2.2), or one that is no path at all: the rare cases go through the full parser.
        parsed = httptools.parse_url(url)
        raw, query = parsed.path or b"/", parsed.query or b""
    else:
        raw, _, query = url.partition(b"#")[0].partition(b"?")
    path = raw.decode("latin-1")
    return raw, unquote(path) if "%" in path else path, query


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
