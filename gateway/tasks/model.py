"""A task: an invocation of an agent that is run in the background, as the store keeps it. Times are epoch seconds."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
from typing import Any

from gateway.core.identity import Identity, Role, SessionScope
from gateway.core.model import DEFAULT_TENANT, Kind, RuntimeKey, SessionId
from gateway.core.tasks import NEVER, QueuedTask


class State(StrEnum):
    """What becomes of a task. The last four are the end of it."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"  # the agent said that the request is wrong, or nothing can run it: not tried again
    DEAD = "dead"  # tried as often as it may be, or for as long: a dead letter
    CANCELLED = "cancelled"

    @property
    def is_over(self) -> bool:
        """Whether it changes no more, unless somebody asks for another try."""
        return self not in (State.QUEUED, State.RUNNING)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the agent answered, besides the bytes."""

    status: int
    content_type: str
    size: int


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an answer that is still coming has come; `last`: the data of its last server-sent event."""

    bytes: int = 0
    events: int = 0
    last: str = ""


@dataclass(frozen=True, slots=True)
class Webhook:
    """Where to say that a task is over. `state`: pending, delivered or failed."""

    url: str
    state: str = "pending"
    attempts: int = 0
    error: str = ""


@dataclass(frozen=True, slots=True)
class Task:
    """An invocation of an agent that is kept: what is asked, for whom, and how far it has come.

    `session`: the session it is for; empty: one is made when it first runs, and `made_session` says so.
    `conversation`: the name in the store that stands for the session, where the request names one. `deadline`:
    when it is given up, if it has not been run by then. `timeout`: seconds that one try may take. `held_back`: how
    often in a row it could not be tried. `holder`: the gateway that runs it. `cancel`: somebody wants it stopped.
    """

    id: str
    namespace: str
    name: str
    caller: Mapping[str, Any]
    path: str
    headers: tuple[tuple[str, str], ...]
    created_at: float
    deadline: float
    timeout: float
    max_attempts: int
    session: str = ""
    made_session: bool = False
    conversation: str = ""
    lost_session: str = ""  # one that an earlier try had, and for which the conversation stands no more
    schedule: str = ""
    digest: str = ""  # of the request, where a key of the client's makes it one that is run once
    state: State = State.QUEUED
    due_at: float = 0.0
    attempts: int = 0
    held_back: int = 0
    holder: str = ""
    started_at: float = 0.0
    finished_at: float = 0.0
    cancel: bool = False
    progress: Progress = Progress()
    answer: Answer | None = None
    error: str = ""
    webhook: Webhook | None = None
    keys: tuple[str, ...] = ()
    expires_at: float = NEVER
    version: int = field(default=0, compare=False)
    # Fields that a later version of the gateway wrote. They are written back as they were, and only a gateway that
    # knows them runs the task: two versions share a store while one replaces the other.
    unknown: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> RuntimeKey:
        """The agent, without a revision: the one that is served when it runs."""
        return RuntimeKey(self.namespace, self.name, Kind.AGENT_RUNTIME)

    @property
    def tenant(self) -> str:
        """The tenant of whoever asked for it."""
        return str(self.caller["tenant"])

    @property
    def identity(self) -> Identity:
        """Who asked for it, and with whose permissions it is run."""
        return identity_of(self.caller)


_SESSION, _CONVERSATION = "session ", "conversation "
# What is in columns of the store, and not repeated in the document.
_COLUMNS = ("id", "created_at", "due_at", "expires_at", "keys", "version")
_FIELDS = frozenset(each.name for each in fields(Task)) - {"unknown"}


def queue_of(tenant: str, key: RuntimeKey) -> str:
    """A queue for each agent and tenant: no tenant waits behind another's tasks, or sees them in a list."""
    return f"{tenant}/{key.namespace}/{key.name}"


def agent_key(key: RuntimeKey) -> str:
    """What the tasks of an agent that run are counted by."""
    return f"agent {key.namespace}/{key.name}"


def session_key(session_id: str) -> str:
    """What the tasks of a session that run are counted by."""
    return f"{_SESSION}{session_id}"


def conversation_key(identity: Identity, key: RuntimeKey, name: str) -> str:
    """What stands for the session of a conversation, and what its tasks that run are counted by.

    A name is that of an agent's, a tenant's, and where credentials are of users a user's, as sessions are.
    """
    parts = (identity.tenant or DEFAULT_TENANT, identity.user, key.namespace, key.name, name)
    # A digest, as what a stranger sends may be long, and hold what a key of Redis should not.
    return f"{_CONVERSATION}{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()}"


def is_session_key(key: str) -> bool:
    """Whether tasks of a session are counted by it."""
    return key.startswith(_SESSION)


def to_queued(task: Task) -> QueuedTask:
    """The entry of the store: what is indexed as columns, all else as JSON."""
    value = asdict(task)
    for name in (*_COLUMNS, "unknown"):
        del value[name]
    value = {**task.unknown, **value}
    return QueuedTask(
        task.id,
        queue_of(task.tenant, task.key),
        task.tenant,
        task.created_at,
        value,
        task.due_at,
        not task.state.is_over,
        task.expires_at,
        task.keys,
        task.state is State.RUNNING,
        task.version,
    )


def from_queued(entry: QueuedTask) -> Task:
    """The inverse. Raises KeyError, TypeError, ValueError for what is no task."""
    known = {name: value for name, value in entry.value.items() if name in _FIELDS}
    known["unknown"] = {name: value for name, value in entry.value.items() if name not in _FIELDS}
    known["state"] = State(known["state"])
    known["headers"] = tuple((name, value) for name, value in known["headers"])
    known["progress"] = Progress(**known["progress"])
    for name, made in (("answer", Answer), ("webhook", Webhook)):
        if known[name] is not None:
            known[name] = made(**known[name])
    columns = {name: getattr(entry, name) for name in _COLUMNS}
    return Task(**{**known, **columns})


def with_version(task: Task, entry: QueuedTask) -> Task:
    """The task as it was written."""
    return replace(task, version=entry.version)


def caller_document(identity: Identity) -> dict[str, Any]:
    """Who sent a request, so that it can be run for them later. No credential is in it."""
    return {
        "role": identity.role.value,
        "tenant": identity.tenant,
        "subject": identity.subject,
        "user": identity.user,
        "key_id": identity.key_id,
        "runtimes": sorted(identity.runtimes),
        "session": "" if identity.scope is None else identity.scope.session_id,
    }


def identity_of(caller: Mapping[str, Any]) -> Identity:
    """The inverse. Limits to single paths and ports are not kept: whoever has them makes no task."""
    scope = SessionScope(SessionId(caller["session"])) if caller["session"] else None
    return Identity(
        Role(caller["role"]),
        caller["tenant"],
        caller["subject"],
        caller["user"],
        caller["key_id"],
        frozenset(caller["runtimes"]),
        scope,
    )
