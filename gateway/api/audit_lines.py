"""GET /v1/sessions/{id}/audit: what the audit trail of this gateway has about one session, the newest first."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gateway.api.errors import Handler
from gateway.api.http import JSON
from gateway.audit.log import AuditLog
from gateway.audit.lookup import newest_events
from gateway.core.errors import BadRequestError, NotFoundError, UnavailableError
from gateway.core.identity import ROLES, SYSTEM, Identity, Permission, Role, current
from gateway.core.model import DEFAULT_TENANT, Session, SessionId
from gateway.sessions.lifecycle import Lifecycle

MAX_LINES = 500
_USUAL_LINES = 100
_READERS = 2  # at a time: each reads up to 16 MiB, in a thread
_OVER_ALL_TENANTS = frozenset(str(role) for role in (Role.ADMIN, Role.OPERATOR))
# What a line says of the inside of a session: names of files, commands, code.
_CONTENTS = frozenset(("text", "names", "query", "path"))


class NoAuditTrailError(NotFoundError):
    """This gateway keeps no audit trail that can be read back."""

    code = "NO_AUDIT_TRAIL"


class AuditLinesAPI:
    """The handler that shows a session's lines of the audit trail.

    `audit`: the trail; None: there is none.
    """

    def __init__(self, lifecycle: Lifecycle, audit: AuditLog | None) -> None:
        self._lifecycle = lifecycle
        self._path = None if audit is None else audit.path
        self._readers = asyncio.Semaphore(_READERS)

    def handlers(self) -> dict[str, Handler]:
        """The handler of each operation of openapi/table.py, by its name."""
        return {"get_session_audit": self._get}

    async def _get(self, request: Request) -> Response:
        if unknown := sorted(request.query_params.keys() - {"limit"}):
            raise BadRequestError(f"{unknown[0][:64]}: unknown parameter; expected limit")
        limit = request.query_params.get("limit", str(_USUAL_LINES))
        if len(limit) > 3 or not limit.isascii() or not limit.isdigit() or not 1 <= int(limit) <= MAX_LINES:
            raise BadRequestError(f"limit: expected a whole number from 1 to {MAX_LINES}, got {limit[:64]!r}")
        session = await self._lifecycle.get_here(SessionId(request.path_params["session_id"]))
        if self._path is None:
            raise NoAuditTrailError("this gateway keeps no audit trail in a file; `--audit-log FILE` makes it do so")
        return JSON(await self._lines(self._path, session, int(limit)))

    async def _lines(self, path: Path, session: Session, limit: int) -> dict[str, Any]:
        caller = current()

        def wanted(fields: Mapping[str, Any]) -> bool:
            return line_for(caller, session, fields) is not None

        async with self._readers:
            try:
                found = await asyncio.to_thread(newest_events, path, session.id, limit, wanted)
            except OSError as error:
                raise UnavailableError(f"the audit trail cannot be read: {error.strerror or 'an error'}") from error
        return {"events": [line_for(caller, session, each) for each in found.events], "complete": found.complete}


def line_for(caller: Identity, session: Session, fields: Mapping[str, Any]) -> dict[str, Any] | None:
    """An event as a caller who sees the session may read it; None: it may not.

    Lines name the session that a request claimed to be for, so a tenant's list must not have those of strangers who
    tried: neither what they are, nor as many as they like to send.
    """
    actor = dict(fields["actor"])
    if not caller.sees_all_tenants:
        if actor.get("role") in _OVER_ALL_TENANTS:
            by_itself = {"subject": SYSTEM.subject} if actor.get("subject") == SYSTEM.subject else {}
            actor = {**by_itself, "role": actor["role"]}
        elif actor.get("tenant") != (session.tenant or DEFAULT_TENANT):
            return None
    detail = dict(fields.get("detail", {}))
    if Permission.USE_SESSIONS not in ROLES[caller.role]:
        detail = {name: value for name, value in detail.items() if name not in _CONTENTS}
    names = {"subject": "subject", "tenant": "tenant", "role": "role", "key_id": "keyId", "address": "address"}
    return {
        "at": fields["time"],
        "line": fields["seq"],
        "action": fields["action"],
        "actor": {names[name]: value for name, value in actor.items() if name in names},
        "status": fields["status"],
        "code": fields.get("code", ""),
        "runtime": fields.get("runtime", ""),
        "requestId": fields.get("request_id", ""),
        "detail": detail,
    }
