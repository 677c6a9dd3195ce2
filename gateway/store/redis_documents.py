"""Documents (core/documents.py) in the Redis of the sessions.

Keys, below the store's root:
    docs:<kind>      hash: name -> "<version> <JSON>"
    docs-revisions   hash: kind -> number of changes
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import orjson

from gateway.core.documents import Document
from gateway.store.codec import stale_document

# KEYS: docs:<kind> docs-revisions    ARGV: kind, name, expected version, JSON
# Returns the new version, or 0: the stored one is another.
_PUT = r"""
local old = redis.call('HGET', KEYS[1], ARGV[2])
-- Version 0 is that of an absent document: creating is the same compare-and-set as changing.
local version = old and string.match(old, '^%d+') or '0'
if version ~= ARGV[3] then return 0 end
local new = string.format('%d', tonumber(version) + 1)
redis.call('HSET', KEYS[1], ARGV[2], new .. ' ' .. ARGV[4])
redis.call('HINCRBY', KEYS[2], ARGV[1], 1)
return tonumber(new)
"""

# KEYS: docs:<kind> docs-revisions    ARGV: kind, name
_DELETE = r"""
local found = redis.call('HDEL', KEYS[1], ARGV[2])
if found == 1 then redis.call('HINCRBY', KEYS[2], ARGV[1], 1) end
return found
"""

Call = Callable[[Callable[[Any], Awaitable[Any]]], Awaitable[Any]]
RunScript = Callable[[str, Sequence[str], Sequence[Any]], Awaitable[Any]]


class RedisDocuments:
    """Implements DocumentStore by the exchanges of a RedisStore: `call` and `run` of a script."""

    def __init__(self, root: str, call: Call, run: RunScript) -> None:
        self._root = root
        self._call = call
        self._run = run

    async def get(self, kind: str, name: str) -> Document | None:
        """The document, or None."""
        kept = await self._call(lambda redis: redis.hget(self._kind(kind), name))
        return None if kept is None else _document(kind, name, kept)

    async def put(self, document: Document) -> Document:
        """Write it if the stored version is still `document.version`. Raises StaleWriteError."""
        arguments = [document.kind, document.name, document.version, orjson.dumps(document.value)]
        version = await self._run(_PUT, self._keys(document.kind), arguments)
        if not version:
            raise stale_document(document)
        return replace(document, version=int(version))

    async def delete(self, kind: str, name: str) -> bool:
        """Forget it. Returns whether it was there."""
        return bool(await self._run(_DELETE, self._keys(kind), [kind, name]))

    async def list(self, kind: str) -> Sequence[Document]:
        """All documents of a kind, by name."""
        kept = await self._call(lambda redis: redis.hgetall(self._kind(kind)))
        return [_document(kind, name.decode(), value) for name, value in sorted(kept.items())]

    async def revision(self, kind: str) -> int:
        """A number that grows with each change of a kind."""
        return int(await self._call(lambda redis: redis.hget(self._root + "docs-revisions", kind)) or 0)

    def _kind(self, kind: str) -> str:
        return f"{self._root}docs:{kind}"

    def _keys(self, kind: str) -> Sequence[str]:
        return [self._kind(kind), self._root + "docs-revisions"]


def _document(kind: str, name: str, kept: bytes) -> Document:
    version, _, value = kept.partition(b" ")
    return Document(kind, name, orjson.loads(value), int(version))
