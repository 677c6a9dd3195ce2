"""Activity of sessions: written by the data path, read by the sweeper and the autoscaler. In memory only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from gateway.core.model import RuntimeKey, SessionId, StartKind

ClaimListener = Callable[[RuntimeKey, StartKind, float], None]
WaitListener = Callable[[RuntimeKey, int, float], None]
GapListener = Callable[[SessionId, RuntimeKey, float], None]


class SessionActivity:
    """One session's activity on this gateway.

    `in_flight` counts requests under way, even those that transfer nothing: a running command is activity. `last` is
    the epoch second of the latest byte in either direction; `written` is the `last` that the store has.
    """

    __slots__ = ("in_flight", "last", "written")

    def __init__(self, now: float) -> None:
        self.in_flight = 0
        self.last = now
        self.written = 0.0


class Activity:
    """Activity of all sessions served by this gateway."""

    def __init__(self) -> None:
        self._sessions: dict[SessionId, SessionActivity] = {}
        self._arriving: Counter[SessionId] = Counter()

    @contextmanager
    def arriving(self, session_id: SessionId) -> Iterator[None]:
        """Count a request as under way while it waits for the session's sandbox.

        Between finding the session awake and taking a slot, the event loop may run an operation that waited for the
        session. Without this count it could hibernate the session there: the request would then write to a workspace
        that is already copied, and the write would be lost.
        """
        self._arriving[session_id] += 1
        try:
            yield
        finally:
            self._arriving[session_id] -= 1
            if not self._arriving[session_id]:
                del self._arriving[session_id]  # `busy` looks for the key, and ids must not pile up

    def of(self, session_id: SessionId, now: float) -> SessionActivity:
        """The session's entry, created if absent."""
        entry = self._sessions.get(session_id)
        if entry is None:
            entry = self._sessions[session_id] = SessionActivity(now)
        return entry

    def forget(self, session_id: SessionId) -> None:
        """Drop the entry of a session that has ended or moved to another gateway."""
        self._sessions.pop(session_id, None)

    def busy(self, session_id: SessionId) -> bool:
        """Whether requests are in flight, or wait for its sandbox."""
        entry = self._sessions.get(session_id)
        return session_id in self._arriving or (entry is not None and entry.in_flight > 0)

    def latest(self, session_id: SessionId, now: float) -> float | None:
        """When this gateway last saw it active; `now` while a request is in flight or arriving, None if never."""
        if session_id in self._arriving:
            return now
        entry = self._sessions.get(session_id)
        if entry is None:
            return None
        return now if entry.in_flight else entry.last

    def take_unwritten(self, now: float) -> Mapping[SessionId, float]:
        """Times that the store does not have yet, one per session; `now` for sessions with requests in flight."""
        seen: dict[SessionId, float] = {}
        for session_id, entry in self._sessions.items():
            if entry.in_flight:
                entry.last = now
            # Only what is new: 10,000 quiet sessions cost the store nothing.
            if entry.last > entry.written:
                seen[session_id] = entry.written = entry.last
        return seen

    def none_after(self, now: float) -> None:
        """The clock was set back to `now`: what was seen since then is as late as it can have been."""
        for entry in self._sessions.values():
            entry.last, entry.written = min(entry.last, now), min(entry.written, now)

    def give_back(self, seen: Mapping[SessionId, float]) -> None:
        """Mark them as unwritten again, after the store failed to take them."""
        for session_id in seen:
            if session_id in self._sessions:
                self._sessions[session_id].written = 0.0
