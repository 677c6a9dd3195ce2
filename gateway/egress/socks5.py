"""The SOCKS5 side of the proxy: CONNECT to names and addresses. Source: RFC 1928.

Names are resolved here, after the policy has seen them. BIND and UDP ASSOCIATE are refused with the code for it (7):
what goes over UDP cannot be checked against a policy of names, and DNS over it would carry anything out.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from gateway.egress.addresses import Host, parse_host
from gateway.egress.client import Client, GoneError
from gateway.egress.dialer import RefusedError, UnreachableError
from gateway.egress.policy import Target
from gateway.egress.tunnel import tunnel

VERSION = 5
_NO_AUTHENTICATION, _NONE_ACCEPTABLE = 0, 0xFF
_CONNECT = 1
_IPV4, _NAME, _IPV6 = 1, 3, 4
_OK, _NOT_ALLOWED, _HOST_UNREACHABLE, _TTL_EXPIRED, _UNKNOWN_COMMAND, _UNKNOWN_ADDRESS = 0, 2, 4, 6, 7, 8
_COMMANDS = {2: "BIND", 3: "UDP ASSOCIATE"}


async def serve_socks(client: Client, data: bytes) -> None:
    """Serve one connection, whose first bytes are `data`. Raises GoneError."""
    reader = _Reader(client, data)
    _, count = await reader.take(2)
    methods = await reader.take(count)
    # Nothing is asked for: the listener says whose it is, and a password would have to be in the sandbox.
    if _NO_AUTHENTICATION not in methods:
        await client.send(bytes((VERSION, _NONE_ACCEPTABLE)))
        return
    await client.send(bytes((VERSION, _NO_AUTHENTICATION)))
    # Read to its end before it is refused, so that the log has what was asked for and the client reads the answer.
    version, command, _, kind = await reader.take(4)
    if version != VERSION or kind not in (_IPV4, _NAME, _IPV6):
        await client.send(_reply(_UNKNOWN_ADDRESS))
        return
    text, host = await _host(reader, kind)
    port = int.from_bytes(await reader.take(2), "big")
    if command != _CONNECT:
        reason = (
            f"{_COMMANDS.get(command, f'command {command}')} is not supported: only TCP connections leave a sandbox"
        )
        client.refuse(text, port, "socks5", reason)
        await client.send(_reply(_UNKNOWN_COMMAND))
    elif host is None or not port:
        client.refuse(text, port, "socks5", "not the name of a host, or no port")
        await client.send(_reply(_NOT_ALLOWED))
    else:
        await _connect(client, Target(host, port), reader)


async def _host(reader: _Reader, kind: int) -> tuple[str, Host | None]:
    """As it was asked for, for the log; and the host, if it is one."""
    if kind == _IPV4:
        host: Host = IPv4Address(await reader.take(4))
        return str(host), host
    if kind == _IPV6:
        host = IPv6Address(await reader.take(16))
        return str(host), host
    (size,) = await reader.take(1)
    text = (await reader.take(size)).decode("latin-1")
    try:
        return text, parse_host(text)
    except ValueError:
        return text, None


async def _connect(client: Client, target: Target, reader: _Reader) -> None:
    try:
        await client.reach(target, "socks5")
    except RefusedError:
        await client.send(_reply(_NOT_ALLOWED))
    except UnreachableError as error:
        # RFC 1928 has no code for a timeout; tools show this one as such.
        await client.send(_reply(_TTL_EXPIRED if error.timed_out else _HOST_UNREACHABLE))
    else:
        await client.send(_reply(_OK))
        await tunnel(client, target, reader.rest)


def _reply(code: int) -> bytes:
    """With no bound address: it would be one of the host's."""
    return bytes((VERSION, code, 0, _IPV4, 0, 0, 0, 0, 0, 0))


class _Reader:
    def __init__(self, client: Client, data: bytes) -> None:
        self._client, self.rest = client, data

    async def take(self, count: int) -> bytes:
        """The next `count` bytes of the handshake. Raises GoneError."""
        while len(self.rest) < count:
            self.rest += await self._client.receive()
        taken, self.rest = self.rest[:count], self.rest[count:]
        return taken


__all__ = ["GoneError", "serve_socks"]
