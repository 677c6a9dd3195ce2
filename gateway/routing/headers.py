"""Header rules of requests, pure: what of a client's fields goes on to the sandbox (response_headers.py: the way back).

Hop-by-hop fields end here (RFC 9110 section 7.6.1), the client's Authorization is consumed, forwarding fields are
written anew (RFC 7239 and the X-Forwarded-* habit; forwarded.py says what is believed of those that came). One pass
over the list does all of it: this runs per request.
"""

from __future__ import annotations

import re
from functools import lru_cache

from gateway.core.errors import BadRequestError, UnavailableError
from gateway.core.proxies import NO_PROXIES
from gateway.routing.access import AccessPolicy, names_host
from gateway.routing.field_names import HOP_BY_HOP, PROXY_FIELDS
from gateway.routing.forwarded import FIELDS as FORWARDING_FIELDS
from gateway.routing.forwarded import Forwarded, read_forwarded
from gateway.routing.request_fields import (
    HOPS_HEADER,
    MAX_HOPS,
    NAMESPACE_HEADER,
    PEER_FIELD,
    READERS,
    SANDBOX_HEADER,
    Headers,
    Request,
    is_length,
    read_authorization,
    read_connection,
    read_extra,
)
from gateway.routing.responses import Scope
from gateway.routing.target import RUNTIME_HEADER, SESSION_HEADERS
from picod.wire import MOUNT_HEADER

# RFC 9110 7.2, less the signs that no name has: a comma, a slash or a quote would be read as more than a host where an
# application takes X-Forwarded-Host apart or builds a link of it.
_HOST = re.compile(rb"([A-Za-z0-9._~%-]*|\[[0-9A-Fa-f:.]{2,45}\])(:[0-9]{0,5})?")
_SCHEMES = {"http": "http", "https": "https", "ws": "http", "wss": "https"}
# Request fields that need a look.
_SPECIAL = HOP_BY_HOP | FORWARDING_FIELDS | {
    b"host", b"authorization", b"expect", b"content-length", b"x-request-id", b"x-api-key", b"origin",
    b"prefer", b"sec-fetch-site", HOPS_HEADER, PEER_FIELD, MOUNT_HEADER.encode(), RUNTIME_HEADER,
    SANDBOX_HEADER, NAMESPACE_HEADER, *SESSION_HEADERS, *PROXY_FIELDS,
}  # fmt: skip


def read_request(scope: Scope, access: AccessPolicy) -> Request:
    """Read the fields of an ASGI scope. `access`: which of them reach no sandbox, and whose word on others counts.

    What a program sends is settled in the loop: one set look-up for most fields, and their order here is that of their
    frequency. Whatever is odd about one of these, a second Host for example, is left to its reader, like rare fields.

    Raises:
        BadRequestError: contradicting session ids or hosts, or a body framing that we do not speak.
    """
    request = Request()
    lines, plain = request.lines, access.plain
    special: Headers = []
    for name, value in scope["headers"]:
        if name in plain:
            lines.append(b"%b: %b\r\n" % (name, value))
        elif name == b"host" and request.host is None:
            request.host = value
        elif name in SESSION_HEADERS and request.session is None:
            request.session = value
        elif name == b"connection" and value == b"keep-alive":
            pass  # httpx and requests send it with every request, and it names no field
        elif name == b"content-length" and request.content_length is None and is_length(value):
            request.content_length = int(value)
            lines.append(b"content-length: %b\r\n" % value)
        elif name == b"authorization":
            read_authorization(request, value)
        elif name in _SPECIAL:
            special.append((name, value))
        elif name not in access.stripped and not (b"_" in name and _imitates(name, access)):
            read_extra(request, name, value)
    client = scope["client"]
    peer = client[0] if client else ""
    if special:
        _read_special(request, special, peer, scope, access)
    # Most clients come from a few addresses to one name, so these lines are nearly always in the cache of _forwarding.
    scheme, forwarded = _SCHEMES[scope["scheme"]], request.forwarded
    if forwarded is None:
        lines.append(_forwarding((peer,), request.host or b"", scheme))
    else:
        lines.append(_forwarding(forwarded.chain, request.host or b"", forwarded.scheme or scheme))
    return request


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


def _read_special(request: Request, special: Headers, peer: str, scope: Scope, access: AccessPolicy) -> None:
    """The rare fields, and what several of them together say."""
    claims: dict[bytes, list[bytes]] = {}
    others: Headers = []
    nominations: list[bytes] = []
    for name, value in special:
        if name == b"connection":
            nominations.append(value)
        elif (read := READERS.get(name)) is not None:
            read(request, value)
        elif name in FORWARDING_FIELDS:
            claims.setdefault(name, []).append(value)
        elif name in PROXY_FIELDS and name not in access.stripped:
            others.append((name, value))
        if name == b"x-api-key" and name not in access.stripped:  # without authentication it may be the application's
            read_extra(request, name, value)
    # Two servers that each believe another one of them see different requests: request smuggling (RFC 9112 6.3).
    if request.chunked and request.content_length is not None:
        raise BadRequestError("both Content-Length and Transfer-Encoding; send one of them")
    if request.chunked and scope.get("http_version") == "1.0":
        # What is in front may know nothing of chunks, and take them for the next request (RFC 9112 6.1).
        raise BadRequestError("Transfer-Encoding in HTTP/1.0, which has none; use HTTP/1.1")
    proxies = access.proxies
    if request.signature:
        request.passed_on_for = access.passed_on_for(request.signature, scope)
    if request.passed_on_for is None:
        request.hops = 0  # a client may say anything
    elif proxies is None:
        proxies = NO_PROXIES  # a gateway of this store is believed; whoever was before it, as far as that one believed
    if (claims or others) and proxies is not None and (request.passed_on_for is not None or proxies.trust(peer)):
        if claims:
            _believe(request, read_forwarded(claims, peer, proxies, passed_on=request.hops > 0))
        for name, value in others:
            read_extra(request, name, value)
    if request.origin is not None:
        if names_host(request.origin, request.host or b""):
            request.own_origin = True
        else:
            request.lines.append(b"origin: %b\r\n" % request.origin)
    for value in nominations:  # once all lines are there that a client can have caused
        read_connection(request, value)


def _imitates(name: bytes, access: AccessPolicy) -> bool:
    """Whether a name with underscores is that of a field which ends here, or is ours, to an application behind CGI or
    WSGI: both make HTTP_X_FORWARDED_FOR of X_Forwarded_For as well.
    """
    meant = name.replace(b"_", b"-")
    return meant in _SPECIAL or meant in access.stripped


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
    """The forwarding fields as lines. `chain`: the addresses that the request came through, the client's first.

    Raises BadRequestError for a host that is none. Here, where what is well-formed is remembered.
    """
    if not _HOST.fullmatch(host):
        raise BadRequestError(f"malformed Host {host[:64].decode('latin-1')!r}: expected NAME or NAME:PORT")
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
