"""One request and its answer over plain ASGI, as handlers see them; server.py is below, the handlers are above.

There is no web framework: importing one takes longer than importing all of picod.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Protocol
from urllib.parse import parse_qsl

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = Iterable[tuple[bytes, bytes]]

JSON_TYPE = (b"content-type", b"application/json; charset=utf-8")

BODY_IDLE_S = 300.0
"""Longest time between two pieces of a body. A peer that vanished without a FIN must not hold a temporary file for
ever."""


class Tunnel(Protocol):
    """An upgraded connection (server.py has the real one)."""

    async def read(self) -> bytes:
        """The bytes that have arrived, at least one; empty once the client has left."""
        ...

    async def write(self, data: bytes) -> None:
        """Send, and wait while the write buffer is full. Raises ClientGoneError."""
        ...

    def close(self) -> None:
        """Close the connection once what was written is sent."""
        ...


class RequestError(Exception):
    """An answer that is not a success: its status and its JSON body."""

    headers: tuple[tuple[bytes, bytes], ...] = ()

    def __init__(self, status: int, error: str, **more: object) -> None:
        super().__init__(error)
        self.status = status
        self.body: dict[str, object] = {"code": status, "error": error, **more}


class TooLargeError(RequestError):
    """413 in AgentCube's words, which carry no `code`. The rest of the body is not read."""

    headers = ((b"connection", b"close"),)

    def __init__(self, limit: int) -> None:
        super().__init__(413, "request body too large")
        self.body = {"detail": f"maximum allowed size is {limit} bytes", "error": "request body too large"}


class ClientGoneError(Exception):
    """The client closed the connection: no answer can be sent."""


# The status for an errno of the file system. 507 (Insufficient Storage) is for a full disk or quota: with a 403 or a
# 500 a client could not tell that deleting files helps.
_OS_STATUS = {
    errno.ENOENT: 404,
    errno.ENOSPC: 507,
    errno.EDQUOT: 507,
    errno.EFBIG: 413,
    errno.EACCES: 403,
    errno.EPERM: 403,
    errno.EROFS: 403,
    errno.ENAMETOOLONG: 400,
    errno.ELOOP: 400,
    errno.ENOTDIR: 400,
    errno.EISDIR: 400,
    errno.EINVAL: 400,
    errno.ENXIO: 400,
    errno.EEXIST: 409,
    errno.ENOTEMPTY: 409,
    errno.ESTALE: 409,
    errno.EXDEV: 409,
    errno.ETXTBSY: 409,
    errno.EBUSY: 409,
    errno.EMFILE: 503,
    errno.ENFILE: 503,
    errno.ENOMEM: 503,
    errno.EAGAIN: 503,
}


def reason_of(error: OSError) -> str:
    """The system's message for an error, in Go's lower case: `no space left on device`."""
    text = os.strerror(error.errno) if error.errno else str(error)
    if error.errno == errno.EAGAIN:  # of fork: a bomb, or a pool that was not closed, would go on for ever
        text += (
            ": this sandbox has all the processes that it may have; end some, or hibernate the session, which ends all"
        )
    return text[:1].lower() + text[1:]


def os_failure(error: OSError, doing: str) -> RequestError:
    """The answer to an error of the file system; `doing` opens its message, e.g. `Failed to write file: open a/b`."""
    return RequestError(_OS_STATUS.get(error.errno or 0, 500), f"{doing}: {reason_of(error)}")


