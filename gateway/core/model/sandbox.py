"""A running sandbox, its answers and its end, and the warm pool that it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from gateway.core.model.names import Endpoint, RuntimeKey, SandboxId, SessionId


class StartKind(StrEnum):
    """How a request got its sandbox; sent to clients as `x-wakegate-start`."""

    LIVE = "live"
    WARM = "warm"
    COLD = "cold"
    WAKE = "wake"
    WAKE_COLD = "wake-cold"


@dataclass(frozen=True, slots=True)
class Sandbox:
    """One isolated running instance."""

    id: SandboxId
    runtime: RuntimeKey
    endpoint: Endpoint
    start: StartKind  # WARM or COLD
    created_at: float
    session_id: SessionId | None = None


@dataclass(frozen=True, slots=True)
class Readiness:
    """A session with a live sandbox, and how it got that sandbox."""

    runtime: RuntimeKey
    start: StartKind
    restored: str | None = None  # as in x-wakegate-restored


@dataclass(frozen=True, slots=True)
class SandboxReply:
    """A sandbox's response to a request that the gateway itself sent. Header names are lower case."""

    status: int
    headers: Mapping[str, str]
    start: StartKind
    body: bytes = b""  # empty where it is streamed
    restored: str | None = None  # as in x-wakegate-restored


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """A snapshot of a warm pool's state: counts of sandboxes, and what recent starts and losses say."""

    runtime: RuntimeKey
    target: int
    ready: int
    starting: int
    claimed: int
    failures: int  # consecutive start failures
    last_error: str = ""
    retry_at: float | None = None  # when the next start is tried, while backing off
    lead_time_p50: float | None = None  # seconds from ordering a sandbox to its being ready
    lead_time_p90: float | None = None
    losses: int = 0  # sessions' sandboxes that ended without being released, as counted by this gateway
    last_loss: str = ""  # why the last one ended, while that is recent

    @property
    def settled(self) -> bool:
        """Whether /readyz may report this pool as ready: it has a sandbox, wants none, or keeps failing to start one.

        Failing pools count, so that one runtime with a broken image does not take the gateway out of a load balancer.
        """
        return self.ready > 0 or self.claimed > 0 or self.target == 0 or self.failures >= 3


@dataclass(frozen=True, slots=True)
class SandboxEvent:
    """A sandbox ended without being released."""

    sandbox_id: SandboxId
    session_id: SessionId | None
    reason: str  # e.g. "exited with status 137", "out of memory"
