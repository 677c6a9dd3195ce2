"""What the gateway's tests are made of: a sandbox played by a script, a client of bytes, and a gateway between them.

Both ends speak bare HTTP/1.1 over real sockets, so that a test can send what no library would.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import orjson
import pytest

from gateway.app.gateway import Gateway
from gateway.core.identity import Role
from gateway.core.model import Endpoint, RuntimeKey, SessionId
from gateway.serving.server import serving
from gateway.testing import EngineLike, ScriptedProvider, scripted_gateway
from tests.support.waiting import LIMIT_S, eventually

KEY = RuntimeKey("default", "my-interpreter")
Fields = list[tuple[str, str]]


async def reaches(read: Callable[[], object], value: object, what: str) -> None:
    """Wait until `read()` returns `value`; `what` names it in the failure."""
    await eventually(lambda: read() == value, what)


def read_fields(lines: list[bytes]) -> Fields:
    """Header lines as (lower-case name, value)."""
    return [
        (name.lower().strip(), value.strip()) for name, _, value in (x.decode("latin-1").partition(":") for x in lines)
    ]


@dataclass
class Message:
    """A request or a response as it was on the wire."""

    start: str
    fields: Fields
    body: bytes = b""

    @property
    def status(self) -> int:
        return int(self.start.split(" ", 2)[1])

    @property
    def method(self) -> str:
        return self.start.split(" ")[0]

    @property
    def path(self) -> str:
        return self.start.split(" ")[1]

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.fields if key == name]

    def get(self, name: str) -> str | None:
        """The value of a field that must not be there twice."""
        values = self.all(name)
        assert len(values) <= 1, (name, values)
        return values[0] if values else None

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)


class Wire:
    """One end of a connection, to send and read raw HTTP."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes | str) -> None:
        """Write; strings have their line ends turned into CRLF."""
        self.writer.write(data.replace("\n", "\r\n").encode("latin-1") if isinstance(data, str) else data)
        async with asyncio.timeout(LIMIT_S):
            await self.writer.drain()

    async def head(self) -> Message:
        """The next start line and fields, without a body."""
        async with asyncio.timeout(LIMIT_S):
            raw = await self.reader.readuntil(b"\r\n\r\n")
        start, *lines = raw[:-4].split(b"\r\n")
        return Message(start.decode("latin-1"), read_fields(lines))

    async def chunk(self) -> bytes:
        """The next chunk of a chunked body; empty at its end."""
        async with asyncio.timeout(LIMIT_S):
            size = int((await self.reader.readuntil(b"\r\n"))[:-2], 16)
            data = await self.reader.readexactly(size)
            assert await self.reader.readexactly(2) == b"\r\n"
        return data

    async def fill(self, message: Message, *, bodyless: bool = False) -> Message:
        """Read the body that belongs to a head."""
        length = message.get("content-length")
        async with asyncio.timeout(LIMIT_S):
            if bodyless:
                return message
            if (message.get("transfer-encoding") or "").lower() == "chunked":
                while data := await self.chunk():
                    message.body += data
            elif length is not None:
                message.body = await self.reader.readexactly(int(length))
            elif message.start.startswith("HTTP/"):
                message.body = await self.reader.read()
        return message

    async def closed(self) -> bytes:
        """What still comes until the other end closes or cuts."""
        rest = b""
        async with asyncio.timeout(LIMIT_S):
            with contextlib.suppress(ConnectionError):
                while data := await self.reader.read(65536):
                    rest += data
        return rest

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError, OSError):
            await self.writer.wait_closed()

    def abort(self) -> None:
        """Close the connection at once, without sending what is buffered."""
        self.writer.transport.abort()


class Client(Wire):
    """A client that sends raw HTTP to the gateway."""

    async def answer(self, *, method: str = "GET") -> Message:
        """Read the next response whole."""
        head = await self.head()
        return await self.fill(head, bodyless=method == "HEAD" or head.status in (204, 304))

    async def ask(self, text: str, body: bytes = b"") -> Message:
        """Send a request whose head is `text` (LF for CRLF) and read its answer."""
        await self.send(text.rstrip("\n").replace("\n", "\r\n").encode("latin-1") + b"\r\n\r\n" + body)
        return await self.answer(method=text.split(" ")[0])


class Call(Wire):
    """One request at the scripted sandbox; the body is read when asked for."""

    request: Message

    async def body(self) -> bytes:
        return (await self.fill(self.request)).body

    async def reply(self, body: bytes = b"ok", status: str = "200 OK", fields: str = "") -> None:
        """A whole answer with Content-Length."""
        await self.send(
            f"HTTP/1.1 {status}\ncontent-length: {len(body)}\n{fields}\n".replace("\n", "\r\n").encode() + body
        )


Script = Callable[[Call], Awaitable[None]]


async def say_ok(call: Call) -> None:
    """The default script: read the body, answer 200 with `ok`."""
    await call.body()
    await call.reply()


