"""ZMTP 3.0 over a unix socket: one connection to one ZeroMQ socket of a peer that is not trusted.

A kernel speaks ZeroMQ, and its process is user code. Rejected: libzmq, which would parse hostile bytes in C++ inside
picod, start threads in each sandbox, and needs one more iteration of the event loop per message; a client needs only a
greeting, one command and frames. What the peer sends is bounded: an oversized message is skipped without being held,
and delivered with a flag.

Source: https://rfc.zeromq.org/spec/23/ (ZMTP 3.0), NULL mechanism, roles DEALER and SUB.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Literal

MAX_MESSAGE_BYTES = 16 << 20  # of all frames of a message together
_MAX_FRAMES = 64
_MAX_COMMAND_BYTES = 4096
_GREETING = b"\xff\0\0\0\0\0\0\0\1\x7f\3\0" + b"NULL".ljust(20, b"\0") + bytes(32)
_MORE, _LONG, _COMMAND = 1, 2, 4

Frames = list[bytes]
OnMessage = Callable[[Frames, bool], None]
"""Called with the frames of each message; the flag says that oversized frames were replaced by empty ones."""


class ZmtpError(Exception):
    """The peer has broken the protocol or closed the connection."""


class ZmtpConnection(asyncio.Protocol):
    """One connection. `ready` resolves when messages may be sent; `closed` when it has ended."""

    def __init__(self, role: Literal["DEALER", "SUB"], on_message: OnMessage) -> None:
        loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[None] = loop.create_future()
        self.closed: asyncio.Future[None] = loop.create_future()
        self._role = role.encode()
        self._on_message = on_message
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._greeted = False
        self._frames: Frames = []
        self._held = 0  # bytes of frames
        self._cut = False
        self._delivering = False
        self._skipping = 0  # bytes of a frame that is too large, still to come
        self._skipped_more = False
        self.is_paused = False
        self.progress = 0  # grows with each byte that comes, and each time that reading goes on

    @classmethod
    async def connect(cls, path: str, role: Literal["DEALER", "SUB"], on_message: OnMessage) -> ZmtpConnection:
        """Connect and complete the handshake. Raises OSError, ZmtpError."""
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_unix_connection(lambda: cls(role, on_message), path)
        try:
            await connection.ready
        except BaseException:
            connection.close()
            raise
        return connection

    def send(self, frames: Sequence[bytes]) -> None:
        """Write one message. Raises ZmtpError when the connection has ended."""
        if self._transport is None or self._transport.is_closing():
            raise ZmtpError("the connection has ended")
        last = len(frames) - 1
        self._transport.writelines(
            [piece for index, frame in enumerate(frames) for piece in (_head(len(frame), index < last), frame)]
        )

    def close(self) -> None:
        """Abort the connection; unsent data is dropped."""
        if self._transport is not None:
            self._transport.abort()

    def pause(self) -> None:
        """Stop reading: the socket's buffers fill, and the peer blocks."""
        self.is_paused = True
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read again, after delivering messages that are buffered already."""
        if not self.is_paused:
            return
        self.is_paused = False
        self.progress += 1
        self._take_all()  # messages that were parsed partly when it was paused; they may pause it again
        if not self.is_paused and self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def grow(self) -> None:
        """Do nothing: unlike a pipe's, a socket's buffer need not be enlarged."""

    # The transport's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the greeting as soon as the socket is connected."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(_GREETING)

    def connection_lost(self, exc: Exception | None) -> None:
        """Resolve `closed`, and fail `ready` if the handshake was not complete."""
        self._buffer.clear()
        self._frames = []
        if not self.ready.done():
            self.ready.set_exception(ZmtpError("the peer left before it was ready"))
        if not self.closed.done():
            self.closed.set_result(None)

    def data_received(self, data: bytes) -> None:
        """Parse and deliver messages; a peer that breaks the protocol is disconnected."""
        self.progress += len(data)
        self._buffer += data
        self._take_all()

    def _take_all(self) -> None:
        # A message may pause and resume the connection while it is delivered: the next one comes after it, not within.
        if self._delivering:
            return
        self._delivering = True
        try:
            if not self._greeted:
                self._greet()
            if self._greeted:
                while not self.is_paused and self._take_frame():
                    pass
        except ZmtpError:
            self.close()
        finally:
            self._delivering = False

    # The protocol.

    def _greet(self) -> None:
        # Its first byte is checked at once: a peer that speaks another protocol may never send all 64.
        greeting = bytes(self._buffer[:64])
        if greeting[:1] != b"\xff"[: len(greeting)]:
            raise ZmtpError("no ZMTP greeting")
        if len(greeting) < 64:
            return
        if greeting[9] & 1 == 0 or greeting[10] < 3 or greeting[12:32].rstrip(b"\0") != b"NULL":
            raise ZmtpError("another version or mechanism")
        del self._buffer[:64]
        self._greeted = True
        assert self._transport is not None
        properties = b"\x0bSocket-Type" + len(self._role).to_bytes(4, "big") + self._role
        if self._role == b"DEALER":
            properties += b"\x08Identity" + bytes(4)
        body = b"\5READY" + properties
        self._transport.write(bytes((_COMMAND, len(body))) + body)

    def _take_frame(self) -> bool:
        """Consume one frame from the buffer. False when it is incomplete."""
        buffer = self._buffer
        if self._skipping:
            gone = min(self._skipping, len(buffer))
            del buffer[:gone]
            self._skipping -= gone
            if self._skipping:
                return False
            self._add(b"", more=self._skipped_more)
            return True
        if len(buffer) < 2:
            return False
        flags = buffer[0]
        start = 9 if flags & _LONG else 2
        if len(buffer) < start:
            return False
        size = int.from_bytes(buffer[1:start], "big")
        if flags & _COMMAND:
            return self._take_command(start, size)
        # Skipped and not refused: closing the connection would cost the context all of its variables.
        if self._held + size > MAX_MESSAGE_BYTES:
            del buffer[:start]
            self._skipping, self._skipped_more, self._cut = size, bool(flags & _MORE), True
            return True
        if len(buffer) < start + size:
            return False
        frame = bytes(memoryview(buffer)[start : start + size])
        del buffer[: start + size]
        self._add(frame, more=bool(flags & _MORE))
        return True

    def _take_command(self, start: int, size: int) -> bool:
        if size > _MAX_COMMAND_BYTES:
            raise ZmtpError("an oversized command")
        if len(self._buffer) < start + size:
            return False
        body = bytes(self._buffer[start : start + size])
        del self._buffer[: start + size]
        if body.startswith(b"\5READY") and not self.ready.done():
            if self._role == b"SUB":
                self.send((b"\1",))  # subscribe to everything
            self.ready.set_result(None)
        elif body.startswith(b"\5ERROR"):
            raise ZmtpError("the peer refused")
        return True

    def _add(self, frame: bytes, *, more: bool) -> None:
        if len(self._frames) >= _MAX_FRAMES:
            raise ZmtpError("too many frames")
        self._frames.append(frame)
        self._held += len(frame)
        if not more:
            frames, cut = self._frames, self._cut
            self._frames, self._held, self._cut = [], 0, False
            self._on_message(frames, cut)


def _head(size: int, more: bool) -> bytes:
    if size < 256:
        return bytes((_MORE if more else 0, size))
    return bytes((_LONG | (_MORE if more else 0),)) + size.to_bytes(8, "big")
