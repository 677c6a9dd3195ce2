"""An in-memory snapshot store, for tests in virtual time. Passes the contract suite."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

from gateway.core.clock import Clock
from gateway.core.errors import SnapshotNotFoundError
from gateway.core.model import SessionId, SnapshotRef, StoredSnapshot
from gateway.snapshots.stream import Meter, checked, new_key


class MemorySnapshots:
    """Implements gateway.core.interfaces.SnapshotStore. Tests may change `kept` to simulate damage."""

    def __init__(self, clock: Clock, max_size: int | None = None) -> None:
        self.kept: dict[str, tuple[bytes, float]] = {}
        self._clock = clock
        self._max_size = max_size

    async def put(self, session_id: SessionId, chunks: AsyncIterator[bytes]) -> SnapshotRef:
        """Store the stream. Raises SnapshotTooLargeError, and what `chunks` raises."""
        meter, data = Meter(self._max_size), bytearray()
        async for chunk in chunks:
            meter.count(len(chunk))
            meter.hash(chunk)
            data += chunk
        await asyncio.sleep(0)  # a cancellation takes effect here, before anything is stored
        key = new_key(session_id)
        self.kept[key] = (bytes(data), self._clock.now())
        return meter.ref(key)

    async def get(self, ref: SnapshotRef) -> AsyncGenerator[bytes, None]:
        """Yield the stored stream. Raises SnapshotNotFoundError, SnapshotCorruptError."""
        if ref.key not in self.kept:
            raise SnapshotNotFoundError(f"snapshot {ref.key} is not in memory")
        data, _ = self.kept[ref.key]

        async def stored() -> AsyncIterator[bytes]:
            for start in range(0, len(data), 65_536):
                yield data[start : start + 65_536]

        async for chunk in checked(ref, stored()):
            yield chunk

    async def delete(self, key: str) -> None:
        """Delete a snapshot. An absent one is not an error."""
        self.kept.pop(key, None)

    async def list(self) -> AsyncIterator[StoredSnapshot]:
        """All snapshots, in the order they were stored; none is ever partial."""
        for key, (data, at) in tuple(self.kept.items()):
            yield StoredSnapshot(key, len(data), at)
