"""Heads of HTTP/1 messages: parsed strictly, and written anew, so that an origin reads what was decided about. Pure.

What two parsers could read in two ways is refused: bare line feeds, folded fields, space before a colon, two Hosts, two
lengths, a length beside chunks. Source: RFC 9112.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gateway.egress.addresses import Host, parse_host

MAX_HEAD_BYTES = 64 << 10
# Browsers send 20, a proxy chain some more. Servers stop at 100 to 1000, and each in its own way.
_MAX_FIELDS = 200
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_TARGET = re.compile(rb"[!-~]+")
_VALUE = re.compile(rb"[\t -~\x80-\xff]*")
_STATUS = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})(?: [\t -~\x80-\xff]*)?")
_PORT = re.compile(r"[0-9]{1,5}")
# Of one connection only (RFC 9110, section 7.6.1), or for a proxy.
_HOP = frozenset((
    b"connection", b"proxy-connection", b"keep-alive", b"te", b"trailer", b"upgrade", b"proxy-authorization",
    b"proxy-authenticate", b"http2-settings",
))  # fmt: skip

Field = tuple[bytes, bytes]


class BadHeadError(ValueError):
    """A head that is not HTTP/1, or that could be read in two ways. `status`: of the answer."""

    def __init__(self, reason: str, status: int = 400) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True, slots=True)
class Head:
    """A request's head. Names of fields are in lower case; `target` as it came."""

    method: str
    target: str
    minor: int  # of HTTP/1.x
    fields: Sequence[Field]

    def values(self, name: bytes) -> list[bytes]:
        """All values of a field, in the order of its lines."""
        return [value for each, value in self.fields if each == name]

    @property
    def length(self) -> int | None:
        """Bytes of its body; None: it is chunked."""
        if self.values(b"transfer-encoding"):
            return None
        lengths = self.values(b"content-length")
        return int(lengths[0]) if lengths else 0

    @property
    def upgrade(self) -> bytes:
        """The protocol that it asks to change to; empty: none."""
        tokens = {token.strip().lower() for value in self.values(b"connection") for token in value.split(b",")}
        offers = self.values(b"upgrade")
        return offers[0] if b"upgrade" in tokens and len(offers) == 1 else b""


def parse_request(data: bytes) -> Head:
    """A head up to and with its empty line. Raises BadHeadError."""
    lines = _lines(data)
    words = lines[0].split(b" ")
    if len(words) != 3 or not _TOKEN.fullmatch(words[0]) or not _TARGET.fullmatch(words[1]):
        raise BadHeadError("not a request line")
    if words[2] not in (b"HTTP/1.1", b"HTTP/1.0"):
        raise BadHeadError("expected HTTP/1.1", 505)
    fields = list(_fields(lines[1:]))
    names = [name for name, _ in fields]
    if names.count(b"host") > 1:
        raise BadHeadError("several Host fields")
    _check_framing(fields)
    if words[2] == b"HTTP/1.0" and b"transfer-encoding" in names:
        raise BadHeadError("chunks in HTTP/1.0")  # which servers of HTTP/1.0 do not know, and read on in them
    return Head(words[0].decode(), words[1].decode(), words[2][-1] - ord("0"), fields)


def _check_framing(fields: Sequence[Field]) -> None:
    lengths = [value for name, value in fields if name == b"content-length"]
    codings = [value.lower() for name, value in fields if name == b"transfer-encoding"]
    if len(lengths) > 1 or (lengths and codings):
        # RFC 9112 lets a proxy drop Content-Length beside chunks. Refused instead: whoever sends both means to be read
        # in two ways (request smuggling).
        raise BadHeadError("its body has two lengths")
    # 18 digits fit 63 bits, in which origins count; +5, 5 and 0x5 would be three lengths to three servers.
    if lengths and not (lengths[0].isdigit() and len(lengths[0]) <= 18):
        raise BadHeadError("Content-Length is not a number")
    if codings and codings != [b"chunked"]:
        raise BadHeadError("expected Transfer-Encoding: chunked alone")


def parse_response(data: bytes) -> tuple[int, bytes, list[Field]]:
    """Status, status line and fields of a response's head. Raises BadHeadError."""
    lines = _lines(data)
    match = _STATUS.fullmatch(lines[0])
    if match is None:
        raise BadHeadError("not a status line", 502)
    return int(match[1]), lines[0], list(_fields(lines[1:]))


def _lines(data: bytes) -> list[bytes]:
    # Here too, and not only while its end is looked for: with the last piece that was read it may be twice as long.
    if len(data) > MAX_HEAD_BYTES:
        raise BadHeadError("its head is too large", 431)
    lines = data[:-4].split(b"\r\n")
    if len(lines) > _MAX_FIELDS + 1:
        raise BadHeadError(f"more than {_MAX_FIELDS} fields", 431)
    return lines


def _fields(lines: Sequence[bytes]) -> Iterator[Field]:
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon or not _TOKEN.fullmatch(name) or not _VALUE.fullmatch(value):
            raise BadHeadError("a malformed field")
        yield name.lower(), value.strip(b"\t ")


def request_head(head: Head, authority: str, path: str) -> bytes:
    """The head as an origin gets it: one request for `path` on a connection of its own."""
    upgrade = head.upgrade
    lines = [f"{head.method} {path} HTTP/1.1".encode(), b"Host: " + authority.encode()]
    lines += [name + b": " + value for name, value in end_to_end(head.fields) if name != b"host"]
    lines += [b"Connection: Upgrade", b"Upgrade: " + upgrade] if upgrade else [b"Connection: close"]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def response_head(status: int, line: bytes, fields: Sequence[Field]) -> bytes:
    """A response's head as the client gets it. An interim one, and a change of protocol, stay as they are."""
    if status < 200:
        kept, more = fields, []
    else:
        kept, more = list(end_to_end(fields)), [b"Connection: close"]
    return b"\r\n".join([line, *(name + b": " + value for name, value in kept), *more]) + b"\r\n\r\n"


def end_to_end(fields: Sequence[Field]) -> Iterator[Field]:
    """The fields that are not of one connection only."""
    named = {token.strip().lower() for name, value in fields if name == b"connection" for token in value.split(b",")}
    # Nothing by which the body is framed can be dropped: `Connection: content-length` would change where it ends.
    named -= {b"content-length", b"transfer-encoding", b"host"}
    return ((name, value) for name, value in fields if name not in _HOP and name not in named)


def split_authority(text: str, usual: int | None = None) -> tuple[Host, int]:
    """Host and port of `host:port` or `[address]:port`; `usual`: the port if there is none. Raises ValueError."""
    if "@" in text:
        raise ValueError("a user's name before the host is not supported")
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or ":" not in host:
            raise ValueError(f"{text[:80]!r} is not a host and a port")
    else:
        host, colon, port = text.partition(":")
        rest = colon + port
    if rest in ("", ":") and usual is not None:
        return parse_host(host), usual
    if not rest.startswith(":") or not _PORT.fullmatch(rest[1:]) or not 1 <= int(rest[1:]) <= 65535:
        raise ValueError(f"{text[:80]!r} is not a host and a port")
    return parse_host(host), int(rest[1:])
