"""The router of Sandboxes that agent-sandbox's own controllers manage: requests go to their pods as they are.

    X-Sandbox-ID          the Sandbox's name
    X-Sandbox-Namespace   its namespace; without it `default`
    X-Sandbox-Port        the port of its pod; without it 8888, of their runtime's server
    X-Sandbox-Timeout     seconds that the pod may be silent, at most the gateway's own limit

One that is suspended is woken, and its requests are held until it is ready. What is dialled is what the Sandbox's
status says: X-Sandbox-Pod-IP, with which clients spare their own router a look-up, is passed on like any field, and not
believed. Errors are {"detail": text}, as their router answers, and {"message": text}, as their runtime does.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from typing import TypeVar

import orjson

from gateway.core.agent_sandbox import OpenedSandbox
from gateway.core.clock import Clock
from gateway.core.errors import (
    BadRequestError,
    DrainingError,
    NotFoundError,
    QueueFullError,
    UpstreamConnectError,
    WakegateError,
    public_message,
)
from gateway.core.identity import current
from gateway.core.interfaces import RoutedSandboxes
from gateway.core.model import Endpoint, StartKind
from gateway.identity.scope import require_use
from gateway.observability.counters import Counters
from gateway.observability.request_record import Record
from gateway.routing.access import DEFAULT_NAMESPACE
from gateway.routing.activator import Activator
from gateway.routing.connection import UpstreamConnection
from gateway.routing.cycle import GatewayCycle
from gateway.routing.exchange import Exchange
from gateway.routing.headers import origin_line
from gateway.routing.heads import EMPTY_QUERY
from gateway.routing.incoming import Incoming, raw_path
from gateway.routing.pool import UpstreamPool
from gateway.routing.request_fields import Request
from gateway.routing.request_ids import id_field
from gateway.routing.response_headers import confine_cookies, read_response
from gateway.routing.responses import Headers, Receive, Scope, Send, error_fields, logger, send_answer
from gateway.routing.target import SESSION_HEADERS
from gateway.routing.ticker import Ticker
from gateway.routing.time_limits import TimeLimits

C = TypeVar("C")

PORT_HEADER, TIMEOUT_HEADER = b"x-sandbox-port", b"x-sandbox-timeout"
RUNTIME_PORT = b"8888"
_NAME = re.compile(rb"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_PORT = re.compile(rb"[1-9][0-9]{0,4}")
_SECONDS = re.compile(rb"[0-9]{1,9}(\.[0-9]{1,9})?")
_MAX_SHOWN = 64
# After a connection that failed, for news of the pod: it may just have been suspended by another gateway.
_NEWS_S = 1.0


@dataclass(frozen=True, slots=True)
class Named:
    """What the header fields of a request name. `timeout`: seconds that the pod may be silent."""

    namespace: str
    name: str
    port: int
    timeout: float


class SandboxRouter:
    """Serves requests whose target is NotProxied.SANDBOX. State: how many are held, in all and by Sandbox."""

    def __init__(
        self,
        sandboxes: RoutedSandboxes,
        activator: Activator,
        ticker: Ticker,
        clock: Clock,
        counters: Counters,
        limits: TimeLimits,
        *,
        start_timeout: float,
        connect_timeout: float,
        hold_each: int,
        hold_total: int,
    ) -> None:
        """`start_timeout`: seconds for a pod to become ready. `hold_each`: requests that may wait for one Sandbox."""
        self._sandboxes = sandboxes
        self._activator = activator  # which knows whether this gateway shuts down
        self._ticker = ticker
        self._clock = clock
        self._counters = counters
        self._limits = limits
        self._start_timeout = start_timeout
        self._connect_timeout = connect_timeout
        self._hold_each, self._hold_total = hold_each, hold_total
        self._held: dict[tuple[str, str], int] = {}
        self._held_total = 0

    def __repr__(self) -> str:
        return f"<SandboxRouter {self._held_total} held>"

    async def serve(
        self, scope: Scope, receive: Receive, send: Send, incoming: Incoming, cycle: GatewayCycle | None
    ) -> None:
        """Carry one request to its end. Its sender is known, and the current caller."""
        record = None if cycle is None else cycle.record
        try:
            named = self.authorize(scope, incoming.request, record)
        except WakegateError as error:
            await self.refuse(send, error, incoming)
            return
        limits = replace(self._limits, response_idle=named.timeout)
        exchange = Exchange(receive, incoming, cycle, self._counters.unrouted, limits)
        self._ticker.add(exchange)
        try:
            with self.using(named):
                await self._carry(scope, send, exchange, incoming, named)
        except WakegateError as error:
            await self._fail(send, exchange, error)
        except asyncio.CancelledError:
            reason = exchange.interrupted()
            if reason is None:
                raise
            await self._fail(send, exchange, reason)
        finally:
            self._ticker.discard(exchange)
            exchange.close(self._clock.now())

    def authorize(self, scope: Scope, request: Request, record: Record | None) -> Named:
        """What a request names, if its sender may use it.

        Raises BadRequestError, PermissionDeniedError, and NotFoundError for a Sandbox of another tenant.
        """
        named = self._named(scope, request)
        if record is not None:
            record.sandbox = f"{named.namespace}/{named.name}"
        caller = current()
        require_use(caller, raw_path(scope))
        if not caller.sees_sandboxes_of(self._sandboxes.tenant_of(named.namespace)):
            raise NotFoundError(f"sandbox {named.name} not found in {named.namespace}")
        return named

    def _named(self, scope: Scope, request: Request) -> Named:
        port, timeout = RUNTIME_PORT, None
        for name, value in scope["headers"]:
            if name == PORT_HEADER:
                port = value
            elif name == TIMEOUT_HEADER:
                timeout = value
        sandbox, namespace = request.sandbox, request.sandbox_namespace or DEFAULT_NAMESPACE
        if not sandbox:
            raise BadRequestError("the request names no sandbox: send X-Sandbox-ID")
        if not _NAME.fullmatch(sandbox):
            raise BadRequestError(
                f"X-Sandbox-ID {_shown(sandbox)}: expected the name of a Sandbox (a-z, 0-9, '-', '.')"
            )
        if not _PORT.fullmatch(port) or int(port) > 65535:
            raise BadRequestError(f"X-Sandbox-Port {_shown(port)}: expected a number from 1 to 65535")
        seconds = self._limits.response_idle
        if timeout is not None:
            if not _SECONDS.fullmatch(timeout) or not float(timeout):
                raise BadRequestError(f"X-Sandbox-Timeout {_shown(timeout)}: expected seconds, above 0")
            seconds = min(seconds, float(timeout))
        return Named(namespace.decode(), sandbox.decode(), int(port), seconds)

    async def open(self, named: Named) -> OpenedSandbox:
        """The Sandbox, ready; held and woken if it is not. Raises what RoutedSandboxes.open does, QueueFullError."""
        if (live := self._sandboxes.live(named.namespace, named.name)) is not None:
            return live
        if self._activator.draining:
            raise DrainingError("this gateway is shutting down; connect again", retry_after=1)
        key = (named.namespace, named.name)
        held = self._held.get(key, 0)
        if held >= self._hold_each or self._held_total >= self._hold_total:
            raise QueueFullError("too many requests already wait for sandboxes on this gateway; try again shortly")
        self._held[key] = held + 1
        self._held_total += 1
        try:
            return await self._sandboxes.open(*key, min(self._start_timeout, named.timeout))
        finally:
            self._held_total -= 1
            self._held[key] -= 1
            if not self._held[key]:
                del self._held[key]

    async def _carry(self, scope: Scope, send: Send, exchange: Exchange, incoming: Incoming, named: Named) -> None:
        connection = await self.connect(named, partial(self._dial, named))
        exchange.use(connection, None)
        head = _request_head(scope, incoming.request, connection.host)
        await exchange.send_request(head, incoming.request, is_head=scope["method"] == "HEAD")
        await connection.response_head()
        start = exchange.answered()
        self._counters.stage("first_byte", start, perf_counter() - exchange.connected)
        if exchange.record is not None:
            exchange.record.start = StartKind.LIVE  # from here on a 403 is the pod's own
        await exchange.relay_response(send, [*response_fields(connection.headers), id_field(exchange.id_line)])

    async def connect(self, named: Named, dial: Callable[[str], Awaitable[C]]) -> C:
        """A new connection to the pod, at the address that `dial` is given. If there is none, and then news of its
        Sandbox, it is tried once more: nothing was sent. Raises UpstreamConnectError, and what `open` raises."""
        opened = await self.open(named)
        try:
            return await dial(opened.host)
        except UpstreamConnectError as error:
            if not await self._sandboxes.changed(opened, _NEWS_S):
                raise UpstreamConnectError(f"port {named.port} of sandbox {named.name}: {error}") from error
        opened = await self.open(named)
        try:
            return await dial(opened.host)
        except UpstreamConnectError as error:
            raise UpstreamConnectError(f"port {named.port} of sandbox {named.name}: {error}") from error

    def using(self, named: Named) -> AbstractContextManager[None]:
        """While a request for it is held or under way."""
        return self._sandboxes.using(named.namespace, named.name)

    def pool(self, host: str, named: Named) -> UpstreamPool:
        """For connections to a pod's address."""
        return UpstreamPool(Endpoint(host=host, port=named.port), connect_timeout=self._connect_timeout)

    async def _dial(self, named: Named, host: str) -> UpstreamConnection:
        # No connection is kept for the next request: how soon a server closes idle ones is its own affair (uvicorn, of
        # their runtime, after 5 s), and a POST that meets such an end could not be repeated. One costs a handshake.
        pool = self.pool(host, named)
        connection = await pool.dial()
        pool.close()
        return connection

    async def _fail(self, send: Send, exchange: Exchange, error: WakegateError) -> None:
        exchange.failed(error)
        self._counters.errors[error.code] += 1
        if not exchange.cut_off(error):
            await _send_error(send, error, exchange.id_line)

    async def refuse(self, send: Send, error: WakegateError, incoming: Incoming, record: Record | None = None) -> None:
        """Answer a request that was never under way."""
        if record is not None:
            record.error = error
        self._counters.errors[error.code] += 1
        self._counters.unrouted.answer(None, error.status, 0.0)
        await _send_error(send, error, incoming.id_line)


