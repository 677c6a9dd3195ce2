"""How slowly a sandbox may hand out its workspace.

The executor bounds silence between two bytes, not the whole: a sandbox that drips a byte each 20 s would be exported
for ever. Only time spent waiting for the sandbox counts, not what the snapshot store takes to write.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass

from gateway.core.errors import UpstreamTimeoutError
from gateway.core.model import SandboxId


@dataclass(frozen=True, slots=True)
class PaceLimits:
    """At `least_rate` after `grace_s` seconds, and at most `total_s` seconds in all.

    picod packs a workspace of small files at 20 MB/s and more; a tenth of that, on a machine with much else to do, is
    still eight times the least rate. The total lets 4 GiB, the default limit of a snapshot, through at 7 MB/s.
    """

    grace_s: float = 30.0
    least_rate: float = 256 * 1024  # bytes per second
    total_s: float = 600.0

    def allowed(self, received: int) -> float:
        """Seconds that may have been waited for the next piece to come after `received` bytes."""
        return min(self.total_s, self.grace_s + received / self.least_rate)


DEFAULT_PACE = PaceLimits()


async def paced(chunks: AsyncIterator[bytes], sandbox_id: SandboxId, limits: PaceLimits) -> AsyncGenerator[bytes, None]:
    """The chunks of a sandbox's workspace. Raises UpstreamTimeoutError when they come too slowly."""
    loop = asyncio.get_running_loop()
    waited, received = 0.0, 0
    while True:
        began = loop.time()
        try:
            async with asyncio.timeout(limits.allowed(received) - waited):
                chunk = await anext(chunks)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise UpstreamTimeoutError(
                f"sandbox {sandbox_id} gave {received} bytes of its workspace within {loop.time() - began + waited:.0f}"
                " s, which is too slow to go on"
            ) from None
        waited += loop.time() - began
        received += len(chunk)
        yield chunk
