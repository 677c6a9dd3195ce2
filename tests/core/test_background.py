"""Loops that run as long as a gateway does."""

from __future__ import annotations

import asyncio
import logging

import pytest

from gateway.core.background import cancel, every
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
