"""A runtime as its manifest describes it: what sandboxes run, and how their sessions live."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from gateway.core.model.names import RuntimeKey
from gateway.core.model.sizes import Limits, Requests, Resources

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
    # Folders of an agent's pod, and the digests of the archives that a gateway brings there before the agent starts.
    code: tuple[tuple[str, str], ...] = ()
    invocations: Invocations = Invocations()  # of an AgentRuntime
    tenant: str | None = None  # whose it is: it does not exist for others; None: everybody's
    manifest: Mapping[str, Any] = field(default_factory=dict)  # the parsed YAML document
