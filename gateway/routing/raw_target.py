"""Request targets: their parts, and bytes beyond ASCII, which llhttp refuses and many clients send as they are.

RFC 3986 wants them percent-encoded, yet servers take them and a proxy passes a target on unchanged. So the parser is
fed the request line with those bytes encoded, and the target as it was sent is kept beside it. Pure.
"""

from __future__ import annotations

import re
from functools import lru_cache
from urllib.parse import quote, unquote

import httptools

from gateway.core.errors import BadRequestError

_BEYOND_ASCII = re.compile(rb"[\x80-\xff]+")
_MAX_KEPT_BYTES = 256  # of a target whose parts are kept: clients call the same few short ones again and again
ASCII = "".join(map(chr, range(0x21, 0x7F)))  # what `quote` leaves alone here


def encode_line(data: bytes, before: bytes = b"") -> tuple[bytes, bytes]:
    """`data` with the bytes beyond ASCII encoded in its first line, and that line as it was, without its end.

    `before`: what came of the line already.
    """
    line, end, rest = data.partition(b"\n")
    return _BEYOND_ASCII.sub(_encoded, line) + end + rest, before + line.rstrip(b"\r")


def encode_target(target: bytes) -> bytes:
    """The target in ASCII: bytes that are not are percent-encoded, what is encoded already stays."""
    return quote(target, safe=ASCII).encode("ascii")


def sent_target(line: bytes, parsed: bytes) -> bytes:
    """The target in a request line as it was sent, if it is the `parsed` one but for its encoding; else `parsed`."""
    target = line.partition(b" ")[2].partition(b" ")[0]
    return target if encode_target(target) == parsed else parsed


def split_target(target: bytes) -> tuple[bytes, str, bytes]:
    """(raw path, decoded path, query) of a request target. Raises HttpParserInvalidURLError, BadRequestError."""
    return _split_kept(target) if len(target) < _MAX_KEPT_BYTES else _split(target)


def _split(target: bytes) -> tuple[bytes, str, bytes]:
    if not target.startswith(b"/"):
        # Absolute form (RFC 9112 3.2.2), or one that is no path at all: the rare cases go through the full parser.
        parsed = httptools.parse_url(encode_target(target))
        if not parsed.schema:
            raise BadRequestError("the request's target is not a path")
        raw, query = parsed.path or b"/", parsed.query or b""
    else:
        raw, _, query = target.partition(b"#")[0].partition(b"?")
    path = raw.decode("latin-1")
    return raw, unquote(path) if "%" in path else path, query


_split_kept = lru_cache(maxsize=1024)(_split)


def _encoded(found: re.Match[bytes]) -> bytes:
    return b"".join(b"%%%02X" % byte for byte in found[0])
