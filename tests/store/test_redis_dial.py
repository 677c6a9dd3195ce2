"""Dialling a Redis server by name, while names are slow to be had, away, or lead to a server that is gone."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence

import pytest

from gateway.core.clock import SystemClock
from gateway.core.errors import StoreUnavailableError
from gateway.store import redis_dial
from gateway.store.redis import RedisStore
from gateway.store.redis_dial import Names, look_up
from tests.support.redis_server import RedisServer

NAME = "store.example"


class Resolver:
    """In place of the system's: its answers, and how often it was asked."""

    def __init__(self) -> None:
        self.answers: Sequence[str] | OSError = ("127.0.0.1",)
        self.asked = 0
        self.hanging: asyncio.Event | None = None

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        assert host == NAME
        self.asked += 1
        if self.hanging is not None:
            await self.hanging.wait()
        if isinstance(self.answers, OSError):
            raise self.answers
        return self.answers


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Resolver:
    made = Resolver()
    monkeypatch.setattr(redis_dial, "look_up", made)
    return made


@pytest.fixture
async def store(redis_server: RedisServer, resolver: Resolver) -> AsyncIterator[RedisStore]:
    made = RedisStore(redis_server.url.replace("127.0.0.1", NAME), SystemClock())
    await made.start()
    yield made
    await made.aclose()


async def dial_anew(store: RedisStore) -> None:
    """Close the connections that there are, and use the store."""
    await store._redis._client.connection_pool.disconnect()
    await store.ping()


async def test_burst_of_dials_asks_once(store: RedisStore, resolver: Resolver, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many connections are opened at the same time."""
    monkeypatch.setattr(redis_dial, "FRESH_S", 0.0)
    await store._redis._client.connection_pool.disconnect()
    resolver.asked, resolver.hanging = 0, asyncio.Event()
    burst = asyncio.gather(*(store.ping() for _ in range(50)))
    await asyncio.sleep(0)
    resolver.hanging.set()
    await burst
    assert 1 <= resolver.asked < 16


async def test_names_that_are_away_leave_the_last_answer(
    store: RedisStore, resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether DNS refuses or says nothing."""
    monkeypatch.setattr(redis_dial, "FRESH_S", 0.0)
    resolver.answers = socket.gaierror("no such name")
    await dial_anew(store)
    resolver.hanging = asyncio.Event()
    await dial_anew(store)
    resolver.hanging.set()


async def test_server_that_moved_is_found_by_the_second_try(
    store: RedisStore, resolver: Resolver, redis_server: RedisServer
) -> None:
    """The first address refuses; the name is asked again within the same exchange."""
    names = store._redis._client.connection_pool.connection_kwargs["names"]
    key = next(iter(names._known))
    names._known[key] = asyncio.get_running_loop().time(), ("127.0.0.9",)  # nobody listens there
    before = resolver.asked
    await dial_anew(store)
    assert resolver.asked == before + 1
    resolver.answers = ("127.0.0.9", "127.0.0.1")  # one of two that is away
    names.expire(*key)
    await dial_anew(store)


async def test_unknown_name_is_an_error(redis_server: RedisServer, resolver: Resolver) -> None:
    """Of the store, like every other failure."""
    resolver.answers = socket.gaierror("no such name")
    made = RedisStore(redis_server.url.replace("127.0.0.1", NAME), SystemClock())
    with pytest.raises(StoreUnavailableError, match="no such name"):
        await made.start()
    await made.aclose()


async def test_answer_is_kept_for_a_moment(resolver: Resolver) -> None:
    """And asked for again when it led nowhere."""
    names = Names()
    assert await names.find(NAME, 1) == await names.find(NAME, 1) == ("127.0.0.1",)
    assert resolver.asked == 1
    names.expire(NAME, 1)
    await names.find(NAME, 1)
    assert resolver.asked == 2


async def test_system_resolver_gives_each_address_once() -> None:
    """Of this machine's own name."""
    found = await look_up("localhost", 6379)
    assert set(found) <= {"127.0.0.1", "::1"}
    assert len(found) == len(set(found)) > 0
