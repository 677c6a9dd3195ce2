"""The messages of an accepted WebSocket: two pumps, until a side ends.

Traffic either way is activity; an open but silent socket is not (docs/architecture.md, "Activity").
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from io import StringIO

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from gateway.observability.counters import RuntimeCounters
from gateway.routing.responses import Receive, Send
from gateway.routing.websocket_close import sendable

# For one message to a sandbox that does not read. Meanwhile nothing is read of the client either, so a client that has
# left is not noticed, and without a limit its slot would never be given back.
_SEND_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Conversation:
    """What else is done about the messages of a WebSocket.

    `came` is called for each, with the bytes that it sends to the client. `closing` tells how the client's side ends
    when the sandbox's has.
    """

    counted: RuntimeCounters
    came: Callable[[int], None]
    closing: Callable[[ConnectionClosed], Awaitable[tuple[int, str]]]


async def relay(receive: Receive, send: Send, upstream: ClientConnection, conversation: Conversation) -> None:
    """Pass messages both ways until a side ends, then end the other side with its code and reason."""
    up = asyncio.create_task(_pump_up(receive, upstream, conversation))
    down = asyncio.create_task(_pump_down(upstream, send, conversation))
    conversation.counted.websockets += 1
    try:
        await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
    finally:
        conversation.counted.websockets -= 1
        for pump in (up, down):
            pump.cancel()
        ended, _ = await asyncio.gather(up, down, return_exceptions=True)
        if isinstance(ended, TimeoutError):
            upstream.transport.abort()  # it would not read a close frame either
            await send({"type": "websocket.close", "code": 1011, "reason": "the sandbox does not read messages"})
        await upstream.close()


async def _pump_up(receive: Receive, upstream: ClientConnection, conversation: Conversation) -> None:
    """Raises TimeoutError when the sandbox takes nothing for _SEND_TIMEOUT_S."""
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            await upstream.close(sendable(message.get("code", 1005)), message.get("reason") or "")
            return
        conversation.came(0)
        data = message.get("bytes")
        try:
            async with asyncio.timeout(_SEND_TIMEOUT_S):
                await upstream.send(data if data is not None else message["text"])
        except ConnectionClosed:
            return  # the other pump tells the client


async def _pump_down(upstream: ClientConnection, send: Send, conversation: Conversation) -> None:
    try:
        while True:
            data = await _message(upstream)
            conversation.came(len(data))
            await send({"type": "websocket.send", "text" if isinstance(data, str) else "bytes": data})
    except ConnectionClosed as closed:
        code, reason = await conversation.closing(closed)
    await send({"type": "websocket.close", "code": code, "reason": reason})


async def _message(upstream: ClientConnection) -> str | bytes:
    """The next message of a sandbox. Raises ConnectionClosed, also for one over MAX_MESSAGE_BYTES.

    Joined here, not by `recv`, which keeps an object per fragment: a message in millions of fragments of one byte or
    none would take a hundred times its size.
    """
    text: StringIO | None = None
    data = bytearray()
    async for fragment in upstream.recv_streaming():
        if isinstance(fragment, str):
            text = text or StringIO()
            text.write(fragment)
        else:
            data += fragment
    return bytes(data) if text is None else text.getvalue()
