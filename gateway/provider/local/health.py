"""Whether picod in a sandbox that was just started answers, and if not, why."""

from __future__ import annotations

import asyncio
from typing import Any

from gateway.provider.local.process import Process, StartFailedError
from picod import wire


async def check(socket: str, process: Process, timeout: float) -> None:
    """One GET /health over the unix socket. Raises StartFailedError with the reason, after `timeout` seconds at most.

    Nothing is polled: the gateway made the listening socket, so the connection waits in the kernel until picod accepts.
    """
    asked = asyncio.create_task(_status_line(socket))
    try:
        # The end of bubblewrap as well: killed in the middle of a start, it leaves a first process that waits for it
        # for ever, and holds the listening socket.
        either: set[asyncio.Future[Any]] = {asked, process.exited}
        await asyncio.wait(either, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if not asked.done() and not process.exited.done():
            # The last line: an agent's picod says again and again what it waits for.
            output = (process.error_output() or "no message").splitlines()[-1]
            raise StartFailedError(f"it did not answer within {timeout:g} s: {output}")
        status = await asked if asked.done() else b""
    except OSError:
        status = b""
    finally:
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
    if b" 200 " in status:
        return
    if status:
        raise StartFailedError(f"its health check answered {status.decode(errors='replace')!r}")
    # The kernel resets what waits when the last holder of the listening socket ends: picod exited before it accepted.
    raise StartFailedError(await process.failure())


async def _status_line(path: str) -> bytes:
    """The first line of the answer, empty when the connection ended without one."""
    # By hand: one line is read of what a sandbox sends, and no HTTP client parses the rest.
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        writer.write(f"GET {wire.HEALTH_PATH} HTTP/1.1\r\nHost: picod\r\nConnection: close\r\n\r\n".encode())
        line = await reader.readline()
    finally:
        writer.close()
        try:
            await writer.wait_closed()
        except OSError:
            pass  # the peer closed first
    return line.strip()
