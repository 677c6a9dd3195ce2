"""A new session as its caller asks for it: whether they may, and the record that it begins with. No I/O."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence

from gateway.core.errors import BadRequestError, PermissionDeniedError
from gateway.core.identity import Permission, current
from gateway.core.model import Runtime, RuntimeKey, Session, SessionId, SessionState
from gateway.egress.grants import check_narrower
from gateway.egress.rule_entries import Entry


def require_creation(runtime: RuntimeKey) -> None:
    """Raise PermissionDeniedError unless the current caller may make sessions of a runtime."""
    caller = current()
    caller.require(Permission.CREATE_SESSIONS)
    if not caller.uses(runtime):
        raise PermissionDeniedError(
            f"this credential may not use {runtime}; it is limited to {sorted(caller.runtimes)}"
        )


def check_egress(runtime: Runtime, egress: Sequence[Entry]) -> None:
    """Raise BadRequestError unless it is no more than sessions of the runtime may reach."""
    try:
        check_narrower(runtime, egress)
    except ValueError as error:
        raise BadRequestError(f"egress{error}") from None


def check_public_ports(runtime: Runtime, ports: Sequence[int], *, allowed: bool) -> None:
    """Raise unless the runtime has these ports open to anybody where a session asks. `allowed`: by the tenant's limits.

    BadRequestError for the first, PermissionDeniedError for the second.
    """
    for port in ports:
        if not any(first <= port <= last for first, last in runtime.public_ports):
            raise BadRequestError(
                f"publicPorts: {port} is not in spec.wakegate.publicPorts of {runtime.key}, so it stays closed"
            )
    if ports and not allowed:
        raise PermissionDeniedError("publicPorts: the limit `publicPorts` of this tenant allows none")


def new_id() -> SessionId:
    """The id of a session: 122 random bits, so that nobody can guess one."""
    return SessionId(str(uuid.uuid4()))


def new_record(
    session_id: SessionId,
    runtime: Runtime,
    *,
    now: float,
    longest: float,
    ttl: float | None = None,
    idle_timeout: float | None = None,
    metadata: Mapping[str, str] | None = None,
    egress: Sequence[Entry] | None = None,
    public_ports: Sequence[int] = (),
) -> Session:
    """The record of a session of the current caller's that begins now and has no sandbox yet.

    `longest`: seconds that it may last, by its runtime and its tenant's limits. With a `longest` of 3600 and a `ttl` of
    600 it expires in 600 s, and a later change may extend that to the 3600 of `limit_at`.
    """
    caller = current()
    return Session(
        id=session_id,
        runtime=runtime.key,
        state=SessionState.CREATING,
        created_at=now,
        last_active_at=now,
        expires_at=now + (longest if ttl is None else min(ttl, longest)),
        limit_at=now + longest,
        ends_at=None if ttl is None else now + ttl,
        idle_timeout=min(idle_timeout or runtime.session_timeout, longest),
        tenant=caller.tenant,
        user=caller.user,
        metadata=dict(metadata or {}),
        egress=egress,
        public_ports=tuple(public_ports),
    )
