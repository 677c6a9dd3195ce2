"""A sandbox that hands out its workspace too slowly is given up; a slow snapshot store is not its fault."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from gateway.core.errors import UpstreamTimeoutError
from gateway.core.model import SandboxId
from gateway.snapshots.pace import PaceLimits, paced

SANDBOX = SandboxId("sb-1")


async def drip(pause: float, pieces: int = 1000) -> AsyncGenerator[bytes, None]:
    """Yield one byte every `pause` seconds."""
    for _ in range(pieces):
        await asyncio.sleep(pause)
        yield b"x"


async def test_workspace_that_comes_too_slowly_is_given_up() -> None:
    """Although no pause is long: after the grace time the rate counts."""
    limits = PaceLimits(grace_s=0.05, least_rate=1000.0)
    async with aclosing(paced(drip(0.01), SANDBOX, limits)) as pieces:
        with pytest.raises(UpstreamTimeoutError, match=r"sandbox sb-1 exports its workspace too slowly: "):
            async for _ in pieces:
                pass


async def test_time_that_the_store_takes_does_not_count() -> None:
    """Whoever reads the pieces may be slower than any limit on the sandbox."""
    limits = PaceLimits(grace_s=0.05, least_rate=1e9)
    read = b""
    async for piece in paced(drip(0.0, 5), SANDBOX, limits):
        await asyncio.sleep(0.03)
        read += piece
    assert read == b"xxxxx"


@pytest.mark.parametrize(("received", "seconds"), [(0, 30.0), (1 << 20, 34.0), (1 << 30, 600.0)])
def test_allowed_time_grows_with_what_came_up_to_a_total(received: int, seconds: float) -> None:
    """30 s, a second per 256 KiB, ten minutes at most."""
    assert PaceLimits().allowed(received) == seconds
