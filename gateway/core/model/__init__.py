"""The domain types: frozen dataclasses and id types that every package shares. No I/O, no clock.

Times are float seconds since the Unix epoch, durations float seconds, sizes bytes. Import them from here, whichever
module has them; `session` and `runtime` are those to read first.
"""

from __future__ import annotations

from gateway.core.model.names import (
    DEFAULT_TENANT,
    PRIVATE_METADATA,
    REUSABLE_UNTIL,
    Endpoint,
    Kind,
    RuntimeKey,
    SandboxId,
    SessionId,
)
from gateway.core.model.runtime import (
    HIGH_PORTS,
    Agent,
    DeclaredTool,
    HibernationMode,
    Invocations,
    Mount,
    PoolMode,
    PoolSpec,
    Probe,
    Runtime,
    Schedule,
    Secret,
    Skill,
)
from gateway.core.model.sandbox import PoolStatus, Readiness, Sandbox, SandboxEvent, SandboxReply, StartKind
from gateway.core.model.session import Lease, Session, SessionState
from gateway.core.model.sizes import SIZES, Limits, Requests, Resources
from gateway.core.model.snapshot import SnapshotRef, StoredSnapshot, SuspendReport, Unsaved, is_snapshot

__all__ = [
    "DEFAULT_TENANT",
    "HIGH_PORTS",
    "PRIVATE_METADATA",
    "REUSABLE_UNTIL",
    "SIZES",
    "Agent",
    "DeclaredTool",
    "Endpoint",
    "HibernationMode",
    "Invocations",
    "Kind",
    "Lease",
    "Limits",
    "Mount",
    "PoolMode",
    "PoolSpec",
    "PoolStatus",
    "Probe",
    "Readiness",
    "Requests",
    "Resources",
    "Runtime",
    "RuntimeKey",
    "Sandbox",
    "SandboxEvent",
    "SandboxId",
    "SandboxReply",
    "Schedule",
    "Secret",
    "Session",
    "SessionId",
    "SessionState",
    "Skill",
    "SnapshotRef",
    "StartKind",
    "StoredSnapshot",
    "SuspendReport",
    "Unsaved",
    "is_snapshot",
]
