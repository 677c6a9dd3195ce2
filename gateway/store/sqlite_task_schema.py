"""The tables of tasks in the sqlite file, which sqlite_tasks.py reads and writes."""

from __future__ import annotations

SCHEMA = (
    """
    CREATE TABLE IF NOT EXISTS tasks (
      id TEXT PRIMARY KEY NOT NULL,
      queue TEXT NOT NULL,
      tenant TEXT NOT NULL,
      created_at REAL NOT NULL,
      due_at REAL NOT NULL,
      is_open INTEGER NOT NULL,
      expires_at REAL NOT NULL,
      keys TEXT NOT NULL,
      held INTEGER NOT NULL,
      version INTEGER NOT NULL,
      value BLOB NOT NULL,
      bytes INTEGER NOT NULL
    ) STRICT
    """,
    "CREATE INDEX IF NOT EXISTS tasks_due ON tasks (queue, due_at, id)",
    "CREATE INDEX IF NOT EXISTS tasks_age ON tasks (queue, created_at, id)",
    "CREATE INDEX IF NOT EXISTS tasks_open ON tasks (queue) WHERE is_open",
    "CREATE INDEX IF NOT EXISTS tasks_expiry ON tasks (expires_at)",
    "CREATE INDEX IF NOT EXISTS tasks_bytes ON tasks (tenant, bytes)",
    """
    CREATE TABLE IF NOT EXISTS task_holds (
      key TEXT NOT NULL,
      task TEXT NOT NULL,
      until REAL NOT NULL,
      PRIMARY KEY (key, task)
    ) STRICT, WITHOUT ROWID
    """,
    """
    CREATE TABLE IF NOT EXISTS task_data (
      task TEXT NOT NULL,
      part TEXT NOT NULL,
      data BLOB NOT NULL,
      PRIMARY KEY (task, part)
    ) STRICT
    """,
    """
    CREATE TABLE IF NOT EXISTS task_names (
      name TEXT PRIMARY KEY NOT NULL,
      value TEXT NOT NULL,
      until REAL NOT NULL
    ) STRICT
    """,
    "CREATE INDEX IF NOT EXISTS task_names_expiry ON task_names (until)",
)
