"""Waiting for a sandbox's process to end, beside callers who leave."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator

import pytest

from gateway.provider.local.process import Process


@pytest.fixture
def popen() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "60"], start_new_session=True)
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize("wait", ["failure", "end"])
async def test_cancellation_in_the_step_of_the_end_reaches_the_caller(
    popen: subprocess.Popen[bytes], wait: str
) -> None:
    """Python 3.11's wait_for answers the result in its place, and the cancelled caller goes on as if nothing was."""
    errors, errors_write = os.pipe()
    os.close(errors_write)
    process = Process(popen, os.dup(errors), errors, "test")
    waiting = asyncio.ensure_future(process.failure() if wait == "failure" else process.end())
    await asyncio.sleep(0)
    asyncio.get_running_loop().remove_reader(process._pidfd)
    os.close(process._pidfd)
    process.exited.set_result(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    if wait == "failure":
        os.close(process._lifeline)
    process._close_errors()
