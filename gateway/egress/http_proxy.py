"""The HTTP side of the proxy: CONNECT, and requests in absolute form. Source: RFC 9110, section 9.3.6; RFC 9112.

A refusal is answered at once, in the reason phrase too: that is all that many tools show of a refused CONNECT.
"""

from __future__ import annotations

import json
import re
from urllib.parse import urlsplit

from gateway.egress.client import Client, GoneError
from gateway.egress.dialer import RefusedError, UnreachableError
from gateway.egress.exchange import exchange
from gateway.egress.http_head import MAX_HEAD_BYTES, BadHeadError, Head, parse_request, split_authority
from gateway.egress.policy import Target, Verdict
from gateway.egress.tunnel import tunnel

_ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"
_UNPRINTABLE = re.compile(r"[^ -~]")
_REASONS = {
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    431: "Too Large",
    502: "Bad Gateway",
    504: "Timeout",
}


async def serve_http(client: Client, data: bytes) -> None:
    """Serve one request, whose first bytes are `data`. Raises GoneError."""
    try:
        head, rest = await read_head(client, data)
    except BadHeadError as error:
        client.refuse("", 0, "http", f"not understood: {error}")
        await client.send(_answer(error.status, "BAD_REQUEST", f"the egress proxy does not understand this: {error}"))
        return
    if head.method == "CONNECT":
        await _connect(client, head, rest)
    elif head.target.startswith("/"):
        # Mostly a browser or a health check that was pointed here: an answer that says so spares a search.
        text = "this is the egress proxy of the sandbox; send it requests with whole URLs, or CONNECT"
        await client.send(_answer(404, "NOT_FOUND", text))
    else:
        await _forward(client, head, rest)


async def read_head(client: Client, data: bytes) -> tuple[Head, bytes]:
    """A request's head, and what came after it. Raises BadHeadError, GoneError."""
    searched = 0
    while (end := data.find(b"\r\n\r\n", searched)) < 0:
        if len(data) > MAX_HEAD_BYTES:
            raise BadHeadError("its head is too large", 431)
        searched = max(0, len(data) - 3)  # three bytes of the end may be here already
        data += await client.receive()
    return parse_request(data[: end + 4]), data[end + 4 :]


async def _connect(client: Client, head: Head, rest: bytes) -> None:
    try:
        # Its Host goes nowhere, and Node's own client puts the proxy's address there.
        host, port = split_authority(head.target)
    except ValueError as error:
        await _misnamed(client, head.target, "connect", error)
        return
    target = Target(host, port)
    if await _reached(client, target, "connect"):
        await client.send(_ESTABLISHED)
        await tunnel(client, target, rest)


async def _forward(client: Client, head: Head, rest: bytes) -> None:
    try:
        target, authority, path = _split_url(head)
    except ValueError as error:
        await _misnamed(client, head.target, "http", error)
        return
    if await _reached(client, target, "http"):
        await exchange(client, head, rest, authority, path)


def _split_url(head: Head) -> tuple[Target, str, str]:
    """The target of a request in absolute form, its authority, and path with query. Raises ValueError."""
    url = urlsplit(head.target)
    if url.scheme.lower() != "http":
        raise ValueError("expected http://; https goes through CONNECT")
    host, port = split_authority(url.netloc, 80)
    # The URL counts (RFC 9112 3.2.2), but an origin that goes by Host would serve another host than was allowed.
    hosts = head.values(b"host")
    if hosts and split_authority(hosts[0].decode("latin-1"), 80) != (host, port):
        raise ValueError("Host and the URL name different hosts")
    path = (url.path or "/") + (f"?{url.query}" if url.query else "")
    target = Target(host, port, visible=True, method=head.method, path=path)
    return target, str(Target(host, port)).removesuffix(":80"), path


async def _misnamed(client: Client, name: str, protocol: str, error: ValueError) -> None:
    client.refuse(name, 0, protocol, str(error))
    await client.send(_answer(403, "EGRESS_REFUSED", f"egress refused: {error}"))


async def _reached(client: Client, target: Target, protocol: str) -> bool:
    """Connect, or answer why not. Raises GoneError."""
    try:
        await client.reach(target, protocol)
    except RefusedError as error:
        await client.send(refusal(error.verdict))
    except UnreachableError as error:
        await client.send(_answer(504 if error.timed_out else 502, "EGRESS_FAILED", f"egress failed: {error}"))
    else:
        return True
    return False


def refusal(verdict: Verdict) -> bytes:
    """The answer to what a policy does not allow."""
    return _answer(403, "EGRESS_REFUSED", f"egress refused: {verdict.text}", setting=verdict.setting)


def _answer(status: int, code: str, text: str, **more: str) -> bytes:
    body = json.dumps({"error": text, "code": code, **{name: value for name, value in more.items() if value}}).encode()
    # What was asked for is in the text, so a line break in it would begin a header.
    phrase = _UNPRINTABLE.sub("?", text)[:400] if status in (403, 502, 504) else _REASONS.get(status, "Refused")
    head = f"HTTP/1.1 {status} {phrase}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return f"{head}X-Wakegate-Egress: {code}\r\nConnection: close\r\n\r\n".encode() + body


__all__ = ["GoneError", "read_head", "refusal", "serve_http"]
