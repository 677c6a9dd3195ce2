"""File descriptors around a sandbox's start and end: pipes, anonymous files, pinned processes (pidfds)."""

from __future__ import annotations

import asyncio
import os
import select
import signal
from collections.abc import Sequence


def anonymous_file(name: str, content: bytes) -> int:
    """A memfd with this content, at offset 0: input for a program that reads from a descriptor."""
    fd = os.memfd_create(name)
    os.write(fd, content)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


class Descriptors:
    """Closes what was opened within, except what was kept."""

    def __init__(self) -> None:
        self._open: set[int] = set()

    def __enter__(self) -> Descriptors:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close(*self._open)

    def pipe(self) -> tuple[int, int]:
        """A new pipe's ends, to read and to write. Neither is inherited unless it is passed on by name."""
        ends = os.pipe()
        self._open.update(ends)
        return ends

    def add(self, fd: int) -> int:
        """Close `fd` with the others. Returns it."""
        self._open.add(fd)
        return fd

    def keep(self, *fds: int) -> None:
        """Leave these open: they have another owner now."""
        self._open.difference_update(fds)

    def close(self, *fds: int) -> None:
        """Close these before the block ends."""
        for fd in fds:
            self._open.discard(fd)
            os.close(fd)


def kill(pidfd: int) -> None:
    """SIGKILL to a pinned process; one that has ended is success."""
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        pass  # it ended by itself


async def readable(fd: int) -> None:
    """Wait until `fd` can be read: a pidfd when its process has ended. One reader at a time for a descriptor."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(fd, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(fd)


async def read_to_end(fd: int) -> bytes:
    """All that the writers of a pipe write until the last of them closes it."""
    os.set_blocking(fd, False)
    parts: list[bytes] = []
    while True:
        await readable(fd)
        part = os.read(fd, 4096)
        if not part:
            return b"".join(parts)
        parts.append(part)


def wait_gone(pidfds: Sequence[int], timeout: float) -> bool:
    """Block until all have ended, at most `timeout` seconds. For the start of the gateway, before it serves."""
    poll = select.poll()
    for fd in pidfds:
        poll.register(fd, select.POLLIN)
    left = set(pidfds)
    while left:
        ended = poll.poll(timeout * 1000)
        if not ended:
            return False
        for fd, _ in ended:
            poll.unregister(fd)
            left.discard(fd)
    return True
