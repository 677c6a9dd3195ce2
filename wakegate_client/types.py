"""The answers of the API, as /openapi.json describes them: a test compares the two. More fields may come."""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict


class RuntimeName(TypedDict):
    """The runtime of a session, by its parts."""

    namespace: str
    name: str
    kind: str


class Session(TypedDict):
    """A session. Times are RFC 3339, `idleTimeout` is seconds."""

    id: str
    runtime: RuntimeName
    tenant: NotRequired[str]
    state: str
    start: NotRequired[str | None]
    createdAt: str
    lastActiveAt: str
    expiresAt: str
    idleTimeout: float
    sandboxId: NotRequired[str | None]
    reason: NotRequired[str]
    metadata: dict[str, str]
    egress: NotRequired[list[Any] | None]
    resources: NotRequired[dict[str, float] | None]


class Sessions(TypedDict):
    """A page of sessions; `next` is the `after` of the following one."""

    sessions: list[Session]
    next: str | None


class Executed(TypedDict):
    """What a command printed, and how it ended; `duration` in seconds."""

    stdout: str
    stderr: str
    exit_code: int
    duration: float


class CodeResult(TypedDict):
    """What a cell of code printed and answered. `results`: {MIME type: data} each; pictures are base64."""

    stdout: str
    stderr: str
    results: list[dict[str, Any]]
    error: dict[str, Any] | None
    execution_count: NotRequired[int | None]
    duration: NotRequired[float]


class Runtime(TypedDict):
    """A runtime and its warm pool."""

    namespace: str
    name: str
    kind: str
    pool: dict[str, Any]


class Tenant(TypedDict):
    """A tenant, its limits, and what its sessions hold."""

    name: str
    limits: dict[str, Any]
    used: dict[str, float]


class Caller(TypedDict):
    """Who the client's key stands for."""

    subject: str
    tenant: str
    role: str
    user: NotRequired[str]
    runtimes: NotRequired[list[str]]
    expiresAt: NotRequired[str | None]
