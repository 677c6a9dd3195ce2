"""A request's fields as they are read, and what the rarer of them mean, each for itself. Pure.

headers.py goes through the list, and decides what only several fields together say.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping

from gateway.core.errors import BadRequestError
from gateway.core.identity import Identity
from gateway.identity import keys, session_tokens
from gateway.identity.peers import PEER_HEADER
from gateway.routing.forwarded import Forwarded
from gateway.routing.target import RUNTIME_HEADER, SESSION_HEADERS
from picod.wire import MOUNT_HEADER

Headers = list[tuple[bytes, bytes]]

HOPS_HEADER = b"x-wakegate-hops"  # through how many gateways a request came before this one
SANDBOX_HEADER, NAMESPACE_HEADER = b"x-sandbox-id", b"x-sandbox-namespace"  # of agent-sandbox's router
MAX_HOPS = 8  # each asks the store who has the session, which moves at most once in the time of a wake
PEER_FIELD = PEER_HEADER.encode()

# Cookies by which people are known to a gateway, or to what authenticates them in front of it. No app of a sandbox can
# have set one with __Host- unless it has a host of its own: that name needs Path=/.
_HOST_COOKIE = b"__Host-"
_FOREIGN_COOKIES = (
    b"wakegate_session=",
    b"_oauth2_proxy", b"CF_Authorization", b"AWSELBAuth", b"GCP_IAP", b"GCP_IAAP", b"authelia_session",
)  # fmt: skip
_MOUNT_LINE = b"%b: /\r\n" % MOUNT_HEADER.encode()
_OUR_PREFIXES = (keys.PREFIX.encode(), session_tokens.PREFIX.encode())
_JWT_PREFIX = b"eyJ"  # base64url of `{"`: a token of OpenID Connect
_MAX_LENGTH_DIGITS = 18
_NO_FIELDS = frozenset((b"keep-alive", b"close", b"upgrade", b""))  # what Connection has that names no field


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
        "has_authorization",
        "hops",
        "host",
        "host_cookies",
        "lines",
        "origin",
        "own_origin",
        "passed_on_for",
        "prefers_async",
        "runtime",
        "sandbox",
        "sandbox_namespace",
        "sent_host",
        "sent_id",
        "session",
        "signature",
    )

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.extra: list[bytes] = []  # for AgentRuntimes and ports only
        self.session: bytes | None = None
        self.runtime: bytes | None = None
        self.sandbox: bytes | None = None  # X-Sandbox-ID
        self.sandbox_namespace: bytes | None = None
        self.sent_id: bytes | None = None  # the client's x-request-id; the first, if there are several
        self.content_length: int | None = None
        self.chunked = False
        self.credential: bytes | None = None  # the bearer token, else what Basic has, else the API key
        self.has_authorization = False  # `credential` is of an Authorization field
        # Whether Origin names the host that the request was sent to; `origin_line` says so to the sandbox.
        self.own_origin = False
        self.host: bytes | None = None
        self.origin: bytes | None = None
        self.fetch_site: bytes | None = None  # Sec-Fetch-Site
        self.hops = 0
        self.signature = b""  # of another gateway that passed it on; headers.py verifies it
        self.passed_on_for: Identity | None = None  # for whom another gateway passed it on
        self.forwarded: Forwarded | None = None
        self.prefers_async = False  # Prefer: respond-async (RFC 7240 4.1)
        self.sent_host: bytes | None = None  # the Host field, where `host` is not it
        self.host_cookies: list[bytes] = []  # named __Host-; see `mount_at_root`


def read_extra(request: Request, name: bytes, value: bytes) -> None:
    """A field that picod has no use for. Of cookies, those by which people are known elsewhere go no further."""
    if name == b"cookie":
        pairs = [pair for each in value.split(b";") if (pair := each.strip())]
        pairs = [pair for pair in pairs if not pair.removeprefix(_HOST_COOKIE).startswith(_FOREIGN_COOKIES)]
        request.host_cookies += [pair for pair in pairs if pair.startswith(_HOST_COOKIE)]
        value = b"; ".join(pair for pair in pairs if not pair.startswith(_HOST_COOKIE))
        if not value:
            return
    request.extra.append(b"%b: %b\r\n" % (name, value))


def _key_in_basic(encoded: bytes) -> bytes | None:
    """The API key or token in Basic credentials (RFC 7617), as the password or (ours) the user name; None: neither is.

    For clients that know only this: curl -u, .netrc, and AgentCube's SDK, whose requests to a session carry what is in
    the URL that it is given (https://key:wk_...@gateway) and nothing else.
    """
    try:
        user, _, password = base64.b64decode(encoded.strip(), validate=True).partition(b":")
    except ValueError:
        return None
    if password.startswith(_JWT_PREFIX) and password.count(b".") == 2:
        return password
    return next((each for each in (password, user) if each.startswith(_OUR_PREFIXES)), None)


def mount_at_root(request: Request) -> None:
    """The request is for a server with a host of its own: tell picod, and let the host's own cookies through."""
    request.lines.append(_MOUNT_LINE)
    if request.host_cookies:
        is_cookie = b"cookie: "
        pairs = [line.removeprefix(is_cookie).rstrip() for line in request.extra if line.startswith(is_cookie)]
        request.extra[:] = [line for line in request.extra if not line.startswith(is_cookie)]
        request.extra.append(b"cookie: %b\r\n" % b"; ".join([*pairs, *request.host_cookies]))


def read_connection(request: Request, value: bytes) -> None:
    """RFC 9110 7.6.1: a field that Connection names is for this hop only.

    Framing cannot be nominated away: the sandbox would read the body as a second request.
    """
    nominated = {token.strip().lower() for token in value.split(b",")} - _NO_FIELDS
    nominated -= {b"content-length", b"transfer-encoding"}
    if nominated:
        prefixes = tuple(token + b": " for token in nominated)
        request.lines[:] = [line for line in request.lines if not line.startswith(prefixes)]
        request.extra[:] = [line for line in request.extra if not line.startswith(prefixes)]


def _read_host(request: Request, value: bytes) -> None:
    if request.host is not None:
        raise BadRequestError("two Host headers; send one")
    request.host = value


def _read_session(request: Request, value: bytes) -> None:
    if request.session is not None and request.session != value:
        raise BadRequestError("two session headers that differ; send one of x-session-id, x-agentcube-session-id")
    request.session = value


def _read_content_length(request: Request, value: bytes) -> None:
    if request.content_length is not None:
        raise BadRequestError("two Content-Length headers; send one")
    if not is_length(value):
        raise BadRequestError("Content-Length is not a number of bytes")
    request.content_length = int(value)
    request.lines.append(b"content-length: %b\r\n" % value)


def _read_transfer_encoding(request: Request, value: bytes) -> None:
    if request.chunked:
        raise BadRequestError("two Transfer-Encoding headers; send one")
    if value.strip().lower() != b"chunked":
        raise BadRequestError("Transfer-Encoding other than chunked is not supported")
    request.chunked = True
    request.lines.append(b"transfer-encoding: chunked\r\n")


def is_length(value: bytes) -> bool:
    """Whether a Content-Length is a number, of an exabyte at most: int() raises on some thousand digits."""
    return value.isdigit() and len(value) <= _MAX_LENGTH_DIGITS


def read_authorization(request: Request, value: bytes) -> None:
    """Take the credential of an Authorization field, unless its scheme is for somebody else."""
    if value.startswith(b"Bearer "):  # as clients spell it; the scheme may come in any case (RFC 9110 11.1)
        credential: bytes | None = value[7:].strip()
    else:
        scheme, _, token = value.partition(b" ")
        credential = token.strip() if scheme.lower() == b"bearer" else None
        if scheme.lower() == b"basic":
            credential = _key_in_basic(token)
        elif scheme.lower() == b"token" and token.strip().startswith(_OUR_PREFIXES):  # as clients of Jupyter send it
            credential = token.strip()
        if credential is None:
            return  # of a scheme that is for somebody else
    if request.has_authorization:
        raise BadRequestError("two Authorization headers; send one")
    request.credential, request.has_authorization = credential, True


def _read_api_key(request: Request, value: bytes) -> None:
    if not request.has_authorization:
        request.credential = value.strip()


def _read_runtime(request: Request, value: bytes) -> None:
    if request.runtime is not None and request.runtime != value:
        raise BadRequestError("two x-wakegate-runtime headers that differ")
    request.runtime = value


def _read_sandbox(request: Request, value: bytes) -> None:
    if request.sandbox is not None and request.sandbox != value:
        raise BadRequestError("two X-Sandbox-ID headers that differ; send one")
    request.sandbox = value
    read_extra(request, SANDBOX_HEADER, value)


def _read_namespace(request: Request, value: bytes) -> None:
    if request.sandbox_namespace is not None and request.sandbox_namespace != value:
        raise BadRequestError("two X-Sandbox-Namespace headers that differ; send one")
    request.sandbox_namespace = value
    read_extra(request, NAMESPACE_HEADER, value)


def _read_request_id(request: Request, value: bytes) -> None:
    if request.sent_id is None:
        request.sent_id = value


def _read_prefer(request: Request, value: bytes) -> None:
    """RFC 7240: preferences are separated by commas, their parameters by semicolons."""
    names = (each.partition(b";")[0].strip().lower() for each in value.split(b","))
    request.prefers_async = request.prefers_async or b"respond-async" in names
    request.lines.append(b"prefer: %b\r\n" % value)


def _read_fetch_site(request: Request, value: bytes) -> None:
    if request.fetch_site is not None and request.fetch_site != value:
        raise BadRequestError("two Sec-Fetch-Site headers that differ; send one")
    request.fetch_site = value
    request.lines.append(b"sec-fetch-site: %b\r\n" % value)


def _read_origin(request: Request, value: bytes) -> None:
    if request.origin is not None:
        raise BadRequestError("two Origin headers; send one")
    request.origin = value


def _read_signature(request: Request, value: bytes) -> None:
    request.signature = value


def _read_hops(request: Request, value: bytes) -> None:
    request.hops = int(value) if value.isdigit() and len(value) < 3 else MAX_HOPS


# Each raises BadRequestError for a value, or a second field, that it cannot make sense of.
READERS: Mapping[bytes, Callable[[Request, bytes], None]] = {
    b"host": _read_host,
    **dict.fromkeys(SESSION_HEADERS, _read_session),
    b"content-length": _read_content_length,
    b"transfer-encoding": _read_transfer_encoding,
    b"authorization": read_authorization,
    b"x-api-key": _read_api_key,
    RUNTIME_HEADER: _read_runtime,
    b"x-request-id": _read_request_id,
    SANDBOX_HEADER: _read_sandbox,
    NAMESPACE_HEADER: _read_namespace,
    b"prefer": _read_prefer,
    b"sec-fetch-site": _read_fetch_site,
    b"origin": _read_origin,
    PEER_FIELD: _read_signature,
    HOPS_HEADER: _read_hops,
}
