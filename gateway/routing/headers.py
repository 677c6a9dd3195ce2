"""Header rules of requests, pure: what of a client's fields goes on to the sandbox (response_headers.py: the way back).

Hop-by-hop fields end here (RFC 9110 section 7.6.1), the client's Authorization is consumed, forwarding fields are
written anew (RFC 7239 and the X-Forwarded-* habit; forwarded.py says what is believed of those that came). One pass
over the list does all of it: this runs per request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache

from gateway.core.errors import BadRequestError, UnavailableError
from gateway.core.identity import Identity
from gateway.routing.access import names_host
from gateway.routing.forwarded import FIELDS as FORWARDING_FIELDS
from gateway.routing.forwarded import NO_PROXIES, Forwarded, TrustedProxies, read_forwarded
from gateway.routing.request_fields import HOPS_HEADER, MAX_HOPS, PEER_FIELD, READERS, Request, read_extra
from gateway.routing.target import RUNTIME_HEADER, SESSION_HEADERS
from picod.wire import MOUNT_HEADER

HOP_BY_HOP = frozenset((
    b"connection", b"keep-alive", b"proxy-connection", b"proxy-authenticate", b"proxy-authorization", b"te", b"trailer",
    b"transfer-encoding", b"upgrade",
))  # fmt: skip

_MAX_LENGTH_DIGITS = 18  # an exabyte; Python's int() raises on a few thousand digits

# What picod makes use of. A CodeInterpreter runs hostile code and gets no other field of a client's, so no credentials.
_PLAIN = frozenset((
    b"accept", b"accept-charset", b"accept-encoding", b"accept-language", b"cache-control", b"content-disposition",
    b"content-encoding", b"content-language", b"content-range", b"content-type", b"idempotency-key", b"if-match",
    b"if-modified-since", b"if-none-match", b"if-range", b"if-unmodified-since", b"pragma", b"prefer", b"range",
    b"sec-websocket-extensions", b"sec-websocket-key", b"sec-websocket-protocol", b"sec-websocket-version",
    b"traceparent", b"tracestate", b"user-agent", b"x-wakegate-relayed",
))  # fmt: skip
# Request fields that need a look.
_SPECIAL = HOP_BY_HOP | FORWARDING_FIELDS | {
    b"host", b"authorization", b"expect", b"content-length", b"x-request-id", b"x-api-key", b"origin",
    b"sec-fetch-site", HOPS_HEADER, PEER_FIELD, MOUNT_HEADER.encode(), RUNTIME_HEADER,
    *SESSION_HEADERS,
}  # fmt: skip

Verify = Callable[[bytes], Identity | None]


def read_request(
    headers: Iterable[tuple[bytes, bytes]],
    client: tuple[str, int] | None,
    scheme: str,
    stripped: frozenset[bytes] = frozenset(),
    proxies: TrustedProxies | None = None,
    verify: Verify | None = None,
) -> Request:
    """Read lower-cased ASGI headers. `stripped`: names of fields that reach no sandbox. `client`: who sent them to us.
    `verify`: for whom a request is that another gateway signed; without it, every request is a client's own.

    One set look-up settles most fields of a program's request: their order here is that of their frequency.

    Raises:
        BadRequestError: contradicting session ids or hosts, or a body framing that we do not speak.
    """
    request = Request()
    lines = request.lines
    special: list[tuple[bytes, bytes]] | None = None
    plain = _plain_without(stripped)
    for name, value in headers:
        if name in plain:
            lines.append(b"%b: %b\r\n" % (name, value))
        elif name == b"host":
            if request.host is not None:
                raise BadRequestError("two Host headers; send one")
            request.host = value
        elif name in SESSION_HEADERS:
            if request.session is not None and request.session != value:
                raise BadRequestError(
                    "two session headers that differ; send one of x-session-id, x-agentcube-session-id"
                )
            request.session = value
        elif name == b"content-length":
            if request.content_length is not None:
                raise BadRequestError("two Content-Length headers; send one")
            if not value.isdigit() or len(value) > _MAX_LENGTH_DIGITS:
                raise BadRequestError("Content-Length is not a number of bytes")
            request.content_length = int(value)
            lines.append(b"content-length: %b\r\n" % value)
        elif name not in _SPECIAL:
            if name not in stripped:
                read_extra(request, name, value)
        elif special is None:
            special = [(name, value)]
        else:
            special.append((name, value))
    peer = client[0] if client else ""
    if special is not None:
        _read_special(request, special, peer, proxies, stripped, verify)
    forwarded = request.forwarded
    if forwarded is None:
        lines.append(_forwarding((peer,), request.host or b"", scheme))
    else:
        lines.append(_forwarding(forwarded.chain, request.host or b"", forwarded.scheme or scheme))
    return request


@lru_cache(maxsize=64)  # one for each policy of this process
def _plain_without(stripped: frozenset[bytes]) -> frozenset[bytes]:
    return _PLAIN - stripped


def replace_traceparent(request: Request, traceparent: bytes) -> None:
    """Have the sandbox see the gateway's span as its parent, and not the client's."""
    request.lines[:] = [line for line in request.lines if not line.startswith(b"traceparent: ")]
    request.lines.append(b"traceparent: %b\r\n" % traceparent)


def origin_line(host: bytes) -> bytes:
    """The Origin of a request of the host's own pages, for a hop on which the Host field is `host`.

    Servers such as Tornado's (Jupyter, Streamlit) refuse a WebSocket whose Origin does not name their Host. Host
    changes on the way to a sandbox, so an Origin that named it changes too. Any other stays: a foreign page sent it.
    """
    return b"origin: http://%b\r\n" % host


def _read_special(
    request: Request,
    special: list[tuple[bytes, bytes]],
    peer: str,
    proxies: TrustedProxies | None,
    stripped: frozenset[bytes],
    verify: Verify | None,
) -> None:
    """The rare fields."""
    claims: dict[bytes, list[bytes]] = {}
    for name, value in special:
        if (read := READERS.get(name)) is not None:
            read(request, value)
        elif name in FORWARDING_FIELDS:
            claims.setdefault(name, []).append(value)
        if name == b"x-api-key" and name not in stripped:  # without authentication it may be the application's own
            read_extra(request, name, value)
    if request.chunked and request.content_length is not None:
        raise BadRequestError("both Content-Length and Transfer-Encoding; send one of them")
    if request.signature and verify is not None:
        request.passed_on_for = verify(request.signature)
    if request.passed_on_for is None:
        request.hops = 0  # a client may say anything
    elif proxies is None:
        proxies = NO_PROXIES
    if claims and proxies is not None and (request.passed_on_for is not None or proxies.trust(peer)):
        _believe(request, read_forwarded(claims, peer, proxies, passed_on=request.hops > 0))
    if request.origin is not None:
        if names_host(request.origin, request.host or b""):
            request.own_origin = True
        else:
            request.lines.append(b"origin: %b\r\n" % request.origin)


def _believe(request: Request, forwarded: Forwarded) -> None:
    """Take over what is believed. The host only where there is a Host field: HTTP/1.1 must not do without."""
    request.forwarded = forwarded
    if not forwarded.host or request.host is None:
        return
    if request.hops and request.origin is not None and names_host(request.origin, request.host):
        # The gateway that passed it on found the page to be its own, and named it by the address that it dialled.
        request.origin = b"http://%b" % forwarded.host
    request.host, request.sent_host = forwarded.host, request.host


@lru_cache(maxsize=1024)
def _forwarding(chain: tuple[str, ...], host: bytes, scheme: str) -> bytes:
    """The forwarding fields as lines. `chain`: the addresses that the request came through, the client's first."""
    quoted = host.replace(b"\\", b"\\\\").replace(b'"', b'\\"')
    shown = [address.encode() or b"unknown" for address in chain]
    nodes = [b'for="[%b]"' % node if b":" in node else b"for=%b" % node for node in shown]
    nodes[0] += b';host="%b";proto=%b' % (quoted, scheme.encode())
    return b"x-forwarded-for: %b\r\nforwarded: %b\r\nx-forwarded-host: %b\r\nx-forwarded-proto: %b\r\n" % (
        b", ".join(shown),
        b", ".join(nodes),
        host,
        scheme.encode(),
    )


def next_hop(request: Request, signature: bytes) -> bytes:
    """The lines for the next gateway: how many a request has passed, and for whom it is.

    Raises UnavailableError beyond MAX_HOPS.
    """
    if request.hops >= MAX_HOPS:
        raise UnavailableError(f"the gateways do not agree who has this session ({request.hops} passed the request on)")
    return b"%b: %d\r\n%b: %b\r\n" % (HOPS_HEADER, request.hops + 1, PEER_FIELD, signature)
