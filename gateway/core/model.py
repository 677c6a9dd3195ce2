"""The nouns: frozen dataclasses and id types that every package shares. No I/O, no clock, no imports from above.

Times are seconds since the Unix epoch as float, sizes bytes, durations seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NewType

SessionId = NewType("SessionId", str)
SandboxId = NewType("SandboxId", str)

DEFAULT_TENANT = "default"  # of sessions made without authentication, and of keys that name no other


class Kind(StrEnum):
    """What a runtime offers; the values are the Kubernetes kinds."""

    CODE_INTERPRETER = "CodeInterpreter"
    AGENT_RUNTIME = "AgentRuntime"

    @property
    def segment(self) -> str:
        """The plural in data-plane paths, e.g. `code-interpreters`."""
        return "code-interpreters" if self is Kind.CODE_INTERPRETER else "agent-runtimes"

    @property
    def singular(self) -> str:
        """The singular in control-plane paths, e.g. `code-interpreter`."""
        return "code-interpreter" if self is Kind.CODE_INTERPRETER else "agent-runtime"


class SessionState(StrEnum):
    """Where a session stands. A record never says more than is true (docs/architecture.md, "A session's life")."""

    CREATING = "creating"
    ACTIVE = "active"
    HIBERNATING = "hibernating"
    HIBERNATED = "hibernated"
    WAKING = "waking"
    LOST = "lost"
    TERMINATED = "terminated"


class StartKind(StrEnum):
    """How the sandbox behind a request came to be; sent to clients as `x-wakegate-start`."""

    LIVE = "live"
    WARM = "warm"
    COLD = "cold"
    WAKE = "wake"
    WAKE_COLD = "wake-cold"


@dataclass(frozen=True, slots=True, order=True)
class RuntimeKey:
    """Names one runtime."""

    namespace: str
    name: str
    kind: Kind = Kind.CODE_INTERPRETER

    def __str__(self) -> str:
        return f"{self.kind.segment}/{self.namespace}/{self.name}"

    @classmethod
    def parse(cls, text: str) -> RuntimeKey:
        """The inverse of str(). Raises ValueError."""
        segment, namespace, name = text.split("/")
        kind = Kind.CODE_INTERPRETER if segment == Kind.CODE_INTERPRETER.segment else Kind.AGENT_RUNTIME
        return cls(namespace, name, kind)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where picod listens: a unix socket path, or host and port."""

    uds: str | None = None
    host: str | None = None
    port: int = 0

    def __str__(self) -> str:
        return f"unix:{self.uds}" if self.uds else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Limits:
    """What one sandbox may use; these are the defaults of a runtime. None: no limit beyond the machine's."""

    memory: int | None = 1 << 30  # bytes
    cpus: float | None = 1.0  # cores
    processes: int = 256  # tasks (threads count)
    file_size: int = 4 << 30  # bytes, the largest single file
    tmp_size: int = 256 << 20  # bytes of /tmp
    workspace_size: int | None = 5 << 30  # bytes of the workspace
    workspace_files: int | None = 500_000  # inodes of the workspace: a large JavaScript monorepo has 300,000


HIGH_PORTS: tuple[tuple[int, int], ...] = ((1024, 65535),)


class PoolMode(StrEnum):
    """Who sizes the warm pool (spec.wakegate.pool.mode)."""

    PREDICTIVE = "predictive"
    FIXED = "fixed"
    FORECAST_ONLY = "forecast-only"


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """spec.warmPoolSize and spec.wakegate.pool."""

    size: int = 0  # the starting point; with mode fixed, the size
    mode: PoolMode = PoolMode.FIXED
    min: int = 0
    max: int = 0
    target_miss_rate: float = 0.01  # share of claims that may find the pool empty


class HibernationMode(StrEnum):
    """What an idle session keeps (spec.wakegate.hibernation)."""

    OFF = "off"  # nothing: it ends
    WORKSPACE = "workspace"  # its files
    STATE = "state"  # its files, and of what code contexts have in memory what can be pickled