def request_lines(scope: Scope, request: Request) -> list[bytes]:
    """The header lines for the pod: the client's, without what is for this hop or proves who it is to us."""
    # Of no session of ours: what such a field means is the pod's affair.
    named = [b"%b: %b\r\n" % field for field in scope["headers"] if field[0] in SESSION_HEADERS]
    return [*request.lines, *request.extra, *named]


def response_fields(headers: Headers) -> Headers:
    """The pod's fields that go on to the client. It may set no cookies: all sandboxes have the same host name here, so
    those of one would be sent to the others."""
    kept = [field for field in confine_cookies(read_response(headers), None) if field[0] != b"x-content-type-options"]
    return [*kept, (b"x-content-type-options", b"nosniff")]


def error_document(error: WakegateError) -> bytes:
    """The body of an error."""
    text = public_message(error)
    return orjson.dumps({"detail": text, "message": text})


def _request_head(scope: Scope, request: Request, host: bytes) -> bytes:
    query: bytes = scope["query_string"]
    origin = origin_line(host) if request.own_origin else b""
    return b"%b %b%b HTTP/1.1\r\n%bhost: %b\r\n\r\n" % (
        scope["method"].encode("ascii"),
        raw_path(scope),
        b"?" + query if query or EMPTY_QUERY in scope else b"",
        b"".join(request_lines(scope, request)) + origin,
        host,
    )


async def _send_error(send: Send, error: WakegateError, id_line: bytes) -> None:
    if error.status >= 500:
        logger.warning("%s %s: %s", error.status, error.code, error)
    await send_answer(send, error.status, [*error_fields(error), id_field(id_line)], error_document(error))


def _shown(value: bytes) -> str:
    return repr(value[:_MAX_SHOWN].decode("latin-1"))
