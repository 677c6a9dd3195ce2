"""Documents (core/documents.py) in the sqlite file of the sessions."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import replace

import orjson

from gateway.core.documents import Document
from gateway.store.codec import stale_document
from gateway.store.sqlite_thread import SqliteThread

_INSERT = "INSERT INTO documents VALUES (?1, ?2, 1, ?3) ON CONFLICT DO NOTHING"
_UPDATE = "UPDATE documents SET version = version + 1, value = ?3 WHERE kind = ?1 AND name = ?2 AND version = ?4"
_CHANGED = "INSERT INTO revisions VALUES (?, 1) ON CONFLICT (kind) DO UPDATE SET n = n + 1"


class SqliteDocuments:
    """Implements DocumentStore on the thread of a SqliteStore."""

    def __init__(self, thread: SqliteThread) -> None:
        self._thread = thread

    async def get(self, kind: str, name: str) -> Document | None:
        """The document, or None."""
        statement = "SELECT version, value FROM documents WHERE kind = ? AND name = ?"
        row = await self._thread.read(lambda db: db.execute(statement, (kind, name)).fetchone())
        return None if row is None else Document(kind, name, orjson.loads(row[1]), row[0])

    async def put(self, document: Document) -> Document:
        """Write it if the stored version is still `document.version`. Raises StaleWriteError."""
        kind, value = document.kind, orjson.dumps(document.value)

        def put(db: sqlite3.Connection) -> None:
            arguments = (kind, document.name, value)
            changed = (
                db.execute(_UPDATE, (*arguments, document.version))
                if document.version
                else db.execute(_INSERT, arguments)
            )
            if changed.rowcount == 0:
                raise stale_document(document)
            db.execute(_CHANGED, (kind,))

        await self._thread.write(put)
        return replace(document, version=document.version + 1)

    async def delete(self, kind: str, name: str) -> bool:
        """Forget it. Returns whether it was there."""

        def delete(db: sqlite3.Connection) -> bool:
            found = db.execute("DELETE FROM documents WHERE kind = ? AND name = ?", (kind, name)).rowcount > 0
            if found:
                db.execute(_CHANGED, (kind,))
            return found

        return await self._thread.write(delete)

    async def list(self, kind: str) -> Sequence[Document]:
        """All documents of a kind, by name."""
        statement = "SELECT name, version, value FROM documents WHERE kind = ? ORDER BY name"
        rows = await self._thread.read(lambda db: db.execute(statement, (kind,)).fetchall())
        return [Document(kind, name, orjson.loads(value), version) for name, version, value in rows]

    async def revision(self, kind: str) -> int:
        """A number that grows with each change of a kind."""
        statement = "SELECT n FROM revisions WHERE kind = ?"
        row = await self._thread.read(lambda db: db.execute(statement, (kind,)).fetchone())
        return 0 if row is None else int(row[0])
