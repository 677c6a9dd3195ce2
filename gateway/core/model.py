"""The domain types: frozen dataclasses and id types that every package shares. No I/O, no clock.

Times are float seconds since the Unix epoch, durations float seconds, sizes bytes. One module: runtimes, sandboxes and
sessions refer to each other, and every package reads their fields here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, NewType

SessionId = NewType("SessionId", str)
SandboxId = NewType("SandboxId", str)

# Metadata under names with this prefix is a surface's own: no client sees, sets or replaces it.
PRIVATE_METADATA = "wakegate.private."
# Epoch seconds until which a session's id would make a session again if there were no record of it (api/mcp/sessions):
# the record of one that ended is kept at least until then.
REUSABLE_UNTIL = PRIVATE_METADATA + "reusable-until"
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


class StartKind(StrEnum):
    """How a request got its sandbox; sent to clients as `x-wakegate-start`."""

    LIVE = "live"
    WARM = "warm"
    COLD = "cold"
    WAKE = "wake"
    WAKE_COLD = "wake-cold"


@dataclass(frozen=True, slots=True, order=True)
class RuntimeKey:
    """Identifies a runtime; its text form is `code-interpreters/NAMESPACE/NAME` or `agent-runtimes/...`.

    Of an agent that has revisions each is a runtime of its own, whose text ends in `@3`; requests name the agent only.
    """

    namespace: str
    name: str
    kind: Kind = Kind.CODE_INTERPRETER
    revision: int = 0  # 0: of a runtime without revisions, or whichever a new session gets

    def __str__(self) -> str:
        at = f"@{self.revision}" if self.revision else ""
        return f"{self.kind.segment}/{self.namespace}/{self.name}{at}"

    @property
    def base(self) -> RuntimeKey:
        """The same without a revision, as requests, limits and bills name it."""
        return self if not self.revision else RuntimeKey(self.namespace, self.name, self.kind)

    @classmethod
    def parse(cls, text: str) -> RuntimeKey:
        """The inverse of str(). Raises ValueError."""
        segment, namespace, name = text.split("/")
        name, _, revision = name.partition("@")
        kind = Kind.CODE_INTERPRETER if segment == Kind.CODE_INTERPRETER.segment else Kind.AGENT_RUNTIME
        return cls(namespace, name, kind, int(revision or 0))


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
    """Resource limits of one sandbox, with a runtime's defaults. None: no limit beyond the machine's."""

    memory: int | None = 1 << 30  # bytes
    cpus: float | None = 1.0  # cores
    processes: int = 256  # tasks (threads count)
    file_size: int = 4 << 30  # bytes, the largest single file
    tmp_size: int = 256 << 20  # bytes of /tmp
    workspace_size: int | None = 5 << 30  # bytes of the workspace
    workspace_files: int | None = 500_000  # inodes of the workspace: a large JavaScript monorepo has 300,000

    def resized(self, resources: Resources | None) -> Limits:
        """The same with what a session has in place of its runtime's."""
        if resources is None:
            return self
        changed = {name: value for name in SIZES if (value := getattr(resources, name)) is not None}
        return replace(self, **changed)


@dataclass(frozen=True, slots=True)
class Resources:
    """What one session has in place of its runtime's limits of the same names; None: what its runtime has.

    Of a runtime (spec.wakegate.maxResources): the most that a session may have; None: no more than the limit itself.
    """

    cpus: float | None = None  # cores
    memory: int | None = None  # bytes
    processes: int | None = None


@dataclass(frozen=True, slots=True)
class Requests:
    """What of its machine is kept free for one sandbox, as `resources.requests` has it; limits say what it may use."""

    millicores: int = 0  # thousandths of a core, so that sums are exact
    memory: int = 0  # bytes
    gpus: int = 0

    def __bool__(self) -> bool:
        """Whether it requests anything."""
        return bool(self.millicores or self.memory or self.gpus)


SIZES = ("cpus", "memory", "processes")  # the fields of Resources


HIGH_PORTS: tuple[tuple[int, int], ...] = ((1024, 65535),)


class PoolMode(StrEnum):
    """Who sizes the warm pool (spec.wakegate.pool.mode)."""

    PREDICTIVE = "predictive"
    FIXED = "fixed"
    FORECAST_ONLY = "forecast-only"


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """A runtime's warm pool, from spec.warmPoolSize and spec.wakegate.pool."""

    size: int = 0  # the starting point; with mode fixed, the size
    mode: PoolMode = PoolMode.FIXED
    min: int = 0
    max: int = 0
    target_miss_rate: float = 0.01  # share of claims that may find the pool empty


