"""HTTPS whose TLS ends here: requests are seen, decided about one by one, and get their credentials.

Each request is parsed strictly (http_head.py) before h11 reads it, and written anew: what two servers could read in two
ways never gets further. One connection to the origin belongs to one of the client's, so requests of different sandboxes
never share one. Only HTTP/1.1 is offered to both sides. `https_request` decides about a request, `https_exchange` sends
it, `https_origin` is where to.
"""

from __future__ import annotations

import asyncio
import ssl

from gateway.egress.client import Client, GoneError
from gateway.egress.greeting import hello_agrees
from gateway.egress.http_head import MAX_HEAD_BYTES, Head
from gateway.egress.https_exchange import Exchange
from gateway.egress.https_origin import HANDSHAKE_TIMEOUT_S, Origin
from gateway.egress.https_request import RefusedRequestError, permitted
from gateway.egress.package_cache import url_of
from gateway.egress.policy import Target
from gateway.egress.tls_hello import HANDSHAKE
from gateway.egress.tls_stream import EndedError, TlsStream


async def end_tls(client: Client, target: Target, data: bytes) -> None:
    """Serve the requests of a connection to a host whose TLS ends here. `data`: its first bytes. Raises GoneError."""
    while not data or not await _is_hello(client, target, data):
        data += await client.receive()
    inner = client.inner_tls(target, data)
    try:
        async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
            await inner.handshake()
    except (EndedError, ssl.SSLError, TimeoutError) as error:
        client.cut(f"its TLS cannot be ended here: {error or 'no handshake in time'}")
        raise GoneError from None
    # From here on refusals are HTTP within TLS, which the client shows. Before, only a broken handshake says anything.
    connection = _Connection(client, target, inner)
    try:
        await connection.serve()
    except EndedError:
        raise GoneError from None
    finally:
        await connection.close()


async def _is_hello(client: Client, target: Target, data: bytes) -> bool:
    if data[0] == HANDSHAKE:
        return await hello_agrees(client, target, data)
    client.cut(f"only HTTPS is passed on to {target}, whose requests are looked at; this is no TLS")
    raise GoneError


class _Connection:
    """One connection of a client, with its own to the origin."""

    def __init__(self, client: Client, target: Target, inner: TlsStream) -> None:
        self._client, self._target, self._inner = client, target, inner
        self._credentials = client.egress.credentials_for(target)
        self._origin = Origin(client, target)
        self._cache = client.cache(target)
        if self._cache is None:
            self._origin.begin_handshake()  # with a cache, most requests need no origin
        self._rest = b""  # of the client, after the request

    async def close(self) -> None:
        """End what still runs, and tell the client of the end."""
        await self._origin.close()
        await self._inner.close()

    async def serve(self) -> None:
        """Requests, one after the other, until a side has enough. Raises EndedError, GoneError."""
        try:
            while (raw := await self._next_head()) is not None:
                head = permitted(self._client, self._target, self._credentials, raw)
                url = url_of(self._target, head) if self._cache is not None else ""
                if url and await self._from_cache(url, head):
                    continue
                await self._origin.reached()
                exchange = Exchange(
                    self._client, self._target, self._inner, self._origin, self._credentials, self._cache
                )
                received, self._rest = raw + self._rest, b""
                if not await exchange.run(head, received, url):
                    return
                self._rest = exchange.rest
        except RefusedRequestError as error:
            # And the connection ends: what follows a refused request may be its body, or the second half of a smuggled
            # one.
            await self._inner.send(error.answer())

    async def _next_head(self) -> bytes | None:
        """The next request's head as it came; None: a side has ended the connection. What follows is in `_rest`.

        Raises RefusedRequestError for one that is too large.
        """
        data, searched = self._rest, 0
        while (end := data.find(b"\r\n\r\n", searched)) < 0:
            if len(data) > MAX_HEAD_BYTES:
                raise RefusedRequestError(431, "BAD_REQUEST", "the request's head is too large")
            # Three bytes of the end may be here already. From the beginning each time, a head that comes byte by byte
            # would be searched in quadratic time.
            searched = max(0, len(data) - 3)
            more = await self._from_client()
            if not more:
                return None
            data += more
        self._rest = data[end + 4 :]
        return data[: end + 4]

    async def _from_client(self) -> bytes:
        """More of the client, unless the origin ends the connection first, or says something unasked."""
        asked = self._inner.ahead()
        waiting = [asked, *([self._origin.ahead()] if self._origin.is_reached else [])]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        return await self._inner.receive() if asked.done() else b""

    async def _from_cache(self, url: str, head: Head) -> bool:
        """Answer with a file that is kept; whether there was one. Raises EndedError."""
        assert self._cache is not None
        kept = await self._cache.find(url)
        if kept is None:
            return False
        self._client.answered_from_cache()
        try:
            lines = f"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: {kept.size}\r\n"
            last = "Connection: close\r\n" if head.minor == 0 else ""
            await self._inner.send(f"{lines}X-Wakegate-Egress: cached\r\n{last}\r\n".encode())
            at = 0
            while at < kept.size:
                piece = await kept.read(at)
                if not piece:
                    raise EndedError("a file of the cache is shorter than it was")
                await self._inner.send(piece)
                at += len(piece)
        finally:
            kept.close()
        return True
