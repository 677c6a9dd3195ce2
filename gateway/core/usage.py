"""What tenants have used, as it is kept: amounts by hour, tenant, runtime, size and session. The seam to the stores.

gateway/usage measures, prices and reports it; docs/usage.md explains the quantities.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

HOUR_S = 3600
WRITER_RETENTION_S = 8 * 86400  # how long the last batch of a writer is remembered, that is, may be repeated


class Quantity(StrEnum):
    """What is counted. The values are stored."""

    SANDBOX_SECONDS = "sandbox_seconds"
    IDLE_SECONDS = "idle_seconds"  # of these, those in which the session was not in use
    HIBERNATED_SECONDS = "hibernated_seconds"  # in which the session had no sandbox, thanks to hibernation
    WARM_SECONDS = "warm_seconds"  # of sandboxes without a session, in the warm pool
    CPU_SECONDS = "cpu_seconds"  # really used, as are
    MEMORY_BYTE_SECONDS = "memory_byte_seconds"
    STORED_BYTE_SECONDS = "stored_byte_seconds"  # of kept workspaces
    EGRESS_BYTES = "egress_bytes"  # bodies and WebSocket messages sent to clients
    NETWORK_SENT_BYTES = "network_sent_bytes"  # by code in sandboxes, through the egress proxy, as are
    NETWORK_RECEIVED_BYTES = "network_received_bytes"
    REQUESTS = "requests"
    STARTS_WARM = "starts_warm"
    STARTS_COLD = "starts_cold"
    STARTS_WAKE = "starts_wake"
    STARTS_WAKE_COLD = "starts_wake_cold"


@dataclass(frozen=True, slots=True, order=True)
class UsageKey:
    """What an amount is of. `hour`: the epoch second at which an hour begins (UTC).

    `session` is empty in totals, which are kept longer; each amount of a session is in both rows. `tenant` is empty for
    warm pools, which belong to no tenant. `size` as in gateway/usage/meter.py.
    """

    hour: int
    tenant: str
    runtime: str
    size: str = ""
    session: str = ""


@dataclass(frozen=True, slots=True)
class Retention:
    """How long rows are kept from their hour on, in seconds: those of sessions, and totals."""

    sessions: float = 35 * 86400.0  # a month's bill, and some days to look into it
    totals: float = 400 * 86400.0  # a year, and the month to compare it with

    def of(self, key: UsageKey) -> float:
        """How long the row of this key is kept, in seconds."""
        return self.sessions if key.session else self.totals


ORDINARY_RETENTION = Retention()


@dataclass(frozen=True, slots=True)
class SandboxUsage:
    """What a sandbox really uses: CPU time since it was bound, or busy cores where only that is known; bytes now.

    `memory_bytes` is None for one that has ended: its last CPU time counts, its memory is free.
    """

    cpu_s: float | None = None
    memory_bytes: float | None = None
    cores: float | None = None


@dataclass(frozen=True, slots=True)
class SandboxLoad:
    """What one sandbox uses now; None: the engine does not know it. `disk_bytes`: as last measured.

    `cpu_s`: CPU time since it was bound; an engine that knows only how many cores are busy gives `cores` instead.
    """

    cpu_s: float | None = None
    cores: float | None = None
    memory_bytes: float | None = None
    processes: int | None = None
    disk_bytes: int | None = None


Amounts = Mapping[str, float]
Rows = Mapping[UsageKey, Amounts]


class UsageStore(Protocol):
    """Amounts by key. Every call raises StoreUnavailableError."""

    async def add(self, writer: str, sequence: int, rows: Rows, retention: Retention = ORDINARY_RETENTION) -> bool:
        """Durably add the amounts, all or none. False: this batch, or a later one of this writer, is there already.

        What is older than `retention` is deleted, now or a while later.

        So a batch whose outcome is unknown is sent again, and counts once. A writer's sequence numbers grow from 1.
        """
        ...

    def read(self, since: int, until: int, *, sessions: bool, tenant: str | None = None) -> AsyncIterator[
        tuple[UsageKey, Amounts]
    ]:  # fmt: skip
        """Rows of the hours from `since` on and before `until`, by hour: those of sessions, or the totals.

        With `tenant`, only its rows.
        """
        ...
