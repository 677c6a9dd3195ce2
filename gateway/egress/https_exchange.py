"""One permitted request of a connection whose TLS ends here, and its answer, with credentials in it masked.

Two h11 connections, as the server of the client and as the client of the origin: each side is read by the rules, and
what the other gets is written anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import h11

from gateway.egress.client import Client, GoneError
from gateway.egress.credentials import Credential, Mask
from gateway.egress.http_head import MAX_HEAD_BYTES, Field, Head, end_to_end
from gateway.egress.https_origin import Origin
from gateway.egress.https_request import origin_request
from gateway.egress.package_cache import Fetched, PackageCache, length_of
from gateway.egress.policy import Target
from gateway.egress.tls_stream import EndedError, TlsStream

# What an origin is sent of a request whose answer other sandboxes may get: nothing of this one.
_SHARED_FIELDS: tuple[Field, ...] = (
    (b"user-agent", b"wakegate-egress"), (b"accept", b"*/*"), (b"accept-encoding", b"identity"),
)  # fmt: skip


class Exchange:
    """One request inside TLS that is ended here, and its answer.

    `rest`: what the client has sent behind the request, once it has ended.
    """

    def __init__(
        self,
        client: Client,
        target: Target,
        inner: TlsStream,
        origin: Origin,
        credentials: tuple[Credential, ...],
        cache: PackageCache | None,
    ) -> None:
        """`inner`: the client's side. `cache`: for answers that other sandboxes may get."""
        self._client, self._target, self._inner, self._origin = client, target, inner, origin
        self._credentials, self._cache = credentials, cache
        self._served = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
        self._asked = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_BYTES)
        self._replies: list[bytes] = []  # for the client, until `_flush`
        self.rest = b""

    async def run(self, head: Head, received: bytes, url: str) -> bool:
        """Send the request and pass on its answer. Returns whether another may follow. Raises EndedError, GoneError.

        `received`: the head as it came, with what came behind it. `url`: under which the answer may be kept for other
        sandboxes, so that the request must not be of this one.
        """
        served, asked = self._served, self._asked
        try:
            served.receive_data(received)
            served.next_event()
            # Poisoning: fields of this sandbox could have the origin answer with another file, which others would then
            # install.
            if url:
                head = replace(head, fields=_SHARED_FIELDS)
            await self._send(origin_request(head, self._target, self._credentials))
            await self._both_ways(url)
        except (h11.LocalProtocolError, h11.RemoteProtocolError) as error:
            self._client.cut(f"not HTTP/1.1 as it should be: {error}")
            return False
        # Bytes behind an answer belong to no request, so nothing may be read on this connection any more.
        if asked.our_state is h11.DONE and asked.their_state is h11.DONE and not asked.trailing_data[0]:
            self.rest = served.trailing_data[0]
            return served.our_state is h11.DONE and served.their_state is h11.DONE
        return False

    async def _both_ways(self, url: str) -> None:
        sending = asyncio.create_task(self._send_body())
        answering = asyncio.create_task(self._answer(url))
        try:
            await asyncio.wait((sending, answering), return_when=asyncio.FIRST_COMPLETED)
            if sending.done() and isinstance(sending.exception(), GoneError | h11.RemoteProtocolError):
                sending.result()
            await answering  # also where the origin has stopped reading: it may have said why
        finally:
            for task in (sending, answering):
                task.cancel()
            await asyncio.gather(sending, answering, return_exceptions=True)

    async def _send(self, event: h11.Event) -> None:
        """Send an event of the request to the origin."""
        await self._origin.send(self._asked.send(event) or b"")

    def _reply(self, event: h11.Event) -> None:
        """To the client, with the next `_flush`: what came of an answer at once goes on in one record and one call."""
        self._replies.append(self._served.send(event) or b"")

    async def _flush(self) -> None:
        if self._replies:
            replies, self._replies = b"".join(self._replies), []
            await self._inner.send(replies)

    async def _send_body(self) -> None:
        """Pass the request's body on, without trailers; then wait for the client to leave, or to say more.

        Raises GoneError when it leaves.
        """
        served = self._served
        while True:
            event = served.next_event()
            if event is h11.NEED_DATA:
                served.receive_data(await self._receive())
            elif isinstance(event, h11.Data):
                await self._send(h11.Data(data=bytes(event.data)))
            elif isinstance(event, h11.EndOfMessage):
                await self._send(h11.EndOfMessage())
                break
            else:
                raise GoneError
        if not served.trailing_data[0] and served.their_state is h11.DONE:
            served.receive_data(await self._receive())

    async def _receive(self) -> bytes:
        """More of the client. Raises GoneError."""
        try:
            data = await self._inner.receive()
        except EndedError:
            raise GoneError from None
        if not data:
            raise GoneError
        return data

    async def _answer(self, url: str) -> None:
        """Pass the answer on, with credentials in it masked, and to the cache."""
        keeping: Fetched | None = None
        try:
            async for event in self._answer_events():
                if isinstance(event, h11.Response) and url and self._cache is not None:
                    keeping = self._cache.begin(url, length_of(event.status_code, list(event.headers)))
                elif isinstance(event, h11.Data) and keeping is not None:
                    await keeping.add(bytes(event.data))
                elif isinstance(event, h11.EndOfMessage) and keeping is not None:
                    keeping.end(complete=True)
        finally:
            if keeping is not None:
                keeping.end(complete=False)

    async def _answer_events(self) -> AsyncIterator[h11.Event]:
        """Pass the answer on; each of its events when that is done."""
        mask = Mask(self._credentials)
        while True:
            event = self._asked.next_event()
            if event is h11.NEED_DATA:
                await self._flush()
                self._asked.receive_data(await self._origin.receive())
            elif isinstance(event, h11.InformationalResponse):
                fields = _masked(event.headers.raw_items(), mask)
                self._reply(h11.InformationalResponse(status_code=event.status_code, headers=fields))
                if event.status_code == 101:
                    await self._flush()
                    await self._switched(mask)
                    return
            elif isinstance(event, h11.Response):
                self._reply(self._response(event, mask))
                yield event
            elif isinstance(event, h11.Data):
                if data := mask.feed(bytes(event.data)):
                    self._reply(h11.Data(data=data))
                yield event
            elif isinstance(event, h11.EndOfMessage):
                if data := mask.flush():
                    self._reply(h11.Data(data=data))
                self._reply(h11.EndOfMessage())
                await self._flush()
                yield event
                return
            else:
                await self._flush()
                raise EndedError("the origin has ended the connection")

    def _response(self, event: h11.Response, mask: Mask) -> h11.Response:
        fields = [(name.lower(), value) for name, value in event.headers.raw_items()]
        coding = next((value for name, value in fields if name == b"content-encoding"), b"identity").lower()
        # 204 and 304 have no body, whatever they say of its coding.
        if self._credentials and coding != b"identity" and event.status_code not in (204, 304):
            self._client.cut(f"{self._target} compressed its answer unasked, so that it cannot be looked at")
            raise EndedError("compressed")
        return h11.Response(
            status_code=event.status_code,
            headers=_masked(list(end_to_end(fields)), mask),
            reason=mask.whole(event.reason),
        )

    async def _switched(self, mask: Mask) -> None:
        """A WebSocket: bytes both ways, until a side ends."""
        # Nothing is put into a client's frames, which are masked by keys of its own (RFC 6455). The origin's are in
        # clear, and looked at as any answer.
        await self._origin.send(self._served.trailing_data[0])
        await self._inner.send(mask.feed(self._asked.trailing_data[0]))

        async def up() -> None:
            while data := await self._inner.receive():
                await self._origin.send(data)

        async def down() -> None:
            while data := await self._origin.receive():
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
