"""The sqlite file: how it is opened, what is in it, and what its failures mean to a person."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from gateway.core.errors import StoreUnavailableError, WakegateError

APPLICATION_ID = 0x574B4754  # "WKGT": tells a store from any other sqlite file
SCHEMA_VERSION = 1
BUSY_TIMEOUT_S = 2.0  # seconds to wait for another process's transaction; ours take milliseconds

# `record` is the whole session as JSON. The columns beside it are what is compared or indexed; of these version and
# last_active_at are newer than the copies inside the record, because a touch writes the column only.
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
    # Each index serves one method of SessionStore, in its order; partial ones hold only the rows that can be asked for.
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
    # One row: at least as high as the fence of any lease that was ever cleared away.
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

# Tables that came later. An older Wakegate ignores them, so they do not raise the schema's version, and it can still
# open the file.
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
    "CREATE TABLE IF NOT EXISTS revisions (kind TEXT PRIMARY KEY NOT NULL, n INTEGER NOT NULL) STRICT",
)


def connect(path: Path) -> sqlite3.Connection:
    """Open or create the store, in autocommit mode. Raises StoreUnavailableError, sqlite3.Error, OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _opening(path):
        # A session's id is the right to use it: no other user of the machine may read the file. sqlite gives its -wal
        # and -shm files the mode of the main one. Only a file that is new is opened here: to close it would drop
        # every lock this process holds on it.
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
    """One process at a time: the change to write-ahead logging answers a second one "locked" without waiting."""
    lock = os.open(f"{path}-lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    # NORMAL in WAL: a commit is in the operating system's hands when it is answered, so it survives the death of this
    # process by any signal. A power loss may cost the commits since the last checkpoint (never the file's integrity).
    # FULL would close that gap at the price of one fsync per commit.
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("BEGIN IMMEDIATE")  # two gateways that start at once: the second waits and finds it done
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
            f"session store {path}: its file system cannot hold sqlite's write-ahead log (shared memory is needed, "
            "which network file systems lack); put the state folder on a local disk"
        )


def _check(connection: sqlite3.Connection, path: Path) -> None:
    # 10 ms for ten thousand sessions. Better at the start than by the one request whose record is gone.
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
    for statement in _ADDITIONS:
        connection.execute(statement)


def translate(path: Path, error: BaseException) -> BaseException:
    """What sqlite or the file system raised, as StoreUnavailableError with the path and what to do."""
    if isinstance(error, WakegateError):
        return error
    if isinstance(error, OSError):
        return _chained(f"session store {path}: {error.strerror or error}; check the folder and its permissions", error)
    if isinstance(error, ValueError):  # the codec: a record that is none
        return _chained(_damaged(path, str(error)), error)
    if not isinstance(error, sqlite3.Error):
        return error
    name = getattr(error, "sqlite_errorname", "")
    if name == "SQLITE_FULL":
        text = f"session store {path}: the disk is full; free space on its file system and it goes on by itself"
    elif name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        text = _damaged(path, str(error))
    elif name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        text = f"session store {path}: another process has kept it locked for more than {BUSY_TIMEOUT_S:g} s"
    elif name.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM")):
        text = f"session store {path}: {error}; check that the file and its folder are writable"
    elif name.startswith("SQLITE_IOERR"):
        text = f"session store {path}: {error} ({name}); check the disk's free space, quota and health"
    else:
        text = f"session store {path}: {error} ({name or type(error).__name__})"
    return _chained(text, error)


def _damaged(path: Path, what: str) -> str:
    return (
        f"session store {path} is damaged ({what}); stop the gateway, put a backup in its place or move it away "
        f"together with {path.name}-wal and {path.name}-shm, and start again (without one, its sessions are unknown)"
    )


def _chained(text: str, cause: BaseException) -> StoreUnavailableError:
    error = StoreUnavailableError(text)
    error.__cause__ = cause
    return error
