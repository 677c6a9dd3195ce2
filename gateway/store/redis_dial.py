"""Dials a Redis server by its name: the look-up apart from the connection, its answers kept, one more try of both.

The driver's own dial looks the name up for each connection, in the few threads that everything else blocks in, and its
timeout covers both. A burst of dials at a new gateway queued there for longer than a dial may take: by name 21 of 50
requests failed, by address none. Here all dials share one look-up; while DNS is slow or away the last answer is used;
and a dial that fails looks up and dials once more, as a server that was replaced has another address.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Sequence
from typing import Any

from redis.asyncio.connection import Connection, SSLConnection

FRESH_S = 1.0  # for so long an answer is used without asking again: a failover by name is followed that late
PATIENCE_S = 0.1  # for a new answer, where there is an earlier one
_MAX_ADDRESSES = 4

Key = tuple[str, int]


class Names:
    """Addresses of names. State: the last answer for each, and the look-ups under way."""

    def __init__(self) -> None:
        self._known: dict[Key, tuple[float, Sequence[str]]] = {}  # loop time at which it was had
        self._asking: dict[Key, asyncio.Task[Sequence[str]]] = {}

    async def find(self, host: str, port: int) -> Sequence[str]:
        """Addresses, one at least. Raises OSError (socket.gaierror) if there never was an answer."""
        key = host, port
        at, earlier = self._known.get(key, (float("-inf"), ()))
        if asyncio.get_running_loop().time() - at < FRESH_S:
            return earlier
        task = self._asking.get(key)
        if task is None:
            task = self._asking[key] = asyncio.get_running_loop().create_task(self._ask(key))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())  # all who wait may have left
        try:
            async with asyncio.timeout(PATIENCE_S if earlier else None):
                return await asyncio.shield(task)
        except (OSError, TimeoutError):
            if not earlier:
                raise
            return earlier

    def expire(self, host: str, port: int) -> None:
        """The answer led nowhere: ask again next time."""
        if (host, port) in self._known:
            self._known[host, port] = float("-inf"), self._known[host, port][1]

    async def _ask(self, key: Key) -> Sequence[str]:
        try:
            found = await look_up(*key)
            self._known[key] = asyncio.get_running_loop().time(), found
            return found
        finally:
            del self._asking[key]


async def look_up(host: str, port: int) -> Sequence[str]:
    """The addresses of a name, from the system's resolver. Raises OSError (socket.gaierror)."""
    answers = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return tuple(dict.fromkeys(str(answer[4][0]) for answer in answers))[:_MAX_ADDRESSES]


class NamedConnection(Connection):
    """The driver's connection, dialled by `names`."""

    def __init__(self, *, names: Names, **options: Any) -> None:
        super().__init__(**options)
        self._names = names

    async def _connect(self) -> None:
        host, port = self.host, self.port
        if _is_address(host):
            await super()._connect()  # type: ignore[no-untyped-call]
            return
        whole = self.socket_connect_timeout
        try:
            async with asyncio.timeout(whole):  # over both tries
                for last in (False, True):
                    addresses = await self._names.find(host, port)
                    try:
                        # Half of the time for the first try: a server that was replaced answers nothing.
                        async with asyncio.timeout(None if last or whole is None else whole / 2):
                            await self._dial(addresses)
                        return
                    except (OSError, TimeoutError):
                        self._names.expire(host, port)
                        if last:
                            raise
        finally:
            self.host = host  # errors name it

    async def _dial(self, addresses: Sequence[str]) -> None:
        for address in addresses:
            try:
                self.host = address
                await super()._connect()  # type: ignore[no-untyped-call]
                return
            except OSError:
                if address == addresses[-1]:
                    raise


class NamedTLSConnection(NamedConnection, SSLConnection):
    """The same over TLS: the certificate is the name's, not the address's."""

    def __init__(self, *, names: Names, **options: Any) -> None:
        super().__init__(names=names, **options)
        self._name = self.host

    def _connection_arguments(self) -> Any:
        arguments = dict(super()._connection_arguments())
        return arguments if _is_address(self._name) else {**arguments, "server_hostname": self._name}


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
