"""Tokens that are valid for one session: for browsers and end users, who must not have an API key.

A token is a JWT (RFC 7519) signed with HS256 by a key that all gateways of a store derive from their shared secret, so
each verifies it without a look-up. It cannot be revoked by itself; it ends with its time, which is a day at most, or
with its session.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jwt

from gateway.core.errors import BadRequestError, UnauthorizedError
from gateway.core.identity import Identity, Role, SessionScope
from gateway.core.model import Session, SessionId

PREFIX = "wst_"  # distinguishes it from API keys and other issuers' JWTs, and lets scanners find leaked ones
MAX_LIFETIME_S = 86400.0
_AUDIENCE = "wakegate-session"
_MAX_SCOPES = 16
_MAX_PATH_CHARS = 256


def issue(
    session: Session,
    key: bytes,
    now: float,
    lifetime: float,
    *,
    subject: str,
    paths: Sequence[str] = (),
    ports: Sequence[int] = (),
) -> str:
    """A token for a session. `now` in epoch seconds, `lifetime` in seconds; `subject`: who made it.

    `paths`: prefixes of picod's paths; `ports`: ports of servers in the sandbox; both empty: everything of the session.
    Raises BadRequestError.
    """
    if not 0 < lifetime <= MAX_LIFETIME_S:
        raise BadRequestError(f"ttl: expected at most {MAX_LIFETIME_S:g} s, got {lifetime:g}")
    if len(paths) > _MAX_SCOPES or len(ports) > _MAX_SCOPES:
        raise BadRequestError(f"paths, ports: expected at most {_MAX_SCOPES} of each")
    for path in paths:
        if not path.startswith("/") or len(path) > _MAX_PATH_CHARS or ".." in path or "%" in path:
            raise BadRequestError(
                f"paths: expected prefixes such as /api/files, without '..' and '%'; got {path[:64]!r}"
            )
    for port in ports:
        if not 1 <= port <= 65535:
            raise BadRequestError(f"ports: expected numbers from 1 to 65535, got {port}")
    claims: dict[str, Any] = {
        "aud": _AUDIENCE,
        "sub": session.id,
        "ten": session.tenant,
        "usr": session.user,
        "by": subject,
        "iat": int(now),
        "exp": int(now + lifetime) or 1,
    }
    if paths:
        claims["paths"] = list(paths)
    if ports:
        claims["ports"] = list(ports)
    return PREFIX + jwt.encode(claims, key, "HS256")


def verify(text: str, key: bytes, now: float) -> Identity:
    """Who a token stands for. Raises UnauthorizedError, which says why not."""
    # The library's checks of times are off, as they read the machine's clock; `exp` is compared with `now` below.
    try:
        claims = jwt.decode(
            text.removeprefix(PREFIX),
            key,
            algorithms=["HS256"],
            audience=_AUDIENCE,
            options={"require": ["exp", "sub", "aud", "ten"], "verify_exp": False, "verify_iat": False},
        )
    except jwt.PyJWTError as error:
        raise UnauthorizedError(f"the session token is not valid: {error}") from None
    if float(claims["exp"]) <= now:
        raise UnauthorizedError("the session token has expired; ask whoever gave it to you for another")
    scope = SessionScope(
        SessionId(claims["sub"]), tuple(map(str, claims.get("paths", ()))), tuple(map(int, claims.get("ports", ())))
    )
    return Identity(
        Role.SESSION,
        tenant=claims["ten"],
        subject=f"session token by {claims.get('by', '')}",
        user=claims.get("usr", ""),
        scope=scope,
        expires_at=float(claims["exp"]),
    )
