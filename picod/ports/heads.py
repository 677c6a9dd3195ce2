"""Rewrites the head of a request to a server in the sandbox, and the head of its answer. Pure.

Clients reach the server below a path prefix that it does not know, unless the gateway gives it a host of its own. So
its own addresses in answers are put below that prefix: Location, and the Path of cookies (which separates the cookies
of different sessions' servers). The server gets the prefix in X-Forwarded-Prefix, and localhost as its host, since
development servers refuse other names. An Origin that names the original host is changed likewise: Tornado's servers
(Jupyter, Streamlit) would refuse a WebSocket.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from picod import wire
from picod.http.request import Request, RequestError

_PREFIX = wire.PORTS_PATH.encode()
_PORT_PATH = re.compile(re.escape(_PREFIX) + rb"([1-9][0-9]{0,4})(/.*)?", re.DOTALL)
_SESSION = re.compile(r"[A-Za-z0-9._-]{1,128}")
_MOUNT = wire.MOUNT_HEADER.encode()
_HOP_BY_HOP = frozenset((
    b"connection", b"keep-alive", b"proxy-connection", b"proxy-authenticate", b"proxy-authorization", b"te", b"trailer",
    b"transfer-encoding", b"upgrade",
))  # fmt: skip
# The token is for picod only, picod answers Expect itself, and it sets Host and the prefix.
_NOT_SENT = _HOP_BY_HOP | {b"authorization", b"expect", b"host", b"x-forwarded-prefix", _MOUNT}
_NOT_ANSWERED = _HOP_BY_HOP | {b"date", wire.REFUSED_HEADER.encode()}
_LOCAL_NAMES = ("localhost", "127.0.0.1", "::1", "0.0.0.0")  # noqa: S104 - hosts in a server's own redirects
_COOKIE_DOMAIN = re.compile(rb";[ \t]*domain[ \t]*=[ \t]*[^;]*", re.IGNORECASE)
_COOKIE_ATTRIBUTE = re.compile(rb";[ \t]*(path|domain)[ \t]*=[ \t]*([^;]*)", re.IGNORECASE)


@dataclass(frozen=True)
class PortRequest:
    """A request to a port. `path` is as the client sent it.

    `prefix` is the gateway's path of the port: empty at the root of a host of its own, None where it is not known.
    """

    port: int
    path: bytes
    method: str
    prefix: bytes | None
    upgrade: bytes  # the protocol that the client offers to change to, or empty
    chunked: bool


@dataclass
class Response:
    """The head of an answer; header names are in lower case."""

    status: int = 0
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)

    @property
    def until_close(self) -> bool:
        """Whether the end of the connection is the end of its body (RFC 9112, 6.3)."""
        return not any(name in (b"content-length", b"transfer-encoding") for name, _ in self.headers)


def parse_port_request(request: Request) -> PortRequest:
    """The port, path and prefix of a request to /api/ports. Raises RequestError 404."""
    found = _PORT_PATH.fullmatch(request.scope["raw_path"])
    if found is None or int(found[1]) > 65535:
        raise RequestError(404, f"expected {wire.PORTS_PATH}PORT/PATH with a port from 1 to 65535", code="NOT_FOUND")
    port, session = int(found[1]), request.header(wire.SESSION_HEADER.encode())
    return PortRequest(
        port=port,
        path=found[2] or b"/",
        method=request.method,
        prefix=b"" if request.header(_MOUNT) == "/" else _prefix(session, port),
        upgrade=request.header(b"upgrade").encode("latin-1") if request.offers_upgrade else b"",
        chunked=bool(request.headers(b"transfer-encoding")),
    )


def _prefix(session: str, port: int) -> bytes | None:
    return wire.port_prefix(session, port).encode() if _SESSION.fullmatch(session) else None


def request_head(request: Request, target: PortRequest) -> bytes:
    """The head of a request as it is sent to the server."""
    query: bytes = request.scope["query_string"]
    lines = [b"%b %b%b HTTP/1.1" % (target.method.encode(), target.path, b"?" + query if query else b"")]
    lines.append(b"host: localhost:%d" % target.port)
    dropped = _NOT_SENT | _nominated(request.scope["headers"])
    own_origin = b"http://" + request.header(b"host").encode("latin-1")  # what the gateway sends for its own origin
    for name, value in request.scope["headers"]:
        if name == b"origin" and value == own_origin:
            lines.append(b"origin: http://localhost:%d" % target.port)
        elif name not in dropped:
            lines.append(b"%b: %b" % (name, value))
    if target.prefix:
        lines.append(b"x-forwarded-prefix: " + target.prefix)
    if target.chunked:
        lines.append(b"transfer-encoding: chunked")
    if target.upgrade:
        lines += [b"connection: upgrade", b"upgrade: " + target.upgrade]
    else:
        lines.append(b"connection: close")
    return b"\r\n".join(lines) + b"\r\n\r\n"


def answer_headers(response: Response, target: PortRequest) -> list[tuple[bytes, bytes]]:
    """The headers of an answer as they are sent to the client. picod adds Date itself; a 101 needs Upgrade."""
    dropped = _NOT_ANSWERED | _nominated(response.headers)
    kept: list[tuple[bytes, bytes]] = []
    for name, value in response.headers:
        if name == b"location":
            kept.append((name, _below_prefix(value, target)))
        elif name == b"set-cookie":
            kept.append((name, _cookie(value, target)))
        elif name not in dropped:
            kept.append((name, value))
    if response.status == 101:
        kept += [(b"connection", b"upgrade"), (b"upgrade", target.upgrade)]
    return kept


def _nominated(headers: list[tuple[bytes, bytes]]) -> set[bytes]:
    """The header fields that Connection lists, which are for one hop only. Never Content-Length: it frames the body."""
    # RFC 9110, 7.6.1.
    named = {token.strip().lower() for name, value in headers if name == b"connection" for token in value.split(b",")}
    return named - {b"content-length"}


def _below_prefix(location: bytes, target: PortRequest) -> bytes:
    """Location for the client: below the prefix if it leads to the server itself, otherwise unchanged."""
    if target.prefix is None:
        return location
    if location.startswith(b"/") and not location.startswith(b"//"):
        return target.prefix + location
    try:
        url = urlsplit(location.decode("latin-1"))
        itself = url.scheme in ("http", "ws") and url.hostname in _LOCAL_NAMES and (url.port or 80) == target.port
    except ValueError:
        return location
    if not itself:
        return location
    rest = url._replace(scheme="", netloc="").geturl()
    return target.prefix + (rest if rest.startswith("/") else "/" + rest).encode("latin-1")


def _cookie(cookie: bytes, target: PortRequest) -> bytes:
    """Set-Cookie for the client, restricted to this port: its Path below the prefix, without Domain."""
    if target.prefix is None:
        return cookie
    if not target.prefix:
        return _COOKIE_DOMAIN.sub(b"", cookie)
    attributes = {found[1].lower(): found[2].strip() for found in _COOKIE_ATTRIBUTE.finditer(cookie)}
    path = attributes.get(b"path", b"")
    bare = _COOKIE_ATTRIBUTE.sub(b"", cookie)
    return bare + b"; Path=" + target.prefix + (path if path.startswith(b"/") else b"/")
