"""Two gateways that share a Redis, with an engine each."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tests.support.redis_server import RedisServer
from tests.support.serve import Server, serve


@contextlib.contextmanager
def two(tmp_path: Path, *flags: str, redis: RedisServer | None = None) -> Iterator[tuple[Server, Server, list[str]]]:
    """Two gateways over one Redis, and the flags to start one of them again."""
    server = redis or RedisServer(tmp_path / "redis", "--appendonly", "yes").start()
    common = ["--store", server.url, "--takeover-after", "1.5s", "--warm-pool", "1", *flags]
    try:
        with serve(tmp_path / "a", *common) as a, serve(tmp_path / "b", *common) as b:
            yield a, b, common
    finally:
        server.kill()
