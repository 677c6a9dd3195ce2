"""What a tenant's sessions hold, and the ledger in which it is counted. The seam to the stores.

The ledger has an entry per session with what that holds: reserving twice or releasing twice changes nothing, and what a
gateway that died has reserved can be found and released. gateway/sessions/quotas.py decides what to reserve and when;
docs/adr/0016-quotas.md says why it is counted in the store.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from gateway.core.model import SessionId


class Resource(StrEnum):
    """What is counted, in whole numbers. The values are the fields of limits in the API."""

    SESSIONS = "sessions"  # that have not ended, with or without a sandbox
    SANDBOXES = "sandboxes"
    VCPU = "vcpu"  # in thousandths, so that sums are exact
    MEMORY = "memory"  # bytes
    GPUS = "gpus"
    HIBERNATED = "hibernatedSessions"  # without a sandbox
    STORED = "storedBytes"  # of snapshots


Amounts = Mapping[Resource, int]
WHOLE_RATE = 1_000_000  # whole numbers, of which the shares of all holders are never more in sum


@dataclass(frozen=True, slots=True)
class Excess:
    """Which limit a reservation would exceed. `used`: without what was asked for."""

    resource: Resource
    limit: int
    used: int


@dataclass(frozen=True, slots=True)
class Entry:
    """What a session holds. `mark` changes with every change of the entry, and never repeats for a tenant.

    `until`: when an entry that no record has confirmed may be dropped; 0: a record has confirmed it.
    """

    session_id: SessionId
    amounts: Amounts
    mark: int
    until: float = 0.0


@dataclass(frozen=True, slots=True)
class Part:
    """What one gateway may use of a limit that several share.

    `units`: that it holds now, of those there are at once. `amount`: that it took for good, or gave back (negative).
    `holders`: gateways that hold a part now, itself among them. `share`: of a rate, in millionths.
    """

    units: int
    amount: int
    holders: int
    share: int = WHOLE_RATE

    @property
    def is_behind(self) -> bool:
        """Whether its share of a rate is less than it should be, as the others have not given up theirs yet."""
        return self.holders > 0 and self.share < WHOLE_RATE // self.holders


@dataclass(frozen=True, slots=True)
class Wish:
    """What a gateway asks for: `units` in place of those that it held, of `of_units`; `amount` more, of `of_amount`."""

    units: int
    of_units: int
    amount: int
    of_amount: int


class QuotaLedger(Protocol):
    """Counts what the sessions of tenants hold, over all gateways. Every call raises StoreUnavailableError."""

    async def reserve(
        self, tenant: str, session_id: SessionId, amounts: Amounts, limits: Amounts, until: float
    ) -> Excess | None:
        """Let a session hold `amounts` in place of what it held, unless that exceeds a limit; then nothing changes.

        Only what grows is compared: what a session holds already is not taken from it by a limit that was lowered.
        Atomic over all gateways.
        """
        ...

    async def settle(self, tenant: str, session_id: SessionId, amounts: Amounts, *, mark: int | None = None) -> bool:
        """Let a session hold `amounts`, confirmed and whatever the limits are; empty: forget it.

        With `mark`, only if its entry still has that mark (0: there is none). Returns whether it was done.
        """
        ...

    async def used(self, tenant: str) -> Amounts:
        """The sum of a tenant's entries; what is zero may be missing."""
        ...

    async def entries(self, tenant: str) -> Sequence[Entry]:
        """The entries of a tenant's sessions, in no particular order."""
        ...

    async def tenants(self) -> Sequence[str]:
        """The tenants that have entries, by name."""
        ...

    async def take(self, tenant: str, interval: float, burst: int) -> float:
        """Take one token of a bucket of `burst` that gets one each `interval` seconds.

        Returns 0, or, where there is none, the seconds until there is.
        """
        ...

    async def part(self, name: str, holder: str, wish: Wish, ttl: float) -> Part:
        """Give gateway `holder` a part of the limits called `name`: as much of its wish as the others leave.

        Units are its own for `ttl` seconds, or until it asks again; 0 units: it holds none any more. An amount stays
        taken, until it is given back, or nobody has asked for a day. Of a rate it gets an equal share, or what the
        others have not: who joins has nothing until they have asked again. Atomic over all gateways.
        """
        ...

    async def gateways(self, holder: str, ttl: float) -> frozenset[str]:
        """Note that gateway `holder` is alive for `ttl` seconds. Returns the names of all that are, its own too."""
        ...


@dataclass(slots=True)
class Parted:
    """Limits that gateways have parts of: units, the time until which they are held, and the share of a
    rate, by holder; what is taken."""

    held: dict[str, tuple[int, float, int]] = field(default_factory=dict)
    taken: int = 0

    def give(self, holder: str, wish: Wish, now: float, ttl: float) -> Part:
        """The part that a holder gets, by the rule of QuotaLedger.part."""
        # Beyond any holder's time: the clock was set back since.
        self.held = {
            name: each for name, each in self.held.items() if name != holder and now < each[1] <= now + 2 * ttl
        }
        units = max(0, min(wish.units, wish.of_units - sum(each for each, _, _ in self.held.values())))
        share = 0
        if wish.units:
            # Two gateways: the first has 1,000,000 until it asks again, then 500,000; the second gets 0, then 500,000.
            left = WHOLE_RATE - sum(each for _, _, each in self.held.values())
            share = max(0, min(WHOLE_RATE // (len(self.held) + 1), left))
            self.held[holder] = (units, now + ttl, share)
        amount = (
            max(wish.amount, -self.taken) if wish.amount < 0 else max(0, min(wish.amount, wish.of_amount - self.taken))
        )
        self.taken += amount
        return Part(units, amount, len(self.held), share)


def excess_of(held: Amounts, wanted: Amounts, used: Amounts, limits: Amounts) -> Excess | None:
    """The first limit that a session exceeds when it holds `wanted` in place of `held`; `used` includes `held`."""
    for resource, amount in wanted.items():
        grown, limit = amount - held.get(resource, 0), limits.get(resource)
        if limit is not None and grown > 0 and used.get(resource, 0) + grown > limit:
            return Excess(resource, limit, used.get(resource, 0))
    return None


def next_token(ready_at: float, now: float, interval: float, burst: int) -> tuple[float, float]:
    """The generic cell rate algorithm: when the bucket will be full, after taking a token; and the wait, 0 if taken.

    Example: interval 10 s, burst 2, empty at 100: full again at 120. At 105 the bucket holds half a token: wait 5 s.
    """
    # No bucket is empty for longer than that: the clock was set back since, perhaps by a year.
    if ready_at > now + interval * burst + 1e-6:
        ready_at = now
    full_at = max(ready_at, now) + interval
    wait = full_at - now - interval * burst
    return (ready_at, wait) if wait > 1e-9 else (full_at, 0.0)
