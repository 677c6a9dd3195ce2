"""Header rules of requests, pure: what of a client's fields goes on to the sandbox (response_headers.py: the way back).

Hop-by-hop fields end here (RFC 9110 section 7.6.1), the client's Authorization is consumed, forwarding fields are
written anew (RFC 7239 and the X-Forwarded-* habit; forwarded.py says what is believed of those that came). One pass
over the list does all of it: this runs per request.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable
from functools import lru_cache

from gateway.core.errors import BadRequestError, UnavailableError
from gateway.core.identity import Identity
from gateway.identity import keys, session_tokens
from gateway.identity.peers import PEER_HEADER
from gateway.routing.access import names_host
from gateway.routing.forwarded import FIELDS as FORWARDING_FIELDS
from gateway.routing.forwarded import NO_PROXIES, Forwarded, TrustedProxies, read_forwarded
from gateway.routing.target import RUNTIME_HEADER, SESSION_HEADERS
from picod.wire import MOUNT_HEADER

Headers = list[tuple[bytes, bytes]]

HOP_BY_HOP = frozenset((
    b"connection", b"keep-alive", b"proxy-connection", b"proxy-authenticate", b"proxy-authorization", b"te", b"trailer",
    b"transfer-encoding", b"upgrade",
))  # fmt: skip

MAX_HOPS = 8  # each asks the store who has the session, which moves at most once in the time of a wake
_MAX_LENGTH_DIGITS = 18  # an exabyte; Python's int() raises on a few thousand digits

# What picod makes use of. A CodeInterpreter runs hostile code and gets no other field of a client's, so no credentials.
_PLAIN = frozenset((
    b"accept", b"accept-charset", b"accept-encoding", b"accept-language", b"cache-control", b"content-disposition",
    b"content-encoding", b"content-language", b"content-range", b"content-type", b"idempotency-key", b"if-match",
    b"if-modified-since", b"if-none-match", b"if-range", b"if-unmodified-since", b"pragma", b"prefer", b"range",
    b"sec-websocket-extensions", b"sec-websocket-key", b"sec-websocket-protocol", b"sec-websocket-version",
    b"traceparent", b"tracestate", b"user-agent", b"x-wakegate-relayed",
))  # fmt: skip
# Cookies by which people are known to a gateway, or to what authenticates them in front of it. No app of a sandbox can
# have set one with __Host- unless it has a host of its own: that name needs Path=/.
_HOST_COOKIE = b"__Host-"
_FOREIGN_COOKIES = (
    b"wakegate_session=",
    b"_oauth2_proxy", b"CF_Authorization", b"AWSELBAuth", b"GCP_IAP", b"GCP_IAAP", b"authelia_session",
)  # fmt: skip
# Request fields that need a look.
_SPECIAL = HOP_BY_HOP | FORWARDING_FIELDS | {
    b"host", b"authorization", b"expect", b"content-length", b"x-request-id", b"x-api-key", b"origin",
    b"sec-fetch-site", b"x-wakegate-hops", PEER_HEADER.encode(), MOUNT_HEADER.encode(), RUNTIME_HEADER,
    *SESSION_HEADERS,
}  # fmt: skip

_MOUNT_LINE = b"%b: /\r\n" % MOUNT_HEADER.encode()
_OUR_PREFIXES = (keys.PREFIX.encode(), session_tokens.PREFIX.encode())
Verify = Callable[[bytes], Identity | None]

_PEER_HEADER = PEER_HEADER.encode()
HOPS_HEADER = b"x-wakegate-hops"  # through how many gateways a request came before this one


class Request:
    """What one pass over a request's headers yields.

    `lines` are finished header lines for the sandbox; session and authorization are not among them. `extra` are those
    of fields that picod has no use for.
    `content_length` None with `chunked` False: the request has no body.
    `host` is the one that the client meant: the Host field, or what a trusted proxy says it was.
    `forwarded`: what is believed of where the request began; None where nobody who is trusted said anything.
    """

    __slots__ = (
        "chunked",
        "content_length",
        "credential",
        "extra",
        "fetch_site",
        "forwarded",
        "hops",
        "host",
        "host_cookies",
        "lines",
        "origin",
        "own_origin",
        "passed_on_for",
        "runtime",
        "sent_host",
        "sent_id",
        "session",
    )

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.extra: list[bytes] = []  # for AgentRuntimes and ports only
        self.session: bytes | None = None
        self.runtime: bytes | None = None
        self.sent_id: bytes | None = None  # the client's x-request-id; the first, if there are several
        self.content_length: int | None = None
        self.chunked = False
        self.credential: bytes | None = None  # the bearer token, else what Basic has, else the API key
        self.own_origin = (
            False  # Origin names the host that the request was sent to; `origin_line` says it to the sandbox
        )
        self.host: bytes | None = None
        self.origin: bytes | None = None
        self.fetch_site: bytes | None = None  # Sec-Fetch-Site
        self.hops = 0
        self.passed_on_for: Identity | None = None  # for whom another gateway passed it on
        self.forwarded: Forwarded | None = None
        self.sent_host: bytes | None = None  # the Host field, where `host` is not it
        self.host_cookies: list[bytes] = []  # named __Host-; see `admit_host_cookies`


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
                _read_extra(request, name, value)
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


def _read_extra(request: Request, name: bytes, value: bytes) -> None:
    if name == b"cookie":
        pairs = [pair for each in value.split(b";") if (pair := each.strip())]
        pairs = [pair for pair in pairs if not pair.removeprefix(_HOST_COOKIE).startswith(_FOREIGN_COOKIES)]
        request.host_cookies += [pair for pair in pairs if pair.startswith(_HOST_COOKIE)]
        value = b"; ".join(pair for pair in pairs if not pair.startswith(_HOST_COOKIE))
        if not value:
            return
    request.extra.append(b"%b: %b\r\n" % (name, value))


def _key_in_basic(encoded: bytes) -> bytes | None:
    """The API key or session token in Basic credentials (RFC 7617), as the password or the user name; None: neither is.

    For clients that know only this: curl -u, .netrc, and AgentCube's SDK, whose requests to a session carry what is in
    the URL that it is given (https://key:wk_...@gateway) and nothing else.
    """
    try:
        user, _, password = base64.b64decode(encoded.strip(), validate=True).partition(b":")
    except ValueError:
        return None
    return next((each for each in (password, user) if each.startswith(_OUR_PREFIXES)), None)


def mount_at_root(request: Request) -> None:
    """The request is for a server with a host of its own: tell picod, and let the host's own cookies through."""
    request.lines.append(_MOUNT_LINE)
    if request.host_cookies:
        is_cookie = b"cookie: "
        pairs = [line.removeprefix(is_cookie).rstrip() for line in request.extra if line.startswith(is_cookie)]
        request.extra[:] = [line for line in request.extra if not line.startswith(is_cookie)]
        request.extra.append(b"cookie: %b\r\n" % b"; ".join([*pairs, *request.host_cookies]))


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
    is_bearer, signature = False, b""
    for name, value in special:
        if name == b"connection":
            nominated = {token.strip().lower() for token in value.split(b",")} - {
                b"keep-alive",
                b"close",
                b"upgrade",
                b"",
            }
            if nominated:
                # RFC 9110 7.6.1: a field named by Connection is for this hop only. Framing cannot be nominated away:
                # the sandbox would read the body as a second request.
                nominated -= {b"content-length", b"transfer-encoding"}
                prefixes = tuple(token + b": " for token in nominated)
                request.lines[:] = [line for line in request.lines if not line.startswith(prefixes)]
                request.extra[:] = [line for line in request.extra if not line.startswith(prefixes)]
        elif name == b"transfer-encoding":
            if request.chunked:
                raise BadRequestError("two Transfer-Encoding headers; send one")
            if value.strip().lower() != b"chunked":
                raise BadRequestError("Transfer-Encoding other than chunked is not supported")
            request.chunked = True
            request.lines.append(b"transfer-encoding: chunked\r\n")
        elif name == b"authorization":
            scheme, _, token = value.partition(b" ")
            if scheme.lower() == b"bearer":
                if is_bearer:
                    raise BadRequestError("two Authorization headers; send one")
                request.credential, is_bearer = token.strip(), True
            elif scheme.lower() == b"basic" and (key := _key_in_basic(token)):
                request.credential, is_bearer = key, True
        elif name == b"x-api-key":
            if not is_bearer:
                request.credential = value.strip()
            if name not in stripped:  # without authentication it may be the application's own
                _read_extra(request, name, value)
        elif name == RUNTIME_HEADER:
            if request.runtime is not None and request.runtime != value:
                raise BadRequestError("two x-wakegate-runtime headers that differ")
            request.runtime = value
        elif name == b"x-request-id":
            if request.sent_id is None:
                request.sent_id = value
        elif name == b"sec-fetch-site":
            if request.fetch_site is not None and request.fetch_site != value:
                raise BadRequestError("two Sec-Fetch-Site headers that differ; send one")
            request.fetch_site = value
            request.lines.append(b"sec-fetch-site: %b\r\n" % value)
        elif name == b"origin":
            if request.origin is not None:
                raise BadRequestError("two Origin headers; send one")
            request.origin = value
        elif name == _PEER_HEADER:
            signature = value
        elif name == HOPS_HEADER:
            request.hops = int(value) if value.isdigit() and len(value) < 3 else MAX_HOPS
        elif name in FORWARDING_FIELDS:
            claims.setdefault(name, []).append(value)
    if request.chunked and request.content_length is not None:
        raise BadRequestError("both Content-Length and Transfer-Encoding; send one of them")
    if signature and verify is not None:
        request.passed_on_for = verify(signature)
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
    return b"%b: %d\r\n%b: %b\r\n" % (HOPS_HEADER, request.hops + 1, _PEER_HEADER, signature)
