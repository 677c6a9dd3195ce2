"""Identities: tenants, roles, what each role may do, and the caller of the code that runs now.

Every request is made by an `Identity`. Authentication (gateway/identity) finds it, the surfaces check its permissions,
and session records that are not its own do not exist for it (gateway/sessions/records.py asks `current()`).
docs/security.md has the roles as a table; docs/adr/0015-identities.md says why the caller is a context variable.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from gateway.core.errors import PermissionDeniedError, WakegateError
from gateway.core.model import DEFAULT_TENANT, Kind, Runtime, RuntimeKey, Session, SessionId

_TENANT = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


class Role(StrEnum):
    """What an identity is for. A request has exactly one."""

    ADMIN = "admin"  # everything, of every tenant
    OPERATOR = "operator"  # runtimes, pools and the state of all sessions; never what is in a session
    MEMBER = "member"  # the sessions of its own tenant, with their contents
    VIEWER = "viewer"  # reads the state of its own tenant's sessions
    METRICS = "metrics"  # /metrics alone: for Prometheus, whose configuration many people can read
    SESSION = "session"  # one session's contents: for browsers and end users


class Permission(StrEnum):
    """What an operation needs. `PUBLIC` needs no identity at all."""

    PUBLIC = "public"  # liveness, readiness, the API's own description
    READ_SESSIONS = "read sessions"
    CREATE_SESSIONS = "create sessions"
    MANAGE_SESSIONS = "manage sessions"  # update, hibernate, wake, end
    SHARE_SESSIONS = "share sessions"  # make tokens with which somebody else uses one
    USE_SESSIONS = "use sessions"  # run code and commands, read and write files, reach ports
    READ_RUNTIMES = "read runtimes"
    MANAGE_AGENTS = "manage agents"  # create, change, stop and delete them; whoever may can run code in their sandboxes
    READ_POOLS = "read pools"  # warm pools, their history and why they have their size
    READ_METRICS = "read metrics"
    READ_AUDIT = "read the audit trail"  # of sessions that it sees
    READ_USAGE = "read usage"
    MANAGE_KEYS = "manage keys"
    MANAGE_TENANTS = "manage tenants"


_READER = frozenset((
    Permission.READ_SESSIONS, Permission.READ_RUNTIMES, Permission.READ_USAGE,
))  # fmt: skip
ROLES: dict[Role, frozenset[Permission]] = {
    Role.ADMIN: frozenset(Permission),
    Role.OPERATOR: _READER | {Permission.MANAGE_SESSIONS, Permission.READ_POOLS, Permission.READ_METRICS,
                             Permission.READ_AUDIT},
    Role.MEMBER: _READER | {Permission.CREATE_SESSIONS, Permission.MANAGE_SESSIONS, Permission.SHARE_SESSIONS,
                           Permission.USE_SESSIONS, Permission.MANAGE_AGENTS, Permission.READ_AUDIT},
    Role.VIEWER: _READER,
    Role.METRICS: frozenset((Permission.READ_METRICS,)),
    Role.SESSION: frozenset((Permission.USE_SESSIONS, Permission.READ_SESSIONS)),
}  # fmt: skip
_ALL_TENANTS = frozenset((Role.ADMIN, Role.OPERATOR))
KEY_ROLES = tuple(role for role in Role if role is not Role.SESSION)  # that an API key or a role map can give


@dataclass(frozen=True, slots=True)
class SessionScope:
    """The only session that a session token is valid for, and which of its paths and ports. Empty: all of them."""

    session_id: SessionId
    paths: tuple[str, ...] = ()  # prefixes of picod's paths, e.g. /api/files
    ports: tuple[int, ...] = ()


class RequestBudget(Protocol):
    """How many requests a tenant may still send here: the data path takes one from `left`, or answers `refusal`."""

    left: float

    def refusal(self) -> WakegateError:
        """The error of a request when less than one is left."""
        ...

    def fields(self) -> dict[str, str]:
        """RateLimit-* of an answer: the limit, what is left of it here, and when all of it is there again."""
        ...


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a request acts for. `expires_at` in epoch seconds."""

    role: Role
    tenant: str = DEFAULT_TENANT
    subject: str = ""  # for the audit trail: a key's id, a person's or a service account's name
    user: str = ""  # the person, where one is known: sessions made by one are hidden from the tenant's other persons
    key_id: str = ""  # of the API key, if it was one
    runtimes: frozenset[str] = frozenset()  # "namespace/name" that it may use; empty: all
    scope: SessionScope | None = None  # of a session token
    expires_at: float = float("inf")
    budget: RequestBudget | None = field(default=None, compare=False, repr=False)  # None: requests are not counted
    # Whether its requests may go to every path of a sandbox. Worked out once: the data path asks it per request.
    uses_all_paths: bool = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        limited = self.scope is not None and bool(self.scope.paths or self.scope.ports)
        object.__setattr__(self, "uses_all_paths", not limited and self.may(Permission.USE_SESSIONS))

    def spend(self) -> None:
        """Count a request of its tenant's. Raises RateLimitError when that asks too often."""
        if self.budget is not None:
            if self.budget.left < 1:
                raise self.budget.refusal()
            self.budget.left -= 1

    def may(self, permission: Permission) -> bool:
        """Whether its role has this permission."""
        return permission is Permission.PUBLIC or permission in ROLES[self.role]

    def require(self, permission: Permission) -> None:
        """Raise PermissionDeniedError unless its role has this permission."""
        if not self.may(permission):
            raise PermissionDeniedError(f"the role {self.role} may not {permission}")

    def sees(self, session: Session) -> bool:
        """Whether a session exists as far as this identity is concerned."""
        return self.sees_session_of(session.tenant, session.user, session.runtime, session.id)

    def sees_session_of(self, tenant: str, user: str, runtime: RuntimeKey, session_id: SessionId) -> bool:
        """The same, from the parts of a record that never change."""
        if self.scope is not None and self.scope.session_id != session_id:
            return False
        if self.role in _ALL_TENANTS:
            return True
        return (
            (tenant or DEFAULT_TENANT) == self.tenant
            and (not user or not self.user or user == self.user)
            and self.uses(runtime)
        )

    def sees_sandboxes_of(self, tenant: str) -> bool:
        """Whether Sandboxes that are no sessions exist for it, in a namespace that is this tenant's."""
        if self.scope is not None:  # of one session, which none of them is
            return False
        return self.role in _ALL_TENANTS or (tenant == self.tenant and not self.runtimes)

    def uses(self, runtime: RuntimeKey) -> bool:
        """Whether it may use a runtime."""
        return not self.runtimes or f"{runtime.namespace}/{runtime.name}" in self.runtimes

    def sees_runtime(self, runtime: Runtime) -> bool:
        """Whether a runtime exists as far as this identity is concerned."""
        return runtime.tenant is None or runtime.tenant == self.tenant or self.sees_all_tenants

    @property
    def is_operators(self) -> bool:
        """Whether it acts for whoever runs the gateway, so that its requests count against no tenant's rate."""
        return self.role in _ALL_TENANTS or self.role is Role.METRICS

    @property
    def sees_all_tenants(self) -> bool:
        """Whether sessions of every tenant exist for it."""
        return self.role in _ALL_TENANTS and self.scope is None


