"""Which settings of a Redis server are warned of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gateway.core.clock import SystemClock
from gateway.core.errors import StoreUnavailableError
from gateway.core.model import SessionId
from gateway.store.redis import RedisStore
from gateway.store.redis_durability import durability_warnings
from tests.support.redis_server import RedisServer


@pytest.mark.parametrize(
    ("memory", "persistence", "save_points", "words"),
    [
        ({"maxmemory_policy": "noeviction"}, {"aof_enabled": 1}, "", []),
        ({"maxmemory_policy": "noeviction"}, {"aof_enabled": 0}, "3600 1", []),
        ({"maxmemory_policy": "allkeys-lru"}, {"aof_enabled": 1}, "", ["allkeys-lru"]),
        ({"maxmemory_policy": "noeviction"}, {"aof_enabled": 0}, "", ["appendonly yes"]),
        ({"maxmemory_policy": "volatile-ttl"}, {"aof_enabled": 0}, "", ["volatile-ttl", "appendonly yes"]),
        ({"maxmemory_policy": "noeviction"}, {"aof_enabled": 0}, None, []),
        ({}, {}, None, []),
    ],
)
def test_dangers_are_named_with_their_setting(
    memory: dict[str, Any], persistence: dict[str, Any], save_points: str | None, words: list[str]
) -> None:
    """Eviction, and no persistence at all; what the server would not say is not guessed."""
    warnings = durability_warnings(memory, persistence, save_points)
    assert len(warnings) == len(words)
    assert all(word in warning for word, warning in zip(words, warnings, strict=True))


async def test_real_server_is_checked_for_its_settings_and_a_full_memory(tmp_path: Path) -> None:
    """Warned of as it is set; once its memory is full a ping fails, though it answers reads."""
    options = ("--maxmemory-policy", "noeviction", "--appendonly", "yes")
    for flags, number in ((options, 0), (("--maxmemory-policy", "allkeys-lru"), 2)):
        server = RedisServer(tmp_path / str(number), *flags).start()
        store = RedisStore(server.url, SystemClock())
        try:
            await store.start()
            assert len(await store.warnings()) == number
            await store.ping()
            if not number:
                await store._redis.call(lambda redis: redis.config_set("maxmemory", 1))
                assert await store.get(SessionId("absent")) is None
                with pytest.raises(StoreUnavailableError, match="maxmemory"):
                    await store.ping()
        finally:
            await store.aclose()
            server.kill()
