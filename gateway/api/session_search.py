"""Searches sessions by what their list shows of them: ids, states, runtimes, metadata.

A search reads records until its page is full or it has cost enough; the page is then short, perhaps empty, and says
where to go on. So no request holds the store for long however many sessions there are, and whoever looks for something
rare asks several times.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gateway.api.session_list import Position
from gateway.core.errors import BadRequestError
from gateway.core.identity import current
from gateway.core.interfaces import SessionStore
from gateway.core.model import Session, SessionState

MAX_TEXT = 200  # characters of what is searched for
_MAX_WORDS = 8
_PAGE = 500
# What a request may cost: 1 for a record that is passed over (3 us), 10 for one that is decoded (33 us). 60 ms of a
# core at most, and 10,000 sessions of which few are found fit into one request.
MAX_COST = 20_000
_DECODED = 10
_SEPARATORS = re.compile("[=/]")  # of what is shown together, NAMESPACE/NAME and KEY=VALUE, but stored apart


@dataclass(frozen=True, slots=True)
class Query:
    """What is searched for: words which must all be found, A to Z in either case."""

    words: tuple[bytes, ...]

    @property
    def parts(self) -> list[str]:
        """What must be in the record of a session that is found (SessionStore.search)."""
        found = [part for word in self.words for part in _SEPARATORS.split(word.decode()) if part]
        # The longest say the most; the others are looked for in what is left.
        return sorted(set(found), key=len, reverse=True)[:_MAX_WORDS]

    def matches(self, session: Session) -> bool:
        """Whether each word is in one of the texts that the list shows."""
        runtime = session.runtime
        shown = [session.id, session.state, f"{runtime.namespace}/{runtime.name}"]
        shown += [f"{key}={value}" for key, value in session.public_metadata.items()]
        texts = [text.encode().lower() for text in shown]
        return all(any(word in text for text in texts) for word in self.words)


def read_query(text: str) -> Query:
    """Raises BadRequestError for a text that is too long or has too many words."""
    words = text.encode().lower().split()
    if len(text) > MAX_TEXT or len(words) > _MAX_WORDS:
        raise BadRequestError(
            f"search: expected at most {MAX_TEXT} characters and {_MAX_WORDS} words, got {len(text)} and {len(words)}"
        )
    return Query(tuple(words))


async def search_sessions(
    store: SessionStore,
    query: Query,
    wanted: Callable[[Session], bool],
    *,
    ended: bool,
    after: Position | None,
    limit: int,
) -> tuple[Sequence[Session], Position | None]:
    """Sessions that the caller sees, newest first, at most `limit`; and the position behind which others may be."""
    caller = current()
    tenant = None if caller.sees_all_tenants else caller.tenant
    parts, found, cost = query.parts, list[Session](), 0
    while cost < MAX_COST:
        page = await store.search(parts, tenant=tenant, ended=ended, after=after, limit=_PAGE)
        for after, session in page:
            cost += 1 if session is None else _DECODED
            if session is None or not (ended or session.state is not SessionState.TERMINATED):
                continue
            if caller.sees(session) and wanted(session) and query.matches(session):
                found.append(session)
                if len(found) == limit:
                    return found, after
        if len(page) < _PAGE:
            return found, None
    return found, after
