"""The statements by which a sqlite store reads many sessions: those that are due, and lists by id. Pure."""

from __future__ import annotations

from gateway.core.model import RuntimeKey, SessionState

# Keyset paging: each page starts after the last row of the page before, even if that row is deleted. With OFFSET, a
# sweep that ends the sessions it reads would skip others. INDEXED BY, because sqlite's planner otherwise chooses
# sessions_by_state_and_runtime for `state = 'active'` and sorts the result.
IDLE = """
SELECT version, last_active_at, record, idle_at, id FROM sessions INDEXED BY sessions_idle
WHERE state = 'active' AND idle_at <= ? AND (idle_at, id) > (?, ?) ORDER BY idle_at, id LIMIT ?
"""
EXPIRED = """
SELECT version, last_active_at, record, expires_at, id FROM sessions INDEXED BY sessions_expiry
WHERE state <> 'terminated' AND expires_at <= ? AND (expires_at, id) > (?, ?) ORDER BY expires_at, id LIMIT ?
"""
TERMINATED = """
SELECT version, last_active_at, record, last_active_at, id FROM sessions INDEXED BY sessions_terminated
WHERE state = 'terminated' AND last_active_at <= ? AND (last_active_at, id) > (?, ?) ORDER BY last_active_at, id LIMIT ?
"""


def listing(*, state: SessionState | None, runtime: RuntimeKey | None) -> tuple[str, list[str]]:
    """The statement that lists records by id, and its first arguments; the caller appends `after` and a limit."""
    filters, arguments = "", []
    if state is not None:
        filters += "state = ? AND "
        arguments.append(state.value)
    if runtime is not None:
        filters += "runtime = ? AND "
        arguments.append(str(runtime))
    return (
        f"SELECT version, last_active_at, record, id FROM sessions WHERE {filters}id > ? ORDER BY id LIMIT ?",  # noqa: S608 — fixed words
        arguments,
    )
