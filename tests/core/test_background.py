"""Loops that run as long as a gateway does."""

from __future__ import annotations

import asyncio
import logging

import pytest

from gateway.core.background import cancel, every, keeping_cancellation
from gateway.core.errors import StoreUnavailableError
from tests.support.waiting import eventually


@pytest.mark.parametrize("error", [StoreUnavailableError("the store is away"), KeyError("a bug")])
async def test_loop_goes_on_after_any_failure_and_logs_it_once(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """Until the failure is another one; a bug comes with its traceback, in the moment in which it happens."""
    runs = 0

    async def sweep() -> None:
        nonlocal runs
        runs += 1
        if runs <= 3:
            raise error

    loop = asyncio.create_task(every(0.001, sweep))
    with caplog.at_level(logging.WARNING):
        await eventually(lambda: runs > 4, "the loop goes on")
        await cancel(loop)
    (record,) = [each for each in caplog.records if "sweep" in each.getMessage()]
    assert (record.exc_info is not None) == isinstance(error, KeyError)


@pytest.mark.parametrize("error", [None, StoreUnavailableError("the store is away"), KeyError("a bug")])
async def test_loop_ends_though_what_it_runs_swallows_the_cancellation(error: Exception | None) -> None:
    """As Python 3.11's wait_for does, with its result or with its error."""
    entered = asyncio.Event()

    async def swallow() -> None:
        entered.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            if error is not None:
                raise error from None

    loop = asyncio.create_task(every(0.001, swallow))
    await entered.wait()
    async with asyncio.timeout(20):
        await cancel(loop)
    assert loop.cancelled()


async def test_cleaning_up_after_a_cancellation_goes_on() -> None:
    """A cancellation that was there before is the caller's business: what it still has to write is written."""
    written: list[str] = []

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            with keeping_cancellation():
                await asyncio.sleep(0)
                written.append("record")

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    await cancel(task)
    assert written == ["record"]
    assert task.cancelled()
