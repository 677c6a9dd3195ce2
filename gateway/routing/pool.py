"""Keep-alive connections to one endpoint of a sandbox.

One pool per endpoint, as one pool shared by many origins searches all of its connections at every request.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Any

from gateway.core.errors import UpstreamBrokenError, UpstreamConnectError
from gateway.core.model import Endpoint
from gateway.routing.connection import UpstreamConnection

_IDLE_S = 30.0  # below picod's own keep-alive of 75 s, so that we close first and never write into a closing socket


class UpstreamPool:
    """Keep-alive connections to one endpoint. State: the idle list, the count of open ones, and whether one broke.

    A process that is killed closes its listener after its connections, so a client that saw one break and tries again
    at once may still be accepted, to be cut off a second time. `probe` is a path that is answered at once and without
    effect; where there is one, it is asked for before the first request after a break. `tls`: what to dial with, for
    gateways that listen with TLS; asked for each time, as certificates are renewed. `on_silent` is called when no
    connection could be made and none was refused.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        connect_timeout: float,
        probe: bytes = b"",
        tls: Callable[[], ssl.SSLContext] | None = None,
        on_silent: Callable[[], None] | None = None,
    ) -> None:
        self.endpoint = endpoint
        self._probe_path = probe
        self.tls = tls
        self._on_silent = on_silent
        self._suspect = False
        self.idle: list[UpstreamConnection] = []
        self.open = 0
        self._connect_timeout = connect_timeout
        self.closed = False
        host = endpoint.host or ""
        self.host = (
            b"sandbox" if endpoint.uds else (f"[{host}]" if ":" in host else host).encode() + b":%d" % endpoint.port
        )

    def __repr__(self) -> str:
        return f"<UpstreamPool {self.endpoint} open={self.open} idle={len(self.idle)}>"

    def take(self) -> UpstreamConnection | None:
        """An idle connection, the one used last first, or None."""
        # The latest one: the others grow old and are trimmed, so that of a burst's 64 connections one is left
        # for a client that needs one.
        while self.idle:
            connection = self.idle.pop()
            if not connection.transport.is_closing():
                return connection
        return None

    def keep(self, connection: UpstreamConnection) -> bool:
        """Take an idle connection that may be used again. False: the pool is closed."""
        if not self.closed:
            self.idle.append(connection)
        return not self.closed

    def lost(self, connection: UpstreamConnection, *, broke: bool) -> None:
        """Forget a closed connection. `broke`: it was cut off in the middle of an answer; its process may be ending."""
        if connection in self.idle:
            self.idle.remove(connection)
        self.open -= 1
        if broke and self._probe_path:
            self._suspect = True
            for other in self.idle:
                other.transport.abort()  # `take` passes it over
            self.idle.clear()

    async def dial(self) -> UpstreamConnection:
        """A new connection. Raises UpstreamConnectError; nothing of a request was sent then."""
        if self._suspect:
            await self._probe()
            self._suspect = False
        return await self._connect()

    async def _probe(self) -> None:
        """Wait for an answer of any status. Raises UpstreamConnectError when the sandbox hangs up instead."""
        connection = await self._connect()
        try:
            connection.begin(b"GET %b HTTP/1.1\r\nhost: %b\r\n\r\n" % (self._probe_path, self.host))
            async with asyncio.timeout(self._connect_timeout):
                await connection.response_head()
        except UpstreamBrokenError as error:
            raise UpstreamConnectError("the sandbox has ended", no_listener=True) from error
        except TimeoutError:
            pass  # accepted and not closed: it lives, and is busy
        finally:
            connection.abort()

    async def _connect(self) -> UpstreamConnection:
        loop = asyncio.get_running_loop()
        protocol = UpstreamConnection(self, loop)
        endpoint = self.endpoint
        connecting: Any
        if endpoint.uds:
            connecting = loop.create_unix_connection(lambda: protocol, endpoint.uds)
        else:
            connecting = loop.create_connection(
                lambda: protocol, endpoint.host or "", endpoint.port, ssl=self.tls and self.tls()
            )
        try:
            async with asyncio.timeout(self._connect_timeout):
                await connecting
        except TimeoutError:
            self._note_silent()
            raise UpstreamConnectError(
                f"the sandbox did not accept a connection within {self._connect_timeout:g} s"
            ) from None
        except OSError as error:
            no_listener = isinstance(error, ConnectionRefusedError | FileNotFoundError | ConnectionResetError)
            if not no_listener:
                self._note_silent()
            raise UpstreamConnectError(
                f"the sandbox cannot be reached: {error.strerror or error}", no_listener=no_listener
            ) from error
        self.open += 1
        return protocol

    def _note_silent(self) -> None:
        if self._on_silent is not None:
            self._on_silent()

    def trim(self, now: float) -> None:
        """Close connections that have been idle for long. `now` in loop time."""
        while self.idle and now - self.idle[0].progress > _IDLE_S:
            self.idle.pop(0).abort()

    def close(self) -> None:
        """Close the idle connections, and each one in use when its exchange ends."""
        self.closed = True
        for connection in list(self.idle):
            connection.abort()
        self.idle.clear()
