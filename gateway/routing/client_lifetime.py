"""How long a client connection lasts: from its admission to the bound on connections to its last answer.

Nothing here runs for a request that is whole when it arrives: keep-alive needs one timer per connection, and the timer
of a head is set only where the data ended within one. protocol.py reads what comes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from gateway.core.certificates import ClientCertificate
from gateway.core.errors import RequestTimeoutError, WakegateError
from gateway.observability.request_record import Observer
from gateway.routing.connection_limit import ConnectionLimit, Reclaimable
from gateway.routing.cycle import GatewayCycle
from gateway.routing.fast_path import FastPath
from gateway.routing.refusals import last_answer

_LAST_READ_S = 0.1  # at the server's end, to read what the kernel holds of a connection between requests


@dataclass
class ServerContext:
    """What all client connections of one server share; made where the server is built. `head_timeout` in seconds."""

    fast_path: FastPath
    limit: ConnectionLimit
    head_timeout: float
    observer: Observer | None = None
    client_certificate: Callable[[asyncio.BaseTransport], ClientCertificate] | None = None  # where clients need one
    leaving: bool = False  # the gateway will end: each answer is the last on its connection
    accepted_late: Callable[[asyncio.BaseTransport], None] | None = None  # set once new connections are refused


class ClientLifetime(HttpToolsProtocol, Reclaimable):
    """One client connection, as far as time and the end of the server concern it.

    Own attributes are slots, here and in GatewayProtocol. With uvicorn's 27 they would be more than the 30 that CPython
    keeps in an object's inline values, and each access to any of them would search a dictionary.
    """

    __slots__ = ("_context", "_fresh", "_head_size", "_head_timer", "_idle_since", "cycle", "observer")

    def __init__(
        self,
        context: ServerContext,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._context = context
        self.observer = context.observer
        self.cycle: GatewayCycle = None  # type: ignore[assignment]  # uvicorn's value for no request yet
        self._fresh: GatewayCycle | None = None  # its head is here; it begins once the data at hand is parsed
        self._head_size = 0  # bytes of the data in which the present head came so far; 0 once it is whole
        self._head_timer: asyncio.TimerHandle | None = None
        self._idle_since = self.loop.time()

    def idle_since(self) -> float | None:
        """Loop time of its last answer, or of its beginning. A client that has sent a part of a head is idle too."""
        under_way = self.cycle is not None and not self.cycle.response_complete
        return None if under_way or self.transport.is_closing() else self._idle_since

    def reclaim(self) -> None:
        """Close it, to make place for another client."""
        self.transport.close()

    def shutdown(self) -> None:
        """The server ends. A request that is here, or on its way, is answered, and its answer is the last."""
        self._context.leaving = True
        if self._is_between_requests():
            self.loop.call_later(_LAST_READ_S, self._close_if_silent)
        elif self.cycle is not None:
            self.cycle.keep_alive = False

    def _close_if_silent(self) -> None:
        if self._is_between_requests():
            self.transport.close()

    def _is_between_requests(self) -> bool:
        return not self._head_size and (self.cycle is None or self.cycle.response_complete)

    def timeout_keep_alive_handler(self) -> None:
        """Close it if it has been idle for so long; else wait for the rest of that time."""
        self.timeout_keep_alive_task = None
        if self.transport.is_closing():
            return
        idle = not self._head_size and self.cycle.response_complete
        left = self.timeout_keep_alive - (self.loop.time() - self._idle_since) if idle else self.timeout_keep_alive
        if left <= 0:
            self.transport.close()
        else:
            self.timeout_keep_alive_task = self.loop.call_later(left, self.timeout_keep_alive_handler)

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(self._context.head_timeout, self._head_is_late)

    def _cancel_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self._head_size:
            self._refuse(
                RequestTimeoutError(f"the request's head did not arrive within {self._context.head_timeout:g} s")
            )
        else:
            self.transport.close()

    def _refuse(self, error: WakegateError) -> None:
        """Answer in place of the app and close; if an answer is under way, cut it."""
        if self.transport.is_closing():
            return
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete and cycle is not self._fresh:
            cycle.cut()
            return
        self._context.fast_path.batch.flush()  # answers to earlier requests on this connection go first
        self.transport.write(last_answer(error))
        self.transport.close()
