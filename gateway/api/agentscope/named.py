"""Finds the sandbox that a request of AgentScope's names."""

from __future__ import annotations

from starlette.requests import Request

from gateway.api.agentscope.records import SandboxRecord, record_of
from gateway.api.sessions import live_session
from gateway.core.errors import SessionNotFoundError
from gateway.core.model import Session
from gateway.sessions.lifecycle import Lifecycle


async def find_sandbox(lifecycle: Lifecycle, request: Request, name: str) -> tuple[Session, SandboxRecord]:
    """The session of that id and what its record keeps. Raises SessionNotFoundError in AgentScope's words."""
    session = await live_session(lifecycle, request, name, lambda _: _absent(name))
    record = record_of(session)
    if record is None:  # another API's session
        raise SessionNotFoundError(_absent(name))
    return session, record


def _absent(name: str) -> str:
    return f"No container found with id: {name[:128]}."
