"""How fast the frames of a WebSocket are taken: a few at a time, between turns of the loop, and none that nobody wants.

Both libraries that parse frames take all that one read brought: of frames without content, six bytes each from a client
and two from a sandbox, a read of 256 KiB has 40,000 and 130,000, which hold the loop for 0.4 s and 1 s and 40 MB. And
both answer each ping at once, whether or not the peer reads the answers.
Source: RFC 6455 5.2 (frames), 5.5.3 (a pong may answer the latest ping alone).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

# Frames of a turn: half a millisecond to parse, two to pass on.
FRAMES = 64
# Bytes of a turn, beyond which no frame begins: compressed, they may stand for a thousand times as many.
MAX_BYTES = 32 << 10
_FIN_AND_OPCODE, _PONG = 0x8F, 0x8A


class Frames:
    """Where frames end in a stream that comes in pieces: by their heads alone, whatever they hold.

    It does not judge them: the parser that reads them refuses what is malformed.
    """

    def __init__(self) -> None:
        self._head = b""  # of a frame whose head has not come whole
        self._skip = 0  # bytes of its content that are to come

    def cut(self, data: bytes | bytearray, frames: int = FRAMES, size: int = MAX_BYTES) -> int:
        """How many bytes of `data` to take: `frames` frames, fewer beyond `size` bytes, and the whole of the last.

        What was taken counts as read: the next call has what follows.
        """
        at, end = 0, len(data)
        while at < end:
            if self._skip:
                step = min(self._skip, end - at)
                self._skip -= step
                at += step
            elif frames <= 0 or at >= size:
                break
            else:
                at = self._read_head(data, at)
                frames -= not self._head
        return at

    def _read_head(self, data: bytes | bytearray, at: int) -> int:
        """Read a head, or what there is of it, from this place on. Returns the place behind it."""
        head = self._head + bytes(data[at : at + 14 - len(self._head)])
        code = head[1] & 0x7F if len(head) > 1 else 0
        extended = 2 if code == 126 else 8 if code == 127 else 0
        whole = 2 + extended + (4 if len(head) > 1 and head[1] & 0x80 else 0)
        if len(head) < whole:  # and so is all that there is
            self._head = head
            return len(data)
        self._skip = int.from_bytes(head[2 : 2 + extended], "big") if extended else code
        at += whole - len(self._head)
        self._head = b""
        return at


class Pace:
    """Hands what a peer sent to a parser, FRAMES at a time. The transport is paused while something waits here."""

    def __init__(
        self, transport: asyncio.Transport, parse: Callable[[bytes], None], is_wanted: Callable[[], bool]
    ) -> None:
        """`parse`: takes a piece; `is_wanted()`: whether it may have one now. Once it may again, call `go_on`."""
        self._transport = transport
        self._parse = parse
        self._is_wanted = is_wanted
        self._frames = Frames()
        self._waiting = bytearray()
        self._is_paused = False
        self._turn: asyncio.Handle | None = None

    def received(self, data: bytes) -> None:
        """What a read brought. Parses the first of it at once, if nothing waits and it is wanted."""
        if not self._waiting and self._is_wanted():
            size = self._frames.cut(data)
            self._parse(data[:size])  # the same object where all of it is taken: most reads bring few frames
            data = data[size:]
        self._waiting += data
        self._settle()

    def go_on(self) -> None:
        """It is wanted again, perhaps: what waits is parsed in the next turn of the loop."""
        self._settle()  # whoever wanted more may have resumed the transport

    def flush(self) -> None:
        """Parse all that waits: the peer has sent its last."""
        data, self._waiting = bytes(self._waiting), bytearray()
        if data:
            self._parse(data)

    def close(self) -> None:
        """The connection is gone, and what waits with it."""
        self._waiting.clear()

    def _take(self) -> None:
        self._turn = None
        if self._waiting and self._is_wanted():
            size = self._frames.cut(self._waiting)
            data = bytes(self._waiting[:size])
            del self._waiting[:size]
            self._parse(data)
        self._settle()

    def _settle(self) -> None:
        """Pause the transport while something waits, and come back for it if it is wanted."""
        if self._transport.is_closing():
            self._waiting.clear()
        elif self._waiting:
            self._transport.pause_reading()
            self._is_paused = True
            if self._turn is None and self._is_wanted():
                self._turn = asyncio.get_running_loop().call_soon(self._take)
        elif self._is_paused and self._is_wanted():
            self._is_paused = False
            self._transport.resume_reading()


def split_pongs(frames: Sequence[bytes]) -> tuple[list[bytes], bytes | None]:
    """Frames to be sent, without the pongs; the last pong apart (pure). An empty one ends the stream and stays."""
    last: bytes | None = None
    others: list[bytes] = []
    for frame in frames:
        if frame and frame[0] & _FIN_AND_OPCODE == _PONG:
            last = frame
        else:
            others.append(frame)
    return others, last
