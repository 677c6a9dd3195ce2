"""The client's side of a WebSocket: uvicorn's protocol, with bounds on what a client that floods can have it hold."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame

from gateway.routing.websocket_pace import Pace, split_pongs


class ClientSocket(WebSocketsSansIOProtocol):
    """Takes frames as `Pace` does, joins fragments as they come, and owes no more than one pong.

    uvicorn's own keeps an object per fragment, also of those without content, of which a message may have any number;
    and it writes a pong for each ping, however much the client has not read yet.
    """

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._pace = Pace(self.transport, super().data_received, lambda: not self.read_paused)
        self._joined = bytearray()
        self._owed: bytes | None = None

    def data_received(self, data: bytes) -> None:
        if self.handshake_initiated:
            self._pace.received(data)
        else:  # the head, whole, from routing/protocol.py
            super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._pace.close()
        super().connection_lost(exc)

    def eof_received(self) -> None:
        self._pace.flush()

    def handle_cont(self, event: Frame) -> None:
        self._joined += event.data
        if event.fin:
            self.frames = [b"".join((*self.frames, self._joined))]
            self._joined = bytearray()
            self.send_receive_event_to_app()

    def send_receive_event_to_app(self) -> None:
        if self.curr_msg_data_type == "text":
            data = b"".join(self.frames)
            try:
                data.decode()
            except UnicodeDecodeError:
                # uvicorn's own writes a traceback for each into the log, which any client can then fill.
                self.frames = []
                if not self.close_sent:
                    self.conn.send_close(1007)
                    self.handle_parser_exception()
                return
        super().send_receive_event_to_app()

    def handle_ping(self) -> None:
        frames = self.conn.data_to_send()
        if not self.writable.is_set():
            frames, pong = split_pongs(frames)
            self._owed = pong or self._owed
        self.transport.write(b"".join(frames))

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._owed is not None and not self.close_sent and not self.transport.is_closing():
            self.transport.write(self._owed)
        self._owed = None

    async def send(self, message: Any) -> None:
        """As ASGI has it; reading goes on after it."""
        await super().send(message)
        self._pace.go_on()  # a close has it read on, for the client's own

    async def receive(self) -> Any:
        """As ASGI has it; reading goes on after it."""
        message = await super().receive()
        self._pace.go_on()
        return message
