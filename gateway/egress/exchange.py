"""One HTTP request in clear, and its answer, on a connection of their own.

The request is written anew (http_head.py) and its body is passed on up to its end, so nothing can follow that the
policy has not seen. Each request has a connection to the origin of its own, which `Connection: close` tells both sides:
requests in clear are few, and a kept connection would need every answer's end to be found.
"""

from __future__ import annotations

import asyncio
import socket

from gateway.egress.chunks import BadChunkError, Chunks
from gateway.egress.client import Client, GoneError
from gateway.egress.http_head import (
    MAX_HEAD_BYTES,
    BadHeadError,
    Head,
    parse_response,
    request_head,
    response_head,
)
from gateway.egress.relay import Pipe, paced

_READ_BYTES = 256 << 10
_BAD_ANSWER = b"HTTP/1.1 502 The origin's answer is not HTTP\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


async def exchange(client: Client, head: Head, rest: bytes, authority: str, path: str) -> None:
    """Send the request to `client.upstream`, and its answer back. Raises GoneError.

    `rest`: what came after the head.
    """
    upstream = client.upstream
    assert upstream is not None
    loop = client.shared.loop
    await _send(client, upstream, request_head(head, authority, path))
    # Its body is of another protocol, if the origin agrees; until then nothing that the client says is passed on.
    if head.upgrade:
        await _answer(client, upstream, rest)
        return
    body = loop.create_task(_send_body(client, upstream, head, rest))
    answer = loop.create_task(_answer(client, upstream, None))
    try:
        await asyncio.wait((body, answer), return_when=asyncio.FIRST_COMPLETED)
        if not answer.done() and body.exception() is None:
            # All of the request is sent. The client's next words can only be its end, or a request too many.
            body = loop.create_task(_left(client))
            await asyncio.wait((body, answer), return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            answer.result()
        else:
            body.result()
    finally:
        for task in (body, answer):
            task.cancel()
        await asyncio.wait((body, answer))
        for task in (body, answer):
            if not task.cancelled():
                task.exception()  # retrieved


async def _left(client: Client) -> None:
    """Wait until the client leaves. What it sends instead stays unread."""
    readable = asyncio.Event()
    client.shared.loop.add_reader(client.socket.fileno(), readable.set)
    try:
        await readable.wait()
    finally:
        client.shared.loop.remove_reader(client.socket.fileno())
    try:
        if client.socket.recv(1, socket.MSG_PEEK):
            await asyncio.Event().wait()  # a pipelined request: it gets no answer, as Connection: close says
    except OSError:
        pass


async def _send(client: Client, sink: socket.socket, data: bytes) -> None:
    """Raises GoneError: a side that does not take it is lost."""
    try:
        await client.shared.loop.sock_sendall(sink, data)
    except OSError:
        raise GoneError from None


async def _receive(client: Client, source: socket.socket) -> bytes:
    try:
        return await client.shared.loop.sock_recv(source, _READ_BYTES)
    except OSError:
        raise GoneError from None


async def _send_body(client: Client, upstream: socket.socket, head: Head, rest: bytes) -> None:
    """Pass the request's body on, to its end and no further. Raises GoneError."""
    left = head.length
    chunks = Chunks() if left is None else None
    data = rest
    while True:
        if chunks is None:
            assert left is not None
            content = data[:left]
            left -= len(content)
            over = left == 0
        else:
            try:
                content = chunks.feed(data)
            except BadChunkError as error:
                client.cut(f"the body of a request is not passed on: {error}")
                raise GoneError from None
            over = chunks.done
            # In chunks of our own, so that no extension or oddly written size of the client's reaches the origin.
            content = b"%x\r\n%b\r\n" % (len(content), content) if content else b""
            content += b"0\r\n\r\n" if over else b""
        if content:
            if not await paced(client.count_up, len(content)):
                raise GoneError
            await _send(client, upstream, content)
        if over:
            return
        data = await _receive(client, client.socket)
        if not data:
            raise GoneError


async def _answer(client: Client, upstream: socket.socket, held: bytes | None) -> None:
    """Pass the answer on. `held`: the client wants to change the protocol, and these are its first bytes of the new."""
    data = b""
    while True:
        while (end := data.find(b"\r\n\r\n")) < 0:
            more = b"" if len(data) > MAX_HEAD_BYTES else await _receive(client, upstream)
            if not more:
                client.cut("the origin's answer is not HTTP, or broke off")
                await _send(client, client.socket, _BAD_ANSWER)
                return
            data += more
        try:
            status, line, fields = parse_response(data[: end + 4])
        except BadHeadError:
            client.cut("the origin's answer is not HTTP")
            await _send(client, client.socket, _BAD_ANSWER)
            return
        data = data[end + 4 :]
        if status == 101 and held is None:  # what followed would be of a protocol that nobody looks at
            # Else an origin that is in league with the code turns one permitted GET into a tunnel.
            client.cut("the origin changed the protocol unasked")
            return
        await _send(client, client.socket, response_head(status, line, fields))
        if status == 101 or status >= 200:
            break
    down = Pipe(client.shared.loop, upstream, client.socket, client.count_down)
    up = Pipe(client.shared.loop, client.socket, upstream, client.count_up) if status == 101 else None
    try:
        client.count_down(len(data))
        down.start(data)
        if up is not None:
            client.count_up(len(held or b""))
            up.start(held or b"")
            await asyncio.wait((up.done, down.done), return_when=asyncio.FIRST_COMPLETED)
        else:
            await down.done
    finally:
        down.close()
        if up is not None:
            up.close()
