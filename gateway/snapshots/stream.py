"""What all stores do to the bytes on their way: count, hash, limit, gather."""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
from collections.abc import AsyncIterator, Callable
from typing import ParamSpec, TypeVar

from gateway.core.errors import SnapshotCorruptError, SnapshotTooLargeError
from gateway.core.model import SessionId, SnapshotRef

BATCH_BYTES = 1 << 20  # bytes handed to a thread or a store at once
KEY_PATTERN = re.compile(r"[0-9a-f]{32}-[0-9a-f]{32}")
"""What `new_key` makes. Anything else in a store is somebody else's, and never listed."""

_INLINE_BYTES = 64 << 10  # bytes that the loop hashes itself: a turn to a thread costs more

_P = ParamSpec("_P")
_T = TypeVar("_T")


def new_key(session_id: SessionId) -> str:
    """A name that was never used: the session's part, as its id may be any text, and a random one."""
    return f"{hashlib.sha256(session_id.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}-{secrets.token_hex(16)}"


class Meter:
    """Counts and hashes what passes. Raises SnapshotTooLargeError as soon as it is over the limit."""

    def __init__(self, max_size: int | None = None) -> None:
        self.size = 0
        self._max_size = max_size
        self._hash = hashlib.sha256()

    def count(self, length: int) -> None:
        """More is about to pass."""
        self.size += length
        if self._max_size is not None and self.size > self._max_size:
            raise SnapshotTooLargeError(self._max_size, self.size)

    def hash(self, data: bytes | bytearray) -> None:
        """It passes. To be called in order; a megabyte takes about a millisecond."""
        self._hash.update(data)

    async def hash_aside(self, data: bytes) -> None:
        """The same; much of it does not hold up the loop."""
        if len(data) > _INLINE_BYTES:
            await in_thread(self._hash.update, data)
        else:
            self._hash.update(data)

    def ref(self, key: str) -> SnapshotRef:
        """What passed, stored under `key`."""
        return SnapshotRef.of(key, self.size, self._hash.hexdigest())


async def checked(ref: SnapshotRef, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Pass on what is read from a store; the last piece only when the whole is what `ref` says.

    Raises SnapshotCorruptError.
    """
    meter = Meter()
    held = b""
    async for chunk in chunks:
        meter.count(len(chunk))
        if meter.size > ref.size:
            break
        await meter.hash_aside(chunk)
        if held:
            yield held
        held = chunk
    if meter.ref(ref.key) != ref:
        length = "" if meter.size == ref.size else f" ({'longer' if meter.size > ref.size else 'shorter'} than it was)"
        raise SnapshotCorruptError(f"snapshot {ref.key} is damaged{length}: it is not what was put into the store")
    if held:
        yield held


async def gathered(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytearray]:
    """The same bytes in pieces of BATCH_BYTES bytes or a little more."""
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
            future.exception()  # seen
        raise