@dataclass(frozen=True, slots=True)
class DeclaredTool:
    """A tool for models that a runtime offers (spec.wakegate.tools): a command, or a function of a Python file.

    `parameters` is a JSON schema of an object. In `command`, `{name}` stands for an argument. A function is called with
    the arguments as keywords; `source` is the file's content as it was read.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    command: tuple[str, ...] = ()
    function: str = ""
    source: str = ""
    ordered: bool = True  # waits for the calls before it in a message, and those after it wait
    timeout: float = 60.0


@dataclass(frozen=True, slots=True)
class Probe:
    """When an agent is ready: a command succeeds, an HTTP path answers, or a port accepts. Times in seconds."""

    command: tuple[str, ...] = ()
    port: int = 0
    path: str = ""
    period: float = 10.0
    timeout: float = 1.0


@dataclass(frozen=True, slots=True)
class Agent:
    """What an AgentRuntime runs where no image is pulled. `source`: a folder of the host, or empty."""

    command: tuple[str, ...]
    targets: tuple[tuple[str, int], ...]  # (path prefix, port), the longest prefix first
    working_dir: str = ""
    source: str = ""
    probe: Probe | None = None  # None: once its first port accepts connections


@dataclass(frozen=True, slots=True)
class Runtime:
    """A template: what to run and how its sessions live. Made from YAML by gateway/runtimes/manifest.py."""

    key: RuntimeKey
    image: str = ""  # recorded; the local engine does not use it
    environment: Mapping[str, str] = field(default_factory=dict)
    limits: Limits = Limits()
    session_timeout: float = 900.0  # idle seconds
    max_session_duration: float = 28800.0
    pool: PoolSpec = PoolSpec()
    auth: bool = True  # authMode picod; False: no token is sent
    hibernation: HibernationMode = HibernationMode.STATE  # spec.wakegate.hibernation
    checkpoint_interval: float | None = None  # spec.wakegate.checkpointInterval: seconds between copies while active
    python: str | None = None  # spec.wakegate.python: the environment whose python3 user code gets (local engine)
    python_roots: tuple[str, ...] = ()  # folders in which the base interpreter of `python` may lie
    preload: tuple[
        str, ...
    ] = ()  # spec.wakegate.preload: modules that python3 scripts find imported (picod/commands/preload.py)
    ports: tuple[tuple[int, int], ...] = HIGH_PORTS  # spec.wakegate.ports: ranges that may be reached, ends included
    tools: tuple[DeclaredTool, ...] = ()  # spec.wakegate.tools
    code_context: str = ""  # spec.wakegate.codeContext: warm, lazy or off; empty: as the gateway's setting says
    target_ports: tuple[tuple[str, int], ...] = ()  # (path prefix, port) where a sandbox has several; longest first
    agent: Agent | None = None  # of an AgentRuntime on the local engine
    manifest: Mapping[str, Any] = field(default_factory=dict)  # the document as it was read


@dataclass(frozen=True, slots=True)
class Sandbox:
    """One isolated running instance."""

    id: SandboxId
    runtime: RuntimeKey
    endpoint: Endpoint
    start: StartKind  # WARM or COLD: how the claim that bound it found it
    created_at: float
    session_id: SessionId | None = None


@dataclass(frozen=True, slots=True)
class Readiness:
    """A session that has a live sandbox, and how it came to have it."""

    runtime: RuntimeKey
    start: StartKind
    restored: str | None = None  # as in x-wakegate-restored


@dataclass(frozen=True, slots=True)
class SandboxReply:
    """What a sandbox answered to a call of the gateway's own. Header names in lower case."""

    status: int
    headers: Mapping[str, str]
    start: StartKind
    body: bytes = b""  # empty where it is streamed
    restored: str | None = None  # as in x-wakegate-restored