class HibernationMode(StrEnum):
    """What an idle session keeps when it is hibernated (spec.wakegate.hibernation)."""

    OFF = "off"  # nothing: it is terminated
    WORKSPACE = "workspace"  # its files
    STATE = "state"  # its files, and those variables of its code contexts that can be pickled


@dataclass(frozen=True, slots=True)
class Skill:
    """What a tool of spec.wakegate.skills runs: scripts in sandboxes of `runtime`, one per call or `kept` per session.

    `instructions`: what SKILL.md says to a model that asks.
    """

    runtime: RuntimeKey
    instructions: str
    kept: bool = False


@dataclass(frozen=True, slots=True)
class DeclaredTool:
    """A tool for models that a runtime offers (spec.wakegate.tools): a command, a function of a Python file, a skill.

    `parameters` is a JSON schema of an object. In `command`, `{name}` stands for an argument. A function is called with
    the arguments as keywords; `source` is the content of its file.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    command: tuple[str, ...] = ()
    function: str = ""
    source: str = ""
    ordered: bool = True  # runs after the calls before it in a message, and before those after it
    timeout: float = 60.0
    skill: Skill | None = None


@dataclass(frozen=True, slots=True)
class Mount:
    """Data that a runtime's sandboxes see at `target` (spec.wakegate.mounts): a folder of this machine, or an object.

    One of `source`, `claim` (a PersistentVolumeClaim) and `config_map` is set.
    """

    target: str
    source: str = ""
    claim: str = ""
    config_map: str = ""
    read_only: bool = True


@dataclass(frozen=True, slots=True)
class Secret:
    """A credential that requests to `hosts` get outside of the sandbox (spec.wakegate.secrets). Its value is not here.

    `place`: header, bearer, basic or query, with `argument` its header, user or parameter; empty: only where code wrote
    the placeholder. The gateway reads the value from its variable `env`, from `file`, or, in a cluster, from the field
    `key` of the Kubernetes Secret `secret` in its own namespace.
    """

    name: str
    hosts: tuple[str, ...]
    place: str = ""
    argument: str = ""
    env: str = ""
    file: str = ""
    secret: str = ""
    key: str = ""


@dataclass(frozen=True, slots=True)
class Probe:
    """How to tell that an agent is ready: a command succeeds, an HTTP path answers, or a port accepts.

    `period` and `timeout` are seconds.
    """

    command: tuple[str, ...] = ()
    port: int = 0
    path: str = ""
    period: float = 10.0
    timeout: float = 1.0


@dataclass(frozen=True, slots=True)
class Agent:
    """What an AgentRuntime runs on the local engine, which pulls no image. `source`: a folder of the host, or empty."""

    command: tuple[str, ...]
    targets: tuple[tuple[str, int], ...]  # (path prefix, port), the longest prefix first
    working_dir: str = ""
    source: str = ""
    probe: Probe | None = None  # None: once its first port accepts connections


@dataclass(frozen=True, slots=True)
class Schedule:
    """When an agent is asked something by itself: a cron expression in a time zone, and a request with a JSON body."""

    name: str
    cron: str
    timezone: str = "UTC"
    path: str = "/"
    body: str = "{}"


@dataclass(frozen=True, slots=True)
class Invocations:
    """How an agent is invoked (spec.wakegate.invocation). `timeout`: seconds that one try of a task may take.

    `concurrency`: tasks of the agent that run at a time, at all gateways; `per_session`: of one session; `attempts`:
    how often a task is tried. `requests`: that are awaited at a time, at each gateway; `requests_per_session`: of one
    session; 0: as many as the gateway's own limits allow. `session`: where in a JSON body the name of the conversation
    is, as names that lead into objects; empty: only the header names a session.
    """

    session: tuple[str, ...] = ()
    concurrency: int = 20
    per_session: int = 1
    requests: int = 0
    requests_per_session: int = 0
    attempts: int = 3
    timeout: float = 900.0
    schedules: tuple[Schedule, ...] = ()  # spec.wakegate.schedules


@dataclass(frozen=True, slots=True)
class Runtime:
    """A template: what to run and how its sessions live. Made from YAML by gateway/runtimes/manifest.py."""

    key: RuntimeKey
    image: str = ""  # the local engine ignores it
    environment: Mapping[str, str] = field(default_factory=dict)
    limits: Limits = Limits()
    requests: Requests = Requests()  # the local engine books them; in a cluster the scheduler reads the manifest's
    max_resources: Resources = Resources()  # spec.wakegate.maxResources
    session_timeout: float = 900.0  # idle seconds
    max_session_duration: float = 28800.0
    pool: PoolSpec = PoolSpec()
    auth: bool = True  # spec.authMode picod; False: requests carry no token
    hibernation: HibernationMode = HibernationMode.STATE  # spec.wakegate.hibernation
    # spec.wakegate.checkpointInterval: seconds between copies while active; 0: never, None: the gateway's default.
    checkpoint_interval: float | None = None
    python: str | None = None  # spec.wakegate.python: the environment of user code's python3 (local engine)
    python_roots: tuple[str, ...] = ()  # the base interpreter of `python` must be below one of these folders
    # spec.wakegate.preload: modules that are imported before a python3 script starts (picod/commands/preload.py).
    preload: tuple[str, ...] = ()
    ports: tuple[tuple[int, int], ...] = HIGH_PORTS  # spec.wakegate.ports: inclusive ranges that clients may reach
    # spec.wakegate.publicPorts: those of them that a session may make public. Ranges too.
    public_ports: tuple[tuple[int, int], ...] = ()
    tools: tuple[DeclaredTool, ...] = ()  # spec.wakegate.tools, and those of spec.wakegate.skills
    skills: tuple[Runtime, ...] = ()  # what the sandboxes of its skills are made from; served, and not listed
    skill_of: RuntimeKey | None = None  # of those: whose skill it is
    mounts: tuple[Mount, ...] = ()  # spec.wakegate.mounts
    egress: tuple[str | Mapping[str, Any], ...] = ()  # spec.wakegate.egress that gateway/egress/rule_entries.py reads
    secrets: tuple[Secret, ...] = ()  # spec.wakegate.secrets
    egress_limits: Mapping[str, int] = field(default_factory=dict)  # spec.wakegate.egressLimits, as in policy.Limits
    code_context: str = ""  # spec.wakegate.codeContext: warm, lazy or off; empty: the gateway's setting applies
    target_ports: tuple[tuple[str, int], ...] = ()  # (path prefix, port) where a sandbox has several; longest first
    agent: Agent | None = None  # of an AgentRuntime on the local engine
    invocations: Invocations = Invocations()  # of an AgentRuntime
    tenant: str | None = None  # whose it is: it does not exist for others; None: everybody's
    manifest: Mapping[str, Any] = field(default_factory=dict)  # the parsed YAML document


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


class SnapshotRef(str):
    """A snapshot's key and the digest it is verified with: `KEY#SIZE-SHA256`, size in bytes.

    A str, so that records and keepers pass it on without parsing it.
    """

    __slots__ = ()

    @classmethod
    def of(cls, key: str, size: int, sha256: str) -> SnapshotRef:
        """Build the reference from key, size in bytes and SHA-256 in hex."""
        return cls(f"{key}#{size}-{sha256}")

    @property
    def key(self) -> str:
        """Its name in the store, equal to `StoredSnapshot.key`."""
        return self.rpartition("#")[0]

    @property
    def size(self) -> int:
        """Size in bytes as stored, that is, compressed and perhaps encrypted."""
        return int(self.rpartition("#")[2].partition("-")[0])

    @property
    def sha256(self) -> str:
        """The digest of the bytes as stored, in hex."""
        return self.rpartition("-")[2]


def is_snapshot(reference: str | None) -> bool:
    """Whether a reference is a SnapshotRef. A parked workspace's reference is the session's id, which has no `#`."""
    return reference is not None and "#" in reference


@dataclass(frozen=True, slots=True)
class StoredSnapshot:
    """An object in a snapshot store, complete or partial, as the orphan sweep lists it."""

    key: str
    size: int
    at: float  # when it was last written
    partial: bool = False  # of a put that is still running or has died; never restored


@dataclass(frozen=True, slots=True)
class Unsaved:
    """A variable of a code context that could not be saved for hibernation, e.g. an open socket."""

    context: str
    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class SuspendReport:
    """The result of saving in-memory state into the workspace: how many variables, and which could not be saved."""

    saved: int = 0
    unsaved: tuple[Unsaved, ...] = ()


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to act on `name` until `expires_at`. Fences only grow; a write with an older one is refused."""

    name: str
    holder: str
    fence: int
    expires_at: float


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
