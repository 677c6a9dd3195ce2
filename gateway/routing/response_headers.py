"""Header rules of responses, pure: what of a sandbox's fields goes back to the client.

Hop-by-hop fields end here (RFC 9110 section 7.6.1), and so does what only the gateway may say: whose session it is, and
anything that speaks for its whole origin. Cookies are confined to the paths of the sandbox that sets them.
"""

from __future__ import annotations

from gateway.core.origin_fields import OF_THE_ORIGIN
from gateway.routing.field_names import HOP_BY_HOP
from gateway.routing.request_fields import Headers
from gateway.routing.target import SESSION_HEADERS
from picod.wire import REFUSED_HEADER

# Response fields that are ours to write, besides hop-by-hop ones.
GATEWAY_FIELDS = frozenset((*SESSION_HEADERS, b"x-wakegate-start", b"x-wakegate-restored"))
# Date too: the server writes its own into every answer, and a field that has one value must not come twice.
_RESPONSE_DROPPED = HOP_BY_HOP | GATEWAY_FIELDS | {name.encode() for name in OF_THE_ORIGIN} | {
    b"x-request-id", b"date", REFUSED_HEADER.encode(),
}  # fmt: skip
_FRAMING_AND_DROPPED = _RESPONSE_DROPPED | {b"content-length"}
_SPECIAL_IN_RESPONSES = frozenset((b"connection", b"set-cookie"))
_NOT_PLAIN_IN_RESPONSES = _FRAMING_AND_DROPPED | _SPECIAL_IN_RESPONSES


def read_response(headers: Headers) -> Headers:
    """The fields of a sandbox's response that go on to the client (names come in any case)."""
    kept: Headers = []
    nominated: set[bytes] | None = None
    for name, value in headers:
        lower = name.lower()
        if lower not in _RESPONSE_DROPPED:
            kept.append((lower, value))
        elif lower == b"connection":
            tokens = {token.strip().lower() for token in value.split(b",")} - {
                b"keep-alive",
                b"close",
                b"content-length",
            }
            nominated = tokens or nominated
    if nominated:
        kept = [(name, value) for name, value in kept if name not in nominated]
    return kept


def read_peer_response(headers: Headers) -> Headers:
    """The fields of another gateway's response: what it says of the session and of the start is true, and goes on."""
    return read_response(headers) + [
        (lower, value) for name, value in headers if (lower := name.lower()) in GATEWAY_FIELDS
    ]


def response_lines(headers: Headers) -> list[bytes] | None:
    """Like read_response, as finished lines without a length, for a response that is whole. None: it sets cookies."""
    lines: list[bytes] = []
    for name, value in headers:
        lower = name.lower()
        if lower not in _NOT_PLAIN_IN_RESPONSES:
            lines.append(b"%b: %b\r\n" % (lower, value))
        elif lower in _SPECIAL_IN_RESPONSES:
            if lower == b"set-cookie":
                return None
            if value.lower() not in (b"keep-alive", b"close"):
                kept = read_response(headers)  # it nominates fields: the rare case takes the careful way
                return [b"%b: %b\r\n" % field for field in kept if field[0] != b"content-length"]
    return lines


def confine_cookies(fields: Headers, mount: bytes | None) -> Headers:
    """A response's fields, with its cookies for the paths below `mount` and this host alone; None: it may set none."""
    confined: Headers = []
    for name, value in fields:
        if name != b"set-cookie":
            confined.append((name, value))
        elif mount is not None and (cookie := _below(value, mount)):
            confined.append((name, cookie))
    return confined


def _below(cookie: bytes, mount: bytes) -> bytes:
    """The cookie with its Path below `mount` and no Domain; empty for one that needs the Path /."""
    pair, *attributes = cookie.split(b";")
    if mount and pair.strip().lower().startswith(b"__host-"):
        return b""
    path = b"/" if mount else b""
    kept = [pair]
    for attribute in attributes:
        name, _, value = attribute.partition(b"=")
        match name.strip().lower():
            case b"path":
                value = value.strip()
                path = value if value.startswith(b"/") else path  # the last one counts (RFC 6265 5.3)
            case b"domain":
                pass
            case _:
                kept.append(attribute)
    if path:
        kept.append(b" Path=" + (path if path == mount or path.startswith(mount + b"/") else mount + path))
    return b";".join(kept)
