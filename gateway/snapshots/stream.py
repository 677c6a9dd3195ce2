"""What all snapshot stores do with the bytes of a stream: count, hash, limit, batch, verify."""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
from collections.abc import AsyncIterator, Callable
from typing import ParamSpec, TypeVar

from gateway.core.errors import SnapshotCorruptError, SnapshotTooLargeError
from gateway.core.model import SessionId, SnapshotRef

BATCH_BYTES = 1 << 20  # passed to a thread or a store at once
KEY_PATTERN = re.compile(r"[0-9a-f]{32}-[0-9a-f]{32}")
"""The form of keys from `new_key`. Anything else in a store is not a snapshot, and is never listed."""

_INLINE_BYTES = 64 << 10  # up to this size hashing takes less time than a switch to a thread

_P = ParamSpec("_P")
_T = TypeVar("_T")


def new_key(session_id: SessionId) -> str:
    """A new key: a hash of the session's id, which may be any text, and a random part."""
    # Hashed, as ids may be any text and file names and object keys may not. Both parts are fixed in length, so
    # KEY_PATTERN tells our objects from others in a shared bucket.
    return f"{hashlib.sha256(session_id.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}-{secrets.token_hex(16)}"


class Meter:
    """Counts and hashes the bytes of a stream. Raises SnapshotTooLargeError as soon as the limit is exceeded."""

    def __init__(self, max_size: int | None = None) -> None:
        self.size = 0
        self._max_size = max_size
        self._hash = hashlib.sha256()

    def count(self, length: int) -> None:
        """Add to the size. Called before the bytes are passed on, so that no store exceeds its limit."""
        self.size += length
        if self._max_size is not None and self.size > self._max_size:
            raise SnapshotTooLargeError(self._max_size, self.size)

    def hash(self, data: bytes | bytearray) -> None:
        """Add bytes to the hash, in order. A megabyte takes about a millisecond."""
        self._hash.update(data)

    async def hash_in_thread(self, data: bytes) -> None:
        """Like `hash`, but in a thread for a large piece, so that the event loop is not blocked."""
        if len(data) > _INLINE_BYTES:
            await in_thread(self._hash.update, data)
        else:
            self._hash.update(data)

    def ref(self, key: str) -> SnapshotRef:
        """The reference of the bytes so far, stored under `key`."""
        return SnapshotRef.of(key, self.size, self._hash.hexdigest())


async def checked(ref: SnapshotRef, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Pass on what is read from a store, but hold back each piece until the next one arrives.

    The last piece is therefore yielded only after size and hash of the whole match `ref`. Raises SnapshotCorruptError.
    """
    meter = Meter()
    held = b""
    async for chunk in chunks:
        meter.count(len(chunk))
        if meter.size > ref.size:
            break  # a store that answers without an end is not read to it
        await meter.hash_in_thread(chunk)
        if held:
            yield held
        held = chunk
    if meter.ref(ref.key) != ref:
        length = "" if meter.size == ref.size else f" ({'longer' if meter.size > ref.size else 'shorter'} than it was)"
        raise SnapshotCorruptError(f"snapshot {ref.key} is damaged{length}: it differs from what was stored")
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
    """Like asyncio.to_thread, but after a cancellation it waits until the thread no longer uses the shared objects."""
    # A thread cannot be cancelled. With to_thread alone the caller would go on to close the file, or clear the buffer,
    # that the thread still writes from.
    future = asyncio.ensure_future(asyncio.to_thread(work, *arguments, **named))
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait([future])
        if not future.cancelled():
            future.exception()  # retrieved
        raise
