"""The client's side of a WebSocket: uvicorn's protocol, with bounds on what a client that floods can have it hold."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.datastructures import Headers
from websockets.exceptions import InvalidHeader
from websockets.frames import Frame
from websockets.http11 import Request
from websockets.version import version

from gateway.core.errors import BadRequestError
from gateway.routing.raw_target import encode_target
from gateway.routing.refusals import last_answer
from gateway.routing.upgrade import Headers as Fields
from gateway.routing.websocket_pace import Pace, split_pongs

_STAND_IN = b"GET / HTTP/1.1\r\n\r\n"
_MAX_SHOWN = 200  # characters of why a handshake is none: it quotes a field, which may have 64 KiB
# As websockets has the values of fields beyond ASCII, and uvicorn takes them back: latin-1 since 17.0.
_DECODING = ("latin-1", "strict") if version >= "17.0" else ("ascii", "surrogateescape")


class HandshakeError(BadRequestError):
    """A request for a WebSocket that lacks what RFC 6455 4.2.1 asks of one."""

    @property
    def fields(self) -> dict[str, str]:
        """The version that is spoken here, which RFC 6455 4.4 has a refusal say."""
        return {"sec-websocket-version": "13"}


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

    def open(self, target: bytes, fields: Fields) -> None:
        """Begin with a head that was read already.

        The library's parser gets a stand-in: it takes no field or target over 8 KiB and no more than 128 fields, and
        uvicorn sends no answer to what it does not take, so that such a connection would stay open without an end.
        """
        self.conn.receive_data(_STAND_IN)
        (request,) = self.conn.events_received()
        assert isinstance(request, Request)
        request.path = encode_target(target).decode("ascii")
        request.headers = Headers(
            (name.decode("ascii"), value.decode(*_DECODING)) for name, value in fields if name != b"content-length"
        )  # a length of 0, which a request for a WebSocket may have and a sandbox's server may not take
        self.handle_connect(request)

    def handle_connect(self, event: Request) -> None:
        """Hand it to the app; refuse what is no handshake in the shape of all our errors, and not in text."""
        self.conn.accept(event)
        problem = self.conn.handshake_exc
        if problem is None:
            super().handle_connect(event)
            return
        self.handshake_initiated = self.handshake_complete = self.close_sent = True
        cause = f"; {problem.__cause__}" if isinstance(problem, InvalidHeader) and problem.__cause__ else ""
        self.transport.write(last_answer(HandshakeError(f"no WebSocket handshake: {problem}{cause}"[:_MAX_SHOWN])))
        self.transport.close()

    def data_received(self, data: bytes) -> None:
        self._pace.received(data)

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
