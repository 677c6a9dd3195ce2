"""Names to addresses, by this machine's own resolver."""

from __future__ import annotations

import asyncio
import socket
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from typing import Protocol

from gateway.egress.addresses import Address, unmapped

_THREADS = 16  # getaddrinfo blocks, 5 s and more where a name server does not answer
_TIMEOUT_S = 10.0
# Below any TTL that matters, and not the way around a check: what is dialled is checked again, address by address.
_FRESH_S = 5.0  # an answer is used again for so long: hundreds of connections to one name ask once
_MAX_KEPT = 1024
_MAX_WAITING = 1024  # names that are being resolved
_MAX_ADDRESSES = 16


class ResolveError(Exception):
    """A name has no address, or none could be found out; the text says which."""


class Resolver(Protocol):
    """Finds the addresses of a name."""

    async def resolve(self, name: str) -> list[Address]:
        """The addresses of a name, in the order to try them. Raises ResolveError."""
        ...


class SystemResolver:
    """getaddrinfo in a few threads. Callers that ask for one name at the same time share an answer."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_THREADS, "resolver")
        self._asking: dict[str, asyncio.Task[list[Address]]] = {}
        self._kept: OrderedDict[str, tuple[float, list[Address]]] = OrderedDict()

    async def resolve(self, name: str) -> list[Address]:
        """As in Resolver; an answer is used for _FRESH_S."""
        loop = asyncio.get_running_loop()
        known = self._kept.get(name)
        if known is not None and loop.time() - known[0] < _FRESH_S:
            return known[1]
        asking = self._asking.get(name)
        if asking is None:
            if len(self._asking) >= _MAX_WAITING:
                raise ResolveError(f"{name}: too many names are being resolved")
            asking = self._asking[name] = loop.create_task(self._ask(name))
            asking.add_done_callback(lambda done: self._answered(name, done))
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                # The thread cannot be stopped anyway, and the next who asks finds the answer.
                return await asyncio.shield(asking)
        except TimeoutError:
            raise ResolveError(f"{name}: the name server does not answer") from None

    async def _ask(self, name: str) -> list[Address]:
        loop = asyncio.get_running_loop()
        try:
            found = await loop.run_in_executor(self._threads, _getaddrinfo, name)
        except OSError as error:
            raise ResolveError(f"{name}: {error.strerror or error}") from None
        self._kept[name] = (loop.time(), found)
        self._kept.move_to_end(name)
        while len(self._kept) > _MAX_KEPT:
            self._kept.popitem(last=False)
        return found

    def _answered(self, name: str, done: asyncio.Task[list[Address]]) -> None:
        del self._asking[name]
        if not done.cancelled():
            done.exception()  # retrieved, in case every caller has left


def _getaddrinfo(name: str) -> list[Address]:
    found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    texts = (str(address[0]).partition("%")[0] for *_, address in found)
    return list(dict.fromkeys(unmapped(ip_address(text)) for text in texts))[:_MAX_ADDRESSES]
