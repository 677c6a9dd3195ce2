"""Streams of bytes in and out of snapshot stores."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from gateway.core.interfaces import SnapshotStore
from gateway.core.model import SnapshotRef, StoredSnapshot


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def read_all(store: SnapshotStore, ref: SnapshotRef) -> bytes:
    return b"".join([piece async for piece in store.get(ref)])


async def listed(store: SnapshotStore) -> Sequence[StoredSnapshot]:
    return [found async for found in store.list()]
