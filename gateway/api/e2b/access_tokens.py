"""The access token of a sandbox, which its client sends in place of an API key, and signed URLs for files. Pure.

A token is derived from the session's id with a key that all gateways of a store share, so none is stored, and each
gateway can verify it. It is worth its one session, as long as that lives.
Source: e2b SDK 2.63 (`Sandbox.download_url`), github.com/e2b-dev/infra (envd's signature check).
"""

from __future__ import annotations

import base64
import hashlib
import hmac

from gateway.core.errors import UnavailableError
from gateway.identity.shared_secret import SharedSecret

_SIGNATURE_PREFIX = "v1_"


class AccessTokens:
    """Derives sandboxes' access tokens from their sessions' ids, and verifies them. Until `open` there is no key."""

    def __init__(self) -> None:
        self._key = b""

    def __repr__(self) -> str:
        return "<AccessTokens>"

    def open(self, secret: SharedSecret) -> None:
        """Sign from now on with a key of the store's secret, so that gateways accept each other's tokens."""
        self._key = secret.key("access tokens of sandboxes")

    def of(self, session_id: str) -> str:
        """The token of a session. Raises UnavailableError while the gateway starts."""
        if not self._key:
            raise UnavailableError("this gateway is starting; try again shortly", retry_after=1)
        return hmac.new(self._key, session_id.encode(), hashlib.sha256).hexdigest()

    def verify(self, session_id: str, token: str) -> bool:
        """Whether a token is that session's. Takes the same time for every token."""
        return hmac.compare_digest(self.of(session_id).encode(), token.encode())

    def verify_url(
        self, session_id: str, signature: str, path: str, operation: str, user: str, expires: str, now: float
    ) -> str:
        """Why a signed URL is refused; empty if it is valid. `operation`: read or write. `now` in epoch seconds."""
        # Computed as the SDKs do it, byte by byte; so the token itself is in what is hashed, and a URL reveals no key.
        text = f"{path}:{operation}:{user}:{self.of(session_id)}" + (f":{expires}" if expires else "")
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")
        if not hmac.compare_digest((_SIGNATURE_PREFIX + digest).encode(), signature.encode()):
            return "invalid signature"
        # It is part of what was signed, so a client cannot leave it out or move it.
        if expires and not (expires.isascii() and expires.isdigit() and len(expires) < 16 and int(expires) > now):
            return "signature is already expired"
        return ""
