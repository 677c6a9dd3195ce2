"""The Connect protocol with its JSON codec, as E2B's clients speak it: unary calls and streams of enveloped messages.

Source: https://connectrpc.com/docs/protocol. Compression and protobuf are refused, not guessed.
"""

from __future__ import annotations

import base64
import binascii
import math
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, NamedTuple

import orjson
from starlette.requests import Request
from starlette.responses import Response

from gateway.api.event_answer import EventAnswer, Piece
from gateway.api.http import read_bytes, read_chunks, unreadable
from gateway.core import json_depth
from gateway.core.errors import WakegateError, public_message

MAX_MESSAGE_BYTES = 4 << 20  # E2B's clients send input in far smaller pieces
_END = 2  # flag of the last message of a stream
_STREAM_TYPE = "application/connect+json"
_MAX_TIMEOUT_MS = 24 * 3600 * 1000  # what is longer is a client that wants no timeout
# https://connectrpc.com/docs/protocol#error-codes
STATUS: Mapping[str, int] = {
    "canceled": 499, "unknown": 500, "invalid_argument": 400, "deadline_exceeded": 504, "not_found": 404,
    "already_exists": 409, "permission_denied": 403, "resource_exhausted": 429, "failed_precondition": 400,
    "aborted": 409, "out_of_range": 400, "unimplemented": 501, "internal": 500, "unavailable": 503, "data_loss": 500,
    "unauthenticated": 401,
}  # fmt: skip
# 409 is not `aborted`, which asks a client to begin anew: what is in the way here stays in the way.
_CODES: Mapping[int, str] = {
    400: "invalid_argument", 401: "unauthenticated", 403: "permission_denied", 404: "not_found",
    408: "deadline_exceeded", 409: "failed_precondition", 413: "resource_exhausted", 422: "invalid_argument",
    429: "resource_exhausted", 501: "unimplemented", 502: "unavailable", 503: "unavailable", 504: "deadline_exceeded",
    507: "resource_exhausted",
}  # fmt: skip


class ConnectError(Exception):
    """An error of a call, by the protocol's code."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code

    @property
    def document(self) -> dict[str, str]:
        """The error as the protocol writes it."""
        return {"code": self.code, "message": str(self)}


def from_status(status: int, message: str) -> ConnectError:
    """The error for an HTTP status of picod's or of the gateway's own."""
    # What is no error at all is none of picod's answers to a call that it did not do.
    return ConnectError(_CODES.get(status, "internal" if status >= 400 else "unavailable"), message)


def from_error(error: WakegateError) -> ConnectError:
    """One of the gateway's errors."""
    return from_status(error.status, public_message(error))


def check_content_type(request: Request, *, stream: bool) -> None:
    """Raise ConnectError unless the request is JSON and not compressed."""
    sent = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    expected = _STREAM_TYPE if stream else "application/json"
    if sent != expected:
        raise ConnectError("unimplemented", f"content type {sent[:64]!r}: this server speaks {expected} only")
    for name in ("content-encoding", "connect-content-encoding"):
        if request.headers.get(name, "identity") != "identity":
            raise ConnectError("unimplemented", f"{name}: compressed messages are not supported; send identity")


def timeout_of(request: Request) -> float | None:
    """Connect-Timeout-Ms in seconds; None: the client sets none. Raises ConnectError."""
    text = request.headers.get("connect-timeout-ms")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and 0 < len(text) <= 10):
        raise ConnectError("invalid_argument", "Connect-Timeout-Ms: expected at most 10 digits")
    return min(int(text), _MAX_TIMEOUT_MS) / 1000 or None  # 0: no limit


async def read_unary(request: Request) -> Mapping[str, Any]:
    """The message of a unary call. Raises ConnectError, and what `read_bytes` raises."""
    check_content_type(request, stream=False)
    # No body at all stands for the empty message, whose fields all have their defaults.
    return _parse(await read_bytes(request, MAX_MESSAGE_BYTES) or b"{}")


async def read_one(request: Request) -> Mapping[str, Any]:
    """The only message of a call whose answers are a stream. Raises ConnectError, and what `read_bytes` raises."""
    check_content_type(request, stream=True)
    body = await read_bytes(request, MAX_MESSAGE_BYTES)
    messages = Envelopes()
    found = messages.feed(body)
    if len(found) != 1 or messages.pending:
        raise ConnectError("invalid_argument", "expected one whole enveloped message")
    return found[0]


async def read_stream(request: Request) -> AsyncIterator[Mapping[str, Any]]:
    """The messages of a client's stream, as they come. Raises ConnectError, and what `read_chunks` raises."""
    check_content_type(request, stream=True)
    messages = Envelopes()
    # A stream may be as long as its process runs; what is bounded is a message, by Envelopes.
    async for chunk in read_chunks(request, None):
        for message in messages.feed(chunk):
            yield message
    if messages.pending:
        raise ConnectError("invalid_argument", "the stream ended within a message")


