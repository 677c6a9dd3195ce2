"""Serves a gateway with uvicorn: listening sockets, signals, and the order of a shutdown.

SIGTERM: announce the shutdown (readiness fails), keep accepting requests for shutdown_delay, drain, end.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import gc
import resource
import signal
import socket
from collections.abc import AsyncIterator, Callable, Generator, Sequence

import uvicorn

from gateway.app.gateway import Gateway
from gateway.app.lifespan import running
from gateway.core.certificates import Certificates, ClientCertificate, read_client_certificate
from gateway.routing.client_lifetime import ServerContext
from gateway.routing.connection_limit import ConnectionLimit, connection_limit
from gateway.routing.fast_path import FastPath
from gateway.routing.protocol import GatewayProtocol
from gateway.routing.websocket_client import ClientSocket
from gateway.routing.websocket_dial import MAX_MESSAGE_BYTES
from gateway.serving.sockets import BACKLOG, accept_any_hop_limit, listen, refuse_new, url_of
from gateway.serving.starting import open_when_available
from gateway.serving.tls_listener import TLSListener, handshake_limit

# For handshakes in progress to finish, for this loop to accept them, and for a segment dropped before that
# (accept_any_hop_limit) to be sent again: Linux does so after 0.2 s.
_LAST_ARRIVALS_S = 0.3


class _Server(uvicorn.Server):
    """uvicorn's server with a drain on SIGTERM and exit status 0 after it; uvicorn re-raises the signal instead."""

    def __init__(self, config: uvicorn.Config, gateway: Gateway, context: ServerContext) -> None:
        super().__init__(config)
        self._gateway = gateway
        self._context = context

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's own; with TLS, the same over listeners of ours."""
        certificates = self._gateway.certificates
        if certificates is None:
            await super().startup(sockets)
            return
        make: Callable[..., asyncio.Protocol] = self.config.http_protocol_class
        factory = functools.partial(make, config=self.config, server_state=self.server_state, app_state={})
        most = handshake_limit(self._context.limit.limit)
        self.servers = [TLSListener(listener, factory, certificates, most) for listener in sockets or ()]  # type: ignore[misc]  # it calls close and wait_closed
        self.started = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening and close connections. After an announced shutdown, first accept the backlog."""
        if self._context.leaving:
            self._context.accepted_late = _accept_any_hop_limit
            for listener in sockets or ():
                refuse_new(listener)
            await asyncio.sleep(_LAST_ARRIVALS_S)
        await super().shutdown(sockets)

    def _on_signal(self, number: int) -> None:
        """SIGTERM: announce the shutdown, end after shutdown_delay. Ctrl-C or a second signal: end now.

        Where gateways share a store, Ctrl-C also waits until the others have seen the announcement.

        Ending at once would lose requests in transit: those in the buffers of kept-alive connections, and those of
        connections that the kernel has completed and this process has not accepted.
        """
        delay = self._gateway.settings.shutdown_delay if number == signal.SIGTERM else 0.0
        delay = max(delay, self._gateway.shutdown.notice_s)
        if not delay or self._gateway.activator.leaving:
            self._end(number)
            return
        self._gateway.shutdown.leave()
        self._context.leaving = True
        asyncio.get_running_loop().call_later(delay, self._end, number)

    def _end(self, number: int) -> None:
        self._gateway.shutdown.drain()
        self.handle_exit(number, None)


def make_server(gateway: Gateway) -> uvicorn.Server:
    """A uvicorn server with the gateway's own HTTP protocol (routing/protocol.py). It does not listen yet."""
    settings = gateway.settings
    fast_path = FastPath(gateway.activator, gateway.proxy.ticker, gateway.clock, gateway.proxy.access)
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    limit = ConnectionLimit(connection_limit(settings.max_connections, descriptors))
    context = ServerContext(
        fast_path,
        limit,
        settings.request_head_timeout,
        gateway.observer,
        client_certificate=_client_certificate_reader(gateway.certificates),
    )
    config = uvicorn.Config(
        gateway.proxy,
        http=functools.partial(GatewayProtocol, context),  # type: ignore[arg-type]  # uvicorn only calls it
        ws=ClientSocket,
        ws_ping_interval=None,  # pings are end to end: the sandbox's server sends its own
        ws_max_size=MAX_MESSAGE_BYTES,
        loop="uvloop",
        lifespan="off",
        log_config=None,
        access_log=False,  # gateway/observability/logs.py writes it
        proxy_headers=False,  # routing/access.py decides which peers' X-Forwarded-* count
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=int(settings.keep_alive_timeout),
        timeout_graceful_shutdown=max(1, int(settings.drain_timeout)),
    )
    return _Server(config, gateway, context)


def _accept_any_hop_limit(transport: asyncio.BaseTransport) -> None:
    accept_any_hop_limit(transport.get_extra_info("socket"))


def _client_certificate_reader(
    certificates: Certificates | None,
) -> Callable[[asyncio.BaseTransport], ClientCertificate] | None:
    if certificates is None or not certificates.verifies_clients:
        return None
    return lambda transport: read_client_certificate(transport.get_extra_info("ssl_object").getpeercert(True))


def keep_freed_memory() -> None:
    """Have glibc's allocator keep up to 64 MB of freed memory instead of returning it to the kernel.

    Each chunk of a large body is a fresh 256 KB. By default the allocator returns such memory with munmap and faults
    it in again page by page: some 20,000 page faults per GB of download, against about a hundred with this
    (loadtest/bulk.py prints them). Does nothing without glibc.
    """
    mmap_threshold, trim_threshold = -3, -1  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD of mallopt(3)
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_threshold, 4 << 20)
        libc.mallopt(trim_threshold, 64 << 20)


@contextlib.asynccontextmanager
async def serving(
    gateway: Gateway, sockets: Sequence[socket.socket] = ()
) -> AsyncIterator[tuple[str, asyncio.Task[None]]]:
    """Start the gateway's parts and serve it in the running loop.

    Yields, once requests are answered, the base URL and the task that ends with the server (on SIGTERM, after the
    drain). Leaving the block drains and stops everything. `sockets`: bound sockets to listen on instead of the
    settings' address; the URL is that of the first. Raises SettingsError for the address, WakegateError for parts.
    """
    settings = gateway.settings
    sockets = sockets or [listen(settings.host, settings.port)]
    url = url_of(sockets[0], tls=gateway.certificates is not None)
    keep_freed_memory()
    if settings.engine == "kubernetes":
        tls = gateway.certificates.server if gateway.certificates is not None else None
        try:
            await open_when_available(gateway.store, sockets, tls)
        except BaseException:
            await gateway.provider.aclose()  # it has connections to the API server already
            raise
    async with running(gateway, settings.advertise or url):
        server = make_server(gateway)
        task = asyncio.create_task(server.serve(sockets=list(sockets)))
        while not server.started and not task.done():  # noqa: ASYNC110
            await asyncio.sleep(0.005)  # uvicorn has no event for its start, only this flag
        # What is allocated by now lives as long as the process: exclude it from garbage collections, and have them run
        # every 20,000 allocations instead of every 700.
        gc.freeze()
        gc.set_threshold(20_000, 20, 20)
        try:
            yield url, task
        finally:
            gateway.shutdown.drain()
            server.should_exit = True
            await task