@dataclass(frozen=True, slots=True)
class Session:
    """A caller's sticky handle. `version` counts writes; 0 is a record that was never stored."""

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
    owner: str = ""  # the only gateway that reaches its sandbox or its parked workspace; "": every gateway does
    sandbox: Sandbox | None = None
    start: StartKind | None = None  # how its present sandbox was bound
    snapshot: str | None = None  # WorkspaceKeeper's reference to what it is while it has no sandbox
    snapshot_at: float | None = None
    suspended: bool = False  # what was in its sandbox's memory was written into the workspace when it went to sleep
    restored: str | None = None  # for x-wakegate-restored after a loss, until an answer with it was delivered
    limit_at: float = 0.0  # the end of the maximum duration, or of the retention; 0: written before this was kept
    ends_at: float | None = None  # the end that its user asked for (ttl); bounds expires_at whatever it does
    reason: str = ""  # why it is terminated or lost, or cannot sleep, for people
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def idle_at(self) -> float:
        """When it counts as idle if nothing happens until then."""
        return self.last_active_at + self.idle_timeout


class SnapshotRef(str):
    """Where a snapshot is and what it must be: `KEY#SIZE-SHA256`, size in bytes. A plain text to whoever keeps it."""

    __slots__ = ()

    @classmethod
    def of(cls, key: str, size: int, sha256: str) -> SnapshotRef:
        """The reference of a stored snapshot: its key, its size in bytes, its SHA-256 in hex."""
        return cls(f"{key}#{size}-{sha256}")

    @property
    def key(self) -> str:
        """Its name in the store; StoredSnapshot has the same."""
        return self.rpartition("#")[0]

    @property
    def size(self) -> int:
        """Bytes as stored."""
        return int(self.rpartition("#")[2].partition("-")[0])

    @property
    def sha256(self) -> str:
        """Of the bytes as stored, in hex."""
        return self.rpartition("-")[2]


def is_snapshot(reference: str | None) -> bool:
    """Whether a kept workspace is a SnapshotRef; what an engine parks is named by the session's id, without a `#`."""
    return reference is not None and "#" in reference


@dataclass(frozen=True, slots=True)
class StoredSnapshot:
    """Something in a snapshot store, half-written things included: what the sweep for orphans looks at."""

    key: str
    size: int
    at: float  # when it was last written
    partial: bool = False  # of a put that is under way or died: never to be restored


@dataclass(frozen=True, slots=True)
class Unsaved:
    """A variable of a code context that a sleeping session cannot take along."""

    context: str
    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class SuspendReport:
    """What a sandbox wrote into its workspace before the workspace is kept: how many variables, and which not."""

    saved: int = 0
    unsaved: tuple[Unsaved, ...] = ()


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to act on `name` until `expires_at`. `fence` only grows: a write with an older one is refused."""

    name: str
    holder: str
    fence: int
    expires_at: float


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """A warm pool as the provider sees it now."""

    runtime: RuntimeKey
    target: int
    ready: int
    starting: int
    claimed: int
    failures: int  # start failures in a row
    last_error: str = ""
    retry_at: float | None = None  # when the next start is tried, while backing off
    lead_time_p50: float | None = None  # seconds from create ordered to ready
    lead_time_p90: float | None = None
    losses: int = 0  # sandboxes of sessions that ended on their own, as far as this gateway knows
    last_loss: str = ""  # why the last one did, while that is recent

    @property
    def settled(self) -> bool:
        """It has its first sandbox, wants none, or has given up for now: no reason to hold /readyz back."""
        return self.ready > 0 or self.claimed > 0 or self.target == 0 or self.failures >= 3


@dataclass(frozen=True, slots=True)
class SandboxEvent:
    """Something happened to a sandbox without our asking."""

    sandbox_id: SandboxId
    session_id: SessionId | None
    reason: str  # e.g. "exited with status 137", "out of memory"
