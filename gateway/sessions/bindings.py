"""Which sandboxes this gateway has bound to sessions, and who is told at once when a session stops having one.

In memory only, and no decision rests on it: what a session has is said by its record. It is what this gateway counts
against its limit, looks after for checkpoints, and puts to sleep before it ends.
"""

from __future__ import annotations

from collections.abc import Callable

from gateway.core.model import SandboxId, SessionId

Unbound = Callable[[SessionId, SandboxId | None], None]


class Bindings:
    """Sandboxes and the session of each. Nothing here waits."""

    def __init__(self) -> None:
        self._sessions: dict[SandboxId, SessionId] = {}
        self._listeners: list[Unbound] = []

    def __contains__(self, sandbox_id: SandboxId) -> bool:
        return sandbox_id in self._sessions

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def sessions(self) -> set[SessionId]:
        """Sessions that this gateway gave a sandbox, or found one of."""
        return set(self._sessions.values())

    def all(self) -> list[tuple[SandboxId, SessionId]]:
        """Those of this moment: a list of its own, as bindings change while it is gone through."""
        return list(self._sessions.items())

    def add(self, sandbox_id: SandboxId, session_id: SessionId) -> None:
        """The session has that sandbox."""
        self._sessions[sandbox_id] = session_id

    def remove(self, sandbox_id: SandboxId) -> SessionId | None:
        """It has it no more. Returns which session had; None if it was not bound here. Nobody is told."""
        return self._sessions.pop(sandbox_id, None)

    def on_unbound(self, listener: Unbound) -> None:
        """Call `listener(session, sandbox)` whenever `notify_unbound` is."""
        self._listeners.append(listener)

    def notify_unbound(self, session_id: SessionId, sandbox_id: SandboxId | None) -> None:
        """Tell the listeners that a session stops having that sandbox (None: for good); before its record says so."""
        for listener in self._listeners:
            listener(session_id, sandbox_id)
