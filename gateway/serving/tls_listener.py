"""TLS on a listening socket: connections are accepted here, and reach the HTTP protocol once their handshake is over.

A server of asyncio's own would keep the context that it was made with, and could not close the handshake that has
waited longest when there are too many: clients that open sockets and send nothing would keep all others out. So the
number of handshakes is bounded, each has HANDSHAKE_S in all, and at the bound the oldest one is closed.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable

from gateway.core.certificates import Certificates
from gateway.serving.sockets import BACKLOG, accept_any_hop_limit

logger = logging.getLogger(__name__)

HANDSHAKE_S = 10.0  # a slow phone on a slow network needs two
CLOSE_S = 2.0  # for the other end's close_notify; its connection counts as open until then
_ACCEPTED_AT_ONCE = 32  # then the loop goes on with the others
_NO_DESCRIPTORS_PAUSE_S = 1.0


def handshake_limit(connections: int) -> int:
    """How many handshakes there may be beside so many client connections: an eighth of them, 64 to 1,024."""
    return min(max(connections // 8, 64), 1024)


class TLSListener:
    """One listening socket; `close` and `wait_closed` are those of asyncio's servers, as uvicorn calls them."""

    def __init__(
        self,
        listener: socket.socket,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        certificates: Certificates,
        most: int,
    ) -> None:
        """`most`: handshakes at once. Needs a running loop, and listens at once."""
        self._listener = listener
        self._factory = protocol_factory
        self._certificates = certificates
        self._most = most
        self._loop = asyncio.get_running_loop()
        self._handshakes: dict[asyncio.Task[None], None] = {}  # the oldest first
        self._pause: asyncio.TimerHandle | None = None
        listener.setblocking(False)
        listener.listen(BACKLOG)
        self._loop.add_reader(listener, self._accept)

    def __repr__(self) -> str:
        return f"<TLSListener {len(self._handshakes)} handshakes>"

    def close(self) -> None:
        """Accept no more; handshakes under way are broken off."""
        self._loop.remove_reader(self._listener)
        if self._pause is not None:
            self._pause.cancel()
        for task in self._handshakes:
            task.cancel()

    async def wait_closed(self) -> None:
        """Until no handshake is left."""
        await asyncio.gather(*self._handshakes, return_exceptions=True)

    def _accept(self) -> None:
        for _ in range(_ACCEPTED_AT_ONCE):
            try:
                client, _ = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:  # no descriptors or no memory: the kernel would wake us again and again
                logger.warning("no connection can be accepted: %s", error.strerror)
                self._loop.remove_reader(self._listener)
                self._pause = self._loop.call_later(
                    _NO_DESCRIPTORS_PAUSE_S, self._loop.add_reader, self._listener, self._accept
                )
                return
            if len(self._handshakes) >= self._most:
                oldest = next(iter(self._handshakes))
                del self._handshakes[oldest]
                oldest.cancel()
            task = self._loop.create_task(self._handshake(client))
            self._handshakes[task] = None
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._handshakes.pop(task, None)

    async def _handshake(self, client: socket.socket) -> None:
        client.setblocking(False)
        try:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            accept_any_hop_limit(client)  # here, not only in the protocol: the handshake needs to hear the client
            await self._loop.connect_accepted_socket(
                self._factory,
                client,
                ssl=self._certificates.server,
                ssl_handshake_timeout=HANDSHAKE_S,
                ssl_shutdown_timeout=CLOSE_S,
            )
        except (OSError, EOFError) as error:
            # Not TLS, no certificate, a client that left: errors of clients, which must not fill the log.
            logger.debug("a TLS handshake failed: %s", error)
