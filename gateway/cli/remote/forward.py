"""port-forward: a server in a session, as if it ran on this machine.

The gateway serves a port below /v1/sessions/ID/ports/PORT/. Here each connection's one request gets that path, the
gateway's Host and the key; the answer's redirects and cookies lose the path again. Bytes after the heads pass as they
are, so uploads, streams and WebSockets work. The listener is on loopback, and answers to names of this machine only:
a web page whose name was made to lead here (DNS rebinding) must not use the key.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
from typing import Annotated
from urllib.parse import urlsplit

import typer

from gateway.cli.remote.connection import SessionId, Target, over_api, tls_of
from gateway.cli.remote.screen import note
from gateway.core.addresses import is_loopback
from gateway.core.errors import SettingsError
from wakegate_client import Client
from wakegate_client.calls import of_session

MAX_HEAD_BYTES = 64 << 10
_MAX_CONNECTIONS = 128
_CHUNK_BYTES = 64 << 10
_PORTS = re.compile(r"([0-9]{1,5})(?::([0-9]{1,5}))?")
_COOKIE_PATH = re.compile(rb"(?i)(;\s*path=)([^;]*)")
# Those of one connection, and who the page says that it is: the key of this command takes their place.
_DROPPED = (b"host", b"connection", b"authorization", b"x-api-key", b"proxy-connection", b"keep-alive")


@over_api
def port_forward(
    gateway: Client,
    target: Target,
    session: SessionId,
    ports: Annotated[list[str], typer.Argument(metavar="PORT[:LOCAL]...", show_default=False)],
) -> None:
    """Serve ports of a session on 127.0.0.1 until Ctrl-C: HTTP and WebSockets.

    \b
    wakegate port-forward ID 8000
    wakegate port-forward ID 8000:3000 5173
    """
    pairs = [_pair(each) for each in ports]
    gateway.get_session(session)
    # SIGTERM ends it at once: there is nothing to put in order, and one connection that hangs would keep it.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    asyncio.run(_forward(target, session, pairs))


def _pair(text: str) -> tuple[int, int]:
    found = _PORTS.fullmatch(text)
    numbers = [int(each) for each in found.groups(default=found[1])] if found else [0]
    if not all(0 < each < 65536 for each in numbers):
        raise SettingsError([f"{text}: expected PORT or PORT:LOCAL, from 1 to 65535"])
    return numbers[0], numbers[-1]


async def _forward(target: Target, session: str, pairs: list[tuple[int, int]]) -> None:
    servers = []
    for port, local in pairs:
        prefix = f"{urlsplit(target.url).path.rstrip('/')}{of_session(session)}/ports/{port}"
        connection = _Connections(target, prefix.encode())
        try:
            servers.append(await asyncio.start_server(connection.serve, "127.0.0.1", local, limit=MAX_HEAD_BYTES))
        except OSError as error:
            free = f"name another local one: {port}:PORT"
            raise OSError(
                error.errno, f"port {local} of this machine cannot be used ({_why(error)}); {free}"
            ) from error
        print(f"http://127.0.0.1:{local} -> port {port} of {session}", flush=True)
    await asyncio.gather(*(server.serve_forever() for server in servers))


def _why(error: OSError) -> str:
    return os.strerror(error.errno).lower() if error.errno else str(error)  # asyncio's own text has it twice


class _Connections:
    """The connections of one forwarded port."""

    def __init__(self, target: Target, prefix: bytes) -> None:
        self._target, self._prefix, self._open = target, prefix, 0
        self._address = urlsplit(target.url)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, to its end."""
        self._open += 1
        upstream: asyncio.StreamWriter | None = None
        try:
            if self._open > _MAX_CONNECTIONS:
                raise _RefusedError(503, "too many connections")
            head = request_head(await _head(reader), self._prefix, self._address.netloc.encode(), self._target.key)
            tls = tls_of(self._target)
            port = self._address.port or (443 if tls else 80)
            try:
                answers, upstream = await asyncio.open_connection(
                    self._address.hostname, port, ssl=tls, limit=MAX_HEAD_BYTES
                )
            except OSError as error:
                note(f"{self._target.url}: {error}")
                raise _RefusedError(502, "the gateway cannot be reached") from error
            upstream.write(head)
            sending = asyncio.create_task(_pump(reader, upstream))
            try:
                writer.write(response_head(await _head(answers), self._prefix))
                await _pump(answers, writer)
            finally:
                # The answer's end is the exchange's: an upload that it refused would otherwise be read to its end.
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
        except _RefusedError as refused:
            writer.write(refused.answer())
        except (OSError, EOFError, asyncio.LimitOverrunError):
            pass  # one side left
        finally:
            self._open -= 1
            for each in (writer, upstream):
                if each is not None:
                    each.close()


