"""Which sandboxes this gateway has bound to sessions, and listeners for the moment when a session loses its sandbox.

In memory only: the record decides what a session has. This is what the gateway counts against its limit, takes
checkpoints of, and hibernates before it shuts down.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from gateway.core.model import SandboxId, Session, SessionId, StartKind

Unbound = Callable[[SessionId, SandboxId | None], None]
Bound = Callable[[Session, SandboxId, StartKind | None], None]


class Bindings:
    """Maps sandboxes to their sessions. All of it is synchronous."""

    def __init__(self) -> None:
        self._sessions: dict[SandboxId, SessionId] = {}
        self._tenants: dict[SandboxId, str] = {}
        self._counts: Counter[str] = Counter()  # sandboxes by tenant
        self._listeners: list[Unbound] = []
        self._bound: list[Bound] = []
        self._removed: list[Callable[[SandboxId], None]] = []
        self._resized: list[Callable[[Session], None]] = []

    def __contains__(self, sandbox_id: SandboxId) -> bool:
        return sandbox_id in self._sessions

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def sessions(self) -> set[SessionId]:
        """Sessions whose sandbox this gateway claimed, or found at its start."""
        return set(self._sessions.values())

    def all(self) -> list[tuple[SandboxId, SessionId]]:
        """A copy of the present pairs: bindings change while callers iterate and await."""
        return list(self._sessions.items())

    def add(self, sandbox_id: SandboxId, session: Session, start: StartKind | None = None) -> None:
        """Record that the session has this sandbox. `start`: it was claimed for the session just now, in this way."""
        if sandbox_id in self._sessions:  # found again by a later open: it counts once
            return
        self._sessions[sandbox_id] = session.id
        self._tenants[sandbox_id] = session.tenant
        self._counts[session.tenant] += 1
        for listener in self._bound:
            listener(session, sandbox_id, start)

    def count(self, tenant: str) -> int:
        """How many sandboxes sessions of a tenant have here."""
        return self._counts[tenant]

    def remove(self, sandbox_id: SandboxId) -> SessionId | None:
        """Drop a sandbox without telling those of `on_unbound`. Returns its session; None if it was not bound here."""
        session_id = self._sessions.pop(sandbox_id, None)
        if session_id is None:
            return None
        tenant = self._tenants.pop(sandbox_id)
        self._counts[tenant] -= 1
        if not self._counts[tenant]:
            del self._counts[tenant]
        for listener in self._removed:
            listener(sandbox_id)
        return session_id

    def on_bound(self, listener: Bound) -> None:
        """Call `listener(session, sandbox, start)` on each `add` of a sandbox that was not bound here."""
        self._bound.append(listener)

    def on_removed(self, listener: Callable[[SandboxId], None]) -> None:
        """Call `listener(sandbox)` on each `remove` of one that was."""
        self._removed.append(listener)

    def on_resized(self, listener: Callable[[Session], None]) -> None:
        """Call `listener(session)` on each `notify_resized`."""
        self._resized.append(listener)

    def notify_resized(self, session: Session) -> None:
        """Tell listeners that the session's sandbox has another size now."""
        for listener in self._resized:
            listener(session)

    def on_unbound(self, listener: Unbound) -> None:
        """Call `listener(session, sandbox)` on each `notify_unbound`."""
        self._listeners.append(listener)

    def notify_unbound(self, session_id: SessionId, sandbox_id: SandboxId | None) -> None:
        """Tell listeners that a session loses that sandbox (None: whichever it has), before its record is written.

        Routes are closed by it, so a request that comes during the write waits for the record and then reads it.
        """
        for listener in self._listeners:
            listener(session_id, sandbox_id)
