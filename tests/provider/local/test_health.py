"""Whether a sandbox that was just started answers."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
from pathlib import Path

import pytest

from gateway.provider.local import health
from gateway.provider.local.process import Process, StartFailedError
from tests.support.waiting import eventually


async def test_end_of_the_outermost_process_ends_the_wait(tmp_path: Path) -> None:
    """Killed in the middle of a start, it may leave one behind that holds the socket and never answers."""
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        reading, writing = os.pipe()
        lifeline, held = os.pipe()
        popen = subprocess.Popen(["sleep", "100"], stderr=writing)
        os.close(writing)
        os.close(lifeline)
        process = Process(popen, held, reading, "tag")
        waiting = asyncio.create_task(health.check(path, process, 100.0))
        await eventually(lambda: has_a_connection(listener), "somebody asks")
        popen.kill()
        with pytest.raises(StartFailedError, match="SIGKILL"):
            await waiting
        await process.end()


def has_a_connection(listener: socket.socket) -> bool:
    """Whether somebody waits to be accepted."""
    listener.settimeout(0)
    try:
        listener.accept()[0].detach()  # it stays open, and gets no answer
    except BlockingIOError:
        return False
    return True
