"""HTTP and WebSocket on a blocking socket with hardly any client: bytes made beforehand, answers not parsed.

For calls of a few milliseconds that are compared with each other, where a client library's own milliseconds would hide
the difference. For servers of a benchmark's own: an answer has a Content-Length or chunks, and nothing is bounded.
"""

from __future__ import annotations

import base64
import os
import socket
import struct
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import orjson

_READ_BYTES = 1 << 20
_TIMEOUT_S = 120.0


def request(host: str, method: str, target: str, headers: Mapping[str, str], body: Any = None) -> bytes:
    """A request's bytes. `body`: bytes as they are, anything else as JSON; None: only the head is made."""
    data = b"" if body is None else body if isinstance(body, bytes) else orjson.dumps(body)
    fields = dict(headers)
    if body is not None:
        fields = {"content-type": "application/json", **fields, "content-length": str(len(data))}
    lines = [f"{method} {target} HTTP/1.1", f"host: {host}", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode() + data


def enveloped(message: Mapping[str, Any]) -> bytes:
    """A message of the Connect protocol, as the only one of a call to a stream."""
    data = orjson.dumps(message)
    return struct.pack(">BI", 0, len(data)) + data


class Wire:
    """One kept-alive connection. `body`: of the last answer of `exchange`, chunks and all."""

    def __init__(self, url: str) -> None:
        self.host = urlsplit(url).netloc
        name, _, port = self.host.partition(":")
        self.socket = socket.create_connection((name, int(port)), timeout=_TIMEOUT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.body = b""
        self._buffer = bytearray(_READ_BYTES)

    def exchange(self, *parts: bytes, expect: bytes = b"", status: int = 200) -> float:
        """Send, and read the whole answer. Returns milliseconds."""
        began = time.perf_counter()
        for part in parts:
            self.socket.sendall(part)
        answer = b""
        while not _is_whole(answer):
            answer += self._receive()
        took = (time.perf_counter() - began) * 1e3
        assert answer.startswith(b"HTTP/1.1 %d " % status), answer[:2000]
        assert expect in answer, answer[:2000]
        self.body = answer.partition(b"\r\n\r\n")[2]
        return took

    def drain(self, head: bytes, size: int) -> float:
        """Send, and read an answer of `size` bytes without keeping it. Returns milliseconds."""
        began = time.perf_counter()
        self.socket.sendall(head)
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += self._receive()
        fields, _, rest = answer.partition(b"\r\n\r\n")
        assert fields.startswith(b"HTTP/1.1 200 "), fields
        assert _length(fields) == size, fields
        left = size - len(rest)
        while left:
            count = self.socket.recv_into(self._buffer, min(left, _READ_BYTES))
            assert count, f"{left} bytes are missing"
            left -= count
        return (time.perf_counter() - began) * 1e3

    def _receive(self) -> bytes:
        data = self.socket.recv(_READ_BYTES)
        assert data, "the server closed the connection"
        return data


class Channel:
    """The WebSocket of a Jupyter kernel, in the framing without a name: a text frame of JSON per message."""

    def __init__(self, url: str, path: str) -> None:
        self._wire = Wire(url)
        key = base64.b64encode(os.urandom(16)).decode()
        upgrade = {"connection": "Upgrade", "upgrade": "websocket", "sec-websocket-version": "13"}
        self._wire.socket.sendall(request(self._wire.host, "GET", path, {**upgrade, "sec-websocket-key": key}))
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += self._wire.socket.recv(_READ_BYTES)
        assert answer.startswith(b"HTTP/1.1 101 "), answer

    def execute(self, code: str, *, expect: bytes) -> float:
        """Send an execute_request, and read to the status `idle`, which is the last. Returns milliseconds."""
        header = {
            "msg_id": os.urandom(8).hex(),
            "msg_type": "execute_request",
            "username": "",
            "session": "s",
            "version": "5.3",
        }
        content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}
        frame = masked(
            orjson.dumps(
                {"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell"}
            )
        )
        began = time.perf_counter()
        self._wire.socket.sendall(frame)
        answer = b""
        # Only the gateway writes this text with the brace behind it; what code shows comes inside of JSON's text.
        while b'"execution_state":"idle"}' not in answer:
            answer += self._wire.socket.recv(_READ_BYTES)
        took = (time.perf_counter() - began) * 1e3
        assert expect in answer, answer[:2000]
        # The frame's last bytes come in the same segment; wait for them, so that none is taken for the next answer's.
        while not answer.endswith(b"}"):
            answer += self._wire.socket.recv(_READ_BYTES)
        return took


def masked(text: bytes) -> bytes:
    """A text frame of a client's, whose mask is zero: the payload as it is. Below 64 KiB."""
    size = bytes((0x80 | len(text),)) if len(text) < 126 else b"\xfe" + struct.pack(">H", len(text))
    return b"\x81" + size + b"\0\0\0\0" + text


def _length(fields: bytes) -> int | None:
    for line in fields.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    return None


def _is_whole(answer: bytes) -> bool:
    fields, separator, body = answer.partition(b"\r\n\r\n")
    if not separator:
        return False
    length = _length(fields)
    return body.endswith(b"0\r\n\r\n") if length is None else len(body) >= length
