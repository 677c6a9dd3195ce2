"""The server name in the ClientHello with which a TLS connection begins. Pure.

Source: RFC 8446, sections 4.1.2 and 5.1; RFC 6066, section 3.
"""

from __future__ import annotations

HANDSHAKE = 0x16
MAX_HELLO_BYTES = 64 << 10  # with post-quantum keys and a ticket some have 4 KiB; 16 KiB is a record
UNRECOGNIZED_NAME = b"\x15\x03\x01\x00\x02\x02\x70"  # a fatal alert, as a record

_CLIENT_HELLO, _SERVER_NAME, _HOST_NAME = 1, 0, 0


def server_name(data: bytes) -> str | None:
    """The name in the hello at the beginning of a stream, empty if it has none; None: more bytes are needed.

    Raises ValueError for what is no ClientHello.
    """
    hello = _handshake(data)
    if hello is None:
        return None
    reader = _Reader(hello)
    reader.take(34)  # version and random
    reader.block(1)  # session id
    reader.block(2)  # cipher suites
    reader.block(1)  # compression methods
    if not reader.left:
        return ""
    extensions = _Reader(reader.block(2))
    found: list[str] = []
    while extensions.left:
        kind = extensions.number(2)
        content = extensions.block(2)
        # Encrypted hellos (ECH) carry an outer name here too, which is then compared as any: what is inside only the
        # host that was asked for can read.
        if kind == _SERVER_NAME:
            found += _names(_Reader(content))
    # RFC 6066 forbids a second one; servers that meet it take the first, or the last.
    if len(found) > 1:
        raise ValueError("several server names")
    return found[0] if found else ""


def _names(reader: _Reader) -> list[str]:
    names = _Reader(reader.block(2))
    found = []
    while names.left:
        kind = names.number(1)
        name = names.block(2)
        if kind == _HOST_NAME:
            found.append(name.decode("ascii").lower().removesuffix("."))
    return found


def _handshake(data: bytes) -> bytes | None:
    """The body of the first handshake message, which several records may carry; None: it is not complete."""
    message, at = b"", 0
    while True:
        if len(message) >= 4:
            if message[0] != _CLIENT_HELLO:
                raise ValueError("not a ClientHello")
            size = int.from_bytes(message[1:4], "big")
            if size > MAX_HELLO_BYTES:
                raise ValueError("a ClientHello that is too large")
            if len(message) >= 4 + size:
                return message[4 : 4 + size]
        if len(data) < at + 5:
            return None
        if data[at] != HANDSHAKE or data[at + 1] != 3:
            raise ValueError("not a TLS handshake")
        length = int.from_bytes(data[at + 3 : at + 5], "big")
        if not 0 < length <= 1 << 14:
            raise ValueError("not a TLS record")
        message += data[at + 5 : at + 5 + length]
        at += 5 + length


class _Reader:
    """Reads numbers and blocks, big-endian. Raises ValueError at the end."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise ValueError("a ClientHello that ends too early")
        self._at += count
        return self._data[self._at - count : self._at]

    def number(self, width: int) -> int:
        return int.from_bytes(self.take(width), "big")

    def block(self, width: int) -> bytes:
        return self.take(self.number(width))
