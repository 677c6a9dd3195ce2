"""Whether hibernated sessions can wake with the present settings: checked once after a start, and by `wakegate doctor`.

A gateway may be started with a different snapshot store, other keys or another state directory than its sessions'
workspaces were kept with. That loses nothing and changes no record; but without this check the operator would hear of
it from the first user whose session does not wake.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

from gateway.core.errors import SnapshotError
from gateway.core.interfaces import SessionStore
from gateway.core.model import Session, SessionId, SessionState, is_snapshot

PAGE = 500  # records per read


async def all_sessions(store: SessionStore, pause_s: float = 0.0) -> AsyncIterator[Session]:
    """Every record, by id, those of ended sessions included. `pause_s`: for which the store is left alone per page."""
    after: SessionId | None = None
    while True:
        page = [session async for session in store.sessions(after=after, limit=PAGE)]
        for session in page:
            yield session
        if len(page) < PAGE:
            return
        after = page[-1].id
        await asyncio.sleep(pause_s)


async def restore_problems(
    store: SessionStore, check: Callable[[str], Awaitable[None]], me: str, *, pause_s: float = 0.0
) -> AsyncIterator[str]:
    """Why sessions without a sandbox cannot wake: at most one sentence for snapshots and one for parked workspaces.

    `check` (WorkspaceKeeper.check) tries the first record of each kind: a wrong store, key or directory fails for all
    of them. `me` is this gateway's id (gateway.sessions.membership); workspaces that other gateways parked are skipped.
    `pause_s` as in `all_sessions`: where all records are of one kind every one of them is read.
    """
    tried: set[bool] = set()
    async for session in all_sessions(store, pause_s):
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
