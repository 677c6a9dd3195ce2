"""HTTPS whose TLS ends here: requests are seen, decided about one by one, and get their credentials.

Each request is parsed strictly (http_head.py) before h11 reads it, and written anew: what two servers could read in two
ways never gets further. One connection to the origin belongs to one of the client's, so requests of different sandboxes
never share one. Only HTTP/1.1 is offered to both sides.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from dataclasses import replace

import h11

from gateway.egress.client import Client, GoneError
from gateway.egress.credentials import Credential, Mask, fill
from gateway.egress.greeting import hello_agrees
from gateway.egress.http_head import (
    MAX_HEAD_BYTES,
    BadHeadError,
    Field,
    Head,
    end_to_end,
    parse_request,
    split_authority,
)
from gateway.egress.package_cache import Fetched, length_of, url_of
from gateway.egress.policy import Target, decide
from gateway.egress.tls_hello import HANDSHAKE
from gateway.egress.tls_stream import EndedError, TlsStream

_HANDSHAKE_TIMEOUT_S = 15.0
_HTTPS = 443
# What would have an answer come in a form, or in parts, in which a credential in it is not seen.
_UNSEEN = frozenset((b"accept-encoding", b"range", b"if-range", b"sec-websocket-extensions"))
# TRACE answers with the request, CONNECT and PRI lead to what is no request.
_REFUSED_METHODS = frozenset(("TRACE", "CONNECT", "PRI"))
# What an origin hears of a request whose answer other sandboxes may get.
_ANYBODYS: tuple[Field, ...] = (
    (b"user-agent", b"wakegate-egress"), (b"accept", b"*/*"), (b"accept-encoding", b"identity"),
)  # fmt: skip
_UNKNOWN_AUTHORITY = frozenset((18, 19, 20, 21))  # X509_V_ERR_* of OpenSSL: self-signed, or an issuer it does not know


class _RefusedRequestError(Exception):
    """A request that is answered here, after which the connection ends."""

    def __init__(self, status: int, code: str, text: str, setting: str = "") -> None:
        super().__init__(text)
        self.status, self.code, self.setting = status, code, setting


async def end_tls(client: Client, target: Target, data: bytes) -> None:
    """Serve the requests of a connection to a host whose TLS ends here. `data`: its first bytes. Raises GoneError."""
    while not data or not await _is_hello(client, target, data):
        data += await client.receive()
    inner = client.inner_tls(target, data)
    try:
        async with asyncio.timeout(_HANDSHAKE_TIMEOUT_S):
            await inner.handshake()
    except (EndedError, ssl.SSLError, TimeoutError) as error:
        client.cut(f"its TLS cannot be ended here: {error or 'no handshake in time'}")
        raise GoneError from None
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
    """One connection of a client, with its own to the origin, whose handshake begins at once."""

    def __init__(self, client: Client, target: Target, inner: TlsStream) -> None:
        self._client, self._target, self._inner = client, target, inner
        self._credentials = client.egress.credentials_for(target)
        self._outer = client.outer_tls(target)
        self._cache = client.cache(target)
        self._greeted: asyncio.Task[None] | None = None
        if self._cache is None:
            self._begin_greeting()
        self._rest = b""  # of the client, after the request
        self._reading: asyncio.Task[bytes] | None = None  # what the origin sends next

    async def close(self) -> None:
        """End what still runs, and say goodbye to the client."""
        tasks = [task for task in (self._greeted, self._reading) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._inner.close()

    async def serve(self) -> None:
        """Requests, one after the other, until a side has enough. Raises EndedError."""
        while (raw := await self._next_head()) is not None:
            try:
                head = self._permitted(raw)
                url = url_of(self._target, head) if self._cache is not None else ""
                if url and await self._from_cache(url, head):
                    continue
                await self._reached()
            except _RefusedRequestError as error:
                await self._refuse(error)
                return
            if not await self._exchange(head, raw, url):
                return

    def _begin_greeting(self) -> asyncio.Task[None]:
        if self._greeted is None:
            self._greeted = asyncio.create_task(self._greet())
        return self._greeted

    async def _greet(self) -> None:
        async with asyncio.timeout(_HANDSHAKE_TIMEOUT_S):
            await self._outer.handshake()

    async def _reached(self) -> None:
        """Wait until the origin is known to be who it should be. Raises _RefusedRequestError."""
        try:
            await asyncio.shield(self._begin_greeting())
        except ssl.SSLCertVerificationError as error:
            reason = f"the certificate of {self._target} is not accepted: {error.verify_message}"
            if error.verify_code in _UNKNOWN_AUTHORITY:
                reason += "; if it is of an authority of your own, name that in --egress-ca"
            self._client.cut(reason)
            raise _RefusedRequestError(502, "EGRESS_FAILED", f"egress failed: {reason}") from None
        except (EndedError, ssl.SSLError, TimeoutError) as error:
            reason = f"{self._target}: {error or 'no TLS handshake in time'}"
            self._client.cut(reason)
            raise _RefusedRequestError(502, "EGRESS_FAILED", f"egress failed: {reason}") from None

    async def _next_head(self) -> bytes | None:
        """The next request's head as it came; None: a side has ended the connection. What follows is in `_rest`."""
        data, searched = self._rest, 0
        while (end := data.find(b"\r\n\r\n", searched)) < 0:
            if len(data) > MAX_HEAD_BYTES:
                await self._refuse(_RefusedRequestError(431, "BAD_REQUEST", "the request's head is too large"))
                return None
            searched = max(0, len(data) - 3)
            more = await self._from_client()
            if not more:
                return None
            data += more
        self._rest = data[end + 4 :]
        return data[: end + 4]

    async def _from_client(self) -> bytes:
        """More of the client, unless the origin ends the connection first, or says something unasked."""
        asked = asyncio.create_task(self._inner.receive())
        try:
            greeted = self._greeted
            ready = greeted is not None and greeted.done() and not greeted.exception()
            waiting = [asked, *([self._ahead()] if ready else [])]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            return asked.result() if asked.done() else b""
        finally:
            if not asked.done():
                asked.cancel()
                await asyncio.wait((asked,))

    def _ahead(self) -> asyncio.Task[bytes]:
        """What the origin sends next; read ahead while the client is silent."""
        if self._reading is None:
            self._reading = asyncio.create_task(self._outer.receive())
        return self._reading

    async def _from_origin(self) -> bytes:
        try:
            return await asyncio.shield(self._ahead())
        finally:
            if self._reading is not None and self._reading.done():
                self._reading = None

    def _permitted(self, raw: bytes) -> Head:
        """The request, if it may be sent. Raises _RefusedRequestError; writes the log."""
        client, target = self._client, self._target
        try:
            head = parse_request(raw)
            if head.method in _REFUSED_METHODS:
                raise BadHeadError(f"{head.method} is not passed on")
            if not head.target.startswith("/") and head.target != "*":
                raise BadHeadError("its target is no path")
            hosts = head.values(b"host")
            if not hosts or split_authority(hosts[0].decode("latin-1"), _HTTPS) != (target.host, target.port):
                raise BadHeadError(f"its Host is not {target}, for which the connection was asked", 421)
        except ValueError as error:  # also BadHeadError
            client.cut(f"a request is not passed on: {error}")
            status = error.status if isinstance(error, BadHeadError) else 400
            raise _RefusedRequestError(status, "BAD_REQUEST", f"egress does not pass this on: {error}") from None
        verdict = decide(client.egress.layers, replace(target, visible=True, method=head.method, path=head.target))
        if not verdict.allowed:
            client.cut(verdict.reason)
            raise _RefusedRequestError(403, "EGRESS_REFUSED", f"egress refused: {verdict.text}", verdict.setting)
        for each in self._credentials:
            if not each.value:
                reason = f"the gateway cannot read the value of the secret {each.name}; its log says why"
                client.cut(reason)
                raise _RefusedRequestError(502, "EGRESS_FAILED", f"egress failed: {reason}")
        client.requested(each.name for each in self._credentials)
        return head

    async def _refuse(self, error: _RefusedRequestError) -> None:
        document = {"error": str(error), "code": error.code, **({"setting": error.setting} if error.setting else {})}
        body = json.dumps(document).encode()
        head = f"HTTP/1.1 {error.status} Refused\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        await self._inner.send(f"{head}X-Wakegate-Egress: {error.code}\r\nConnection: close\r\n\r\n".encode() + body)

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

    async def _exchange(self, head: Head, raw: bytes, url: str) -> bool:
        """Send a permitted request and pass on its answer. Returns whether another may follow. Raises EndedError.

        `url`: under which the answer may be kept for other sandboxes, so that the request must not be of this one.
        """
        served = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
        asked = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_BYTES)
        try:
            served.receive_data(raw + self._rest)
            self._rest = b""
            served.next_event()
            if url:
                head = replace(head, fields=_ANYBODYS)
            await self._send(asked, _request(head, self._target, self._credentials))
            sending = asyncio.create_task(self._send_body(served, asked))
            answering = asyncio.create_task(self._answer(served, asked, url))
            try:
                await asyncio.wait((sending, answering), return_when=asyncio.FIRST_COMPLETED)
                if sending.done() and isinstance(sending.exception(), GoneError | h11.RemoteProtocolError):
                    sending.result()
                await answering  # also where the origin has stopped reading: it may have said why
            finally:
                for task in (sending, answering):
                    task.cancel()
                await asyncio.gather(sending, answering, return_exceptions=True)
        except (h11.LocalProtocolError, h11.RemoteProtocolError) as error:
            self._client.cut(f"not HTTP/1.1 as it should be: {error}")
            return False
        if asked.our_state is h11.DONE and asked.their_state is h11.DONE and not asked.trailing_data[0]:
            self._rest = served.trailing_data[0]
            return served.our_state is h11.DONE and served.their_state is h11.DONE
        return False

    async def _send(self, connection: h11.Connection, event: h11.Event) -> None:
        """To the origin."""
        await self._outer.send(connection.send(event) or b"")

    async def _send_body(self, served: h11.Connection, asked: h11.Connection) -> None:
        """Pass the request's body on, without trailers; then wait for the client to leave, or to say more.

        Raises GoneError when it leaves.
        """
        while True:
            event = served.next_event()
            if event is h11.NEED_DATA:
                served.receive_data(await self._heard())
            elif isinstance(event, h11.Data):
                await self._send(asked, h11.Data(data=bytes(event.data)))
            elif isinstance(event, h11.EndOfMessage):
                await self._send(asked, h11.EndOfMessage())
                break
            else:
                raise GoneError
        if not served.trailing_data[0] and served.their_state is h11.DONE:
            served.receive_data(await self._heard())

    async def _heard(self) -> bytes:
        try:
            data = await self._inner.receive()
        except EndedError:
            raise GoneError from None
        if not data:
            raise GoneError
        return data

    async def _answer(self, served: h11.Connection, asked: h11.Connection, url: str) -> None:
        """Pass the answer on, with credentials in it masked, and to the cache."""
        keeping: Fetched | None = None
        try:
            async for event in self._answer_events(served, asked):
                if isinstance(event, h11.Response) and url and self._cache is not None:
                    keeping = self._cache.begin(url, length_of(event.status_code, list(event.headers)))
                elif isinstance(event, h11.Data) and keeping is not None:
                    await keeping.add(bytes(event.data))
                elif isinstance(event, h11.EndOfMessage) and keeping is not None:
                    keeping.end(complete=True)
        finally:
            if keeping is not None:
                keeping.end(complete=False)

    async def _answer_events(self, served: h11.Connection, asked: h11.Connection) -> AsyncIterator[h11.Event]:
        """Pass the answer on; each of its events when that is done."""
        mask = Mask(self._credentials)
        while True:
            event = asked.next_event()
            if event is h11.NEED_DATA:
                asked.receive_data(await self._from_origin())
            elif isinstance(event, h11.InformationalResponse):
                await self._inform(served, event, mask)
                if event.status_code == 101:
                    await self._switched(served, asked, mask)
                    return
            elif isinstance(event, h11.Response):
                await self._inner.send(served.send(self._response(event, mask)) or b"")
                yield event
            elif isinstance(event, h11.Data):
                if data := mask.feed(bytes(event.data)):
                    await self._inner.send(served.send(h11.Data(data=data)) or b"")
                yield event
            elif isinstance(event, h11.EndOfMessage):
                if data := mask.rest():
                    await self._inner.send(served.send(h11.Data(data=data)) or b"")
                await self._inner.send(served.send(h11.EndOfMessage()) or b"")
                yield event
                return
            else:
                raise EndedError("the origin has ended the connection")

    async def _inform(self, served: h11.Connection, event: h11.InformationalResponse, mask: Mask) -> None:
        made = h11.InformationalResponse(
            status_code=event.status_code, headers=_masked(event.headers.raw_items(), mask)
        )
        await self._inner.send(served.send(made) or b"")

    def _response(self, event: h11.Response, mask: Mask) -> h11.Response:
        fields = [(name.lower(), value) for name, value in event.headers.raw_items()]
        coding = next((value for name, value in fields if name == b"content-encoding"), b"identity").lower()
        if self._credentials and coding != b"identity" and event.status_code not in (204, 304):
            self._client.cut(f"{self._target} compressed its answer unasked, so that it cannot be looked at")
            raise EndedError("compressed")
        return h11.Response(
            status_code=event.status_code,
            headers=_masked(list(end_to_end(fields)), mask),
            reason=mask.whole(event.reason),
        )

    async def _switched(self, served: h11.Connection, asked: h11.Connection, mask: Mask) -> None:
        """A WebSocket: bytes both ways, until a side ends."""
        await self._outer.send(served.trailing_data[0])
        await self._inner.send(mask.feed(asked.trailing_data[0]))

        async def up() -> None:
            while data := await self._inner.receive():
                await self._outer.send(data)

        async def down() -> None:
            while data := await self._from_origin():
                await self._inner.send(mask.feed(data))

        tasks = [asyncio.create_task(up()), asyncio.create_task(down())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def _masked(fields: list[Field], mask: Mask) -> list[Field]:
    return [(name, mask.whole(value)) for name, value in fields]


def _request(head: Head, target: Target, credentials: tuple[Credential, ...]) -> h11.Request:
    """The request as the origin gets it."""
    upgrade = head.upgrade if head.upgrade.lower() == b"websocket" else b""
    shown = replace(head, fields=[each for each in head.fields if not credentials or each[0] not in _UNSEEN])
    fields, path = fill(shown, credentials)
    authority = str(Target(target.host, target.port)).removesuffix(f":{_HTTPS}").encode()
    kept = [(name, value) for name, value in end_to_end(fields) if name != b"host"]
    if credentials:
        kept.append((b"accept-encoding", b"identity"))
    if upgrade:
        kept += [(b"connection", b"Upgrade"), (b"upgrade", upgrade)]
    return h11.Request(method=head.method, target=path, headers=[(b"host", authority), *kept])
