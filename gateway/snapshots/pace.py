"""The minimum rate at which a sandbox must export its workspace.

The executor's idle timeout limits the time between two bytes, and its own minimum rate is meant for exports of hours.
A hibernation must end sooner: with only an idle timeout, a sandbox that sends a byte every 20 s would keep it running
for ever. Only time spent waiting for the sandbox counts, not the time that the snapshot store takes to write.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass

from gateway.core.errors import UpstreamTimeoutError
from gateway.core.model import SandboxId


@dataclass(frozen=True, slots=True)
class PaceLimits:
    """At least `least_rate` after `grace_s` seconds, and at most `total_s` seconds in total.

    picod packs a workspace of small files at 20 MB/s or more; a tenth of that, on a busy machine, is still eight times
    the least rate. 4 GiB, the default limit of a snapshot, fit into the total at 7 MB/s.
    """

    grace_s: float = 30.0
    least_rate: float = 256 * 1024  # bytes per second
    total_s: float = 600.0

    def allowed(self, received: int) -> float:
        """Total seconds that may be spent waiting until the piece after `received` bytes.

        Example: after 10 MiB it is 30 + 40 s.
        """
        return min(self.total_s, self.grace_s + received / self.least_rate)


DEFAULT_PACE = PaceLimits()


async def paced(chunks: AsyncIterator[bytes], sandbox_id: SandboxId, limits: PaceLimits) -> AsyncGenerator[bytes, None]:
    """Pass on the chunks of a sandbox's workspace. Raises UpstreamTimeoutError when they arrive too slowly."""
    loop = asyncio.get_running_loop()
    waited, received = 0.0, 0
    while True:
        began = loop.time()
        try:
            # What is left of the allowance, not a limit for each piece: a byte every few seconds would pass that.
            async with asyncio.timeout(limits.allowed(received) - waited):
                chunk = await anext(chunks)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise UpstreamTimeoutError(
                f"sandbox {sandbox_id} exports its workspace too slowly: {received} bytes in"
                f" {loop.time() - began + waited:.0f} s"
            ) from None
        waited += loop.time() - began
        received += len(chunk)
        yield chunk
