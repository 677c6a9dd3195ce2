"""The gateway's own requests to a sandbox: the tool surfaces call picod through the same parts as the data path.

So such a call wakes a hibernated session, takes a slot, counts as activity, is held and refused by the same rules, and
a sandbox that is gone before anything was sent is replaced once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from gateway.core.clock import Clock
from gateway.core.errors import UpstreamBrokenError, UpstreamConnectError, UpstreamTimeoutError
from gateway.core.identity import current
from gateway.core.model import Kind, Readiness, SandboxReply, SessionId, StartKind
from gateway.identity.peers import PEER_HEADER
from gateway.routing.activator import Activator
from gateway.routing.connection import CHUNKED, UpstreamConnection
from gateway.routing.reservation import Reservation
from gateway.routing.responses import restored_in
from gateway.routing.route import Route
from gateway.routing.target import Target

logger = logging.getLogger(__name__)


class Caller:
    """A SandboxCaller over the activator."""

    def __init__(self, activator: Activator, clock: Clock) -> None:
        self._activator = activator
        self._clock = clock

    def acknowledge(self, session_id: SessionId, restored: str) -> None:
        """An answer that said `restored` was delivered."""
        self._activator.acknowledge(session_id, restored)

    async def ready(self, session_id: SessionId) -> Readiness:
        """See to it that the session has a live sandbox."""
        reservation = await self._reserve(Target(session_id, None, b"/"))
        reservation.route.leave(self._clock.now())  # only the sandbox was wanted, and not a turn at it
        return Readiness(reservation.route.runtime, reservation.start, reservation.restored)

    async def call(
        self,
        session_id: SessionId,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | AsyncIterator[bytes] = b"",
        timeout: float = 60.0,
        limit: int = 64 << 20,
    ) -> SandboxReply:
        """Send, and read the whole answer."""
        whole = bytearray()
        try:
            async with asyncio.timeout(timeout):
                async with self.stream(session_id, method, path, headers=headers, body=body) as (reply, chunks):
                    async for chunk in chunks:
                        whole += chunk
                        if len(whole) > limit:
                            raise UpstreamBrokenError(f"the sandbox's answer is larger than {limit} bytes")
        except TimeoutError:
            raise UpstreamTimeoutError(f"the sandbox did not answer within {timeout:g} s") from None
        return SandboxReply(reply.status, reply.headers, reply.start, bytes(whole), reply.restored)

    @asynccontextmanager
    async def stream(
        self,
        session_id: SessionId,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | AsyncIterator[bytes] = b"",
    ) -> AsyncIterator[tuple[SandboxReply, AsyncIterator[bytes]]]:
        """Send, and hand out the answer's head and its body as it comes."""
        target = Target(session_id, None, path.encode("ascii"))
        reservation = await self._reserve(target)
        held: Route | None = reservation.route
        connection: UpstreamConnection | None = None
        try:
            connection = reservation.route.pool_for(target.path).take()
            if connection is None:
                try:
                    connection = await reservation.route.dial(target.path)
                except UpstreamConnectError as error:
                    if not error.no_listener:
                        raise
                    logger.warning("session %s: %s; it is replaced", session_id, error)
                    reservation.route.leave(self._clock.now())
                    held = None  # for the case that `replace` raises: a slot is given back once
                    reservation = await self._activator.replace(reservation.route, target)
                    held = reservation.route
                    connection = await held.dial(target.path)
            await _send(connection, _head(method, target.path, headers, body, reservation), body)
            await connection.response_head()
            reservation.route.check_token_accepted(connection.status, connection.headers, target.path)
            fields = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in connection.headers}
            restored = reservation.restored
            if reservation.route.peer:  # its gateway found the loss; from a sandbox that header means nothing
                restored = restored_in(connection.headers)
            reply = SandboxReply(connection.status, fields, reservation.start, restored=restored)
            yield reply, _chunks(connection)
        except BaseException:
            if connection is not None:
                connection.abort()  # picod sees a client that left, and ends what it runs for it
            raise
        finally:
            if connection is not None:
                connection.finish()
            if held is not None:
                held.leave(self._clock.now())

    async def _reserve(self, target: Target) -> Reservation:
        route = self._activator.live(target, self._clock.now())
        return await self._activator.reserve(target) if route is None else Reservation(route, StartKind.LIVE)


def _head(
    method: str,
    path: bytes,
    headers: Mapping[str, str] | None,
    body: bytes | AsyncIterator[bytes],
    reservation: Reservation,
) -> bytes:
    lines = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
    if not isinstance(body, bytes):
        lines += "transfer-encoding: chunked\r\n"
    elif body or method in ("POST", "PUT"):  # an empty body too, by RFC 9110 8.6
        lines += f"content-length: {len(body)}\r\n"
    route = reservation.route
    if route.peer:
        if route.runtime.kind is Kind.AGENT_RUNTIME:
            # Another gateway takes some paths of an agent, such as /health, for its own if they come bare.
            named = route.runtime
            prefix = f"/v1/namespaces/{named.namespace}/{named.kind.segment}/{named.name}/invocations"
            path = prefix.encode() + path
        lines += f"{PEER_HEADER}: {route.peer.sign(current(), method, path.partition(b'?')[0]).decode()}\r\n"
    return b"%b %b HTTP/1.1\r\n%b%b\r\n" % (method.encode(), path, lines.encode("latin-1"), route.head)


async def _send(connection: UpstreamConnection, head: bytes, body: bytes | AsyncIterator[bytes]) -> None:
    """Send the request, or as much of it as the sandbox wants: it may answer before it had all of the body."""
    if isinstance(body, bytes):
        connection.begin(head + body)
        return
    connection.begin(head, owed=CHUNKED)
    async for chunk in body:
        if connection.status or connection.error:
            return  # the caller reads the answer; `finish` closes a connection that still owes a body
        if chunk:
            await connection.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
    await connection.write(b"0\r\n\r\n")
    connection.end_body()


async def _chunks(connection: UpstreamConnection) -> AsyncIterator[bytes]:
    more = True
    while more:
        data, more = await connection.read()
        if data:
            yield data
