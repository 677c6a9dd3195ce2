"""How the console stays logged in: a cookie that holds the API key, sealed, and a token that the page keeps itself.

Both are needed. The browser sends the cookie (HttpOnly, SameSite=Strict) with every request to this origin, so alone it
is worth nothing: pages of servers in sandboxes may have the same origin. The token is in the page's memory and in no
cookie, is sent in Authorization, which no other site's page can make a browser do, and is worth nothing without the
cookie, which no script can read. The key stays the identity: a key that is revoked ends the session with it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets

import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from gateway.core.errors import UnauthorizedError

PREFIX = "wcs_"
# The prefix makes browsers insist on Secure, no Domain and Path=/, and keeps it from every sandbox
# (routing/request_fields.py). A browser takes localhost and 127.0.0.1 for secure.
COOKIE = "__Host-wakegate_console"
LIFETIME_S = 12 * 3600.0
_NONCE_BYTES = 12
_MAX_COOKIE_CHARS = 2048


def seal(credential: str, key: bytes, now: float) -> tuple[str, str]:
    """The cookie's value, and the page's token. `now` in epoch seconds."""
    token = secrets.token_urlsafe(32)
    content = orjson.dumps({"key": credential, "exp": now + LIFETIME_S, "token": _digest(token)})
    nonce = secrets.token_bytes(_NONCE_BYTES)
    sealed = AESGCM(key).encrypt(nonce, content, COOKIE.encode())
    return base64.urlsafe_b64encode(nonce + sealed).decode().rstrip("="), PREFIX + token


def open_sealed(credential: str, key: bytes, now: float) -> tuple[str, float]:
    """The API key of a page's token and its cookie, joined by a dot, and when the two expire.

    Raises UnauthorizedError.
    """
    token, _, cookie = credential.removeprefix(PREFIX).partition(".")
    try:
        if not cookie or len(cookie) > _MAX_COOKIE_CHARS:
            raise ValueError
        raw = base64.urlsafe_b64decode(cookie + "=" * (-len(cookie) % 4))
        content = orjson.loads(AESGCM(key).decrypt(raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], COOKIE.encode()))
    except (ValueError, InvalidTag):
        raise UnauthorizedError("the console's session is not valid: log in again") from None
    if content["exp"] <= now or not hmac.compare_digest(content["token"], _digest(token)):
        raise UnauthorizedError("the console's session has expired: log in again")
    return content["key"], float(content["exp"])


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def cookie_in(value: bytes) -> bytes | None:
    """The console's cookie in a Cookie field."""
    for pair in value.split(b";"):
        name, _, found = pair.strip().partition(b"=")
        if name == COOKIE.encode():
            return found
    return None
