"""Request targets with bytes beyond ASCII, which llhttp refuses and which many clients send as they are.

RFC 3986 wants them percent-encoded, yet servers take them and a proxy passes a target on unchanged. So the parser is
fed the request line with those bytes encoded, and the target as it was sent is kept beside it. Pure.
"""

from __future__ import annotations

import re
from urllib.parse import quote

_BEYOND_ASCII = re.compile(rb"[\x80-\xff]+")
ASCII = "".join(map(chr, range(0x21, 0x7F)))  # what `quote` leaves alone here


def encode_line(data: bytes, before: bytes = b"") -> tuple[bytes, bytes]:
    """`data` with the bytes beyond ASCII encoded in its first line, and that line as it was, without its end.

    `before`: what came of the line already.
    """
    line, end, rest = data.partition(b"\n")
    return _BEYOND_ASCII.sub(_encoded, line) + end + rest, before + line.rstrip(b"\r")


def encode_target(target: bytes) -> bytes:
    """The target in ASCII."""
    return quote(target, safe=ASCII).encode("ascii")


def sent_target(line: bytes, parsed: bytes) -> bytes:
    """The target in a request line as it was sent, if it is the `parsed` one but for its encoding; else `parsed`."""
    target = line.partition(b" ")[2].partition(b" ")[0]
    return target if encode_target(target) == parsed else parsed


def _encoded(found: re.Match[bytes]) -> bytes:
    return b"".join(b"%%%02X" % byte for byte in found[0])
