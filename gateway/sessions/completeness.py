"""Notices that a shared store has lost its records, and then takes no missing one for a session that never was.

Redis may have come back empty. For some seconds each gateway writes the records of its own live sessions again
(gateway/sessions/orphans.py), and announces itself again. Until then neither a record nor an announcement that is
missing says anything: an unknown session is not "not found", and a gateway without an announcement is not dead.

The store's mark, a random number, shows it: it is gone or another one than at this gateway's start.
"""

from __future__ import annotations

import logging
import secrets

from gateway.core.clock import Clock
from gateway.core.documents import Document, DocumentStore
from gateway.core.errors import StaleWriteError, StoreUnavailableError

logger = logging.getLogger(__name__)

# Gateways write missing records at each sweep, every 5 s, so each gets two tries at least.
REBUILD_S = 12.0
_RETRY_AFTER_S = 2.0
_KIND, _NAME = "store", "mark"


class Completeness:
    """Knows the store's mark. Before `start`, and where nobody shares the store, the store is taken as complete."""

    def __init__(self, documents: DocumentStore, clock: Clock) -> None:
        self._documents = documents
        self._clock = clock
        self._mark = ""
        self._lost_at = float("-inf")  # monotonic

    async def start(self) -> None:
        """Read the store's mark, or make one. Raises StoreUnavailableError."""
        self._mark = await self._read()

    async def require(self) -> None:
        """Raise StoreUnavailableError while records may be missing because the store has lost them."""
        if not self._mark:
            return
        if (mark := await self._read()) != self._mark:
            self._mark, self._lost_at = mark, self._clock.monotonic()
            logger.error("the session store has lost its records; gateways write those of their live sessions again")
        if self._clock.monotonic() < self._lost_at + REBUILD_S:
            raise StoreUnavailableError(
                "the session store has lost its records, and those of live sessions are being written again; try again",
                retry_after=_RETRY_AFTER_S,
            )

    async def _read(self) -> str:
        for _ in range(3):
            if (found := await self._documents.get(_KIND, _NAME)) is not None:
                return str(found.value["mark"])
            try:
                await self._documents.put(Document(_KIND, _NAME, {"mark": secrets.token_hex(8)}))
            except StaleWriteError:
                continue  # another gateway made it at the same moment
        raise StoreUnavailableError("the session store forgets what is written to it")
