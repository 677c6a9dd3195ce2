"""Messages between the gateway and its egress service, over a pair of unix sockets: JSON, with descriptors beside it.

A message is four bytes of length and that many of JSON. Its field `fds` says how many descriptors belong to it; they
arrive with its first byte at the latest.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

# A grant has 256 entries of 300 characters and some secrets of 4 KiB, and a report of the log 10,000 lines of 500
# bytes.
MAX_MESSAGE_BYTES = 8 << 20
_READ_BYTES, _READ_FDS = 64 << 10, 64  # descriptors beyond the room that is given for them would be lost

Message = Mapping[str, Any]


class Channel:
    """One end of the socket over which gateway and egress service talk, with descriptors beside messages.

    `on_message(message, fds)` for each message; its reader owns the descriptors. `on_end` once.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        end: socket.socket,
        on_message: Callable[[Message, Sequence[int]], None],
        on_end: Callable[[], None],
    ) -> None:
        self._loop, self._end, self._on_message, self._on_end = loop, end, on_message, on_end
        self._received = bytearray()
        self._fds: deque[int] = deque()
        self._waiting: deque[tuple[memoryview, list[int]]] = deque()
        self._closed = False
        end.setblocking(False)
        loop.add_reader(end.fileno(), self._readable)

    @property
    def waiting_bytes(self) -> int:
        """How much the other end has not taken yet."""
        return sum(len(data) for data, _ in self._waiting)

    def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Send, or queue. Copies of the descriptors are sent: the caller may close its own."""
        if self._closed:
            return
        body = json.dumps({**message, "fds": len(fds)}).encode()
        data = memoryview(len(body).to_bytes(4, "big") + body)
        self._waiting.append((data, [os.dup(fd) for fd in fds]))
        # Nothing is dropped here. How far the other end is behind is `waiting_bytes`, and who sends reports looks at
        # it.
        if len(self._waiting) == 1:  # else messages before it wait for the socket, and order is kept
            self._writable()

    def close(self) -> None:
        """Close this end, without a call of `on_end`."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._end.fileno())
        self._loop.remove_writer(self._end.fileno())
        self._end.close()
        for fd in (*self._fds, *(fd for _, fds in self._waiting for fd in fds)):
            os.close(fd)
        self._fds.clear()
        self._waiting.clear()

    def _ended(self) -> None:
        if not self._closed:
            self.close()
            self._on_end()

    def _writable(self) -> None:
        while self._waiting:
            data, fds = self._waiting[0]
            try:
                sent = socket.send_fds(self._end, [data], fds) if fds else self._end.send(data)
            except (BlockingIOError, InterruptedError):
                self._loop.add_writer(self._end.fileno(), self._writable)
                return
            except OSError:
                self._ended()
                return
            for fd in fds:  # with the first byte all of them have gone, however much of the message has
                os.close(fd)
            if sent == len(data):
                self._waiting.popleft()
            else:
                self._waiting[0] = (data[sent:], [])
        self._loop.remove_writer(self._end.fileno())

    def _readable(self) -> None:
        try:
            data, fds, _, _ = socket.recv_fds(self._end, _READ_BYTES, _READ_FDS)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data, fds = b"", []
        # recvmsg gives them out inheritable: a sandbox that the gateway starts next would have another one's listener.
        for fd in fds:
            os.set_inheritable(fd, False)
        self._fds += fds
        if not data:
            self._ended()
            return
        self._received += data
        self._deliver()

    def _deliver(self) -> None:
        while len(self._received) >= 4 and not self._closed:
            size = int.from_bytes(self._received[:4], "big")
            if size > MAX_MESSAGE_BYTES:  # the ends disagree about where messages begin
                self._ended()
                return
            if len(self._received) < 4 + size:
                return
            message = json.loads(self._received[4 : 4 + size])
            del self._received[: 4 + size]
            self._on_message(message, [self._fds.popleft() for _ in range(message["fds"])])
