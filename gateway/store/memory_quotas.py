"""The quota ledger (core/quota.py) of the in-memory store, for tests in virtual time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

from gateway.core.clock import Clock
from gateway.core.model import SessionId
from gateway.core.quota import Amounts, Entry, Excess, Part, Parted, Resource, Wish, excess_of, next_token


class MemoryQuotas:
    """Implements QuotaLedger in dictionaries. `turn` is awaited in each call, and raises once the store is closed."""

    def __init__(self, turn: Callable[[], Awaitable[None]], clock: Clock) -> None:
        self._turn = turn
        self._clock = clock
        self._entries: dict[str, dict[SessionId, Entry]] = {}
        self._marks: Counter[str] = Counter()
        self._full_at: dict[str, float] = {}
        self._gateways: dict[str, float] = {}
        self._parted: dict[str, Parted] = {}

    async def reserve(
        self, tenant: str, session_id: SessionId, amounts: Amounts, limits: Amounts, until: float
    ) -> Excess | None:
        """Let a session hold `amounts`, unless that exceeds a limit."""
        await self._turn()
        excess = excess_of(self._held(tenant, session_id).amounts, amounts, self._used(tenant), limits)
        if excess is None:
            self._write(tenant, session_id, amounts, until)
        return excess

    async def settle(self, tenant: str, session_id: SessionId, amounts: Amounts, *, mark: int | None = None) -> bool:
        """Let a session hold `amounts`, if its entry still has that mark."""
        await self._turn()
        if mark not in (None, self._held(tenant, session_id).mark):
            return False
        self._write(tenant, session_id, amounts, 0.0)
        return True

    async def used(self, tenant: str) -> Amounts:
        """The sum of a tenant's entries."""
        await self._turn()
        return self._used(tenant)

    async def entries(self, tenant: str) -> Sequence[Entry]:
        """All entries of a tenant."""
        await self._turn()
        return list(self._entries.get(tenant, {}).values())

    async def tenants(self) -> Sequence[str]:
        """The tenants that have entries, by name."""
        await self._turn()
        return sorted(tenant for tenant, entries in self._entries.items() if entries)

    async def take(self, tenant: str, interval: float, burst: int) -> float:
        """Take one token, or say how long there is none."""
        await self._turn()
        full_at, wait = next_token(self._full_at.get(tenant, 0.0), self._clock.now(), interval, burst)
        self._full_at[tenant] = full_at
        return wait

    async def part(self, name: str, holder: str, wish: Wish, ttl: float) -> Part:
        """Give a gateway a part of the limits of that name."""
        await self._turn()
        return self._parted.setdefault(name, Parted()).give(holder, wish, self._clock.now(), ttl)

    async def gateways(self, holder: str, ttl: float) -> frozenset[str]:
        """Note that this gateway is alive, and count those that are."""
        await self._turn()
        now = self._clock.now()
        self._gateways = {each: until for each, until in self._gateways.items() if now < until <= now + 2 * ttl} | {
            holder: now + ttl
        }
        return frozenset(self._gateways)

    def _held(self, tenant: str, session_id: SessionId) -> Entry:
        return self._entries.get(tenant, {}).get(session_id, Entry(session_id, {}, 0))

    def _used(self, tenant: str) -> Amounts:
        used: Counter[Resource] = Counter()
        for entry in self._entries.get(tenant, {}).values():
            used.update(entry.amounts)
        return used

    def _write(self, tenant: str, session_id: SessionId, amounts: Amounts, until: float) -> None:
        self._marks[tenant] += 1
        entries = self._entries.setdefault(tenant, {})
        entries.pop(session_id, None)  # an entry without amounts is none: tenants() lists those that have some
        if amounts:
            entries[session_id] = Entry(session_id, dict(amounts), self._marks[tenant], until)
