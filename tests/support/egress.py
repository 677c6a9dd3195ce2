"""A sandbox's door to the egress service without the sandbox: a listening socket of the test's, handed over alike."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from gateway.egress.gate import EgressGate
from gateway.egress.notation import Grant
from gateway.egress.policy import Entry, Limits


@dataclass(frozen=True)
class Door:
    """Connect here as code in a sandbox would to its proxy."""

    gate: EgressGate
    port: int

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def ask(self, sent: bytes, *, then: bytes = b"", pieces: int = 1) -> bytes:
        """Send, and read until the other side ends; with `then`, once something was answered to `sent`.

        A connection that stays open is done once it has answered `then`, or has been silent for a second.
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
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    while data := await reader.read(65536):
                        answer += data
            return answer
        except ConnectionError:
            return answer
        finally:
            writer.close()


def _cut(text: bytes, pieces: int) -> Iterator[bytes]:
    size = max(1, -(-len(text) // pieces))
    return (text[at : at + size] for at in range(0, len(text), size))


@asynccontextmanager
async def open_door(
    gate: EgressGate, *entries: Entry, session: str = "one", tenant: str = "default", limits: Limits | None = None
) -> AsyncIterator[Door]:
    """Open one with this policy, and close it with the block."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    port = listener.getsockname()[1]
    name = f"sb-{port}"
    gate.open(name, listener, Grant(session, tenant, (("the setting", entries),), limits or Limits()))
    try:
        yield Door(gate, port)
    finally:
        gate.close(name)
