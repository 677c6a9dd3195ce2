"""What tenants were refused a moment ago, so that a client which asks again at once costs little.

A flood of creates by a tenant that is at its limit would else ask the ledger for each, and take the processor from the
creates of others and from the sandboxes that start for them. So a refusal is remembered for MEMORY_S, and whoever asks
for the same meanwhile gets it again when that is over: eight connections that ask in a loop get 80 answers a second,
and the ledger is asked ten times. Measured by loadtest/governance_bench.py (neighbour).

Nobody is refused wrongly for longer than that: it is forgotten as soon as this gateway gives back something of the
tenant's, or its limits change; what other gateways give back shows when the memory ends.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from enum import StrEnum

from gateway.core.clock import Clock
from gateway.core.errors import LimitError
from gateway.core.model import RuntimeKey
from gateway.identity.tenant_limits import TenantLimits

MEMORY_S = 0.1
MAX_REMEMBERED = 1024
MAX_WAITING = 1024  # requests that are answered when a memory ends; further ones are answered at once


class Wish(StrEnum):
    """What is asked for. One may be refused where another is not: a session without a sandbox, with all in use."""

    CREATE = "create"
    REGISTER = "register"
    WAKE = "wake"


Asked = tuple[str, RuntimeKey, Wish]  # by which tenant, of which runtime


@dataclass(slots=True, eq=False)
class _Refusal:
    error: LimitError
    limits: TenantLimits  # that it was refused by
    until: float  # of the monotonic clock
    forgotten: asyncio.Event = field(default_factory=asyncio.Event)


class Refusals:
    """The memory of one gateway."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._found: dict[Asked, _Refusal] = {}
        self._waiting = 0

    async def repeat(self, asked: Asked, limits: TenantLimits) -> None:
        """Raise the LimitError that the same was refused with a moment ago, once its memory ends.

        Returns where there is none, or it was forgotten meanwhile: then the ledger has to be asked. Whoever comes while
        one asks waits as well.
        """
        while (refusal := self._found.get(asked)) is not None:
            now = self._clock.monotonic()
            if refusal.limits != limits:
                self.granted(asked)
                return
            if refusal.until <= now:
                refusal.until = now + MEMORY_S  # whoever comes now waits for what this one is answered
                return
            await self._wait(refusal, refusal.until - now)
            if not refusal.forgotten.is_set():
                raise refusal.error

    def remember(self, asked: Asked, limits: TenantLimits, error: LimitError) -> LimitError:
        """Note that this was refused, and return the error."""
        if len(self._found) >= MAX_REMEMBERED:
            for known in list(self._found):
                self.granted(known)
        self._found[asked] = _Refusal(error, limits, self._clock.monotonic() + MEMORY_S)
        return error

    def granted(self, asked: Asked) -> None:
        """The same was asked for and not refused."""
        if (refusal := self._found.pop(asked, None)) is not None:
            refusal.forgotten.set()

    def forget(self, tenant: str) -> None:
        """Something of the tenant's was given back."""
        for asked in [asked for asked in self._found if asked[0] == tenant]:
            self.granted(asked)

    async def _wait(self, refusal: _Refusal, seconds: float) -> None:
        """Until it is forgotten, or its memory ends."""
        if self._waiting >= MAX_WAITING:
            return
        self._waiting += 1
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await refusal.forgotten.wait()
        finally:
            self._waiting -= 1
