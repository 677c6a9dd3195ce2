"""Whether a pod's picod accepts connections, asked by opening one."""

from __future__ import annotations

import asyncio

from gateway.provider.kubernetes.pod import Pod

_CONNECT_TIMEOUT_S = 2.0


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
