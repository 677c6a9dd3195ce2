"""A retried call is not run twice."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.api.tools.calls import Call
from gateway.api.tools.idempotency import IdempotencyCache, key_of
from gateway.api.tools.results import ToolResult
from gateway.core.errors import UnavailableError
from gateway.core.model import SessionId
from gateway.testing import ManualClock

SESSION = SessionId("s1")
CALL = Call("c1", "run_shell", {"command": "date"})
KEY = key_of(SESSION, CALL)


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


async def test_memory_gives_a_retry_the_first_result() -> None:
    """Same session, id and content: the same result, and said to be so. Anything else is another call."""
    memory, work = memory_of(ManualClock()), Work()
    first, replayed = await memory.run(KEY, work)
    assert not replayed
    assert await memory.run(KEY, work) == (first, True)
    for session, call in (
        (SessionId("s2"), CALL),
        (SESSION, Call("c2", CALL.name, CALL.arguments)),
        (SESSION, Call("c1", CALL.name, {"command": "ls"})),
        (SESSION, Call("c1", "run_python", CALL.arguments)),
    ):
        assert (await memory.run(key_of(session, call), work))[1] is False
    assert work.runs == 5


async def test_memory_shares_one_run_and_outlives_who_asked() -> None:
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


async def test_memory_forgets_what_raised() -> None:
    """Nothing was run, so the retry runs."""
    memory, work = memory_of(ManualClock()), Work()
    work.error = UnavailableError("away")
    with pytest.raises(UnavailableError):
        await memory.run(KEY, work)
    work.error = None
    assert (await memory.run(KEY, work))[0].text.startswith("run 2")


async def test_memory_is_bounded_in_time_count_and_bytes() -> None:
    """The oldest go first, and all of them after a while."""
    clock, work = ManualClock(), Work()
    memory = memory_of(clock, keep=10, max_entries=3, max_bytes=1 << 20)
    calls = [Call(f"c{index}", "run_shell", {}) for index in range(5)]
    for call in calls:
        await memory.run(key_of(SESSION, call), work)
    await asyncio.sleep(0)
    assert len(memory) == 3
    assert (await memory.run(key_of(SESSION, calls[-1]), work))[1] is True
    assert (await memory.run(key_of(SESSION, calls[0]), work))[1] is False
    clock.advance(10.1)
    assert (await memory.run(key_of(SESSION, calls[-1]), work))[1] is False
    await asyncio.sleep(0)
    assert len(memory) == 1
    small = memory_of(clock, max_bytes=4000)
    for call in calls:
        await small.run(key_of(SESSION, call), work)
    await asyncio.sleep(0)
    assert len(small) == 2
