"""Whether sleeping sessions can wake with the present settings: looked at once after a start, and by `wakegate doctor`.

A gateway may come up with another snapshot store, other keys or another state directory than the one its sessions'
workspaces were kept with. Nothing is lost by that, and no record is changed; but without a word the operator would
learn of it from the first user whose session does not wake.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

from gateway.core.errors import SnapshotError
from gateway.core.interfaces import SessionStore
from gateway.core.model import Session, SessionId, SessionState, is_snapshot

PAGE = 500  # records per read


async def all_sessions(store: SessionStore) -> AsyncIterator[Session]:
    """Every record, by id, those of ended sessions included."""
    after: SessionId | None = None
    while True:
        page = [session async for session in store.sessions(after=after, limit=PAGE)]
        for session in page:
            yield session
        if len(page) < PAGE:
            return
        after = page[-1].id


async def restore_problems(store: SessionStore, check: Callable[[str], Awaitable[None]], me: str) -> AsyncIterator[str]:
    """What hinders sessions without a sandbox from waking: one sentence for snapshots, one for parked workspaces.

    The first record of each kind is tried by `check` (WorkspaceKeeper.check); what hinders one hinders all. `me` is
    this gateway's id (gateway.sessions.membership): a workspace that another gateway parked is not looked for.
    """
    tried: set[bool] = set()
    async for session in all_sessions(store):
        kind = is_snapshot(session.snapshot)
        asleep = session.state in (SessionState.HIBERNATED, SessionState.LOST)
        if session.snapshot is None or not asleep or kind in tried or session.owner not in ("", me):
            continue
        tried.add(kind)
        try:
            await check(session.snapshot)
        except SnapshotError as error:
            yield f"session {session.id} cannot wake, nor can others like it: {error}"
        if len(tried) == 2:
            return
