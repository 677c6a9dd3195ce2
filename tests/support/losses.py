"""Sandboxes that ended on their own, as a gateway hears of them."""

from __future__ import annotations

from gateway.core.model import SandboxEvent
from gateway.sessions.recovery import Recovery


async def lose(recovery: Recovery, event: SandboxEvent) -> None:
    """Handle the end of a sandbox in one try."""
    loss = recovery.unbind(event)
    if loss is not None:
        await recovery.settle(loss)
