"""Lists sessions, newest first, one page at a time. The store lists by id, so each page scans all records.

A scan keeps at most one page in memory, in a heap, and other requests run between the store's pages. Rejected: an index
by time in the store, whose cost every write of every session would pay, while few people look at lists.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

from gateway.core.errors import BadRequestError
from gateway.core.identity import current
from gateway.core.interfaces import SessionStore
from gateway.core.model import RuntimeKey, Session, SessionId, SessionState

_SCAN_PAGE = 500


async def newest_sessions(
    store: SessionStore,
    wanted: Callable[[Session], bool],
    *,
    state: SessionState | None = None,
    runtime: RuntimeKey | None = None,
    after: SessionId | None = None,
    limit: int,
) -> list[Session]:
    """The `limit` newest sessions for which `wanted` is true, of those that follow the session `after`.

    Raises BadRequestError if the record of `after` no longer exists.
    """
    before = None
    if after is not None:
        last = await store.get(after)
        if last is None or not current().sees(last):
            raise BadRequestError(f"after: there is no session {after[:128]}; start again without it")
        before = _order(last)
    newest: list[tuple[tuple[float, str], Session]] = []
    position: SessionId | None = None
    while True:
        page = [each async for each in store.sessions(state=state, runtime=runtime, after=position, limit=_SCAN_PAGE)]
        for session in page:
            order = _order(session)
            if (before is None or order < before) and wanted(session):
                # The heap's top is the oldest session of the page: a newer one takes its place, an older one falls out
                # at once.
                push = heapq.heappush if len(newest) < limit else heapq.heappushpop
                push(newest, (order, session))
        if len(page) < _SCAN_PAGE:
            return [session for _, session in sorted(newest, key=lambda each: each[0], reverse=True)]
        position = page[-1].id


def _order(session: Session) -> tuple[float, str]:
    # The id decides between sessions of the same instant: a page must end at one place only.
    return session.created_at, session.id
