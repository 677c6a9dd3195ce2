"""Whose claim is next when sandboxes are scarce: that of the tenant which uses least of its share.

A share is the tenant's limit of sandboxes, or the whole gateway where it has none. Among the claims of one tenant the
oldest is next. Example: A has a limit of 100 and holds 20, with 200 claims waiting; B has a limit of 10 and holds 1.
B's next claim (0.1) goes before all of A's (0.2).

Decided when a slot is free and not when a claim comes: what a tenant uses changes while it waits. Rejected: virtual
finish times as in weighted fair queueing of packets, which know what was served lately, and not what is held.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager


class FairQueue:
    """Lets at most `slots` claims through at a time. `load(tenant, n)`: its share used, with `n` more sandboxes."""

    def __init__(self, slots: int, load: Callable[[str, int], float]) -> None:
        self._slots = slots
        self._load = load
        self._served: Counter[str] = Counter()  # claims that hold a slot, by tenant
        self._waiting: dict[str, deque[tuple[int, asyncio.Future[None]]]] = {}
        self._arrivals = 0

    @property
    def is_full(self) -> bool:
        """Whether a claim that comes now has to wait."""
        return sum(self._served.values()) >= self._slots

    @asynccontextmanager
    async def slot(self, tenant: str) -> AsyncIterator[None]:
        """Hold a slot for a block, once it is this tenant's turn."""
        await self._turn(tenant)
        try:
            yield
        finally:
            self._release(tenant)

    async def _turn(self, tenant: str) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._arrivals += 1
        self._waiting.setdefault(tenant, deque()).append((self._arrivals, turn))
        self._grant()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._forget(tenant, turn)
            else:
                self._release(tenant)  # it was granted in the step of the cancellation
            raise

    def _release(self, tenant: str) -> None:
        self._served[tenant] -= 1
        if not self._served[tenant]:
            del self._served[tenant]
        self._grant()

    def _grant(self) -> None:
        while self._waiting and not self.is_full:
            # Linear in the tenants that wait, not in the claims: of each only the oldest can be next.
            tenant = min(self._waiting, key=self._rank)
            _, turn = self._waiting[tenant][0]
            self._forget(tenant, turn)
            if not turn.done():
                self._served[tenant] += 1
                turn.set_result(None)

    def _rank(self, tenant: str) -> tuple[float, int]:
        return self._load(tenant, self._served[tenant] + 1), self._waiting[tenant][0][0]

    def _forget(self, tenant: str, turn: asyncio.Future[None]) -> None:
        queue = self._waiting.get(tenant, deque())
        left = deque(each for each in queue if each[1] is not turn)
        if left:
            self._waiting[tenant] = left
        else:
            self._waiting.pop(tenant, None)