class ScriptedSandbox:
    """An HTTP/1.1 server whose answers are a script. It keeps connections alive until the script closes them."""

    def __init__(self, script: Script = say_ok) -> None:
        self.script = script
        self.requests: list[Message] = []
        self.dials = 0
        self.calls: list[Call] = []
        self.left = 0  # connections that the gateway closed
        self.endpoint = Endpoint()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self, uds: Path | None = None) -> None:
        if uds is not None:
            self._server = await asyncio.start_unix_server(self._accept, uds)
            self.endpoint = Endpoint(uds=str(uds))
        else:
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
            self.endpoint = Endpoint(host="127.0.0.1", port=self._server.sockets[0].getsockname()[1])

    async def aclose(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for call in self.calls:
            call.abort()
        await asyncio.sleep(0)

    def cut(self) -> None:
        """Break every open connection."""
        for call in self.calls:
            call.abort()

    def stop_listening(self) -> None:
        """Refuse dials from now on, and break what is open."""
        assert self._server is not None
        self._server.close()
        self.cut()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.dials += 1
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                call = Call(reader, writer)
                raw = await reader.readuntil(b"\r\n\r\n")
                start, *lines = raw[:-4].split(b"\r\n")
                call.request = Message(start.decode("latin-1"), read_fields(lines))
                self.requests.append(call.request)
                self.calls.append(call)
                await self.script(call)
                if writer.is_closing():
                    return
        except (ConnectionError, asyncio.IncompleteReadError):
            self.left += 1
        finally:
            writer.close()


@dataclass
class Served:
    """A gateway that runs, with clients to it."""

    url: str
    gateway: Gateway
    provider: Any
    server: asyncio.Task[None]
    clients: list[Client] = field(default_factory=list)

    async def connect(self, *, read_limit: int = 1 << 20) -> Client:
        """A bare connection. `read_limit`: bytes that the client takes before it must be read from."""
        parts = urlsplit(self.url)
        client = Client(*await asyncio.open_connection(parts.hostname, parts.port, limit=read_limit))
        self.clients.append(client)
        return client

    async def ask(self, text: str, body: bytes = b"") -> Message:
        """Send one request on a new connection."""
        client = await self.connect()
        try:
            return await client.ask(text, body)
        finally:
            await client.close()

    async def session(self, **fields: Any) -> SessionId:
        """A new session's id, made without a request."""
        return (await self.gateway.lifecycle.create(KEY, **fields)).session.id


@contextlib.asynccontextmanager
async def served(folder: Path, provider: EngineLike, **changes: Any) -> AsyncIterator[Served]:
    """Serve a gateway over a provider. `changes` as `gateway.testing.scripted_gateway` takes them."""
    gateway = scripted_gateway(folder / "state", provider, **{"drain_timeout": 5.0, **changes})
    async with serving(gateway) as (url, server):
        one = Served(url, gateway, provider, server)
        try:
            yield one
        finally:
            for client in one.clients:
                client.abort()


@contextlib.asynccontextmanager
async def scripted(
    folder: Path, script: Script = say_ok, **changes: Any
) -> AsyncIterator[tuple[Served, ScriptedSandbox]]:
    """A gateway whose every sandbox is one scripted server on TCP."""
    sandbox = ScriptedSandbox(script)
    await sandbox.start()
    try:
        async with served(folder, ScriptedProvider(sandbox.endpoint), **changes) as gateway:
            yield gateway, sandbox
    finally:
        await sandbox.aclose()


def get(session: str, path: str = "/", extra: str = "", method: str = "GET") -> str:
    return f"{method} {path} HTTP/1.1\nhost: h\nx-session-id: {session}\n{extra}"


async def key_of(gateway: Served, tenant: str, role: Role = Role.MEMBER) -> str:
    """A new API key of a tenant; the gateway is one with `auth`."""
    authenticator = gateway.gateway.surfaces.keys.authenticator
    assert authenticator is not None
    return (await authenticator.directory.create(role=role, tenant=tenant))[0]


class OpenScripted(Protocol):
    """Opens a gateway over one scripted sandbox; settings as keywords."""

    async def __call__(self, script: Script = say_ok, **changes: Any) -> tuple[Served, ScriptedSandbox]: ...


SHARED = pytest.mark.asyncio(loop_scope="module")


def slots_free(gateway: Served) -> bool:
    """Whether no request is in flight on any route."""
    return all(route.in_flight == 0 for route in gateway.gateway.activator.routes.values())


async def slow_reader(gateway: Served, session: str, path: str = "/") -> socket.socket:
    """A raw client that has sent a GET and reads nothing; its receive buffer is 64 KiB."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    host, _, port = gateway.url.removeprefix("http://").rpartition(":")
    loop = asyncio.get_running_loop()
    sock.setblocking(False)
    await loop.sock_connect(sock, (host, int(port)))
    await loop.sock_sendall(sock, get(session, path, "\n").replace("\n", "\r\n").encode() + b"\r\n")
    return sock
