"""The connection to an origin whose TLS begins here: its handshake, and reading ahead of what it says unasked."""

from __future__ import annotations

import asyncio
import ssl

from gateway.egress.client import Client
from gateway.egress.https_request import failed
from gateway.egress.policy import Target
from gateway.egress.tls_stream import EndedError

HANDSHAKE_TIMEOUT_S = 15.0
_UNKNOWN_AUTHORITY = frozenset((18, 19, 20, 21))  # X509_V_ERR_* of OpenSSL: self-signed, or an issuer it does not know


class Origin:
    """One client's connection to its origin."""

    def __init__(self, client: Client, target: Target) -> None:
        self._client, self._target = client, target
        self._stream = client.outer_tls(target)
        self._handshake: asyncio.Task[None] | None = None

    async def close(self) -> None:
        """End the handshake and the reading, if they still run, and wait for their ends."""
        if self._handshake is not None:
            self._handshake.cancel()
            await asyncio.gather(self._handshake, return_exceptions=True)
        await self._stream.stop()

    def begin_handshake(self) -> asyncio.Task[None]:
        """Begin it unless it was begun; it goes on while the client says what it wants."""
        if self._handshake is None:
            self._handshake = asyncio.create_task(self._shake_hands())
        return self._handshake

    async def _shake_hands(self) -> None:
        async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
            await self._stream.handshake()

    async def reached(self) -> None:
        """Wait until the origin is known to be who it should be. Raises RefusedRequestError."""
        try:
            # Shielded: a request that leaves while it waits must not break the handshake for the next on this
            # connection.
            await asyncio.shield(self.begin_handshake())
        except ssl.SSLCertVerificationError as error:
            reason = f"the certificate of {self._target} is not accepted: {error.verify_message}"
            if error.verify_code in _UNKNOWN_AUTHORITY:
                reason += "; if it is of an authority of your own, name that in --egress-ca"
            raise failed(self._client, reason) from None
        except (EndedError, ssl.SSLError, TimeoutError) as error:
            raise failed(self._client, f"{self._target}: {error or 'no TLS handshake in time'}") from None

    @property
    def is_reached(self) -> bool:
        """Whether the handshake has succeeded, so that the origin may be read ahead."""
        handshake = self._handshake
        return handshake is not None and handshake.done() and not handshake.exception()

    def ahead(self) -> asyncio.Task[bytes]:
        """What the origin sends next, read ahead while the client is silent. Not to be cancelled."""
        return self._stream.ahead()

    async def receive(self) -> bytes:
        """What comes next; b"" at its end. Raises EndedError."""
        return await self._stream.receive()

    async def send(self, data: bytes) -> None:
        """Send all of it. Raises EndedError."""
        await self._stream.send(data)
