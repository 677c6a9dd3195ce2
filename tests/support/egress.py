"""A sandbox's egress proxy without the sandbox: a listening socket of the test's, handed over alike."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from gateway.core.model import Secret
from gateway.egress.gate import EgressGate
from gateway.egress.notation import Grant
from gateway.egress.policy import Limits
from gateway.egress.rule_entries import Entry

_FIRST_SILENCE_S = 5.0  # what a busy machine may need before it answers


@dataclass(frozen=True)
class Proxy:
    """Connect here as code in a sandbox would to its proxy."""

    gate: EgressGate
    port: int

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 20)

    @asynccontextmanager
    async def secure(
        self, target: str, *, name: str | None = None, trust: str = ""
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """TLS to HOST:PORT through the proxy, as `name`; `trust`: authorities, PEM; empty: anybody is believed."""
        context = ssl.create_default_context(cadata=trust or None)
        if not trust:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        reader, writer = await self.connect()
        try:
            writer.write(f"CONNECT {target} HTTP/1.1\r\n\r\n".encode())
            answer = await reader.readuntil(b"\r\n\r\n")
            assert b" 200 " in answer, answer
            await writer.start_tls(context, server_hostname=target.partition(":")[0] if name is None else name)
            yield reader, writer
        finally:
            writer.close()

    async def fetch(self, target: str, *sent: bytes, trust: str = "", pieces: int = 1) -> bytes:
        """What comes of bytes sent over TLS until the other side ends, or has been silent for a second."""
        answer = b""
        async with self.secure(target, trust=trust) as (reader, writer):
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                for piece in (piece for text in sent for piece in _cut(text, pieces)):
                    writer.write(piece)
                    await writer.drain()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(1.0):
                        while data := await reader.read(65536):
                            answer += data
        return answer

    async def ask(self, sent: bytes, *, then: bytes = b"", pieces: int = 1) -> bytes:
        """Send, and read until the other side ends; with `then`, once something was answered to `sent`.

        A connection that stays open is done once it has answered `then`, or has been silent for a second after its
        first bytes; some requests are never answered.
        """
        reader, writer = await self.connect()
        try:
            answer = b""
            for text in filter(None, (sent, then)):
                for piece in _cut(text, pieces):
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0)  # so that pieces arrive one by one; it does not matter if they do not
                if text is sent and then:
                    answer += await reader.read(65536)
            silence = _FIRST_SILENCE_S
            with contextlib.suppress(TimeoutError):
                while True:
                    async with asyncio.timeout(silence):
                        more = await reader.read(65536)
                    answer, silence = answer + more, 1.0
                    if not more:
                        break
            return answer
        except ConnectionError:
            return answer
        finally:
            writer.close()


def _cut(text: bytes, pieces: int) -> Iterator[bytes]:
    size = max(1, -(-len(text) // pieces))
    return (text[at : at + size] for at in range(0, len(text), size))


@asynccontextmanager
async def open_proxy(
    gate: EgressGate,
    *entries: Entry,
    session: str = "one",
    tenant: str = "default",
    limits: Limits | None = None,
    runtime: str = "",
    secrets: tuple[Secret, ...] = (),
) -> AsyncIterator[Proxy]:
    """Open one with this policy, and close it with the block."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    port = listener.getsockname()[1]
    name = f"sb-{port}"
    grant = Grant(session, tenant, (("the setting", entries),), limits or Limits(), runtime, secrets)
    gate.open(name, listener, grant)
    try:
        yield Proxy(gate, port)
    finally:
        gate.close(name)
