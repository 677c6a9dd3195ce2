"""What the data path writes and the control loops read: who is active, and how many claims there were. Memory only."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping

from gateway.model import RuntimeKey, SessionId, StartKind

ClaimListener = Callable[[RuntimeKey, StartKind, float], None]
WaitListener = Callable[[RuntimeKey, int, float], None]
GapListener = Callable[[SessionId, RuntimeKey, float], None]


class SessionActivity:
    """One session's activity on this gateway.

    `in_flight` counts requests that make it busy whatever their bytes do: a running command is activity. `last` is the
    epoch second of the latest byte either way.
    """

    __slots__ = ("in_flight", "last", "written")

    def __init__(self, now: float) -> None:
        self.in_flight = 0
        self.last = now
        self.written = 0.0


class Activity:
    """Activity of all sessions that this gateway serves."""

    def __init__(self) -> None:
        self._sessions: dict[SessionId, SessionActivity] = {}

    def of(self, session_id: SessionId, now: float) -> SessionActivity:
        """The session's entry, made if absent."""
        entry = self._sessions.get(session_id)
        if entry is None:
            entry = self._sessions[session_id] = SessionActivity(now)
        return entry

    def forget(self, session_id: SessionId) -> None:
        """The session has ended or is served elsewhere."""
        self._sessions.pop(session_id, None)

    def busy(self, session_id: SessionId) -> bool:
        """Whether requests are in flight."""
        entry = self._sessions.get(session_id)
        return entry is not None and entry.in_flight > 0

    def latest(self, session_id: SessionId, now: float) -> float | None:
        """When it was last active as far as this gateway knows; `now` while a request is in flight."""
        entry = self._sessions.get(session_id)
        if entry is None:
            return None
        return now if entry.in_flight else entry.last

    def take_unwritten(self, now: float) -> Mapping[SessionId, float]:
        """Times that the store has not seen, one per session; sessions with requests in flight are heart-beaten."""
        seen: dict[SessionId, float] = {}
        for session_id, entry in self._sessions.items():
            if entry.in_flight:
                entry.last = now
            if entry.last > entry.written:
                seen[session_id] = entry.written = entry.last
        return seen

    def give_back(self, seen: Mapping[SessionId, float]) -> None:
        """The store did not take them: they count as unwritten again."""
        for session_id in seen:
            if session_id in self._sessions:
                self._sessions[session_id].written = 0.0


class StartTimes:
    """Recent durations of starts of one kind, for the hold rule. The last 64, so that a slow hour is forgotten."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=64)

    def add(self, seconds: float) -> None:
        """A start took this long."""
        self._recent.append(seconds)

    def expected(self) -> float:
        """The 90 % quantile of recent starts; 0 without any."""
        if not self._recent:
            return 0.0
        ordered = sorted(self._recent)
        return ordered[min(len(ordered) - 1, len(ordered) * 9 // 10)]


class Backlog:
    """Claims of one runtime that wait for a sandbox to start, and how fast such claims are served just now.

    A rate is known only while they queue, from the moment on which the first began to wait until none does any more,
    and only once several were served. Single cold starts, however many, say nothing of what could be started at once.
    """

    _ENOUGH = 8  # claims served in this queue before its rate is believed

    def __init__(self) -> None:
        self.waiting = 0
        self._served = 0
        self._since = 0.0

    def joined(self, now: float) -> None:
        """A claim begins to wait. `now` on a clock that never steps back."""
        if not self.waiting:
            self._served, self._since = 0, now
        self.waiting += 1

    def left(self, *, served: bool) -> None:
        """It waits no more: it was `served` with a sandbox that was started, or not."""
        self.waiting -= 1
        self._served += served

    @property
    def moves(self) -> bool:
        """Whether somebody in this queue has been served: it is long, but nothing is broken."""
        return self._served > 0

    def expected_wait(self, now: float) -> float | None:
        """Seconds that one more claim would wait behind those that do; None while nobody can tell."""
        if not self.waiting or self._served < self._ENOUGH or now <= self._since:
            return None
        return (self.waiting + 1) * (now - self._since) / self._served
