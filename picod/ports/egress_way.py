"""The egress proxy's address in a pod: a listener on its loopback, and a way from there to the gateway's service.

On one machine the service accepts from the sandbox itself (egress.py); from another node it cannot. So each connection
is dialled on here to an address that the gateway has told, with a line in front that says whose it is. What is allowed
is decided behind that address: this process shares its pod with the code of users, which may read the line, send it
itself, or leave this process out. It gains nothing by that: a NetworkPolicy lets the pod reach the service alone, and
the line stands for this session and its rules.

    WAKEGATE-EGRESS token\\n, then what the client sends; nothing is answered to the line itself
"""

from __future__ import annotations

import asyncio
import errno
import socket
from ipaddress import ip_address

from picod import wire
from picod.http.request import Request, RequestError, reason_of

_BACKLOG = 1024
_MAX_CONNECTIONS = 512  # that are being passed on, two descriptors each; more wait in the kernel
_MAX_BODY_BYTES = 8192
_DIAL_TIMEOUT_S = 10.0
# From when a session is bound until the gateway has sent the service's address: a request of its own, some
# milliseconds. Code that asks sooner waits, and is not refused for having been fast.
_WAY_TIMEOUT_S = 10.0
# As for the largest pieces of a local sandbox. 64 KiB costs a third of the rate: a turn of the loop for each piece.
_PIECE_BYTES = 256 << 10


class EgressWay:
    """The listener, and the service's address and token once the gateway has sent them.

    Raises OSError if the port is taken: picod must be first to have it.
    `host`: where code finds the proxy, 127.0.0.1 but for tests in which pods share an interface.
    """

    def __init__(self, host: str) -> None:
        self._listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._listener.bind((host, wire.EGRESS_PORT))
            self._listener.listen(_BACKLOG)
        except OSError:
            self._listener.close()
            raise
        self._listener.setblocking(False)
        self._address: tuple[str, int] | None = None
        self._line = b""
        self._told = asyncio.Event()
        self._connections: set[asyncio.Task[None]] = set()

    def go(self, address: tuple[str, int], token: str) -> None:
        """The way from now on; what waited for it goes."""
        self._address, self._line = address, f"{wire.EGRESS_GREETING} {token}\n".encode()
        self._told.set()

    async def run(self) -> None:
        """Accept until cancelled; then every connection ends."""
        loop = asyncio.get_running_loop()
        room = asyncio.Semaphore(_MAX_CONNECTIONS)
        try:
            while True:
                await room.acquire()
                try:
                    client, _ = await loop.sock_accept(self._listener)
                except OSError as error:
                    room.release()
                    if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                        await asyncio.sleep(0.25)  # until something closes: the listener stays readable
                    continue
                task = loop.create_task(self._serve(client))
                self._connections.add(task)
                task.add_done_callback(self._connections.discard)
                task.add_done_callback(lambda _: room.release())
        finally:
            self._listener.close()
            for task in self._connections:
                task.cancel()

    async def _serve(self, client: socket.socket) -> None:
        with client:
            client.setblocking(False)
            try:
                service = await self._dial()
            except OSError as error:
                await _answer(client, error)
                return
            with service:
                await _both(client, service, self._line)

    async def _dial(self) -> socket.socket:
        """Raises OSError, of which TimeoutError is one."""
        async with asyncio.timeout(_WAY_TIMEOUT_S):
            await self._told.wait()
        assert self._address is not None
        service = socket.socket(socket.AF_INET6 if ":" in self._address[0] else socket.AF_INET, socket.SOCK_STREAM)
        try:
            service.setblocking(False)
            service.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            service.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            async with asyncio.timeout(_DIAL_TIMEOUT_S):
                await asyncio.get_running_loop().sock_connect(service, self._address)
        except BaseException:
            service.close()
            raise
        return service


async def tell(way: EgressWay | None, request: Request) -> None:
    """PUT /api/egress, {"address": "10.96.0.7:3129", "token": text}: where to connect from now on.

    404 in a sandbox without egress, 400 for a body that is anything else.
    """
    from picod.http.json_fields import parse_object, text_field

    fields = parse_object(await request.body(_MAX_BODY_BYTES), "Egress")
    if way is None:
        raise RequestError(404, "this sandbox has no egress through the gateway")
    address, token = text_field(fields, "Egress", "address") or "", text_field(fields, "Egress", "token") or ""
    if not token.isascii() or not token.isprintable() or not token or " " in token:
        raise RequestError(400, "token: expected one line of printable ASCII without spaces")
    way.go(_split(address), token)
    await request.answer_json(200, {})


def _split(address: str) -> tuple[str, int]:
    """Raises RequestError. An address and no name: there is no DNS in a sandbox."""
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    try:
        if not (port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 65536):
            raise ValueError("no port")
        return str(ip_address(host)), int(port)
    except ValueError:
        raise RequestError(400, "address: expected ADDRESS:PORT such as 10.96.0.7:3129") from None


async def _answer(client: socket.socket, error: OSError) -> None:
    """Why nothing is passed on, as a proxy says it."""
    why = "does not answer" if isinstance(error, TimeoutError) else reason_of(error)
    head = f"HTTP/1.1 502 egress failed: the gateway's egress service {why}\r\n"
    try:
        async with asyncio.timeout(_DIAL_TIMEOUT_S):
            text = f"{head}Content-Length: 0\r\nConnection: close\r\n\r\n".encode()
            await asyncio.get_running_loop().sock_sendall(client, text)
            client.shutdown(socket.SHUT_WR)
            # To its end: closing with the request unread would reset the connection, and lose the answer.
            while await asyncio.get_running_loop().sock_recv(client, _PIECE_BYTES):
                pass
    except OSError:
        pass


async def _both(client: socket.socket, service: socket.socket, line: bytes) -> None:
    """Bytes both ways until each side has ended what it sends, or one has failed."""
    up = asyncio.ensure_future(_pass(client, service, line))
    down = asyncio.ensure_future(_pass(service, client, b""))
    try:
        while not (up.done() and down.done()):
            await asyncio.wait([each for each in (up, down) if not each.done()], return_when=asyncio.FIRST_COMPLETED)
            if any(each.done() and not each.result() for each in (up, down)):
                return
    finally:
        up.cancel()
        down.cancel()
        # Before the sockets are closed: a number that is closed here may be another connection's a moment later, while
        # the loop still watches it for this one.
        await asyncio.wait((up, down))


async def _pass(source: socket.socket, target: socket.socket, first: bytes) -> bool:
    """Whether it went well to the end of what the source sends."""
    loop, data = asyncio.get_running_loop(), first
    try:
        while True:
            if data:
                await loop.sock_sendall(target, data)
            # A new piece each time: one buffer for each direction of 512 idle connections would be 256 MiB.
            data = await loop.sock_recv(source, _PIECE_BYTES)
            if not data:
                target.shutdown(socket.SHUT_WR)
                return True
    except OSError:
        return False
