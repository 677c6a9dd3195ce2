"""/api/ports: forwards requests from the gateway to a server that code has started in this sandbox.

    client -> gateway /v1/sessions/{id}/ports/{port}/x -> picod /api/ports/{port}/x -> localhost:{port}/x

A sandbox has its own loopback interface, in a network namespace without any other, so picod, which runs in it, is the
only way in. Each request gets a new connection and asks the server to close it: a server that handles one connection at
a time would hang on one that is kept open, and dialling loopback costs a tenth of a millisecond.

heads.py rewrites the heads, this module moves the bytes. After an upgrade that the server accepts (a WebSocket) they
are passed both ways unparsed.
"""

from __future__ import annotations

import asyncio
import errno
from typing import Any

import httptools

from picod import wire
from picod.compat.go_format import DurationError, parse_duration
from picod.config import PicodConfig
from picod.http.request import ClientGoneError, Request, RequestError, Tunnel, reason_of
from picod.ports.heads import PortRequest, Response, answer_headers, parse_port_request, request_head
from picod.ports.listening import listeners

_READ_BYTES = 256 << 10
_DIAL_TIMEOUT_S = 5.0  # a listener whose backlog is full does not answer at once
_MAX_HEAD_BYTES = 128 << 10
_LOOPBACKS = ("127.0.0.1", "::1")  # a server that listens on "localhost" may have bound either
_POLL_INTERVAL_S = 0.05  # at which /proc/net is read while a client waits for a port
_MAX_WAIT_S = 300.0


async def list_ports(config: PicodConfig, request: Request) -> None:
    """Answer the TCP ports that are listened on; `?wait=PORT&timeout=30s` waits for that one, or for the timeout."""
    wanted, timeout = request.query("wait"), request.query("timeout") or "30s"
    # isdigit alone accepts digits such as "\u00b2", which int() refuses.
    if wanted and not (wanted.isascii() and wanted.isdigit() and len(wanted) <= 5):
        raise RequestError(400, f"wait: expected a port number, not {wanted!r}")
    try:
        seconds = min(parse_duration(timeout), _MAX_WAIT_S)
    except DurationError as error:
        raise RequestError(400, f"timeout: {error}") from error
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    gone = asyncio.ensure_future(request.gone())
    try:
        # Polled: the kernel has no notification for a port that is opened, and a trial connection would be seen by the
        # server as a client that sends nothing.
        while wanted and int(wanted) not in listening() and loop.time() < deadline and not gone.done():
            await asyncio.wait((gone,), timeout=_POLL_INTERVAL_S)
    finally:
        gone.cancel()
    ports = [{"port": port, "reachable": is_allowed(config, port)} for port in sorted(listening())]
    await request.answer_json(200, {"ports": ports})


def listening() -> set[int]:
    """The TCP ports that any process in this network namespace listens on."""
    return {port for _, port in listeners()}


def is_allowed(config: PicodConfig, port: int) -> bool:
    """Whether the runtime allows requests to this port; picod's own, and the egress proxy's, never are."""
    own = config.fd is None and config.uds is None and port == config.port
    own = own or ((config.egress_fd is not None or config.egress_service) and port == wire.EGRESS_PORT)
    return not own and any(first <= port <= last for first, last in config.ports)


async def forward_to_port(config: PicodConfig, request: Request) -> None:
    """Forward a request to a port, and its answer back.

    404 for a malformed path, 403 for a port that the runtime does not allow, 502 when nothing listens there or the
    server does not speak HTTP.
    """
    target = parse_port_request(request)
    if not is_allowed(config, target.port):
        allowed = ", ".join(f"{first}-{last}" if first < last else f"{first}" for first, last in config.ports)
        raise RequestError(
            403,
            f"port {target.port} may not be reached; the runtime allows {allowed or 'none'}",
            code="PORT_NOT_ALLOWED",
        )
    await forward(request, target)


async def forward(request: Request, target: PortRequest) -> None:
    """Forward a request to `target`, and its answer back. Raises RequestError 502."""
    # Dialled before the request's body is read: when nothing listens, the client learns it without sending its upload.
    reader, writer = await _dial(target.port)
    try:
        await _exchange(request, target, reader, writer)
    finally:
        writer.transport.abort()  # the answer was read, or is cut off and must look so to the server as well