class Envelopes:
    """Takes a stream of bytes apart into messages: one byte of flags, four of length, JSON. Pure."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def pending(self) -> bool:
        """Whether bytes of a message are there that is not whole."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> list[Mapping[str, Any]]:
        """The messages that are whole now. Raises ConnectError for one that is too large, compressed or not JSON."""
        self._buffer += data
        found: list[Mapping[str, Any]] = []
        start = 0
        while len(self._buffer) - start >= 5:
            flags, size = self._buffer[start], int.from_bytes(self._buffer[start + 1 : start + 5])
            # By its length alone, before any of its bytes are held: five bytes may announce 4 GiB.
            if size > MAX_MESSAGE_BYTES:
                raise ConnectError("resource_exhausted", f"a message is larger than {MAX_MESSAGE_BYTES} bytes")
            if flags & ~_END:
                raise ConnectError("unimplemented", "compressed messages are not supported")
            if len(self._buffer) - start < 5 + size:
                break
            if not flags & _END:  # the last one has trailers and no message
                found.append(_parse(bytes(self._buffer[start + 5 : start + 5 + size])))
            start += 5 + size
        del self._buffer[:start]
        return found


def _parse(data: bytes) -> Mapping[str, Any]:
    try:
        value = json_depth.loads(data)
    except ValueError as error:
        raise ConnectError("invalid_argument", str(unreadable("the message", error))) from None
    if not isinstance(value, dict):
        raise ConnectError("invalid_argument", "the message is not a JSON object")
    return value


def unary_answer(message: Mapping[str, Any]) -> Response:
    """The answer to a unary call."""
    return Response(orjson.dumps(message), media_type="application/json")


def error_answer(error: ConnectError, *, stream: bool) -> Response:
    """The answer of a call that failed before its first message."""
    if stream:
        # A stream answers 200 in any case; clients look for the error in its last message.
        return Response(envelope({"error": error.document}, last=True), media_type=_STREAM_TYPE)
    return Response(orjson.dumps(error.document), STATUS[error.code], media_type="application/json")


class Batch(NamedTuple):
    """Messages of a stream that go out together. `is_last`: none follow."""

    messages: Sequence[Mapping[str, Any]]
    is_last: bool = False


def stream_answer(
    batches: AsyncGenerator[Batch, None], keepalive: Mapping[str, Any] = {}, interval: float = math.inf
) -> Response:
    """The answer of a call whose messages come one after another. Errors become the end of the stream.

    `keepalive` is sent after each `interval` seconds without a message.
    """

    async def pieces() -> AsyncGenerator[Piece, None]:
        error: ConnectError | None = None
        try:
            async with aclosing(batches):  # else what it holds open would be closed by the garbage collector
                async for messages, is_last in batches:
                    data = b"".join(map(envelope, messages))
                    if is_last:
                        yield data + envelope({}, last=True), False
                        return
                    yield data, True
        except ConnectError as failure:
            error = failure
        except WakegateError as failure:
            error = from_error(failure)
        yield envelope({} if error is None else {"error": error.document}, last=True), False

    return EventAnswer(pieces(), media_type=_STREAM_TYPE, keepalive=envelope(keepalive), interval=interval)


def envelope(message: Mapping[str, Any], *, last: bool = False) -> bytes:
    """A message with its flags and its length."""
    data = orjson.dumps(message)
    return struct.pack(">BI", _END if last else 0, len(data)) + data


def object_of(message: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A field that is a message; absent is an empty one. Raises ConnectError."""
    value = message.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConnectError("invalid_argument", f"{name}: expected an object")
    return value


def text_of(message: Mapping[str, Any], name: str, default: str = "") -> str:
    """A field that is text. Raises ConnectError."""
    value = message.get(name)
    if value is None:
        return default
    if not isinstance(value, str):
        raise ConnectError("invalid_argument", f"{name}: expected text")
    return value


def number_of(message: Mapping[str, Any], name: str, default: int = 0) -> int:
    """A field that is a whole number; proto3's JSON writes 64 bits as text. Raises ConnectError."""
    value = message.get(name, default)
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 16:
        value = int(value)
    if value is None:
        return default
    # Up to 2^53 every whole number is exact in JavaScript too; True is an int in Python.
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 53:
        raise ConnectError("invalid_argument", f"{name}: expected a whole number")
    return value


def bytes_of(message: Mapping[str, Any], name: str) -> bytes:
    """A field of bytes, in base64. Raises ConnectError."""
    try:
        return base64.b64decode(text_of(message, name), validate=True)
    except (binascii.Error, ValueError):
        raise ConnectError("invalid_argument", f"{name}: expected base64") from None
