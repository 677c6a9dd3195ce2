"""The sqlite file: how it is opened, its schema, and the error messages for its failures."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from gateway.core.errors import BadRequestError, StoreUnavailableError, WakegateError
from gateway.store import sqlite_pages, sqlite_task_schema

APPLICATION_ID = 0x574B4754  # "WKGT", which distinguishes a store from other programs' sqlite files
SCHEMA_VERSION = 1
BUSY_TIMEOUT_S = 2.0  # how long to wait for another process's transaction; this program's take milliseconds

# `record` is the whole session as JSON. The other columns are those that statements compare or index. version and
# last_active_at may be newer than their copies in the record, because a touch writes only the column.
_SCHEMA = (
    """
    CREATE TABLE sessions (
      id TEXT PRIMARY KEY NOT NULL,
      version INTEGER NOT NULL,
      state TEXT NOT NULL,
      runtime TEXT NOT NULL,
      last_active_at REAL NOT NULL,
      idle_timeout REAL NOT NULL,
      expires_at REAL NOT NULL,
      record BLOB NOT NULL,
      idle_at REAL AS (last_active_at + idle_timeout) VIRTUAL
    ) STRICT
    """,
    # Each index serves one method of SessionStore and has its order. Partial indexes contain only rows that the method
    # can return, so writes of other rows do not touch them.
    "CREATE INDEX sessions_idle ON sessions (idle_at, id) WHERE state = 'active'",
    "CREATE INDEX sessions_expiry ON sessions (expires_at, id) WHERE state <> 'terminated'",
    "CREATE INDEX sessions_terminated ON sessions (last_active_at, id) WHERE state = 'terminated'",
    "CREATE INDEX sessions_by_state ON sessions (state, id)",
    "CREATE INDEX sessions_by_runtime ON sessions (runtime, id)",
    "CREATE INDEX sessions_by_state_and_runtime ON sessions (state, runtime, id)",
    """
    CREATE TABLE leases (
      name TEXT PRIMARY KEY NOT NULL,
      holder TEXT NOT NULL,
      fence INTEGER NOT NULL,
      expires_at REAL NOT NULL
    ) STRICT
    """,
    "CREATE INDEX leases_expiry ON leases (expires_at)",
    # One row: at least as high as the fence of any lease that was ever deleted.
    "CREATE TABLE fences (floor INTEGER NOT NULL) STRICT",
    "INSERT INTO fences VALUES (0)",
    """
    CREATE TABLE claims (
      runtime TEXT NOT NULL,
      bucket INTEGER NOT NULL,
      start INTEGER NOT NULL,
      n INTEGER NOT NULL,
      UNIQUE (runtime, bucket, start)
    ) STRICT
    """,
    "CREATE INDEX claims_age ON claims (bucket, start)",
)

# Tables that came later (and columns: sqlite_pages.py). An older Wakegate ignores them, so they do not raise the
# schema's version, and it can still open the file.
_ADDITIONS = (
    """
    CREATE TABLE IF NOT EXISTS documents (
      kind TEXT NOT NULL,
      name TEXT NOT NULL,
      version INTEGER NOT NULL,
      value BLOB NOT NULL,
      PRIMARY KEY (kind, name)
    ) STRICT, WITHOUT ROWID
    """,
    """
    CREATE TABLE IF NOT EXISTS quota_entries (
      tenant TEXT NOT NULL,
      session TEXT NOT NULL,
      amounts TEXT NOT NULL,
      mark INTEGER NOT NULL,
      until REAL NOT NULL,
      PRIMARY KEY (tenant, session)
    ) STRICT, WITHOUT ROWID
    """,
    """
    CREATE TABLE IF NOT EXISTS quota_used (
      tenant TEXT NOT NULL,
      resource TEXT NOT NULL,
      n INTEGER NOT NULL,
      PRIMARY KEY (tenant, resource)
    ) STRICT, WITHOUT ROWID
    """,
    "CREATE TABLE IF NOT EXISTS quota_rates (tenant TEXT PRIMARY KEY NOT NULL, full_at REAL NOT NULL) STRICT",
    "CREATE TABLE IF NOT EXISTS quota_gateways (holder TEXT PRIMARY KEY NOT NULL, until REAL NOT NULL) STRICT",
    "CREATE TABLE IF NOT EXISTS revisions (kind TEXT PRIMARY KEY NOT NULL, n INTEGER NOT NULL) STRICT",
    """
    CREATE TABLE IF NOT EXISTS usage (
      by_session INTEGER NOT NULL,
      hour INTEGER NOT NULL,
      tenant TEXT NOT NULL,
      runtime TEXT NOT NULL,
      size TEXT NOT NULL,
      session TEXT NOT NULL,
      amounts BLOB NOT NULL,
      PRIMARY KEY (by_session, hour, tenant, runtime, size, session)
    ) STRICT, WITHOUT ROWID
    """,
    """
    CREATE TABLE IF NOT EXISTS usage_writers (
      writer TEXT PRIMARY KEY NOT NULL,
      sequence INTEGER NOT NULL,
      at REAL NOT NULL
    ) STRICT
    """,
)


def connect(path: Path) -> sqlite3.Connection:
    """Open or create the store in autocommit mode. Raises StoreUnavailableError, sqlite3.Error, OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _opening(path):
        # Session ids are credentials, so no other user of the machine may read the file; sqlite creates its -wal and
        # -shm files with the mode of the main one. An existing file is not opened here: closing any descriptor of a
        # file drops all POSIX locks that the process holds on it, including sqlite's.
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            pass
        connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        try:
            _prepare(connection, path)
        except BaseException:
            connection.close()
            raise
    try:
        _check(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


@contextlib.contextmanager
def _opening(path: Path) -> Iterator[None]:
    """Let one process at a time open the file: switching to WAL fails with "locked" at once, without busy timeout."""
    lock = os.open(f"{path}-lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    # NORMAL with WAL: an answered commit has been written to the page cache, so it survives a crash of this process. A
    # power failure may lose the commits since the last checkpoint, but does not corrupt the file. Rejected: FULL, which
    # costs an fsync per commit.
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("BEGIN IMMEDIATE")  # of two gateways that start at once, the second waits and finds the schema
    try:
        _create_or_check(connection, path)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise StoreUnavailableError(
            f"session store {path}: its file system does not support sqlite's write-ahead log, which needs shared "
            "memory (network file systems lack it); put the state folder on a local disk"
        )


def _check(connection: sqlite3.Connection, path: Path) -> None:
    # 10 ms for ten thousand sessions. Damage that is found at the start is reported to the operator; later it would
    # fail the requests of those sessions whose records are damaged.
    (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise StoreUnavailableError(_damaged(path, verdict))


def _create_or_check(connection: sqlite3.Connection, path: Path) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if tables == 0 and version == 0:
        for statement in _SCHEMA:
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    elif application != APPLICATION_ID:
        raise StoreUnavailableError(
            f"session store {path}: this is another program's sqlite database; name a different file for the store"
        )
    elif version > SCHEMA_VERSION:
        raise StoreUnavailableError(
            f"session store {path}: written by a newer Wakegate (schema {version}, this one knows {SCHEMA_VERSION}); "
            "run that version, or name a different file for the store"
        )
    for statement in (*_ADDITIONS, *sqlite_task_schema.SCHEMA):
        connection.execute(statement)
    sqlite_pages.migrate(connection)


def identity(path: Path) -> tuple[int, int] | None:
    """Which file this is, by device and inode; None: there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def translate(path: Path, error: BaseException) -> BaseException:
    """Convert errors of sqlite and the file system to StoreUnavailableError, with the path and how to fix it."""
    if isinstance(error, WakegateError):
        return error
    if isinstance(error, OSError):
        return _chained(f"session store {path}: {error.strerror or error}; check the folder and its permissions", error)
    if isinstance(error, UnicodeEncodeError):  # a lone surrogate, of a command line or of JSON
        return BadRequestError(f"text that is not Unicode cannot be stored: {error.reason}")
    if isinstance(error, ValueError):  # from the codec: a row that is not a session record
        return _chained(_damaged(path, str(error)), error)
    if not isinstance(error, sqlite3.Error):
        return error
    name = getattr(error, "sqlite_errorname", "")
    if name == "SQLITE_FULL":
        text = (
            f"session store {path}: the disk is full; free space on its file system, and the store recovers by itself"
        )
    elif name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        text = _damaged(path, str(error))
    elif name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        text = f"session store {path}: another process has held its lock for more than {BUSY_TIMEOUT_S:g} s"
    elif name.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM")):
        text = f"session store {path}: {error}; check that the file and its folder are writable"
    elif name.startswith("SQLITE_IOERR"):
        text = f"session store {path}: {error} ({name}); check the disk's free space, quota and health"
    else:
        text = f"session store {path}: {error} ({name or type(error).__name__})"
    return _chained(text, error)


def _damaged(path: Path, what: str) -> str:
    return (
        f"session store {path} is damaged ({what}); stop the gateway, replace the file by a backup or move it away "
        f"together with {path.name}-wal and {path.name}-shm, and start again (without a backup its sessions are lost)"
    )


def _chained(text: str, cause: BaseException) -> StoreUnavailableError:
    error = StoreUnavailableError(text)
    error.__cause__ = cause
    return error
