"""The egress service: accepts the connections of sandboxes, serves them, and tells the gateway what they did.

A sandbox's listening socket lies in its own network namespace, where only it can connect: so whose connection it is
need not be asked. The gateway hands the sockets over, and keeps copies, so that connections made while this process is
started anew wait in the kernel. In a cluster all sandboxes connect to one port, and say whose they are (entrance.py).
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import socket
import ssl
import time
from collections.abc import Sequence
from ipaddress import ip_network
from pathlib import Path

from gateway.core.quota import Part
from gateway.egress.authority import Authority
from gateway.egress.channel import Channel, Message
from gateway.egress.client import Client, GoneError, Shared
from gateway.egress.dialer import Dialer, tune
from gateway.egress.entrance import Entrance, let_read
from gateway.egress.http_proxy import serve_http
from gateway.egress.limits import Account, accepts
from gateway.egress.log import Access
from gateway.egress.notation import Egress, read_grant
from gateway.egress.package_cache import PackageCache
from gateway.egress.parts import Parts
from gateway.egress.resolver import Resolver, SystemResolver
from gateway.egress.socks5 import VERSION, serve_socks

logger = logging.getLogger(__name__)

REPORT_INTERVAL_S = 0.1  # at which lines of the log and counts go to the gateway
_IDLE_S, _IDLE_CHECK_S = (
    900.0,
    15.0,
)  # after which a connection without a byte is closed, and how often that is looked at
_MAX_LINES = 10_000  # of the log that the gateway has not taken
_MAX_BEHIND_BYTES = 4 << 20
# A backlog of 1024 that is taken at once would, at 50 us each, keep running transfers waiting for 50 ms.
_ACCEPTS = 16  # in one step
_SPARE_FDS = 64
# Sandboxes in a cluster whose counts are kept though none of their connections is open. One that is forgotten counts
# its bytes anew from zero.
_MAX_QUIET = 4096


class _Slot:
    """A sandbox as the service has it: its listener (in a cluster there is none), whose it is now, its connections."""

    def __init__(self, name: str, listener: socket.socket | None, egress: Egress, account: Account, now: float) -> None:
        self.name, self.listener, self.egress = name, listener, egress
        self.account = account
        self.accepts = accepts(now)
        self.tasks: dict[asyncio.Task[None], Client] = {}
        self.reported = (0, 0)
        self.accepting = False

    def cut(self) -> None:
        for task in list(self.tasks):
            task.cancel()


class Service:
    """The egress service's process: listeners of sandboxes, their policies and their connections.

    `channel_end`: to the gateway; when that is closed, `ended` is set.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        channel_end: socket.socket,
        *,
        refused: Sequence[str] = (),
        resolver: Resolver | None = None,
        authority: Path | None = None,
        trusted: Path | None = None,
        cache: PackageCache | None = None,
    ) -> None:
        """`authority`: the folder of the one with which TLS is ended. `trusted`: origins' authorities besides the
        machine's, PEM. Raises OSError, ValueError."""
        self._loop = loop
        self.ended = asyncio.Event()
        self._channel = Channel(loop, channel_end, self._on_message, self.ended.set)
        dialer = Dialer(resolver or SystemResolver(), [ip_network(each) for each in refused])
        self._shared = Shared(
            loop, dialer, self._record,
            time.time,  # noqa: TID251 - a process of its own, without a Clock
            None if authority is None else Authority(authority), _trusting(trusted), cache,
        )  # fmt: skip
        self._cached = (0, 0, 0, 0)
        self._slots: dict[str, _Slot] = {}
        self._entrance: Entrance | None = None
        self._parts: Parts | None = None
        self._lines: list[Access] = []
        self._lines_lost = 0
        self._connections = self._numbered = 0
        # Three descriptors to a connection: the client's, the origin's, and one in a file of the cache or a lookup. At
        # the limit the rest waits in the kernel; to run out in the middle of a connection would break one that was
        # promised.
        self._most = max(16, (resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _SPARE_FDS) // 3)

    async def run(self) -> None:
        """Serve until the gateway closes its end."""
        self._channel.send({"op": "ready"})
        idle = self._loop.create_task(self._close_idle())
        report = self._loop.create_task(self._report())
        await self.ended.wait()
        idle.cancel()
        report.cancel()
        if self._entrance is not None:
            self._entrance.close()
        for name in list(self._slots):
            self._close(name)

    # What the gateway says.

    def _on_message(self, message: Message, fds: Sequence[int]) -> None:
        op, name = message["op"], message.get("sandbox", "")
        if op == "open":
            self._open(name, socket.socket(fileno=fds[0]), read_grant(message["grant"]))
        elif op == "bind" and name in self._slots:
            self._bind(self._slots[name], read_grant(message["grant"]), keep=message["keep"])
        elif op == "close":
            self._close(name)
        elif op == "listen":
            self._entrance = self._listen(socket.socket(fileno=fds[0]))
            self._parts = Parts(self._loop, self._channel.send) if message["shared"] else None
        elif op == "part" and self._parts is not None:
            part = message["part"]
            self._parts.answered(message["number"], None if part is None else Part(**part))
        elif op == "whose" and self._entrance is not None:
            if name:
                self._enter(name, read_grant(message["grant"]))
            self._entrance.answered(message["number"], name)

    def _listen(self, listener: socket.socket) -> Entrance:
        return Entrance(
            self._loop, listener,
            ask=lambda number, token: self._channel.send({"op": "who", "number": number, "token": token}),
            serve=self._serve_known,
            knows=self._slots.__contains__,
            has_room=lambda: self._connections < self._most,
        )  # fmt: skip

    def _enter(self, name: str, egress: Egress) -> None:
        """A sandbox of the cluster: what it may reach, as of now."""
        slot = self._slots.pop(name, None)
        if slot is None:
            slot = _Slot(name, None, egress, self._account(name, egress), self._loop.time())
        elif slot.egress != egress:
            self._bind(slot, egress, keep=slot.egress.session == egress.session)
        self._slots[name] = slot  # the last: those at the front have been quiet for longest
        if len(self._slots) > _MAX_QUIET:
            quiet = next((each for each, found in self._slots.items() if not found.tasks and each != name), None)
            if quiet is not None:
                self._close(quiet)

    def _open(self, name: str, listener: socket.socket, egress: Egress) -> None:
        self._close(name)
        listener.setblocking(False)
        now = self._loop.time()
        slot = self._slots[name] = _Slot(name, listener, egress, Account(egress.limits, now), now)
        self._accept_on(slot, listener)

    def _bind(self, slot: _Slot, egress: Egress, *, keep: bool) -> None:
        """Another policy from now on. Unless `keep`, as for another session: connections end, counts begin anew."""
        slot.egress = egress
        if keep:
            slot.account.limits = egress.limits
        else:
            self._report_bytes(slot)
            slot.cut()
            # Anew: the bytes of the session before are not this one's. A warm sandbox has moved some, too.
            account = self._account(slot.name, egress) if slot.listener is None else None
            self._leave(slot)
            slot.account, slot.reported = account or Account(egress.limits, self._loop.time()), (0, 0)

    def _account(self, name: str, egress: Egress) -> Account:
        """Of a sandbox that comes by the entrance."""
        if self._parts is None:
            return Account(egress.limits, self._loop.time())
        return self._parts.account(f"{name}:{egress.session}", egress.limits)

    def _leave(self, slot: _Slot) -> None:
        if self._parts is not None:
            self._parts.leave(slot.account)

    def _close(self, name: str) -> None:
        slot = self._slots.pop(name, None)
        if slot is not None:
            if slot.listener is not None:
                if slot.accepting:
                    self._loop.remove_reader(slot.listener.fileno())
                    slot.accepting = False
                slot.listener.close()
            slot.cut()
            self._report_bytes(slot)
            self._leave(slot)

    # Connections.

    def _accept_on(self, slot: _Slot, listener: socket.socket) -> None:
        if listener.fileno() >= 0 and not slot.accepting:
            slot.accepting = True
            self._loop.add_reader(listener.fileno(), self._accept, slot, listener)

    def _accept(self, slot: _Slot, listener: socket.socket) -> None:
        for _ in range(_ACCEPTS):
            wait = 0.25 if self._connections >= self._most else slot.accepts.take(1, self._loop.time())
            try:
                connection = None if self._connections >= self._most else listener.accept()[0]
            except (BlockingIOError, InterruptedError, ConnectionError):
                return
            except OSError as error:
                logger.warning("egress of sandbox %s: cannot accept: %s", slot.name, os.strerror(error.errno or 0))
                connection, wait = None, 0.25
            if connection is not None:
                self._serve_soon(slot, connection)
            if wait:  # the rest waits in the kernel
                self._loop.remove_reader(listener.fileno())
                slot.accepting = False
                self._loop.call_later(wait, self._accept_on, slot, listener)
                return

    def _serve_soon(self, slot: _Slot, connection: socket.socket, received: bytes = b"") -> None:
        """`received`: what has come already, of a connection that had to say whose it is."""
        connection.setblocking(False)
        tune(connection)
        self._numbered += 1
        self._connections += 1
        client = Client(self._shared, connection, slot.name, slot.egress, slot.account, self._numbered)
        task = self._loop.create_task(self._serve(client, received))
        slot.tasks[task] = client
        task.add_done_callback(lambda done: self._served(slot, done))

    def _serve_known(self, name: str, connection: socket.socket, received: bytes) -> None:
        """One that came by the entrance. Beyond the rate it is closed: there is no queue of this sandbox's alone."""
        slot = self._slots.get(name)
        if slot is None or not slot.accepts.try_take(self._loop.time()):
            connection.close()
        else:
            self._serve_soon(slot, connection, received)

    def _served(self, slot: _Slot, task: asyncio.Task[None]) -> None:
        del slot.tasks[task]
        self._connections -= 1

    async def _serve(self, client: Client, received: bytes) -> None:
        try:
            data = received or await client.receive()
            await (serve_socks if data[0] == VERSION else serve_http)(client, data)
            if client.upstream is None:
                await let_read(self._loop, client.socket)
        except GoneError:
            pass
        except Exception:
            logger.exception("a connection of a sandbox")
        finally:
            client.finish()

    async def _close_idle(self) -> None:
        seen: dict[Client, tuple[int, float]] = {}
        while True:
            await asyncio.sleep(_IDLE_CHECK_S)
            now, still = self._loop.time(), {}
            for slot in self._slots.values():
                for task, client in slot.tasks.items():
                    moved, since = seen.get(client, (-1, now))
                    still[client] = (client.moved, since if moved == client.moved else now)
                    if now - still[client][1] >= _IDLE_S:
                        client.cut(f"no byte for {_IDLE_S:g} s")
                        task.cancel()
            seen = still

    # What the gateway is told.

    def _record(self, access: Access) -> None:
        if len(self._lines) < _MAX_LINES:
            self._lines.append(access)
        else:
            self._lines_lost += 1

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(REPORT_INTERVAL_S)
            self._report_now()
            if self._parts is not None:
                self._parts.beat()

    def _report_now(self) -> None:
        if self._channel.waiting_bytes > _MAX_BEHIND_BYTES:
            return  # lines wait here, and are counted when they are too many
        for slot in self._slots.values():
            self._report_bytes(slot)
        self._report_cache()
        if self._lines:
            lines, self._lines = self._lines, []
            lost, self._lines_lost = self._lines_lost, 0
            self._channel.send({"op": "log", "lines": [line.document() for line in lines], "lost": lost})

    def _report_cache(self) -> None:
        cache = self._shared.cache
        if cache is not None and self._cached != (now := (cache.hits, cache.misses, cache.hit_bytes, cache.bytes)):
            hits, misses, saved, _ = (new - old for new, old in zip(now, self._cached, strict=True))
            self._cached = now
            self._channel.send({"op": "cache", "hits": hits, "misses": misses, "saved": saved, "held": cache.bytes})

    def _report_bytes(self, slot: _Slot) -> None:
        """What a session has moved since the last report."""
        now = (slot.account.up, slot.account.down)
        up, down = now[0] - slot.reported[0], now[1] - slot.reported[1]
        if up or down:
            slot.reported = now
            self._channel.send({"op": "bytes", "session": slot.egress.session, "up": up, "down": down})


def _trusting(more: Path | None) -> ssl.SSLContext:
    """How origins are verified: by the machine's authorities and those of the operator."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    if more is not None:
        context.load_verify_locations(more)
    return context
