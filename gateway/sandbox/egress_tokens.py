"""Tokens by which the egress service knows a sandbox in a cluster. They name it and its session, and give no right.

The audience is not the sandbox's id, as picod wants it: this token is where code can read it, and must not open picod.
Nor is it a key for anything of the session beyond egress: no API of the gateway takes it.
"""

from __future__ import annotations

import jwt

from gateway.core.model import SandboxId, SessionId
from gateway.sandbox.signing_keys import KeyRing
from picod import wire

_AUDIENCE = "egress/"
_MAX_CHARS = 4000


def sign_egress(keys: KeyRing, sandbox: SandboxId, session: SessionId, now: float, lifetime: float) -> str:
    """For a sandbox while it has that session; whether it has is asked when the token is used. Times in seconds."""
    return keys.signer.sign(audience=f"{_AUDIENCE}{sandbox}", subject=session, issued_at=now, lifetime=lifetime)


def read_egress(keys: KeyRing, token: str, now: float) -> tuple[SandboxId, SessionId]:
    """Whose it is. Raises ValueError for one that no key of the ring has signed, or that has expired."""
    try:
        if len(token) > _MAX_CHARS:
            raise ValueError("the token is too long")
        key = keys.find(str(jwt.get_unverified_header(token).get("kid")))
        if key is None:
            raise ValueError("no key of this gateway has signed the token")
        # The key decides the algorithm, not the token. The audience has a sandbox in it, and is looked at below; the
        # time is compared with the clock of this gateway, which tests set.
        claims = jwt.decode(
            token, key.private.public_key(), algorithms=[key.algorithm], issuer=wire.ISSUER,
            options={"require": ["exp", "iss", "aud", "sub"], "verify_aud": False, "verify_exp": False,
                     "verify_iat": False},
        )  # fmt: skip
    except jwt.PyJWTError as error:
        raise ValueError(f"the token is not valid: {error}") from error
    audience = str(claims["aud"])
    if not audience.startswith(_AUDIENCE):
        raise ValueError("the token is for something else")
    if not isinstance(claims["exp"], int) or claims["exp"] + wire.LEEWAY_S < now:
        raise ValueError("the token has expired")
    return SandboxId(audience.removeprefix(_AUDIENCE)), SessionId(str(claims["sub"]))
