"""Questions that the gateways of one store answer each other at once, where a look into the store would come late."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from typing import Protocol

from gateway.core.model import SessionId

InUse = Callable[[SessionId], bool]


class PeerQuestions(Protocol):
    """Asks the other gateways whether they use a session. A gateway that gives no answer may use it."""

    async def listen(self, holder: str, in_use: InUse) -> None:
        """Answer the others, as gateway `holder`, until cancelled. An outage of the store interrupts it only."""
        ...

    async def ask(self, session_id: SessionId, others: Collection[str], timeout: float) -> Mapping[str, bool]:
        """What `others` answer, by name: whether requests of the session are under way there.

        Returns when all have answered, when one uses it, or after `timeout` seconds; who did not answer is missing.
        Raises StoreUnavailableError.
        """
        ...


class NoQuestions:
    """For a store through which gateways cannot reach each other: nobody ever answers."""

    async def listen(self, holder: str, in_use: InUse) -> None:
        """Hear nothing, until cancelled."""
        await asyncio.Event().wait()

    async def ask(self, session_id: SessionId, others: Collection[str], timeout: float) -> Mapping[str, bool]:
        """No answers, at once: nobody shares the store."""
        return {}
