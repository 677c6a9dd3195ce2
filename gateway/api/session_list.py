"""Lists sessions by age, one page at a time, through the store's index by tenant.

A page reads on until it is full, so one with a rare filter may read many records; each of the store's pages gives other
requests a turn.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from gateway.core.errors import BadRequestError
from gateway.core.identity import current
from gateway.core.interfaces import SessionStore
from gateway.core.model import Session, SessionId

_PAGE = 200
_SEPARATOR = "@"  # of id and time in a cursor

Position = tuple[float, SessionId]


async def list_sessions(
    store: SessionStore,
    wanted: Callable[[Session], bool],
    *,
    ended: bool,
    after: Position | None = None,
    newest_first: bool = True,
    limit: int,
) -> list[Session]:
    """At most `limit` sessions that the caller sees and for which `wanted` is true, following the position `after`.

    `ended` False: without those that have ended.
    """
    caller = current()
    tenant = None if caller.sees_all_tenants else caller.tenant
    found: list[Session] = []
    while True:
        page = [
            each
            async for each in store.by_age(
                tenant=tenant, ended=ended, newest_first=newest_first, after=after, limit=_PAGE
            )
        ]
        for session in page:
            if caller.sees(session) and wanted(session):
                found.append(session)
                if len(found) == limit:
                    return found
        if len(page) < _PAGE:
            return found
        after = (page[-1].created_at, page[-1].id)


def cursor_of(session: Session) -> str:
    """The `after` that continues behind a session, also once that does not exist any more."""
    return cursor_at((session.created_at, session.id))


def cursor_at(position: Position) -> str:
    """The `after` that continues behind a position."""
    return f"{position[1]}{_SEPARATOR}{position[0]!r}"


async def read_cursor(store: SessionStore, text: str) -> Position:
    """The position of an `after`: what `cursor_of` made, or the id of a session that exists. Raises BadRequestError."""
    name, separator, time = text.partition(_SEPARATOR)
    session_id = SessionId(name)
    if separator:
        try:
            at = float(time) if len(time) <= 32 else math.nan
        except ValueError:
            at = math.nan
        if math.isfinite(at) and name.isascii() and len(name) <= 128:
            return at, session_id
        raise BadRequestError(f"after: malformed: {text[:64]!r}; send the `next` of the page before")
    last = await store.get(session_id)
    if last is None or not current().sees(last):
        raise BadRequestError(f"after: there is no session {name[:128]}; start again without it")
    return last.created_at, last.id
