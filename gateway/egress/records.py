"""What sessions reached lately, in memory, for GET /v1/sessions/{id}/egress. The audit trail has all of it."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field

from gateway.egress.log import Access, Outcome

MAX_LINES = 500  # of one session
_MAX_SESSIONS = 2000


@dataclass(slots=True)
class SessionEgress:
    """What one session has reached.

    Ended connections, the newest last; open ones by number; sums since this gateway's start.
    """

    ended: deque[Access] = field(default_factory=lambda: deque(maxlen=MAX_LINES))
    open: dict[int, Access] = field(default_factory=dict)
    up: int = 0
    down: int = 0
    counts: dict[Outcome, int] = field(default_factory=dict)  # of connections that ended
    left_out: int = 0  # lines that were too many

    def lines(self) -> list[Access]:
        """All that is known, the newest first."""
        return [*reversed(self.open.values()), *reversed(self.ended)]


class EgressRecords:
    """What each session has reached, by its id. Those that were not used for longest are forgotten first."""

    def __init__(self) -> None:
        self._sessions: OrderedDict[str, SessionEgress] = OrderedDict()

    def of(self, session: str) -> SessionEgress | None:
        """What a session reached; None: nothing that is still known."""
        return self._sessions.get(session)

    def add(self, line: Access) -> None:
        """Take a line of the service's log into the record of its session."""
        found = self._session(line.session)
        found.left_out += line.left_out
        if line.outcome is Outcome.OPEN:
            # A limit of 512 connections to a session, and those of the binding before, whose ends are still on their
            # way.
            if len(found.open) < 2 * MAX_LINES:
                found.open[line.id] = line
            return
        found.open.pop(line.id, None)
        found.ended.append(line)
        found.counts[line.outcome] = found.counts.get(line.outcome, 0) + 1

    def moved(self, session: str, up: int, down: int) -> None:
        """Add bytes that a session's connections have sent and received since the last call."""
        found = self._session(session)
        found.up += up
        found.down += down

    def open(self) -> list[Access]:
        """Every connection that has not ended."""
        return [line for each in self._sessions.values() for line in each.open.values()]

    def _session(self, session: str) -> SessionEgress:
        found = self._sessions.get(session)
        if found is None:
            found = self._sessions[session] = SessionEgress()
            while len(self._sessions) > _MAX_SESSIONS:
                # 2000 sessions of 500 lines of 600 bytes are 600 MB at the very worst; usually some lines each, a few
                # MB.
                self._sessions.popitem(last=False)
        self._sessions.move_to_end(session)
        return found
