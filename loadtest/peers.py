"""Baselines that need nothing but pip: two streaming proxies as they are commonly written, and a static upstream.

    .venv/bin/python -m loadtest.peers starlette|aiohttp HOST:PORT      a proxy before that upstream
    .venv/bin/python -m loadtest.peers upstream                          answers every request with the same small JSON

Each prints its port. The comparison is fair: keep-alive pools as large as the load, streaming both ways, no access log.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import httptools
import httpx
import uvicorn
import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

_HOP = {"connection", "keep-alive", "transfer-encoding", "host", "content-length"}
# Of an answer the length stays: without it the server would use chunked coding, which costs more.
_DROPPED = _HOP - {"content-length"}
_ANSWER = b'{"service":"PicoD","status":"ok"}'
# Made once: the upstream must not be what is measured.
_WHOLE = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(_ANSWER), _ANSWER)


def starlette_proxy(upstream: str) -> Any:
    """Starlette with httpx: a request and a streaming response object for each exchange."""
    client: httpx.AsyncClient

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        nonlocal client
        # httpx keeps 20 connections by default: at 64 clients most requests would dial.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=256)
        async with httpx.AsyncClient(base_url=f"http://{upstream}", timeout=30, limits=limits) as client:
            yield

    async def forward(request: Request) -> StreamingResponse:
        headers = [(name, value) for name, value in request.headers.items() if name not in _HOP]
        has_body = "content-length" in request.headers or "transfer-encoding" in request.headers
        outbound = client.build_request(
            request.method, request.url.path, headers=headers, content=request.stream() if has_body else None
        )
        answer = await client.send(outbound, stream=True)

        async def body() -> AsyncIterator[bytes]:
            try:
                # Raw: decoding and encoding a compressed body again is no proxy's work.
                async for chunk in answer.aiter_raw():
                    yield chunk
            finally:
                await answer.aclose()

        kept = {name: value for name, value in answer.headers.items() if name not in _DROPPED}
        return StreamingResponse(body(), answer.status_code, kept)

    return Starlette(routes=[Route("/{path:path}", forward, methods=["GET", "POST"])], lifespan=lifespan)


def aiohttp_proxy(upstream: str) -> Any:
    """A bare ASGI app with aiohttp's client."""
    session: aiohttp.ClientSession | None = None

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal session
        if scope["type"] != "http":
            return
        if session is None:
            # Made with the first request, since it needs the running loop.
            session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), auto_decompress=False)
        headers = [(k.decode(), v.decode("latin-1")) for k, v in scope["headers"] if k.decode() not in _HOP]
        url = f"http://{upstream}{scope['path']}"
        async with session.request(scope["method"], url, headers=headers) as answer:
            kept = [
                (k.lower(), v) for k, v in answer.raw_headers if k.lower().decode() not in _HOP - {"content-length"}
            ]
            await send({"type": "http.response.start", "status": answer.status, "headers": kept})
            async for chunk in answer.content.iter_any():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})

    return app


class Static(asyncio.Protocol):
    """One connection of the static upstream."""

    def __init__(self) -> None:
        self._parser: Any = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: keep the transport."""
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        """asyncio: parse a piece of a request."""
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        """httptools: a request is complete; answer it."""
        assert self._transport is not None
        self._transport.write(_WHOLE)


async def serve_static(listener: socket.socket) -> None:
    """Serve until the process ends."""
    server = await asyncio.get_running_loop().create_server(Static, sock=listener)
    await server.serve_forever()


def main() -> None:
    """Print the port and serve until the process ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("starlette", "aiohttp", "upstream"))
    parser.add_argument("upstream", nargs="?", default="")
    args = parser.parse_args()
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    print(listener.getsockname()[1], flush=True)
    if args.what == "upstream":
        uvloop.run(serve_static(listener))
        return
    app = starlette_proxy(args.upstream) if args.what == "starlette" else aiohttp_proxy(args.upstream)
    config = uvicorn.Config(app, loop="uvloop", http="httptools", log_config=None, access_log=False)
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
