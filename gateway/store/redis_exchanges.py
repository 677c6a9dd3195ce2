"""Exchanges with a Redis server: at most CONNECTIONS at a time, each within a deadline, every failure one error.

A dead server must cost each caller one deadline at most, not one per caller that is queued before it, and must never
look like an empty store. What is exchanged is redis.py's business.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Sequence
from hashlib import sha1
from typing import Any, TypeVar

from redis.asyncio import Redis
from redis.exceptions import AuthenticationError, NoScriptError, ReadOnlyError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from gateway.core.background import keeping_cancellation
from gateway.core.errors import StoreUnavailableError
from gateway.store.redis_client import Close, make_client, redacted

T = TypeVar("T")

# More connections do not make Redis faster, but a burst at a new gateway dials them all at once, and the timeout of
# each dial runs while the process handles the others: on a busy CPU 64 dials took longer than one dial may, and a
# healthy server was reported as unavailable. Further exchanges queue.
CONNECTIONS = 16
# The server did not answer, in contrast to errors that it answered with.
_OUTAGES = (OSError, TimeoutError, RedisConnectionError, RedisTimeoutError)

_CLOSED = "the handler is closed"  # in uvloop's RuntimeError for a write after the server has closed the connection


class RedisExchanges:
    """Runs commands and scripts on the Redis at `url`. All methods raise StoreUnavailableError on any failure."""

    def __init__(self, url: str, deadline: float) -> None:
        """`deadline`: seconds for one exchange, dialling included."""
        self._url = url
        self._deadline = deadline
        self._client: Any = None
        self._close: Close | None = None
        self._turns = asyncio.Semaphore(CONNECTIONS)
        self._outages = 0

    def open(self) -> None:
        """Create the client, which dials on first use. Safe to call twice. Raises SettingsError for a wrong URL."""
        if self._client is None:
            self._client, self._close = make_client(self._url, self._deadline)

    async def aclose(self) -> None:
        """Close all connections. Safe to call twice."""
        close, self._close, self._client = self._close, None, None
        if close is not None:
            await close()

    def subscription(self) -> Any:
        """A connection to channels, besides the others, which its user closes. Raises StoreUnavailableError."""
        if self._client is None:
            raise StoreUnavailableError("the session store is not open")
        return self._client.pubsub()

    async def pipe(self, command: str, calls: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Run one command with several argument lists in one round trip; results in the same order."""
        if not calls:
            return []

        async def run(redis: Any) -> list[Any]:
            async with redis.pipeline(transaction=False) as pipe:
                for arguments in calls:
                    getattr(pipe, command)(*arguments)
                return list(await pipe.execute())

        return await self.call(run)

    async def run(self, script: str, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        """Run a Lua script by its digest, and by its text if the server does not have it."""

        async def run(redis: Any) -> Any:
            try:
                return await redis.evalsha(_digest(script), len(keys), *keys, *arguments)
            except NoScriptError:  # the server was restarted, or has not seen the script yet; nothing has run
                return await redis.eval(script, len(keys), *keys, *arguments)

        return await self.call(run)

    async def call(self, exchange: Callable[[Any], Awaitable[T]]) -> T:
        """Pass the client to `exchange` and return its result, within the deadline."""
        outages = self._outages
        async with self._turns:
            client = self._client
            if client is None:
                raise StoreUnavailableError("the session store is not open")
            if outages != self._outages:
                # Another exchange failed while this one was queued. With a dead server each turn takes the whole
                # deadline, so of 160 queued exchanges the last would fail after 10 s; they share the first failure
                # instead.
                raise StoreUnavailableError(f"session store {redacted(self._url)} does not answer")
            try:
                with keeping_cancellation():
                    async with asyncio.timeout(self._deadline):
                        return await exchange(client)
            except (RedisError, OSError, TimeoutError, RuntimeError) as error:
                if isinstance(error, RuntimeError) and _CLOSED not in str(error):
                    raise
                if isinstance(error, (*_OUTAGES, RuntimeError)):
                    self._outages += 1
                if isinstance(error, ReadOnlyError) and isinstance(client, Redis):
                    # A replica answers at the master's address after a failover: dial again, so that the name is
                    # resolved anew.
                    await client.connection_pool.disconnect(inuse_connections=False)
                why = _why(error, self._deadline)
                raise StoreUnavailableError(f"session store {redacted(self._url)}{why}") from error


@functools.cache
def _digest(script: str) -> str:
    return sha1(script.encode()).hexdigest()  # noqa: S324 — the name Redis gives a script, no secret


def _why(error: BaseException, deadline: float) -> str:
    if isinstance(error, AuthenticationError):
        return f" refused the password: {error}"
    if isinstance(error, TimeoutError):
        return f" did not answer within {deadline:g} s"
    return f": {error or type(error).__name__}"
