"""A session as the store keeps it, and the lease under which its record is changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from gateway.core.model.names import DEFAULT_TENANT, PRIVATE_METADATA, RuntimeKey, SandboxId, SessionId
from gateway.core.model.sandbox import Sandbox, StartKind
from gateway.core.model.sizes import Resources


class SessionState(StrEnum):
    """Where a session is in its life cycle (docs/architecture.md, "A wake", has the table).

    A record never claims more than is true: it says `active` only after the workspace is in the sandbox.
    """

    CREATING = "creating"
    ACTIVE = "active"
    HIBERNATING = "hibernating"
    HIBERNATED = "hibernated"
    WAKING = "waking"
    LOST = "lost"
    TERMINATED = "terminated"


@dataclass(frozen=True, slots=True)
class Session:
    """A client's sticky handle, as the store keeps it. `version` counts writes; 0: not stored yet."""

    id: SessionId
    runtime: RuntimeKey
    state: SessionState
    created_at: float
    last_active_at: float
    expires_at: float  # end of the maximum duration
    idle_timeout: float
    version: int = 0
    tenant: str = DEFAULT_TENANT
    user: str = ""  # the person of the tenant who made it, where the identity names one
    owner: str = ""  # the only gateway that reaches its sandbox or parked workspace; "": every gateway does
    sandbox: Sandbox | None = None
    start: StartKind | None = None  # how its current sandbox was bound
    snapshot: str | None = None  # the WorkspaceKeeper's reference to its kept workspace
    snapshot_at: float | None = None
    suspended: bool = False  # its in-memory state was written into the workspace before it was hibernated
    restored: str | None = None  # for x-wakegate-restored after a loss, until a response with it was delivered
    limit_at: float = 0.0  # end of the maximum duration or of the retention; 0: a record older than this field
    ends_at: float | None = None  # the end that its user requested (ttl); an upper bound of expires_at
    egress: Sequence[str | Mapping[str, Any]] | None = None  # narrower than its runtime's; None: its runtime's
    public_ports: tuple[int, ...] = ()  # that anybody may reach, as it was created
    resources: Resources | None = None  # its size, where it was resized; None: its runtime's
    # Of a terminated one: the sandbox that it had, whose files a gateway that was killed in between has left.
    last_sandbox: SandboxId | None = None
    reason: str = ""  # why it is terminated, lost, or cannot hibernate; shown to people
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def public_metadata(self) -> dict[str, str]:
        """The metadata that its client set."""
        return {name: value for name, value in self.metadata.items() if not name.startswith(PRIVATE_METADATA)}

    @property
    def idle_at(self) -> float:
        """When the idle timeout passes, unless there is activity before."""
        return self.last_active_at + self.idle_timeout


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to act on `name` until `expires_at`. Fences only grow; a write with an older one is refused."""

    name: str
    holder: str
    fence: int
    expires_at: float
