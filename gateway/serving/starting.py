"""Waits for the session store of gateways that share one, and answers health checks meanwhile.

A gateway in a cluster may start before its Redis, or before the cluster's DNS knows it. If it exited then, Kubernetes
would start it again at growing intervals of up to five minutes, so that the gateway would be away for longer than the
cause. It is alive and not ready instead, and says what it waits for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Sequence
from functools import partial

import orjson

from gateway.core.backoff import backoff
from gateway.core.errors import StoreUnavailableError, public_message
from gateway.core.interfaces import SessionStore

logger = logging.getLogger(__name__)

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 2.0
_MAX_HEAD_BYTES = 16 << 10
_HEAD_TIMEOUT_S = 5.0
_MAX_CONNECTIONS = 64  # further ones wait in the listener's queue
_ALIVE = (b"/healthz", b"/health/live")


async def open_when_available(
    store: SessionStore, sockets: Sequence[socket.socket], tls: ssl.SSLContext | None = None
) -> None:
    """Open the store as soon as it can be reached. Raises SettingsError for a wrong URL."""
    failures = 0
    async with contextlib.AsyncExitStack() as stack:
        while True:
            try:
                await store.start()
                return
            except StoreUnavailableError as error:
                failures += 1
                if failures == 1:
                    logger.warning("%s; waiting for it, and not ready before", error)
                    await stack.enter_async_context(_health_checks(sockets, public_message(error), tls))
            await asyncio.sleep(backoff(failures, first=_FIRST_PAUSE_S, longest=_LONGEST_PAUSE_S))


@contextlib.asynccontextmanager
async def _health_checks(
    sockets: Sequence[socket.socket], reason: str, tls: ssl.SSLContext | None
) -> AsyncIterator[None]:
    """Answer on these sockets within the block: alive, not ready, and 503 for everything else."""
    slots = asyncio.Semaphore(_MAX_CONNECTIONS)
    # A server closes its sockets when it ends; these go on listening for the gateway's own server.
    answer = partial(_answer, slots, reason)
    servers = [await asyncio.start_server(answer, sock=each.dup(), ssl=tls, limit=_MAX_HEAD_BYTES) for each in sockets]
    try:
        yield
    finally:
        for server in servers:
            server.close()


async def _answer(
    slots: asyncio.Semaphore, reason: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    try:
        async with slots, asyncio.timeout(_HEAD_TIMEOUT_S):
            head = await reader.readuntil(b"\r\n\r\n")
            path = head.split(b" ", 2)[1].partition(b"?")[0] if head.count(b" ") >= 2 else b""
            alive = path in _ALIVE
            document = {"status": "alive"} if alive else {"status": "not ready", "reasons": [reason], "error": reason}
            body = orjson.dumps(document)
            writer.write(
                b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%bconnection: close\r\n\r\n%b"
                % (b"200 OK" if alive else b"503 Service Unavailable", len(body), b"retry-after: 1\r\n", body)
            )
            await writer.drain()
    except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        pass  # no whole request came; there is nothing to answer
    finally:
        writer.close()
