"""The server's side of a WebSocket (RFC 6455), on a connection that was upgraded.

Handshake, frames and the closing handshake are those of websockets' Sans-I/O layer; this module moves the bytes. It is
imported with the first WebSocket, since the library costs 45 ms and 4 MB.
"""

from __future__ import annotations

from websockets.datastructures import Headers
from websockets.frames import Frame, Opcode
from websockets.http11 import Request as Handshake
from websockets.protocol import OPEN, State
from websockets.server import ServerProtocol

from picod.http.request import ClientGoneError, Request, RequestError, Tunnel

_MAX_MESSAGE_BYTES = 1 << 20


def check_handshake(request: Request) -> list[tuple[bytes, bytes]]:
    """The headers that accept a handshake. Raises RequestError 400, 405, 426 for what is not a WebSocket handshake."""
    headers = Headers()
    for name, value in request.scope["headers"]:
        headers[name.decode("latin-1")] = value.decode("latin-1")
    version = "HTTP/" + str(request.scope["http_version"])
    # No `origins` argument: the gateway has checked Origin, and pages of other sites cannot reach picod itself.
    response = ServerProtocol().accept(Handshake(request.scope["path"], headers, request.method, version))
    if response.status_code != 101 or not request.offers_upgrade:
        message = bytes(response.body or b"").decode() or "expected a WebSocket handshake"
        raise RequestError(response.status_code if response.status_code != 101 else 400, message.split("\n")[0])
    return [(name.lower().encode(), value.encode("latin-1")) for name, value in response.headers.raw_items()]


async def accept(request: Request, headers: list[tuple[bytes, bytes]]) -> Socket:
    """Accept a handshake with the headers that `check_handshake` returned. Raises ClientGoneError."""
    return Socket(await request.upgrade(headers))


class Socket:
    """An open WebSocket. One task may receive while others send."""

    def __init__(self, tunnel: Tunnel) -> None:
        self._tunnel = tunnel
        self._protocol = ServerProtocol(state=OPEN, max_size=_MAX_MESSAGE_BYTES)
        self._messages: list[str | bytes] = []
        self._parts: list[bytes] = []
        self._opcode = Opcode.BINARY

    @property
    def is_open(self) -> bool:
        """Whether neither side has sent a close frame."""
        return self._protocol.state is State.OPEN

    async def receive(self) -> str | bytes | None:
        """The next message; None once the client has closed the socket, violated the protocol or left."""
        while not self._messages:
            if not self.is_open:
                return None
            data = await self._tunnel.read()
            if data:
                self._protocol.receive_data(data)
            else:
                self._protocol.receive_eof()
            for event in self._protocol.events_received():
                if isinstance(event, Frame):
                    self._take(event)
            try:
                await self._flush()
            except ClientGoneError:
                return None
        return self._messages.pop(0)

    async def send(self, message: str | bytes) -> None:
        """Send a message, and wait while the write buffer is full. Raises ClientGoneError."""
        if not self.is_open:
            raise ClientGoneError
        if isinstance(message, str):
            self._protocol.send_text(message.encode("utf-8", "replace"))
        else:
            self._protocol.send_binary(message)
        await self._flush()

    async def close(self, code: int, reason: str = "") -> None:
        """Send a close frame. The client's own is read by `receive`, if that is called again."""
        if self.is_open:
            self._protocol.send_close(code, reason)
            try:
                await self._flush()
            except ClientGoneError:
                pass

    def abort(self) -> None:
        """End the connection once what was written is sent."""
        self._tunnel.close()

    async def _flush(self) -> None:
        for data in self._protocol.data_to_send():
            if data:
                await self._tunnel.write(data)
            else:
                self._tunnel.close()

    def _take(self, frame: Frame) -> None:
        if frame.opcode in (Opcode.TEXT, Opcode.BINARY):
            self._opcode = frame.opcode
        elif frame.opcode is not Opcode.CONT:
            return  # the library answers pings, and a close shows in its state
        self._parts.append(bytes(frame.data))
        if frame.fin:
            whole = b"".join(self._parts)
            self._parts.clear()
            self._messages.append(whole.decode("utf-8", "replace") if self._opcode is Opcode.TEXT else whole)
