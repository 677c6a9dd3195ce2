"""A retried call is not run twice."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.api.tools.idempotency import IdempotencyCache
from gateway.api.tools.results import ToolResult
from gateway.core.errors import UnavailableError
from gateway.testing import ManualClock

KEY = "key"


def memory_of(clock: ManualClock, **bounds: Any) -> IdempotencyCache[ToolResult]:
    return IdempotencyCache(clock, lambda result: result.size, **bounds)


class Work:
    """Counts its runs; each has another result."""

    def __init__(self) -> None:
        self.runs = 0
        self.go = asyncio.Event()
        self.go.set()
        self.error: Exception | None = None

    async def __call__(self) -> ToolResult:
        self.runs += 1
        number = self.runs
        await self.go.wait()
        if self.error is not None:
            raise self.error
        return ToolResult(f"run {number}" + "x" * 1000)


async def test_cache_gives_a_retry_the_first_result() -> None:
    """The same key: the same result, and the caller learns that it is an earlier one. Another key runs."""
    memory, work = memory_of(ManualClock()), Work()
    first, replayed = await memory.run(KEY, work)
    assert not replayed
    assert await memory.run(KEY, work) == (first, True)
    assert (await memory.run("other", work))[1] is False
    assert work.runs == 2


async def test_cache_shares_one_run_that_continues_without_its_caller() -> None:
    """Duplicates that come at once wait for one run, which goes on when the first of them leaves."""
    memory, work = memory_of(ManualClock()), Work()
    work.go.clear()
    first = asyncio.create_task(memory.run(KEY, work))
    second = asyncio.create_task(memory.run(KEY, work))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    work.go.set()
    result, replayed = await second
    assert (work.runs, replayed, result.text[:5]) == (1, True, "run 1")
    assert first.cancelled()


async def test_cache_does_not_keep_a_run_that_raised() -> None:
    """Nothing was run, so the retry runs."""
    memory, work = memory_of(ManualClock()), Work()
    work.error = UnavailableError("away")
    with pytest.raises(UnavailableError):
        await memory.run(KEY, work)
    work.error = None
    assert (await memory.run(KEY, work))[0].text.startswith("run 2")


async def test_cache_is_bounded_in_time_count_and_bytes() -> None:
    """The oldest go first, and all of them after a while."""
    clock, work = ManualClock(), Work()
    memory = memory_of(clock, keep=10, max_entries=3, max_bytes=1 << 20)
    keys = [f"c{index}" for index in range(5)]
    for key in keys:
        await memory.run(key, work)
    await asyncio.sleep(0)
    assert len(memory) == 3
    assert (await memory.run(keys[-1], work))[1] is True
    assert (await memory.run(keys[0], work))[1] is False
    clock.advance(10.1)
    assert (await memory.run(keys[-1], work))[1] is False
    await asyncio.sleep(0)
    assert len(memory) == 1
    small = memory_of(clock, max_bytes=4000)
    for key in keys:
        await small.run(key, work)
    await asyncio.sleep(0)
    assert len(small) == 2
