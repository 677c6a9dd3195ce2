"""From the credential of a request to an identity, from memory.

A credential that was verified is remembered, so the requests after the first cost one look-up: no store, no signature.
What is remembered goes when it expires, all of it whenever a key is revoked, and once a minute, so that a key's last
use is noted.

It is remembered as it was sent. Rejected: under a keyed hash of it, which costs each request 1.2 us, a fortieth of its
processor time, and hides nothing: who can read this process's memory finds there the secret that session tokens are
signed with. Nor does the time of a look-up tell how much of a guess is right: Python's hash of bytes has another key in
each process, and only a guess with the same hash is compared.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from gateway.core.clock import Clock
from gateway.core.documents import DocumentStore
from gateway.core.errors import StoreUnavailableError, UnauthorizedError
from gateway.core.identity import Identity
from gateway.core.model import Session
from gateway.identity import console_sessions, keys, session_tokens
from gateway.identity.directory import KeyDirectory, open_directory
from gateway.identity.shared_secret import SharedSecret, load_secret
from gateway.identity.tenants import TenantDirectory

logger = logging.getLogger(__name__)

MAX_CREDENTIAL_BYTES = 8192  # of a token with many groups
_MAX_KNOWN = 20_000  # credentials; 160 MB if all were of the longest size, which no issuer's are
_REMEMBERED_S = 60.0
_NEVER = float("inf")
_LOOK_AGAIN_INTERVAL_S = 0.2  # at most five reads of the store per second for made-up keys
_MISSING = "send an API key as 'Authorization: Bearer wk_...' or 'X-API-Key: wk_...'; `wakegate keys create` makes one"


class TokenVerifier(Protocol):
    """Verifies tokens of another issuer: OpenID Connect."""

    def accepts(self, token: str) -> bool:
        """Whether a token looks like one of its issuer's, without a check."""
        ...

    async def verify(self, token: str) -> Identity:
        """Who a token stands for.

        Raises UnauthorizedError; PermissionDeniedError for one that gives no role here; UnavailableError when its keys
        cannot be fetched.
        """
        ...


