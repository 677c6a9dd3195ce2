"""Finds kernels: sessions that were made as such, and the one that a request's path names."""

from __future__ import annotations

from starlette.requests import Request

from gateway.api.session_list import list_sessions
from gateway.api.sessions import live_session
from gateway.core.interfaces import SessionStore
from gateway.core.model import Session
from gateway.sessions.lifecycle import Lifecycle

MARK = "jupyter"  # metadata key of sessions that are kernels; its value is the notebook's path
_MAX_KERNELS = 1000


async def find_kernel(lifecycle: Lifecycle, request: Request) -> Session:
    """The kernel of a request's path. Any session is one, so that a client continues what another API has begun.

    Raises SessionNotFoundError in Jupyter's words.
    """
    name = request.path_params["session_id"]
    return await live_session(lifecycle, request, name, lambda _: f"Kernel does not exist: {name[:128]}")


async def list_kernels(store: SessionStore) -> list[Session]:
    """The caller's kernels: not all sessions, since clients end the kernels that they find and do not know."""
    return await list_sessions(store, lambda each: MARK in each.metadata, ended=False, limit=_MAX_KERNELS)
