"""Whether a pod's picod accepts connections, or answers that it is ready, asked of itself."""

from __future__ import annotations

import asyncio

from gateway.provider.kubernetes.pod import Pod
from picod import wire

_CONNECT_TIMEOUT_S = 2.0
_MAX_STATUS_LINE_BYTES = 1024  # of what a stranger at that port may send


async def refuses(pod: Pod) -> bool:
    """Whether the connection is refused: the node is there, picod is not. A timeout does not count as refused."""
    return isinstance(await _connect(pod), ConnectionRefusedError)


async def accepts(pod: Pod) -> bool:
    """Whether a connection is accepted within two seconds."""
    return await _connect(pod) is None


async def _connect(pod: Pod) -> OSError | None:
    """Why it cannot be connected to; None if it can."""
    try:
        async with asyncio.timeout(_CONNECT_TIMEOUT_S):
            _, writer = await asyncio.open_connection(pod.ip, pod.port)
    except OSError as error:  # TimeoutError is one
        return error
    writer.close()
    return None


async def is_ready(pod: Pod) -> bool:
    """Whether its picod answers GET /health with 200 within two seconds, as the kubelet's readiness probe asks."""
    request = f"GET {wire.HEALTH_PATH} HTTP/1.1\r\nhost: picod\r\nconnection: close\r\n\r\n"
    try:
        async with asyncio.timeout(_CONNECT_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(pod.ip, pod.port, limit=_MAX_STATUS_LINE_BYTES)
            try:
                writer.write(request.encode())
                status = await reader.readuntil(b"\r\n")
            finally:
                writer.close()
    except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        return False
    return status.split(b" ", 2)[1:2] == [b"200"]
