"""Session tokens where a browser can put one: in a URL, and then in a cookie. Pure.

A page cannot send a header with a link, an image or a WebSocket. So a link may carry the token of a session as
`?wakegate_token=wst_...`. The first page that is opened so, on a port of a session, is answered with a redirect to the
same URL without the token and with the token in a cookie, for that session's paths (or the port's host) alone: URLs
end up in histories, logs and Referer fields, and the page's own links have no token. Neither reaches the sandbox.
Only session tokens are taken from a URL. An API key there is refused, since it opens all that its tenant has.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import unquote_to_bytes

from gateway.core.errors import BadRequestError
from gateway.identity import console_sessions, session_tokens
from gateway.routing.responses import Scope
from gateway.routing.target import Target
from picod.wire import PORTS_PATH

QUERY_NAME = b"wakegate_token"
COOKIE_NAME = b"wakegate_session"
_PREFIX = session_tokens.PREFIX.encode()
_KEY_PREFIX = b"wk_"
_KEY = re.compile(rb"wk_[0-9A-Za-z]{8}_[0-9A-Za-z]{38}")
_KEY_NAMES = frozenset((b"api_key", b"api-key", b"apikey", b"x-api-key", b"access_token", b"authorization"))
_PORTS = PORTS_PATH.encode()


def take_query_token(scope: Scope) -> bytes | None:
    """Take the token out of a request's query, so that nobody behind us sees it; None: it has none.

    Raises BadRequestError for anything but one session token.
    """
    if QUERY_NAME not in scope["query_string"]:  # one search in C, as this runs for every request
        return None
    found = _take(scope, QUERY_NAME)
    if not found:
        return None
    if len(found) > 1 or not found[0].startswith(_PREFIX):
        what = "an API key" if found[0].startswith(_KEY_PREFIX) else "this"
        raise BadRequestError(
            f"wakegate_token: {what} does not belong into a URL, which browsers and logs keep; make a token for the"
            " session at POST /v1/sessions/{id}/tokens"
        )
    return found[0]


def take_jupyter_token(scope: Scope) -> bytes | None:
    """Take `token` out of the query of a request of Jupyter's, so that nobody behind us sees it; None: it has none.

    An API key is allowed here, against the rule: Open WebUI and front ends of notebooks can send their token in no
    other place. Raises BadRequestError for two.
    """
    found = _take(scope, b"token")
    if not found:
        return None
    if len(found) > 1:
        raise BadRequestError("token: sent twice; send one")
    return unquote_to_bytes(found[0]) or None


def _take(scope: Scope, name: bytes) -> list[bytes]:
    """Remove a parameter from the query, and return its values as they were sent."""
    query: bytes = scope["query_string"]
    pairs = [(pair, pair.partition(b"=")) for pair in query.split(b"&")]
    found = [value for _, (key, _, value) in pairs if key == name]
    if found:
        scope["query_string"] = b"&".join(pair for pair, (key, _, _) in pairs if key != name)
    return found


def refuse_keys(query: bytes) -> None:
    """Raise BadRequestError for a query with a key or a token in it, by its name or its form.

    For the gateway's own paths; the query of any other is the application's.
    """
    # Decoded once, as a server would: what is encoded twice is no name to it either.
    decoded = unquote_to_bytes(query)
    names = {pair.partition(b"=")[0].lower() for pair in decoded.split(b"&")}
    if found := names & _KEY_NAMES:
        what = f"the query has {min(found).decode()}"
    elif _KEY.search(decoded):
        what = "the query has an API key"
    else:
        return
    raise BadRequestError(
        f"{what}: keys do not belong into a URL, which browsers, proxies and logs keep; send it as"
        " 'Authorization: Bearer ...', and revoke the one that was sent so"
    )


def cookie_token(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """The token that an earlier redirect put into a cookie."""
    for name, value in headers:
        if name != b"cookie":
            continue
        for pair in value.split(b";"):
            key, _, token = pair.strip().partition(b"=")
            if key == COOKIE_NAME and token.startswith(_PREFIX):
                return token
    return None


def console_credential(token: bytes, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The console's credential: the token of its page, and of its cookie what it has (identity/console_sessions.py)."""
    for name, value in headers:
        if name == b"cookie" and (cookie := console_sessions.cookie_in(value)) is not None:
            return token.partition(b".")[0] + b"." + cookie
    return token.partition(b".")[0]


def is_page_of_port(scope: Scope, target: Target) -> bool:
    """Whether a browser opens a page of a server behind a port, as against fetching a part of one."""
    if scope.get("method") != "GET" or not target.path.startswith(_PORTS):
        return False
    headers = dict(scope["headers"])
    mode = headers.get(b"sec-fetch-mode")
    # By the browser's own word where it gives one. Older ones, and those without TLS, do not; they ask for HTML.
    return mode == b"navigate" if mode is not None else b"text/html" in headers.get(b"accept", b"")


def follows_link(scope: Scope, target: object) -> bool:
    """Whether a person follows a link to a page of a server behind a port: a GET of the browser's own window.

    What shares a session is a link, so it may stand on another site's page, in a mail or a chat. A page there that
    sends the browser on learns nothing of the answer, and the server sees what any server on the web does. Not a frame,
    whose page around it could have a person click on what they do not see; nor images, scripts and forms with POST.
    """
    headers = dict(scope["headers"])
    return (
        scope.get("method") == "GET"
        and isinstance(target, Target)
        and target.path.startswith(_PORTS)
        and headers.get(b"sec-fetch-mode") == b"navigate"
        and headers.get(b"sec-fetch-dest") == b"document"
    )


def redirect_fields(scope: Scope, target: Target, token: bytes) -> list[tuple[bytes, bytes]]:
    """Location and Set-Cookie of the redirect to the same page without the token in its URL."""
    query: bytes = scope["query_string"]
    path: bytes = scope["raw_path"]
    mount = b"/" if target.port_host else b"/v1/sessions/%b/" % (target.session_id or "").encode()
    secure = b"; Secure" if scope["scheme"] == "https" else b""
    # Lax and not Strict: by Strict the page that a link on another site opens would come without its cookie.
    cookie = b"%b=%b; Path=%b; HttpOnly; SameSite=Lax%b" % (COOKIE_NAME, token, mount, secure)
    # A path that begins with two slashes would be another host's.
    location = b"/" + path.lstrip(b"/") + (b"?" + query if query else b"")
    return [(b"location", location), (b"set-cookie", cookie), (b"cache-control", b"no-store")]
