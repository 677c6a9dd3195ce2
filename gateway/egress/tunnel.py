"""Bytes both ways once a target is reached, after a look at the first that the client sends.

What begins with a TLS hello must name the host that was asked for, and what begins as HTTP is read as HTTP, request by
request, so that a permitted name does not open others that the same server answers for. Anything else passes: the
server may speak first (SSH, SMTP), and what it says is passed on meanwhile. Where TLS is ended here, https.py has it.
"""

from __future__ import annotations

import asyncio
import re

from gateway.egress.client import Client, GoneError
from gateway.egress.exchange import exchange
from gateway.egress.greeting import hello_agrees
from gateway.egress.http_head import MAX_HEAD_BYTES, BadHeadError, parse_request, split_authority
from gateway.egress.https import end_tls
from gateway.egress.policy import Target
from gateway.egress.relay import Pipe
from gateway.egress.tls_hello import HANDSHAKE

_MAX_LINE_BYTES = 8 << 10
_TEXT = re.compile(rb"[\t\r\n -~]*")
_HTTP_LINE = re.compile(rb"(?i)http/[0-9]")


async def tunnel(client: Client, target: Target, data: bytes) -> None:
    """Pass bytes both ways until both sides are done. `data`: what the client has sent already. Raises GoneError."""
    if client.ends_tls(target):
        await end_tls(client, target, data)
        return
    loop, upstream = client.shared.loop, client.upstream
    assert upstream is not None
    # Before a word of the client is looked at: SSH, SMTP and databases wait for the server to speak first. Nothing that
    # it says needs a look, as it is whom the policy allows.
    down = Pipe(loop, upstream, client.socket, client.count_down)
    down.start()
    up: Pipe | None = None
    beginning = loop.create_task(_beginning(client, target, data))
    try:
        await asyncio.wait((beginning, down.done), return_when=asyncio.FIRST_COMPLETED)
        if not beginning.done():
            return  # the server has ended it, and the client had nothing to say
        data = beginning.result()
        if _is_http(data):
            down.close()
            # The pipe goes, so that the answer is read as HTTP, and ends where it says: else a second request could
            # follow.
            await _as_http(client, target, data)
            return
        up = Pipe(loop, client.socket, upstream, client.count_up)
        client.count_up(len(data))
        up.start(data)
        await _both(up, down)
    finally:
        beginning.cancel()
        await asyncio.wait((beginning,))
        if not beginning.cancelled():
            beginning.exception()  # retrieved: it was raised above, or the server was faster
        down.close()
        if up is not None:
            up.close()


async def _both(*pipes: Pipe) -> None:
    """Until all have ended, or one has failed."""
    while left := [pipe.done for pipe in pipes if not pipe.done.done()]:
        await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
        if any(pipe.failed for pipe in pipes):
            return


async def _beginning(client: Client, target: Target, data: bytes) -> bytes:
    """The client's first bytes, enough of them to know what they are, and permitted. Raises GoneError."""
    while True:
        if data[:1] == bytes((HANDSHAKE,)):
            if await hello_agrees(client, target, data):
                return data
        elif data and not _may_become_http(data):
            return data
        more = await _receive(client)
        if not more:
            return data
        data += more


async def _receive(client: Client) -> bytes:
    """Without a timeout: a client may wait for the server, or keep a connection for later."""
    try:
        return await client.shared.loop.sock_recv(client.socket, _MAX_LINE_BYTES)
    except OSError:
        raise GoneError from None


def _may_become_http(data: bytes) -> bool:
    """Whether more bytes are needed to tell that it is not HTTP: text without the end of a line."""
    line = data.lstrip(b"\r\n")
    return b"\n" not in line and len(data) < _MAX_LINE_BYTES and _TEXT.fullmatch(data) is not None


def _is_http(data: bytes) -> bool:
    return _HTTP_LINE.search(data.lstrip(b"\r\n").partition(b"\n")[0]) is not None


async def _as_http(client: Client, target: Target, data: bytes) -> None:
    """Pass on the one request that the client sends in clear, if it is for the host that was asked for."""
    try:
        while (end := data.find(b"\r\n\r\n")) < 0:
            if len(data) > MAX_HEAD_BYTES:
                raise BadHeadError("its head is too large")
            data += await client.receive()
        head = parse_request(data[: end + 4])
        hosts = head.values(b"host")
        if not head.target.startswith("/") and head.target != "*":
            raise BadHeadError("its target is no path")
        if not hosts or split_authority(hosts[0].decode("latin-1"), target.port) != (target.host, target.port):
            raise BadHeadError(f"its Host is not {target}, for which the connection was asked")
    except ValueError as error:  # also BadHeadError
        client.cut(f"an HTTP request is not passed on: {error}")
        await client.send(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        return
    await exchange(client, head, data[end + 4 :], hosts[0].decode("latin-1"), head.target)