SYSTEM = Identity(Role.ADMIN, subject="system")  # the gateway's own work: sweeps, recovery, the autoscaler
ANONYMOUS = Identity(Role.ADMIN, subject="anonymous")  # every caller of a gateway without authentication
NOBODY = Identity(Role.SESSION, tenant="", subject="nobody", scope=SessionScope(SessionId("")))  # sees no session

_CALLER: ContextVar[Identity] = ContextVar("wakegate_caller", default=SYSTEM)


def current() -> Identity:
    """For whom the running code acts. Tasks that a request starts inherit it; loops of the gateway's own are SYSTEM."""
    return _CALLER.get()


def act_as(identity: Identity) -> None:
    """Run the rest of this task for an identity."""
    _CALLER.set(identity)


@contextmanager
def acting_as(identity: Identity) -> Iterator[None]:
    """Run a block for an identity."""
    token = _CALLER.set(identity)
    try:
        yield
    finally:
        _CALLER.reset(token)


def is_tenant(name: str) -> bool:
    """Whether a text can be a tenant's name: a DNS label, so that it can be a metric's label and a namespace."""
    return _TENANT.fullmatch(name) is not None


def runtime_scope(text: str) -> str:
    """`name` or `namespace/name` as "namespace/name". Raises ValueError."""
    namespace, slash, name = text.rpartition("/")
    key = RuntimeKey(namespace if slash else "default", name, Kind.CODE_INTERPRETER)
    if not key.name or not key.namespace or "/" in key.namespace:
        raise ValueError(f"{text!r} names no runtime; expected namespace/name")
    return f"{key.namespace}/{key.name}"