class _RefusedError(Exception):
    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason

    def answer(self) -> bytes:
        body = f"wakegate port-forward: {self.reason}\n".encode()
        head = f"HTTP/1.1 {self.status} Refused\r\ncontent-type: text/plain\r\ncontent-length: {len(body)}\r\n"
        return head.encode() + b"connection: close\r\n\r\n" + body


async def _head(reader: asyncio.StreamReader) -> bytes:
    return await reader.readuntil(b"\r\n\r\n")


def request_head(head: bytes, prefix: bytes, host: bytes, key: str) -> bytes:
    """A browser's request head as the gateway is to get it. Raises _RefusedError."""
    line, *fields = head[:-4].split(b"\r\n")
    method, _, rest = line.partition(b" ")
    path, _, version = rest.rpartition(b" ")
    if not path.startswith(b"/") or not version.startswith(b"HTTP/1.") or not method.isalpha():
        raise _RefusedError(400, "expected an HTTP/1.1 request for a path")
    pairs = [
        (name.strip().lower(), name + b":" + value) for name, _, value in (each.partition(b":") for each in fields)
    ]
    hosts = [line.partition(b":")[2].strip() for name, line in pairs if name == b"host"]
    if len(hosts) != 1 or not is_loopback(urlsplit(b"//" + hosts[0]).hostname or b""):
        raise _RefusedError(421, "this address answers to names of this machine only")
    # One request a connection: behind its head bytes pass unread, so a second request on it would go without the path
    # and the key. A WebSocket is one request, and stays open.
    upgrade = any(name == b"upgrade" for name, _ in pairs)
    kept = [line for name, line in pairs if name not in _DROPPED]
    kept += [b"Host: " + host, b"Connection: " + (b"Upgrade" if upgrade else b"close")]
    if key:
        kept.append(b"Authorization: Bearer " + key.encode())
    return b"%b %b%b %b\r\n" % (method, prefix, path, version) + b"\r\n".join(kept) + b"\r\n\r\n"


def response_head(head: bytes, prefix: bytes) -> bytes:
    """An answer's head, with the gateway's path taken out of what a browser would go to, or keep a cookie for."""
    lines = head[:-4].split(b"\r\n")
    for number, line in enumerate(lines):
        name, _, value = line.partition(b":")
        if name.lower() == b"location":
            before, found, after = value.partition(prefix)
            # /v1/sessions/ID/ports/8000/login -> /login, also behind http://HOST; what leads elsewhere stays.
            if found and (not before.strip() or b"://" in before):
                lines[number] = name + b": " + (after if after.startswith(b"/") else b"/" + after)
        elif name.lower() == b"set-cookie":
            lines[number] = _COOKIE_PATH.sub(lambda found: found[1] + _below(found[2], prefix), line)
    return b"\r\n".join(lines) + b"\r\n\r\n"


def _below(path: bytes, prefix: bytes) -> bytes:
    return b"/" + path.removeprefix(prefix).removeprefix(b"/") if path.startswith(prefix) else path


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_CHUNK_BYTES):
        writer.write(data)
        await writer.drain()
