"""Lists of sessions, newest first, a page at a time. The store lists by id, so each page is a scan of the records.

A scan keeps no more than one page in memory, and gives way to other requests between the store's pages. Rejected: an
order in the store, which each write of each session would pay for, while lists are looked at by people.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

from gateway.core.errors import BadRequestError
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
    """Sessions that are `wanted`, the newest first, at most `limit` after the session `after`.

    Raises BadRequestError where `after` is no session any more.
    """
    before = None
    if after is not None:
        last = await store.get(after)
        if last is None:
            raise BadRequestError(f"after: there is no session {after[:128]}; begin again without it")
        before = _order(last)
    newest: list[tuple[tuple[float, str], Session]] = []
    position: SessionId | None = None
    while True:
        page = [each async for each in store.sessions(state=state, runtime=runtime, after=position, limit=_SCAN_PAGE)]
        for session in page:
            order = _order(session)
            if (before is None or order < before) and wanted(session):
                push = heapq.heappush if len(newest) < limit else heapq.heappushpop
                push(newest, (order, session))
        if len(page) < _SCAN_PAGE:
            return [session for _, session in sorted(newest, key=lambda each: each[0], reverse=True)]
        position = page[-1].id


def _order(session: Session) -> tuple[float, str]:
    return session.created_at, session.id
