"""The port of the service in a cluster. Whose a connection is, its first line says: a token that the gateway signed.

The token is the session's name and no more: the code of the sandbox may read it, and whoever has it reaches what that
session may reach, counted to it. The gateway, which has the keys and the sessions, is asked about each token anew after
some seconds, so that one of a session that has ended, or sleeps, opens nothing from then on. Rejected: the pod's
address as the proof. A node that translates addresses shows its own, and an address is another pod's a moment later.

What comes before the answer is from strangers: a line's length, the time for it, and the questions that one address may
cause are bounded.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import socket
from collections import OrderedDict
from collections.abc import Callable

from gateway.egress.dialer import tune
from gateway.egress.limits import Bucket
from picod import wire

logger = logging.getLogger(__name__)

_MAX_LINE_BYTES, _LINE_TIMEOUT_S = 4096, 15.0
_FRESH_S = 5.0  # for which an answer counts: a change of limits or the end of a session is in force after that
_ANSWER_TIMEOUT_S = 10.0
_MAX_KEPT = 8192  # answers; 32 bytes of a token are kept, not the 500 that it has
_MAX_UNKNOWN = 1024  # connections whose session is not known yet
_ACCEPTS, _FULL_PAUSE_S = 16, 0.25
# Each question with a good token may cost a read of the store, and each with a bad one a signature (0.1 ms). A pod asks
# once in _FRESH_S for its one token; 50 pods may be behind one address where a node translates them.
_ASKS_PER_S, _ASK_BURST, _MAX_ADDRESSES = 20.0, 100.0, 4096
_LINGER_S, _LINGER_BYTES = 2.0, 1 << 20  # in which a refused client may finish what it sends, to read the answer
_UNKNOWN = (
    b"HTTP/1.1 403 egress refused: this sandbox has no session that runs\r\n"
    b"Content-Length: 0\r\nX-Wakegate-Egress: EGRESS_REFUSED\r\nConnection: close\r\n\r\n"
)


async def let_read(loop: asyncio.AbstractEventLoop, connection: socket.socket) -> None:
    """Let the client read its answer: closing while it still sends would reset the connection and lose it."""
    try:
        connection.shutdown(socket.SHUT_WR)
        left = _LINGER_BYTES
        async with asyncio.timeout(_LINGER_S):
            while left > 0 and (data := await loop.sock_recv(connection, 64 << 10)):
                left -= len(data)
    except (OSError, TimeoutError):
        pass


class Entrance:
    """Accepts, and hands each connection to `serve(sandbox, connection, received)` once it is known whose it is.

    `ask(number, token)` has the gateway asked; the answer comes as a call of `answered`. `knows(sandbox)`: whether an
    answer about it still counts. `has_room()`: whether another connection may be accepted.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        listener: socket.socket,
        *,
        ask: Callable[[int, str], None],
        serve: Callable[[str, socket.socket, bytes], None],
        knows: Callable[[str], bool],
        has_room: Callable[[], bool],
    ) -> None:
        self._loop, self._listener = loop, listener
        self._ask, self._serve, self._knows, self._has_room = ask, serve, knows, has_room
        self._asked: dict[int, asyncio.Future[str]] = {}
        self._pending: dict[bytes, asyncio.Future[str]] = {}
        self._kept: OrderedDict[bytes, tuple[str, float]] = OrderedDict()
        self._budgets: OrderedDict[str, Bucket] = OrderedDict()
        self._unknown: set[asyncio.Task[None]] = set()
        self._number = 0
        listener.setblocking(False)
        loop.add_reader(listener.fileno(), self._accept)

    def answered(self, number: int, sandbox: str) -> None:
        """The gateway's answer; an empty name: nobody's."""
        asked = self._asked.pop(number, None)
        if asked is not None and not asked.done():
            asked.set_result(sandbox)

    def close(self) -> None:
        """Accept no more, and drop those that are not known yet."""
        if self._listener.fileno() >= 0:
            self._loop.remove_reader(self._listener.fileno())
            self._listener.close()
        for task in self._unknown:
            task.cancel()

    def _accept(self) -> None:
        for _ in range(_ACCEPTS):
            if len(self._unknown) >= _MAX_UNKNOWN or not self._has_room():
                self._pause()
                return
            try:
                connection, address = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionError):
                return
            except OSError as error:
                logger.warning("egress: cannot accept: %s", os.strerror(error.errno or 0))
                self._pause()
                return
            connection.setblocking(False)
            tune(connection)
            task = self._loop.create_task(self._admit(connection, address[0]))
            self._unknown.add(task)
            task.add_done_callback(self._unknown.discard)

    def _pause(self) -> None:
        self._loop.remove_reader(self._listener.fileno())  # what comes meanwhile waits in the kernel
        self._loop.call_later(_FULL_PAUSE_S, self._resume)

    def _resume(self) -> None:
        if self._listener.fileno() >= 0:
            self._loop.add_reader(self._listener.fileno(), self._accept)

    async def _admit(self, connection: socket.socket, address: str) -> None:
        try:
            async with asyncio.timeout(_LINE_TIMEOUT_S):
                token, received = await self._first_line(connection)
            sandbox = await self._whose(token, address)
            if sandbox and self._knows(sandbox):
                self._serve(sandbox, connection, received)
                return
            async with asyncio.timeout(_LINE_TIMEOUT_S):
                await self._loop.sock_sendall(connection, _UNKNOWN)
            await let_read(self._loop, connection)
        except (OSError, ValueError):  # also TimeoutError
            pass
        except BaseException:
            connection.close()
            raise
        connection.close()

    async def _first_line(self, connection: socket.socket) -> tuple[str, bytes]:
        """The token, and what came after its line. Raises ValueError, OSError."""
        data = b""
        while (end := data.find(b"\n")) < 0:
            if len(data) > _MAX_LINE_BYTES:
                raise ValueError("the line is too long")
            more = await self._loop.sock_recv(connection, _MAX_LINE_BYTES)
            if not more:
                raise ConnectionError("it has left")
            data += more
        greeting, _, token = data[:end].decode("ascii").partition(" ")
        if greeting != wire.EGRESS_GREETING or not token:
            raise ValueError("another greeting")
        return token, data[end + 1 :]

    async def _whose(self, token: str, address: str) -> str:
        """The sandbox; empty: nobody's."""
        key = hashlib.sha256(token.encode()).digest()
        now = self._loop.time()
        sandbox, until = self._kept.get(key, ("", 0.0))
        if now < until and (not sandbox or self._knows(sandbox)):
            return sandbox
        pending = self._pending.get(key)
        if pending is None:
            if not self._budget(address, now).try_take(now):
                return ""
            pending = self._pending[key] = self._question(token)
            pending.add_done_callback(lambda _: self._pending.pop(key, None))
        try:
            async with asyncio.timeout(_ANSWER_TIMEOUT_S):
                # One of several that wait for the same answer may leave: the others still get it.
                sandbox = await asyncio.shield(pending)
        except TimeoutError:
            return ""
        self._kept[key] = (sandbox, self._loop.time() + _FRESH_S)
        self._kept.move_to_end(key)
        while len(self._kept) > _MAX_KEPT:
            self._kept.popitem(last=False)
        return sandbox

    def _question(self, token: str) -> asyncio.Future[str]:
        self._number += 1
        number, asked = self._number, self._loop.create_future()
        self._asked[number] = asked
        # One that is never answered, as when the gateway's store hangs, must not be joined for ever.
        self._loop.call_later(_ANSWER_TIMEOUT_S, self.answered, number, "")
        self._ask(number, token)
        return asked

    def _budget(self, address: str, now: float) -> Bucket:
        found = self._budgets.get(address)
        if found is None:
            found = self._budgets[address] = Bucket(_ASKS_PER_S, _ASK_BURST, now)
            while len(self._budgets) > _MAX_ADDRESSES:
                self._budgets.popitem(last=False)
        self._budgets.move_to_end(address)
        return found