class Request:
    """One request. `tail` is what followed the matched route's prefix, percent-decoded, still bytes."""

    __slots__ = ("_headers", "_query", "_receive", "_send", "finished", "method", "scope", "started", "tail")

    def __init__(self, scope: Scope, receive: Receive, send: Send, tail: bytes) -> None:
        self.scope = scope
        self.method: str = scope["method"]
        self.tail = tail
        self.started = False
        self.finished = False  # the whole body was read
        self._receive = receive
        self._send = send
        self._headers: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            self._headers.setdefault(name, []).append(value)
        self._query: dict[str, str] | None = None

    def headers(self, name: bytes) -> list[bytes]:
        """All values of a header, by its lower-case name."""
        return self._headers.get(name, [])

    def header(self, name: bytes) -> str:
        """The first value of a header, or an empty text."""
        values = self._headers.get(name)
        return values[0].decode("latin-1") if values else ""

    def query(self, name: str) -> str:
        """The first value of a query parameter, or an empty text. Raises RequestError 400 for bad UTF-8."""
        if self._query is None:
            try:
                pairs = parse_qsl(self.scope["query_string"].decode("ascii"), keep_blank_values=True, errors="strict")
            except ValueError as error:
                raise RequestError(400, "the query string is not valid UTF-8") from error
            self._query = dict(reversed(pairs))  # of several values the first stays, as in Go's url.Values.Get
        return self._query.get(name, "")

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives. Raises ClientGoneError, and RequestError 408 after BODY_IDLE_S without a byte."""
        while not self.finished:
            try:
                async with asyncio.timeout(BODY_IDLE_S):
                    message = await self._receive()
            except TimeoutError as error:
                raise RequestError(408, f"no byte of the body came for {BODY_IDLE_S:.0f} seconds") from error
            if message["type"] != "http.request":
                raise ClientGoneError
            self.finished = not message.get("more_body", False)
            if message["body"]:
                yield message["body"]

    async def body(self, limit: int) -> bytes:
        """The whole body. Raises TooLargeError as soon as it is known to be over `limit` bytes."""
        # Before the first byte is read; the count below is for bodies without a length, and for those that lie.
        length = self.header(b"content-length")
        if length.isdigit() and int(length) > limit:
            raise TooLargeError(limit)
        whole = bytearray()
        async for chunk in self.chunks():
            whole += chunk
            if len(whole) > limit:
                raise TooLargeError(limit)
        return bytes(whole)

    async def gone(self) -> None:
        """Return when the client has left. Call it after the body was read."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def start(self, status: int, headers: Headers, *, body_follows: bool = False) -> None:
        """Send the head; the body follows with `write`. `body_follows`: at once, so that both can go in one write."""
        self.started = True
        head = {"type": "http.response.start", "status": status, "headers": list(headers)}
        await self._send({**head, "picod.body_follows": True} if body_follows else head)

    async def write(self, body: bytes | memoryview, *, more: bool) -> None:
        """Send a piece of the body and wait while the write buffer is full. Raises ClientGoneError."""
        await self._send({"type": "http.response.body", "body": body, "more_body": more})

    @property
    def offers_upgrade(self) -> bool:
        """Whether the client offers to change to another protocol on this connection."""
        return "picod.take_over" in self.scope

    async def upgrade(self, headers: Headers) -> Tunnel:
        """Accept the offered upgrade: answer 101 and return the connection as bytes. Raises ClientGoneError."""
        self.started = True
        tunnel: Tunnel = await self.scope["picod.take_over"](headers)
        return tunnel

    async def answer(self, status: int, body: bytes, headers: Headers) -> None:
        """Send a whole answer, with its Content-Length, in one write when it is small."""
        await self.start(status, [*headers, (b"content-length", b"%d" % len(body))], body_follows=True)
        await self.write(body, more=False)

    async def answer_json(self, status: int, value: object, headers: Headers = ()) -> None:
        """Send a value as compact JSON (to_json), whole."""
        await self.answer(status, to_json(value), (JSON_TYPE, *headers))


def query_flag(request: Request, name: str) -> bool:
    """A query parameter that is `true` or `false`; False if absent. Raises RequestError 400."""
    value = request.query(name)
    if value not in ("", "true", "false"):
        raise RequestError(400, f"{name} must be true or false, not {value[:40]!r}")
    return value == "true"


def to_json(value: object) -> bytes:
    """A value as compact JSON. A lone surrogate, which UTF-8 cannot express, becomes a question mark."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