class Authenticator:
    """Knows who requests come from. Made once the store is open."""

    def __init__(
        self,
        directory: KeyDirectory,
        secret: SharedSecret,
        clock: Clock,
        verifier: TokenVerifier | None = None,
        tenants: TenantDirectory | None = None,
    ) -> None:
        self.directory = directory
        self._session_key = secret.key("session tokens")
        self._console_key = secret.key("console sessions")
        self._clock = clock
        self._verifier = verifier
        self._tenants = tenants
        self._known: OrderedDict[bytes, Identity] = OrderedDict()  # by credential, as it was sent
        self._forget_at = self._look_again_at = float("-inf")  # of the monotonic clock

    def __repr__(self) -> str:
        return f"<Authenticator {len(self._known)} credentials known>"

    def lookup(self, credential: bytes) -> Identity | None:
        """The identity of a credential that was verified a while ago; None: ask `authenticate`."""
        known = self._known.get(credential)
        # Only what expires costs a look at the clock (0.1 us).
        if known is not None and known.expires_at != _NEVER and known.expires_at <= self._clock.now():
            return None
        return known

    async def authenticate(self, credential: bytes | None) -> Identity:
        """Who a request comes from, by its bearer token or API key.

        Raises UnauthorizedError, which says what is wrong; PermissionDeniedError for a token of another issuer that
        gives no role here; UnavailableError when that issuer's keys cannot be fetched.
        """
        if credential is None or not credential:
            raise UnauthorizedError(f"authentication is required: {_MISSING}")
        if len(credential) > MAX_CREDENTIAL_BYTES:
            raise UnauthorizedError(f"the credential is longer than {MAX_CREDENTIAL_BYTES} bytes")
        known = self.lookup(credential)
        if known is not None:
            return known
        identity = self._budgeted(await self._verify(credential.decode("latin-1")))
        self._known[credential] = identity
        if len(self._known) > _MAX_KNOWN:
            # The one verified first, not the one used least: reordering would cost each request what verifying again
            # costs one.
            self._known.popitem(last=False)
        return identity

    def issue_session_token(
        self, session: Session, lifetime: float, *, subject: str, paths: tuple[str, ...], ports: tuple[int, ...]
    ) -> tuple[str, float]:
        """A token that is valid for one session, and when it expires. Raises BadRequestError."""
        now = self._clock.now()
        token = session_tokens.issue(
            session, self._session_key, now, lifetime, subject=subject, paths=paths, ports=ports
        )
        return token, now + lifetime

    def open_console(self, credential: str) -> tuple[str, str]:
        """The cookie and the page's token of a console session that acts with an API key."""
        return console_sessions.seal(credential, self._console_key, self._clock.now())

    async def follow(self) -> None:
        """Forget what has expired or was revoked. To be called each directory.FOLLOW_INTERVAL_S."""
        try:
            if await self.directory.follow():
                self.forget_all()
        except StoreUnavailableError as error:
            # Known keys go on working: an outage of the store must not lock clients out of live sessions.
            logger.debug("API keys could not be read again, the known ones stay: %s", error)
        if self._clock.monotonic() >= self._forget_at:
            self._forget_at = self._clock.monotonic() + _REMEMBERED_S
            self.forget_all()
        now = self._clock.now()
        for credential in [each for each, identity in self._known.items() if identity.expires_at <= now]:
            del self._known[credential]

    def forget_all(self) -> None:
        """Verify every credential anew: one may have been revoked."""
        self._known.clear()

    def _budgeted(self, identity: Identity) -> Identity:
        """With what counts its tenant's requests. Not those of roles that act for all tenants: they set the limits."""
        if self._tenants is None:
            return identity
        if self._tenants.is_deleted(identity.tenant):
            raise UnauthorizedError(f"the tenant {identity.tenant} was deleted")
        if identity.is_operators:
            return identity
        return replace(identity, budget=self._tenants.budget(identity.tenant))

    async def _verify(self, credential: str) -> Identity:
        credential = keys.usual_spelling(credential)
        # Cheapest and surest first: a prefix and a form that only we issue, and what is left is another issuer's token.
        if credential.startswith(session_tokens.PREFIX):
            return session_tokens.verify(credential, self._session_key, self._clock.now())
        if credential.startswith(console_sessions.PREFIX):
            sealed, expires_at = console_sessions.open_sealed(credential, self._console_key, self._clock.now())
            identity = await self._verify(sealed)  # the key itself, so that it is found revoked
            return replace(identity, expires_at=min(identity.expires_at, expires_at))
        key = self.directory.find(credential)
        if key is None and keys.id_of(credential) is not None and self._clock.monotonic() >= self._look_again_at:
            # Perhaps it was made a moment ago, by a command or another gateway. However many such keys come, the store
            # is read once.
            self._look_again_at = self._clock.monotonic() + _LOOK_AGAIN_INTERVAL_S
            await self.follow()
            key = self.directory.find(credential)
        if key is not None:
            return key.identity()
        if self._verifier is not None and self._verifier.accepts(credential):
            return await self._verifier.verify(credential)
        raise UnauthorizedError(f"the API key or token is unknown, expired or revoked; {_MISSING}")


async def open_authenticator(
    documents: DocumentStore,
    clock: Clock,
    admin_key_file: Path,
    tenants: TenantDirectory | None = None,
    verifier: TokenVerifier | None = None,
) -> Authenticator:
    """An authenticator over a store's keys. `admin_key_file`: an empty path for none; `verifier`: of other issuers.

    Raises SettingsError for an unusable file, StoreUnavailableError.
    """
    secret = await load_secret(documents)
    file = None if admin_key_file == Path() else admin_key_file
    return Authenticator(await open_directory(documents, clock, file), secret, clock, verifier, tenants)
