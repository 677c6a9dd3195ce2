"""Short-lived tokens for picod. Routes cache them, so the fast path signs nothing (docs/architecture.md, "Trust")."""

from __future__ import annotations

from typing import Protocol

from gateway.core.clock import Clock
from gateway.core.model import SandboxId, SessionId

LIFETIME_S = 300.0
# A token is renewed this long before it expires: it must outlive the time a request queues plus the clock skew between
# gateway and sandbox.
RENEW_BEFORE_S = 60.0


class Signer(Protocol):
    """Signs tokens, as gateway.sandbox.signing_keys.SigningKey does."""

    def sign(self, *, audience: str, subject: str, issued_at: float, lifetime: float) -> str:
        """A token in JWS compact form."""
        ...


class SignerSource(Protocol):
    """Holds the current signer, as gateway.sandbox.signing_keys.KeyRing does."""

    @property
    def signer(self) -> Signer:
        """The key that signs new tokens; another one after a rotation."""
        ...


class TokenIssuer:
    """Issues tokens for sandboxes. `signed` counts them, for /metrics."""

    def __init__(self, keys: SignerSource, clock: Clock) -> None:
        self._keys = keys
        self._clock = clock
        self.signed = 0

    def issue(self, sandbox_id: SandboxId, session_id: SessionId) -> tuple[bytes, float]:
        """A token for that sandbox, and the epoch second from which a new one should be issued."""
        now = self._clock.now()
        token = self._keys.signer.sign(audience=sandbox_id, subject=session_id, issued_at=now, lifetime=LIFETIME_S)
        self.signed += 1
        return token.encode("ascii"), now + LIFETIME_S - RENEW_BEFORE_S
