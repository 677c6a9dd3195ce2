"""Control requests that another gateway answers."""

from __future__ import annotations

import asyncio

from starlette.applications import Starlette
from starlette.requests import Request

from gateway.api.relay import relay
from gateway.core.clock import SystemClock
from gateway.core.identity import SYSTEM
from gateway.identity.peers import PeerSigner
from gateway.identity.shared_secret import SharedSecret
from gateway.sessions.membership import ElsewhereError, Peer
from tests.support.waiting import LIMIT_S


async def test_request_is_passed_on_with_its_query_and_its_path_as_sent() -> None:
    """An escaped slash stays one segment, and what the handler there reads of the query is there."""
    seen = b""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal seen
        seen = await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        peer = Peer("b", f"http://127.0.0.1:{port}", 0.0, alive=True)
        signer = PeerSigner(SystemClock())
        signer.open(SharedSecret(b"secret"))
        app = Starlette()
        app.state.peers = signer
        scope = {
            "type": "http",
            "app": app,
            "method": "POST",
            "path": "/v1/sessions/a/b/wake",
            "raw_path": b"/v1/sessions/a%2Fb/wake",
            "query_string": b"after=x%20y&limit=3",
            "headers": [
                (b"idempotency-key", b"k"),
                (b"accept", b"text/event-stream"),
                (b"x-session-id", b"chat"),
                (b"x-user-id", b"ada"),
            ],
        }
        async with asyncio.timeout(LIMIT_S):
            reply = await relay(Request(scope), ElsewhereError(peer))

    (signature,) = [line[17:] for line in seen.split(b"\r\n") if line.lower().startswith(b"x-wakegate-peer: ")]
    assert signer.verify(signature, "POST", b"/v1/sessions/a%2Fb/wake") == SYSTEM
    head = seen.decode().lower()
    assert reply.status_code == 200
    assert head.startswith("post /v1/sessions/a%2fb/wake?after=x%20y&limit=3 http/1.1")
    assert "idempotency-key: k" in head
    assert "accept: text/event-stream" in head
    assert "x-session-id: chat" in head
    assert "x-user-id: ada" in head
