"""An agent, its revisions and its rollout, as the store keeps them. Times are epoch seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from gateway.core.model import Kind, RuntimeKey

MAX_REVISIONS = 20  # of an agent that are kept beside those in use; each is at most MAX_MANIFEST_BYTES
MAX_EVENTS = 50
MAX_MANIFEST_BYTES = 64 << 10


class Phase(StrEnum):
    """The state of a rollout: what requests get, and whether it goes on by itself."""

    STARTING = "starting"  # sandboxes of the new revision start; all new sessions are still the old one's
    CANARY = "canary"  # some new sessions are the new one's
    WATCHING = "watching"  # all new sessions are; the old one is kept ready


@dataclass(frozen=True, slots=True)
class Strategy:
    """How a change is rolled out. `window`: seconds in which it has to prove itself.

    `weight`: percent of new sessions that try it first, and those whose request has the header `header` with the value
    `header_value`; with neither there is no canary.
    """

    weight: float = 0.0
    header: str = ""
    header_value: str = ""
    window: float = 60.0
    start_timeout: float = 60.0
    max_error_rate: float = 0.1  # share of its requests that end with a status of 500 or above
    min_requests: int = 10  # below which no share is a reason to go back

    @property
    def has_canary(self) -> bool:
        """Whether some new sessions try it before the others."""
        return bool(self.weight or self.header)


@dataclass(frozen=True, slots=True)
class Revision:
    """What an agent was from one moment on. It never changes."""

    number: int
    manifest: Mapping[str, Any]
    at: float
    by: str
    reason: str = ""
    bundle: str = ""  # its files, by digest
    environment: str = ""  # its packages, by digest


@dataclass(frozen=True, slots=True)
class Rollout:
    """A change under way: from `previous` (0: nothing) to `revision`. `since`: when its phase began."""

    revision: int
    previous: int
    phase: Phase
    since: float
    strategy: Strategy
    paused: bool = False


@dataclass(frozen=True, slots=True)
class Event:
    """What happened to a rollout, for people."""

    at: float
    revision: int
    text: str


@dataclass(frozen=True, slots=True)
class Agent:
    """An agent. `stable`: the revision of new sessions; `draining`: those that live on with their last sessions."""

    namespace: str
    name: str
    tenant: str
    created_at: float
    created_by: str
    revisions: tuple[Revision, ...] = ()  # by number, the oldest first
    stable: int = 0
    rollout: Rollout | None = None
    draining: tuple[int, ...] = ()
    stopped: bool = False
    events: tuple[Event, ...] = ()
    uid: str = ""  # of its custom resource, in a cluster
    version: int = field(default=0, compare=False)  # of its document

    @property
    def id(self) -> str:
        """Its name in the store and in paths of the API that give a namespace."""
        return f"{self.namespace}/{self.name}"

    @property
    def key(self) -> RuntimeKey:
        """The runtime that requests name."""
        return RuntimeKey(self.namespace, self.name, Kind.AGENT_RUNTIME)

    def key_of(self, number: int) -> RuntimeKey:
        """The runtime of one revision."""
        return RuntimeKey(self.namespace, self.name, Kind.AGENT_RUNTIME, number)

    def revision(self, number: int) -> Revision | None:
        """The revision of that number. None: it was never made, or is no longer kept."""
        return next((each for each in self.revisions if each.number == number), None)

    @property
    def latest(self) -> Revision:
        """The newest revision, whether or not it is served."""
        return self.revisions[-1]

    @property
    def shown(self) -> Revision:
        """The revision that new sessions get, or will."""
        return self.revision(self.stable) or self.latest


def to_document(agent: Agent) -> dict[str, Any]:
    """The document that the store keeps, of JSON's types only."""
    document = asdict(agent)
    del document["version"]
    return document


def from_document(value: Mapping[str, Any], version: int) -> Agent:
    """The inverse. Raises KeyError, TypeError, ValueError for what is no agent."""
    fields = dict(value)
    rollout = fields.get("rollout")
    if rollout is not None:
        strategy = Strategy(**rollout["strategy"])
        fields["rollout"] = Rollout(**{**rollout, "phase": Phase(rollout["phase"]), "strategy": strategy})
    fields["revisions"] = tuple(Revision(**each) for each in fields["revisions"])
    fields["events"] = tuple(Event(**each) for each in fields["events"])
    fields["draining"] = tuple(fields["draining"])
    return Agent(**fields, version=version)