async def _dial(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to a port on either loopback address. Raises RequestError 502."""
    why = ""
    for host in _LOOPBACKS:
        try:
            async with asyncio.timeout(_DIAL_TIMEOUT_S):
                return await asyncio.open_connection(host, port, limit=_READ_BYTES)
        except TimeoutError:
            why = "it does not accept connections"
            break
        except OSError as error:
            if error.errno not in (errno.ECONNREFUSED, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.ENETUNREACH):
                why = reason_of(error)
                break
    if why:
        raise RequestError(502, f"port {port} cannot be reached: {why}", code="PORT_UNREACHABLE")
    raise RequestError(
        502, f"nothing listens on port {port} in this sandbox; start a server there first", code="PORT_NOT_LISTENING"
    )


async def _exchange(
    request: Request, target: PortRequest, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    writer.write(request_head(request, target))
    answer = _Answer(target, reader)
    upload = asyncio.ensure_future(_send_body(request, writer, chunked=target.chunked))
    # It ends by itself only when the client has left: then the rest of the answer is not read.
    upload.add_done_callback(lambda done: None if done.cancelled() else writer.transport.abort())
    try:
        await answer.head()
        headers = answer_headers(answer.response, target)
        if answer.response.status == 101:
            tunnel = await request.upgrade(headers)
        else:
            await request.start(answer.response.status, headers)
            while body := await answer.body():
                await request.write(body, more=True)
            await request.write(b"", more=False)
            return
    except RequestError as error:
        if upload.done():
            upload.result()
        if request.started:  # after the head only a broken connection can report the failure
            raise ClientGoneError from error
        raise
    finally:
        await _cancelled(upload)
    await _tunnel(tunnel, answer.rest, reader, writer)


async def _cancelled(task: asyncio.Future[None]) -> None:
    """Cancel a task and wait for it; its exception is dropped."""
    if not task.done():
        task.cancel()
    await asyncio.wait((task,))
    if not task.cancelled():
        task.exception()


async def _send_body(request: Request, writer: asyncio.StreamWriter, *, chunked: bool) -> None:
    """Send the body, then wait until the client leaves. Raises ClientGoneError, or RequestError for a bad body.

    A broken pipe is not a failure here: a server may answer before it has read the body, and its answer says why.
    """
    try:
        async for chunk in request.chunks():
            writer.write(b"%x\r\n%b\r\n" % (len(chunk), chunk) if chunked else chunk)
            await writer.drain()
        if chunked:
            writer.write(b"0\r\n\r\n")
        await writer.drain()
    except ConnectionError:
        pass
    await request.gone()
    raise ClientGoneError


async def _tunnel(client: Tunnel, rest: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass bytes both ways until one side closes the connection."""

    async def up() -> None:
        while data := await client.read():
            writer.write(data)
            await writer.drain()

    async def down(data: bytes) -> None:
        while data:
            await client.write(data)
            data = await reader.read(_READ_BYTES)

    # The first that ends, ends both: a half-closed WebSocket has no use, and would keep the session active.
    pumps = [asyncio.ensure_future(up()), asyncio.ensure_future(down(rest or await reader.read(_READ_BYTES)))]
    try:
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for pump in pumps:
            await _cancelled(pump)
        client.close()
        writer.close()
        try:
            async with asyncio.timeout(_DIAL_TIMEOUT_S):
                await writer.wait_closed()  # the client's last bytes, for example a close frame, are still sent
        except (OSError, TimeoutError):
            pass


class _Answer:
    """The server's answer, read from its connection. A callback object for httptools."""

    def __init__(self, target: PortRequest, reader: asyncio.StreamReader) -> None:
        self.response = Response()
        self.rest = b""  # bytes that came after the head of a 101
        self._target = target
        self._reader = reader
        self._parser: Any = httptools.HttpResponseParser(self)
        self._seen = 0
        self._has_head = self._complete = False
        self._pieces: list[bytes] = []

    async def head(self) -> None:
        """Read until `response` is complete; interim answers (1xx) are skipped. Raises RequestError 502."""
        while not self._has_head:
            await self._more()
            if not self._has_head and self._seen > _MAX_HEAD_BYTES:
                raise self._bad_answer("its head is too large")

    async def body(self) -> bytes:
        """The next piece, empty at the end. Raises RequestError if the body is cut off."""
        while not self._pieces and not self._complete:
            await self._more()
        body = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        return body

    async def _more(self) -> None:
        try:
            data = await self._reader.read(_READ_BYTES)
        except ConnectionError:
            data = b""
        if not data:
            if self._has_head and self.response.until_close:
                self._complete = True
                return
            raise self._bad_answer("it closed the connection before its answer was complete")
        self._seen += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self.rest = data[upgrade.args[0] :]
        except httptools.HttpParserError as error:
            if not self._complete:  # what follows a complete answer is of no interest
                raise self._bad_answer("it does not speak HTTP/1.1") from error

    def _bad_answer(self, why: str) -> RequestError:
        return RequestError(
            502, f"the server on port {self._target.port} cannot be understood: {why}", code="PORT_BAD_ANSWER"
        )

    # Called by httptools.

    def on_message_begin(self) -> None:
        """httptools: an answer begins, possibly after an interim one."""
        self.response.headers.clear()

    def on_header(self, name: bytes, value: bytes) -> None:
        """httptools: a header of the answer."""
        self.response.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """httptools: the head is complete; that of an interim answer (1xx) is skipped."""
        status = self._parser.get_status_code()
        if status < 200 and status != 101:
            return
        if not 200 <= status < 600 and not (status == 101 and self._target.upgrade):
            raise ValueError(status)  # httptools turns it into an HttpParserError
        self._has_head = True
        self.response.status = status
        self._complete = self._target.method == "HEAD" or status == 101

    def on_body(self, body: bytes) -> None:
        """httptools: a piece of the answer's body."""
        self._pieces.append(body)

    def on_message_complete(self) -> None:
        """httptools: the answer is complete."""
        self._complete = self._has_head
