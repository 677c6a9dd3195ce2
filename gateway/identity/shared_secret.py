"""The secret that all gateways of one store share, and the keys derived from it for each purpose."""

from __future__ import annotations

import base64
import hmac
import secrets
from collections.abc import Callable

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from gateway.core.documents import Document, DocumentStore
from gateway.core.errors import StaleWriteError, StoreUnavailableError

_KIND, _NAME = "secret", "gateways"
_BYTES = 32


class SharedSecret:
    """Derives keys. Two purposes never share one, so that what is signed for one is worth nothing for another."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def __repr__(self) -> str:
        return "<SharedSecret>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SharedSecret) and hmac.compare_digest(self._secret, other._secret)

    __hash__ = None  # type: ignore[assignment]  # no key of dictionaries: hashes take no constant time

    def encoded(self) -> str:
        """As the store has it."""
        return base64.b64encode(self._secret).decode()

    def key(self, purpose: str) -> bytes:
        """32 bytes for a purpose (HKDF, RFC 5869)."""
        return HKDF(SHA256(), _BYTES, salt=None, info=b"wakegate " + purpose.encode()).derive(self._secret)


class FollowedSecret:
    """The store's secret for as long as a gateway runs. `opened` is called with it at the start, and if it changes.

    A store that has lost everything gets it back from a gateway that runs. Otherwise the next gateway to start would
    make another one, and the two would refuse each other's requests until both have started again.
    """

    def __init__(self, documents: DocumentStore, opened: Callable[[SharedSecret], None]) -> None:
        self._documents = documents
        self._opened = opened
        self._known: SharedSecret | None = None

    async def follow(self) -> None:
        """Read the secret, or write it where there is none. Raises StoreUnavailableError."""
        found = await load_secret(self._documents, self._known)
        if found != self._known:
            self._known = found
            self._opened(found)


async def load_secret(documents: DocumentStore, known: SharedSecret | None = None) -> SharedSecret:
    """The store's secret; where it has none, `known` or a new one becomes it. Raises StoreUnavailableError."""
    # Read, else write, else read what another gateway wrote first. A third round means that the store loses writes.
    for _ in range(3):
        found = await documents.get(_KIND, _NAME)
        if found is not None:
            return SharedSecret(base64.b64decode(found.value["value"]))
        ours = known or SharedSecret(secrets.token_bytes(_BYTES))
        try:
            await documents.put(Document(_KIND, _NAME, {"value": ours.encoded()}))
        except StaleWriteError:
            continue  # another gateway made it at the same moment
    raise StoreUnavailableError("the session store forgets what is written to it: it keeps no secret for the gateways")
