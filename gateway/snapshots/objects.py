"""Snapshots in an object store (S3 and compatible stores, Google Cloud Storage, Azure) through obstore.

A put is one multipart upload, which is completed at the end or aborted; readers see a whole object or none. The parts
that a killed gateway uploaded are never listed; the bucket's lifecycle rule for incomplete uploads deletes them
(AWS: AbortIncompleteMultipartUpload).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing
from datetime import timedelta
from typing import TYPE_CHECKING

import obstore
from obstore import exceptions
from obstore.store import ObjectStore as Driver
from obstore.store import from_url

from gateway.core.errors import SettingsError, SnapshotError, SnapshotNotFoundError, SnapshotStoreUnavailableError
from gateway.core.model import SessionId, SnapshotRef, StoredSnapshot
from gateway.snapshots.stream import BATCH_BYTES, KEY_PATTERN, Meter, checked, new_key

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

_PART_BYTES = 8 << 20  # S3 allows 10,000 parts, so 80 GB
_CONCURRENCY = 4  # parts in flight: 32 MB of memory per put
_ABORT = bytes(2)  # queued instead of a chunk; compared by identity
_ABORT_TIMEOUT_S = 5.0  # an upload that a slower store still completes is an orphan, which `delete_orphans` finds

# A request waits for the wake, so an unreachable store must fail quickly: the driver's defaults are ten tries over
# three minutes. Its timeout of 30 s for a whole request is too short for a large snapshot: a read timeout limits the
# idle time instead.
_CLIENT: ClientConfig = {"connect_timeout": "5s", "read_timeout": "60s", "timeout": "1h"}
_YES = ("1", "true", "on", "y", "yes")
_RETRIES: RetryConfig = {"max_retries": 3, "retry_timeout": timedelta(seconds=60)}


class ObjectStore:
    """A SnapshotStore on an object store. Tests pass a `driver` to share one between stores."""

    def __init__(self, url: str, *, max_size: int | None = None, driver: Driver | None = None) -> None:
        self._url = url
        self._max_size = max_size
        try:
            self._driver = driver or _open(url)
        except (exceptions.BaseError, ValueError) as error:
            raise SettingsError(
                [f"snapshot store {url}: {_first_line(error)}; use s3://BUCKET/PREFIX, gs://, az:// or a folder"]
            ) from error

    async def put(self, session_id: SessionId, chunks: AsyncIterator[bytes]) -> SnapshotRef:
        """Store the stream durably under a new key, or nothing of it. Raises what SnapshotStore.put does."""
        meter = Meter(self._max_size)
        key = new_key(session_id)
        handed: asyncio.Queue[bytes | None] = asyncio.Queue(1)
        uploading = asyncio.ensure_future(self._upload(key, handed))
        # `chunks` is read here and passed on by a queue: the driver would continue to read it for a while after a
        # cancellation. When the upload ends early, the callback makes room, so that a put() on the queue returns.
        uploading.add_done_callback(lambda _: handed.empty() or handed.get_nowait())
        try:
            async for chunk in chunks:
                meter.count(len(chunk))
                await meter.hash_in_thread(chunk)
                if uploading.done():
                    break
                await handed.put(chunk)
            if not uploading.done():
                await handed.put(None)
            with self._translated(key):
                await asyncio.shield(uploading)
        except BaseException:  # including cancellation: the caller gets no reference, so nothing may stay in the store
            await self._undo(key, uploading, handed)
            raise
        return meter.ref(key)

    async def _upload(self, key: str, handed: asyncio.Queue[bytes | None]) -> None:
        async def taken() -> AsyncGenerator[bytes, None]:
            while (chunk := await handed.get()) is not None:
                if chunk is _ABORT:
                    raise EOFError  # makes the driver abort the multipart upload
                yield chunk

        await obstore.put_async(
            self._driver, key, taken(), use_multipart=True, chunk_size=_PART_BYTES, max_concurrency=_CONCURRENCY
        )

    async def _undo(self, key: str, uploading: asyncio.Future[None], handed: asyncio.Queue[bytes | None]) -> None:
        """Remove an upload, even one that has all its bytes and that the store may be completing."""
        if not handed.empty():
            handed.get_nowait()
        handed.put_nowait(_ABORT)
        if not (await asyncio.wait((uploading,), timeout=_ABORT_TIMEOUT_S))[0]:
            uploading.cancel()
        elif not uploading.cancelled() and uploading.exception() is None:
            with contextlib.suppress(SnapshotError):
                await self.delete(key)

    async def get(self, ref: SnapshotRef) -> AsyncGenerator[bytes, None]:
        """Yield the stored bytes. Raises before the last piece if they are not those that were stored."""
        async with aclosing(self._read(ref)) as pieces:
            async for piece in checked(ref, pieces):
                yield piece

    async def _read(self, ref: SnapshotRef) -> AsyncGenerator[bytes, None]:
        with self._translated(ref.key):
            found = await obstore.get_async(self._driver, ref.key)
            pieces = found.stream(min_chunk_size=BATCH_BYTES).__aiter__()
        while True:
            with self._translated(ref.key):
                try:
                    piece = bytes(await anext(pieces))
                except StopAsyncIteration:
                    return
            yield piece

    async def delete(self, key: str) -> None:
        """Delete a snapshot. An absent one is not an error."""
        with self._translated(key), contextlib.suppress(FileNotFoundError):
            await obstore.delete_async(self._driver, key)

    async def list(self) -> AsyncGenerator[StoredSnapshot, None]:
        """Yield every snapshot. Incomplete uploads are not objects yet, so none is partial."""
        pages = obstore.list(self._driver).__aiter__()
        while True:
            with self._translated("the list"):
                try:
                    page = await anext(pages)
                except StopAsyncIteration:
                    return
            for item in page:
                if KEY_PATTERN.fullmatch(item["path"]):
                    yield StoredSnapshot(item["path"], item["size"], item["last_modified"].timestamp())

    @contextlib.contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        try:
            yield
        except SnapshotError:
            raise
        except FileNotFoundError as error:
            raise SnapshotNotFoundError(f"snapshot {what} is not in {self._url}") from error
        except (exceptions.BaseError, OSError) as error:
            raise SnapshotStoreUnavailableError(
                f"the snapshot store {self._url} does not serve {what}: {_first_line(error)}"
            ) from error


def _open(url: str) -> Driver:
    """Create the driver for a URL. Raises obstore's BaseError, ValueError."""
    if url.startswith("memory:"):
        return from_url(url)
    # Client options passed here override the driver's environment variables, so this one, which stores without TLS
    # need, is read here.
    allowed = any(os.environ.get(f"{cloud}_ALLOW_HTTP", "").lower() in _YES for cloud in ("AWS", "AZURE", "GOOGLE"))
    return from_url(url, client_options={**_CLIENT, "allow_http": allowed}, retry_config=_RETRIES)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__).strip()
