"""Short-lived tokens for picod, cached per sandbox: no signature on the hot path (docs/architecture.md, "Trust")."""

from __future__ import annotations

from typing import Protocol

from gateway.core.clock import Clock
from gateway.core.model import SandboxId, SessionId

LIFETIME_S = 300.0
RENEW_BEFORE_S = 60.0  # a token handed out is good for at least this long: queueing and clock difference fit in


class Signer(Protocol):
    """What can sign a token; gateway.sandbox.signing_keys.SigningKey does."""

    def sign(self, *, audience: str, subject: str, issued_at: float, lifetime: float) -> str:
        """A token in JWS compact form."""
        ...


class SignerSource(Protocol):
    """Where the newest signer is found; gateway.sandbox.signing_keys.KeyRing is one."""

    @property
    def signer(self) -> Signer:
        """The key that signs now."""
        ...


class TokenIssuer:
    """Signs tokens and counts the signatures."""

    def __init__(self, keys: SignerSource, clock: Clock) -> None:
        self._keys = keys
        self._clock = clock
        self.signed = 0

    def issue(self, sandbox_id: SandboxId, session_id: SessionId) -> tuple[bytes, float]:
        """A token for that sandbox, and the epoch second from which a new one should be asked for."""
        now = self._clock.now()
        token = self._keys.signer.sign(audience=sandbox_id, subject=session_id, issued_at=now, lifetime=LIFETIME_S)
        self.signed += 1
        return token.encode("ascii"), now + LIFETIME_S - RENEW_BEFORE_S
