"""Lists of sessions by age (SessionStore.by_age) in the sqlite file: columns, indexes and statements.

The columns came later than the table. An older Wakegate that opens the file leaves them empty in the rows that it
makes, and `migrate` fills them at the next start; neither a tenant nor a time of creation ever changes.
"""

from __future__ import annotations

import sqlite3

from gateway.core.model import DEFAULT_TENANT, Session
from gateway.store import codec

_COLUMNS = {"tenant": "TEXT", "created_at": "REAL"}
# Live ones have indexes of their own: a gateway that makes thousands of short sessions keeps each for an hour after its
# end, and a list of those that have not ended would read through all of these.
_INDEXES = (
    "CREATE INDEX IF NOT EXISTS sessions_by_age ON sessions (created_at, id)",
    "CREATE INDEX IF NOT EXISTS sessions_of_tenant ON sessions (tenant, created_at, id)",
    "CREATE INDEX IF NOT EXISTS sessions_live ON sessions (created_at, id) WHERE state <> 'terminated'",
    """
    CREATE INDEX IF NOT EXISTS sessions_live_of_tenant ON sessions (tenant, created_at, id)
    WHERE state <> 'terminated'
    """,
    "CREATE INDEX IF NOT EXISTS sessions_without_place ON sessions (id) WHERE tenant IS NULL",
)


def migrate(connection: sqlite3.Connection) -> None:
    """Add what is missing, and fill it where it is empty. Within a transaction. Raises sqlite3.Error, ValueError."""
    present = {row[1] for row in connection.execute("PRAGMA table_info (sessions)")}
    for name, kind in _COLUMNS.items():
        if name not in present:
            connection.execute(f"ALTER TABLE sessions ADD COLUMN {name} {kind}")
    for statement in _INDEXES:
        connection.execute(statement)
    rows = connection.execute(
        "SELECT id, version, last_active_at, record FROM sessions INDEXED BY sessions_without_place "
        "WHERE tenant IS NULL"
    )
    found = [codec.decode(record, version=version, last_active_at=at) for _, version, at, record in rows]
    connection.executemany(
        "UPDATE sessions SET tenant = :tenant, created_at = :created_at WHERE id = :id",
        [{"id": session.id, **place(session)} for session in found],
    )


def place(session: Session) -> dict[str, str | float]:
    """The values of the columns."""
    return {"tenant": session.tenant or DEFAULT_TENANT, "created_at": session.created_at}


def statement(*, tenant: str | None, ended: bool, newest_first: bool, parts: int = 0) -> tuple[str, list[str]]:
    """The statement that lists, and its first arguments; the caller appends a position (time, id) and a limit.

    `parts`: so many texts, which the caller puts before all others, are looked for in each record as small letters; of
    a record without one of them there is only the place. sqlite looks without the interpreter's lock, so a search of
    10,000 records does not hold up requests.
    """
    found = " AND ".join(["instr(lower(record), ?) > 0"] * parts)
    record = f"CASE WHEN {found} THEN record END" if parts else "record"
    index = ("sessions_live" if not ended else "sessions") + ("_of_tenant" if tenant is not None else "")
    index = "sessions_by_age" if index == "sessions" else index
    filters = ("" if tenant is None else "tenant = ? AND ") + ("" if ended else "state <> 'terminated' AND ")
    beyond, order = ("<", "DESC") if newest_first else (">", "ASC")
    text = (
        f"SELECT version, last_active_at, {record}, created_at, id "  # noqa: S608 — fixed words
        f"FROM sessions INDEXED BY {index} WHERE {filters}(created_at, id) {beyond} (?, ?) "
        f"ORDER BY created_at {order}, id {order} LIMIT ?"
    )
    return text, [] if tenant is None else [tenant]


def start_of(*, newest_first: bool) -> tuple[float, str]:
    """The position before the first of a list. Ids are shorter than this text, and of characters below its own."""
    return (float("inf"), "\U0010ffff") if newest_first else (float("-inf"), "")
