"""One connection of a sandbox: which protocol it speaks, what it asks for, and its line in the access log.

http_proxy.py and socks5.py read what is asked for and call `reach`; what comes then is tunnel.py's or exchange.py's.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from gateway.egress.authority import Authority
from gateway.egress.dialer import Dialer, RefusedError, UnreachableError
from gateway.egress.limits import Account
from gateway.egress.log import Access, Outcome
from gateway.egress.notation import Egress
from gateway.egress.package_cache import PackageCache
from gateway.egress.policy import Target, Verdict
from gateway.egress.presets import PYPI
from gateway.egress.tls_stream import TlsStream

_HEAD_TIMEOUT_S = 15.0  # to say what is asked for
_READ_BYTES = 64 << 10


class GoneError(Exception):
    """The client has left, or took too long to say what it wants."""


@dataclass(slots=True)
class Shared:
    """What all connections of the service share. `record` takes a line of the log.

    `authority`: with whose certificates TLS is ended here; None: nowhere. `trusted`: how origins are verified then.
    """

    loop: asyncio.AbstractEventLoop
    dialer: Dialer
    record: Callable[[Access], None]
    now: Callable[[], float]  # epoch seconds
    authority: Authority | None
    trusted: ssl.SSLContext
    cache: PackageCache | None = None


class Client:
    """A connection that was accepted from a sandbox, until both of its sides are closed."""

    def __init__(
        self, shared: Shared, connection: socket.socket, sandbox: str, egress: Egress, account: Account, number: int
    ) -> None:
        self.shared, self.socket, self.egress, self.account = shared, connection, egress, account
        self.upstream: socket.socket | None = None
        self._sandbox, self._number = sandbox, number
        self._access: Access | None = None
        self._begun = self._logged = False
        self.moved = 0  # bytes, both ways: what does not grow is idle

    async def receive(self) -> bytes:
        """What comes next, at least a byte. Raises GoneError."""
        try:
            async with asyncio.timeout(_HEAD_TIMEOUT_S):
                data = await self.shared.loop.sock_recv(self.socket, _READ_BYTES)
        except (OSError, TimeoutError):
            raise GoneError from None
        if not data:
            raise GoneError
        return data

    async def send(self, data: bytes) -> None:
        """Send all of it. Raises GoneError if the client has left or reads nothing for too long."""
        try:
            async with asyncio.timeout(_HEAD_TIMEOUT_S):
                await self.shared.loop.sock_sendall(self.socket, data)
        except (OSError, TimeoutError):
            raise GoneError from None

    async def reach(self, target: Target, protocol: str) -> socket.socket:
        """A connection to what the client asks for, within its policy and its limits; writes the line of the log.

        Raises RefusedError, UnreachableError.
        """
        access = self._access = self._line(str(target.host), target.port, protocol)
        if self.ends_tls(target):
            target = replace(target, visible=True)
        try:
            await self.account.room()
            if excess := self.account.excess():
                setting = "the limit is in spec.wakegate.egressLimits of its runtime"
                raise RefusedError(Verdict(False, reason=excess, setting=setting))
            self.account.connections += 1  # before it is dialled, or many at once would all find room
            try:
                self.upstream, access.address, access.rule = await self.shared.dialer.dial(self.egress.layers, target)
            finally:
                if self.upstream is None:
                    self.account.connections -= 1
        except RefusedError as error:
            access.address = error.address
            access.reason, access.setting = error.verdict.reason, error.verdict.setting
            self._end(Outcome.REFUSED)
            raise
        except UnreachableError as error:
            access.reason = str(error)
            self._end(Outcome.FAILED)
            raise
        access.outcome = Outcome.OPEN
        self._record(access)
        return self.upstream

    def ends_tls(self, target: Target) -> bool:
        """Whether TLS to this target ends here, so that its requests are seen."""
        return self.shared.authority is not None and (self.egress.ends_tls(target) or self.cache(target) is not None)

    def cache(self, target: Target) -> PackageCache | None:
        """What may answer in place of the target: where a preset of packages allows it, and it gets no credential."""
        cache = self.shared.cache
        if cache is None or not cache.serves(target) or self.egress.credentials_for(target):
            return None
        # The preset says that its files may be shared. A name or `any` says only that the host may be reached: its TLS
        # is the sandbox's own business then, and is not ended for a cache that nobody asked for.
        rules = (rule for layer in self.egress.layers for rule in layer.rules)
        return cache if any(rule.text == PYPI and rule.matches(target.host, target.port) for rule in rules) else None

    def inner_tls(self, target: Target, received: bytes) -> TlsStream:
        """TLS with the client, as the target. `received`: what it has sent already."""
        assert self.shared.authority is not None
        context = self.shared.authority.context(target.host, self.shared.now())
        return TlsStream(
            self.shared.loop, self.socket, context, received=received, count_in=self.count_up, count_out=self.count_down
        )

    def outer_tls(self, target: Target) -> TlsStream:
        """TLS with the target, which has to prove who it is."""
        assert self.upstream is not None
        return TlsStream(self.shared.loop, self.upstream, self.shared.trusted, server_name=str(target.host))

    def requested(self, secrets: Iterable[str]) -> None:
        """Count a request that may be sent, and note the credentials that it gets."""
        access = self._access
        if access is not None:
            access.requests += 1
            access.secrets = ",".join(secrets)

    def answered_from_cache(self) -> None:
        """Count a request that the origin was not asked."""
        if self._access is not None:
            self._access.cached += 1

    def refuse(self, host: str, port: int, protocol: str, reason: str) -> None:
        """Write the line of what was refused without a look at the policy: what cannot be understood."""
        self._access = self._line(host[:253], port, protocol)
        self._access.reason = reason
        self._end(Outcome.REFUSED)

    def count_up(self, count: int) -> float:
        """Count bytes from the sandbox: as Pipe wants it."""
        return self._count(count, 0)

    def count_down(self, count: int) -> float:
        """Count bytes to the sandbox."""
        return self._count(0, count)

    def _count(self, up: int, down: int) -> float:
        self.moved += up + down
        access = self._access
        if access is not None:
            access.up += up
            access.down += down
        # Counted once they have been read: what a session moves beyond its limit is at most one piece of each
        # connection, 512 of 256 KiB, 128 MiB. Counting before would need to know how much comes.
        delay = self.account.moved(up, down, self.shared.loop.time())
        if self.account.is_spent:
            self.cut(f"this session has moved {self.account.limits.bytes} bytes, the most that its runtime allows")
            return -1.0
        return delay

    def cut(self, reason: str) -> None:
        """Say in the log why the connection ends; the first reason stays."""
        access = self._access
        # The first reason is the cause; what follows, such as a broken pipe, is what came of it.
        if access is not None and not access.reason:
            access.reason, access.outcome = reason[:500], Outcome.CUT

    def finish(self) -> None:
        """The connection has ended: close both sides, and write its last line."""
        access = self._access
        if access is not None and access.outcome in (Outcome.OPEN, Outcome.CUT):
            self._end(Outcome.CUT if access.outcome is Outcome.CUT else Outcome.CLOSED)
        self.socket.close()
        if self.upstream is not None:
            self.account.connections -= 1
            self.upstream.close()

    def _line(self, host: str, port: int, protocol: str) -> Access:
        egress = self.egress
        return Access(
            self._number, self.shared.now(), self._sandbox, egress.session, egress.tenant, protocol, host, port,
            Outcome.FAILED,
        )  # fmt: skip

    def _end(self, outcome: Outcome) -> None:
        access = self._access
        assert access is not None
        access.outcome = outcome
        access.seconds = round(self.shared.now() - access.at, 6)
        self._record(access)

    def _record(self, access: Access) -> None:
        """A connection has both of its lines or none: what is too much is left out, and counted in the next line."""
        begins = not self._begun
        self._begun = True
        if begins:
            self._logged = self.account.may_log(self.shared.loop.time())
            if self._logged:
                access.left_out, self.account.lines_left_out = self.account.lines_left_out, 0
        if self._logged:
            # A copy: counts of an open connection go on changing, and a line is what was so when it was written.
            self.shared.record(replace(access))
