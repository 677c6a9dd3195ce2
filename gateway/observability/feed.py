"""What happened lately, for whoever watches: a bounded ring that all viewers share, and each session's own last lines.

Viewers have no queues: each remembers how far it has read. One that reads too slowly finds that the ring has gone on,
and is told how many events it has missed, so a hundred viewers cost no more memory than none, and a slow one holds
nobody up.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gateway.core.clock import Clock
from gateway.core.identity import Identity, Permission
from gateway.core.model import DEFAULT_TENANT, RuntimeKey, Session, SessionId

MAX_EVENTS = 4096
MAX_LINES = 200  # of one session
_MAX_SESSIONS = 5000
_MAX_TEXT = 500  # characters of a detail


@dataclass(frozen=True, slots=True)
class FeedEvent:
    """One event. `session` "" and `tenant` "": of a pool."""

    number: int
    name: str  # session.started, session.hibernated, ..., pool.resized
    at: float
    runtime: RuntimeKey
    session: str = ""
    tenant: str = ""
    user: str = ""
    details: Mapping[str, Any] | None = None

    def is_for(self, caller: Identity) -> bool:
        """Whether it exists as far as a caller is concerned."""
        if not self.session:
            return caller.may(Permission.READ_POOLS)
        return caller.sees_session_of(self.tenant, self.user, self.runtime, SessionId(self.session))


class EventFeed:
    """The events of this gateway since its start. `name` is new at each start, so that ids of another are noticed."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.name = uuid.uuid4().hex[:12]
        self._ring: deque[FeedEvent] = deque(maxlen=MAX_EVENTS)
        self._sessions: OrderedDict[str, deque[FeedEvent]] = OrderedDict()
        self._count = 0
        self._news = asyncio.Event()

    @property
    def count(self) -> int:
        """The number of the latest event; 0 before the first."""
        return self._count

    def of_session(self, name: str, session: Session, details: Mapping[str, str]) -> None:
        """What became of a session; a listener of its records."""
        event = FeedEvent(
            self._count + 1, name, self._clock.now(), session.runtime, session.id, session.tenant or DEFAULT_TENANT,
            session.user, {"state": session.state, **{key: value[:_MAX_TEXT] for key, value in details.items()}},
        )  # fmt: skip
        lines = self._sessions.setdefault(session.id, deque(maxlen=MAX_LINES))
        lines.append(event)
        self._sessions.move_to_end(session.id)
        while len(self._sessions) > _MAX_SESSIONS:
            self._sessions.popitem(last=False)
        self._add(event)

    def of_pool(self, runtime: RuntimeKey, before: int, target: int, why: str) -> None:
        """A warm pool was given another size."""
        details = {"before": before, "target": target, "why": why[:_MAX_TEXT]}
        self._add(FeedEvent(self._count + 1, "pool.resized", self._clock.now(), runtime, details=details))

    def _add(self, event: FeedEvent) -> None:
        self._count = event.number
        self._ring.append(event)
        self._news.set()
        self._news = asyncio.Event()

    def lines_of(self, session: str) -> Sequence[FeedEvent]:
        """What became of a session, as far as it is known here, the oldest first."""
        return tuple(self._sessions.get(session, ()))

    def after(self, number: int, wanted: Callable[[FeedEvent], bool]) -> tuple[int, list[FeedEvent]]:
        """How many events after that one are not kept any more, and those that are and are wanted."""
        if not self._ring:
            return 0, []
        lost = max(0, self._ring[0].number - number - 1)
        # From the end: a viewer that keeps up looks at what is new and no more.
        fresh: list[FeedEvent] = []
        for event in reversed(self._ring):
            if event.number <= number:
                break
            if wanted(event):
                fresh.append(event)
        fresh.reverse()
        return lost, fresh

    async def wait(self, number: int) -> None:
        """Until there is an event after that one."""
        while self._count <= number:
            await self._news.wait()
