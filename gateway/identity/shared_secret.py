"""The secret that all gateways of one store share, and the keys derived from it for each purpose."""

from __future__ import annotations

import base64
import secrets

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

    def key(self, purpose: str) -> bytes:
        """32 bytes for a purpose (HKDF, RFC 5869)."""
        return HKDF(SHA256(), _BYTES, salt=None, info=b"wakegate " + purpose.encode()).derive(self._secret)


async def load_secret(documents: DocumentStore) -> SharedSecret:
    """The store's secret; the first gateway makes it. Raises StoreUnavailableError."""
    # Read, else write, else read what another gateway wrote first. A third round means that the store loses writes.
    for _ in range(3):
        found = await documents.get(_KIND, _NAME)
        if found is not None:
            return SharedSecret(base64.b64decode(found.value["value"]))
        value = base64.b64encode(secrets.token_bytes(_BYTES)).decode()
        try:
            await documents.put(Document(_KIND, _NAME, {"value": value}))
        except StaleWriteError:
            continue  # another gateway made it at the same moment
    raise StoreUnavailableError("the session store forgets what is written to it: it keeps no secret for the gateways")
