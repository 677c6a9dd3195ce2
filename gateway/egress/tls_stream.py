"""TLS over a socket, some of whose bytes may have been read already, in either role.

Over memory buffers, because neither asyncio nor uvloop takes bytes that came before its own TLS began. Several tasks
may send at once: records leave in the order in which they were made.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable

from gateway.egress.relay import paced

_READ_BYTES = 256 << 10


class EndedError(Exception):
    """The connection has broken, or does not speak TLS; the text says which."""


class TlsStream:
    """TLS over a socket of the event loop, which is limited and counted by what goes over the socket.

    `count_in(n)` and `count_out(n)` are called with bytes on the socket; seconds to wait, negative: end.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        connection: socket.socket,
        context: ssl.SSLContext,
        *,
        received: bytes = b"",
        server_name: str | None = None,
        count_in: Callable[[int], float] = lambda _: 0.0,
        count_out: Callable[[int], float] = lambda _: 0.0,
    ) -> None:
        """`server_name`: of the server that is called; None: this is the server."""
        self._loop, self._socket = loop, connection
        self._count_in, self._count_out = count_in, count_out
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._incoming.write(received)
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_name is None, server_hostname=server_name
        )
        self._sending = asyncio.Lock()
        self._reading: asyncio.Task[bytes] | None = None
        self._ended = False  # nothing more comes

    async def handshake(self) -> None:
        """Raises EndedError, ssl.SSLCertVerificationError."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()  # first, as the other side waits for it before it says more
                if not await self._fill():
                    raise EndedError("the connection ended during the TLS handshake") from None
            except ssl.SSLError as error:
                await self._flush()  # the alert
                if isinstance(error, ssl.SSLCertVerificationError):
                    raise
                raise EndedError(f"TLS failed: {error.reason or 'not TLS'}") from None
            else:
                await self._flush()
                return

    async def receive(self) -> bytes:
        """What comes next; empty at the end. One at a time. Cancelled, it loses nothing. Raises EndedError."""
        reading = self.ahead()
        data = await asyncio.shield(reading)
        self._reading = None
        return data

    def ahead(self) -> asyncio.Task[bytes]:
        """What `receive` returns next, read already: only so the end of a silent side is noticed. Not to be cancelled.

        Kept until it was received: a read that is cancelled may have taken bytes from the socket by then.
        """
        if self._reading is None:
            self._reading = asyncio.create_task(self._receive())
        return self._reading

    async def _receive(self) -> bytes:
        while True:
            if data := self._decrypted():
                return data
            await self._flush()  # an answer of TLS itself, such as to a change of keys
            if self._ended or not await self._fill():
                return b""

    def _decrypted(self) -> bytes:
        """All that is complete: a read returns one record, of 16 KiB."""
        pieces = []
        try:
            while piece := self._tls.read(_READ_BYTES):
                pieces.append(piece)
            self._ended = True  # close_notify; the peer may keep its socket open
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            # What came whole before it is passed on; the next read meets the same error.
            if not pieces and not self._ended:
                raise EndedError(f"TLS failed: {error.reason}") from None
        return b"".join(pieces)

    async def send(self, data: bytes) -> None:
        """Encrypt and send all of it. Raises EndedError."""
        if data:
            try:
                self._tls.write(data)
            except ssl.SSLError as error:
                raise EndedError(f"TLS failed: {error.reason}") from None
        await self._flush()

    async def stop(self) -> None:
        """End a read that is under way, and wait for its end. Nothing may be received after that."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    async def close(self) -> None:
        """Say that no more comes, and end a read. Without effect on a connection that is broken."""
        await self.stop()
        try:
            self._tls.unwrap()
        except (ssl.SSLError, ValueError):
            pass
        try:
            await self._flush()
        except EndedError:
            pass

    async def _fill(self) -> bool:
        """Take more from the socket; whether there was more."""
        try:
            data = await self._loop.sock_recv(self._socket, _READ_BYTES)
        except OSError:
            raise EndedError("the connection broke") from None
        if not data:
            self._incoming.write_eof()
            self._ended = True
            return False
        self._incoming.write(data)
        await self._pace(self._count_in, len(data))
        return True

    async def _flush(self) -> None:
        if not self._outgoing.pending:
            return
        # Taken under the lock: two tasks that took records in one order could send them in the other.
        async with self._sending:
            data = self._outgoing.read()
            try:
                await self._loop.sock_sendall(self._socket, data)
            except OSError:
                raise EndedError("the connection broke") from None
            await self._pace(self._count_out, len(data))

    async def _pace(self, count: Callable[[int], float], amount: int) -> None:
        if not await paced(count, amount):
            raise EndedError("over the limit of bytes")
