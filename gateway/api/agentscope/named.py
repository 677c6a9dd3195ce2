"""Finds the sandbox that a request of AgentScope's names."""

from __future__ import annotations

from starlette.requests import Request

from gateway.api.agentscope.records import SandboxRecord, record_of
from gateway.core.errors import SessionNotFoundError
from gateway.core.model import Session, SessionId, SessionState
from gateway.sessions.lifecycle import Lifecycle


async def find_sandbox(lifecycle: Lifecycle, request: Request, name: str) -> tuple[Session, SandboxRecord]:
    """The session of that id and what its record keeps. Raises SessionNotFoundError in AgentScope's words."""
    request.state.session_id = SessionId(name)
    try:
        session = await lifecycle.get(SessionId(name))
    except SessionNotFoundError:
        raise unknown(name) from None
    record = record_of(session)
    if record is None or session.state is SessionState.TERMINATED:
        raise unknown(name)
    return session, record


def unknown(name: str) -> SessionNotFoundError:
    """The error for a sandbox that there is not, in the words of their server."""
    return SessionNotFoundError(f"No container found with id: {name[:128]}.")
