"""The sandbox's side of a WebSocket: a client connection with the handshake's fields as the client sent them."""

from __future__ import annotations

import asyncio
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidHandshake, InvalidStatus
from websockets.protocol import State
from websockets.typing import Subprotocol

from gateway.core.errors import UpstreamBrokenError, UpstreamConnectError
from gateway.routing.pool import UpstreamPool
from gateway.routing.request_fields import Request
from gateway.routing.responses import Scope
from gateway.routing.route import Route
from gateway.routing.target import Target
from gateway.routing.websocket_pace import Pace, split_pongs

MAX_MESSAGE_BYTES = 16 << 20  # of one message, either way: it is held whole, as ASGI has no fragments
_OPEN_TIMEOUT_S = 30.0
_CLOSE_TIMEOUT_S = 2.0  # for the sandbox's part of the closing handshake; its slot is held as long
_HANDSHAKE = (b"sec-websocket-", b"content-length: ", b"transfer-encoding: ")


class _Connection(ClientConnection):
    """Takes frames as `Pace` does, and owes no more than one pong, however many pings a sandbox does not wait for."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._pace = Pace(self.transport, super().data_received, lambda: not self.recv_messages.paused)
        self.recv_messages.resume = self._resume
        self._head_end = b""  # the last bytes of what has come of the handshake's answer
        self._owed: bytes | None = None

    def data_received(self, data: bytes) -> None:
        if self.protocol.state is State.CONNECTING:
            data = self._read_head(data)
        if data:
            self._pace.received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._pace.close()
        super().connection_lost(exc)

    def eof_received(self) -> None:
        self._pace.flush()
        super().eof_received()

    def send_data(self) -> None:
        """Send what there is to send; of pongs, while the sandbox does not read, the last, once it does."""
        if self.paused:
            others, pong = split_pongs(self.protocol.writes)
            self.protocol.writes[:] = others
            self._owed = pong or self._owed
        super().send_data()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._owed is not None and self.protocol.state is State.OPEN:
            self.transport.write(self._owed)
        self._owed = None

    def _resume(self) -> None:
        self.transport.resume_reading()
        self._pace.go_on()

    def _read_head(self, data: bytes) -> bytes:
        """Parse the answer to the handshake up to its end. Returns what follows it: frames, if it agreed."""
        before = self._head_end
        end = (before + data).find(b"\r\n\r\n")
        self._head_end = (before + data)[-3:]
        size = len(data) if end < 0 else end + 4 - len(before)
        super().data_received(data[:size])
        if self.protocol.state is State.CONNECTING:  # a refusal, and its body
            super().data_received(data[size:])
            return b""
        return data[size:]


class _Dial(connect):
    """A client connection that follows no redirect: a sandbox must not send us, with its token, to another address."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        """The redirect is the answer."""
        return exc


async def dial(scope: Scope, route: Route, target: Target, request: Request, lines: list[bytes]) -> ClientConnection:
    """Dial the sandbox. Raises UpstreamConnectError, UpstreamBrokenError, and InvalidStatus when it answers no."""
    pool = route.pool_for(target.path)
    host = target.port_host if route.peer and target.port_host else pool.host
    try:
        return await dial_pool(scope, pool, host, target.path, request, [*lines, route.head])
    except UpstreamConnectError as error:
        # Where it has several ports, one on which nobody listens says nothing of the others.
        error.no_listener = error.no_listener and pool.endpoint == route.pool.endpoint
        raise


async def dial_pool(
    scope: Scope, pool: UpstreamPool, host: bytes, path: bytes, request: Request, lines: list[bytes]
) -> ClientConnection:
    """Dial a pool's endpoint. `host`, `path`: as the handshake names them. Raises as `dial` does."""
    headers = [
        tuple(line.decode("latin-1").rstrip("\r\n").split(": ", 1))
        for line in b"".join(lines).split(b"\r\n")
        if line and not line.startswith((*_HANDSHAKE, b"host: "))
    ]
    query: bytes = scope["query_string"]
    if request.own_origin:
        # The websockets library leaves the scheme's usual port out of Host.
        usual = b":80" if pool.tls is None else b":443"
        headers.append(
            ("origin", ("http" if pool.tls is None else "https") + f"://{host.removesuffix(usual).decode()}")
        )
    scheme = "ws" if pool.tls is None else "wss"
    uri = f"{scheme}://{host.decode()}{path.decode('latin-1')}" + (f"?{query.decode('latin-1')}" if query else "")
    options: dict[str, Any] = {
        "additional_headers": headers,
        "subprotocols": [Subprotocol(protocol) for protocol in scope.get("subprotocols", ())] or None,
        "compression": None,  # both hops are local; the client's side negotiates its own
        "max_size": MAX_MESSAGE_BYTES,
        "max_queue": 1,  # messages read ahead; of the default 16 each could have the full size
        "ping_interval": None,  # liveness is the business of the two ends
        "open_timeout": _OPEN_TIMEOUT_S,
        "close_timeout": _CLOSE_TIMEOUT_S,
        "user_agent_header": None,
        "proxy": None,
        "create_connection": _Connection,
    }
    if pool.tls is not None:
        options |= {"ssl": pool.tls(), "server_hostname": pool.endpoint.host}
    endpoint = pool.endpoint
    try:
        if endpoint.uds:
            return await _Dial(uri, unix=True, path=endpoint.uds, **options)
        return await _Dial(uri, host=endpoint.host, port=endpoint.port, **options)  # the URI may name a port's host
    except InvalidStatus:
        raise
    except (OSError, TimeoutError) as error:
        no_listener = isinstance(error, ConnectionRefusedError | FileNotFoundError)
        raise UpstreamConnectError(f"the sandbox cannot be reached: {error}", no_listener=no_listener) from error
    except (InvalidHandshake, ValueError) as error:
        raise UpstreamBrokenError(f"the sandbox did not agree to a WebSocket: {error}") from error
