"""What all snapshot stores do to the bytes that pass: count, hash, limit, batch."""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
from collections.abc import AsyncIterator, Callable
from typing import ParamSpec, TypeVar

from gateway.core.errors import SnapshotCorruptError, SnapshotTooLargeError
from gateway.core.model import SessionId, SnapshotRef

BATCH_BYTES = 1 << 20  # handed to a thread or a store at once
KEY_PATTERN = re.compile(r"[0-9a-f]{32}-[0-9a-f]{32}")
"""What `new_key` makes. Anything else in a store is not a snapshot of ours, and never listed."""

_INLINE_BYTES = 64 << 10  # hashed on the loop: a turn to a thread costs more

_P = ParamSpec("_P")
_T = TypeVar("_T")


def new_key(session_id: SessionId) -> str:
    """A new name: a hash of the session's id, which may be any text, and a random part."""
    return f"{hashlib.sha256(session_id.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}-{secrets.token_hex(16)}"


class Meter:
    """Counts and hashes what passes. Raises SnapshotTooLargeError as soon as it is over the limit."""

    def __init__(self, max_size: int | None = None) -> None:
        self.size = 0
        self._max_size = max_size
        self._hash = hashlib.sha256()

    def count(self, length: int) -> None:
        """Add to the size, before the bytes are passed on."""
        self.size += length
        if self._max_size is not None and self.size > self._max_size:
            raise SnapshotTooLargeError(self._max_size, self.size)

    def hash(self, data: bytes | bytearray) -> None:
        """Add bytes to the hash, in their order; a megabyte takes about a millisecond."""
        self._hash.update(data)

    async def hash_in_thread(self, data: bytes) -> None:
        """The same; a large piece in a thread, off the loop."""
        if len(data) > _INLINE_BYTES:
            await in_thread(self._hash.update, data)
        else:
            self._hash.update(data)

    def ref(self, key: str) -> SnapshotRef:
        """The reference of what passed, stored under `key`."""
        return SnapshotRef.of(key, self.size, self._hash.hexdigest())


async def checked(ref: SnapshotRef, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Pass on what is read from a store; the last piece only once the whole matches `ref`.

    Raises SnapshotCorruptError.
    """
    meter = Meter()
    held = b""
    async for chunk in chunks:
        meter.count(len(chunk))
        if meter.size > ref.size:
            break
        await meter.hash_in_thread(chunk)
        if held:
            yield held
        held = chunk
    if meter.ref(ref.key) != ref:
        length = "" if meter.size == ref.size else f" ({'longer' if meter.size > ref.size else 'shorter'} than it was)"
        raise SnapshotCorruptError(f"snapshot {ref.key} is damaged{length}: it is not what was put into the store")
    if held:
        yield held


async def batched(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytearray]:
    """The same bytes in pieces of BATCH_BYTES or a little more."""
    batch = bytearray()
    async for chunk in chunks:
        batch += chunk
        if len(batch) >= BATCH_BYTES:
            yield batch
            batch = bytearray()
    if batch:
        yield batch


async def in_thread(work: Callable[_P, _T], *arguments: _P.args, **named: _P.kwargs) -> _T:
    """Like asyncio.to_thread, but a cancelled caller waits until the thread no longer touches what both hold."""
    future = asyncio.ensure_future(asyncio.to_thread(work, *arguments, **named))
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait([future])
        if not future.cancelled():
            future.exception()  # retrieved
        raise
