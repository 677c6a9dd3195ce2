"""Snapshots in an object store (S3 and what speaks like it, Google Cloud Storage, Azure) through obstore.

A put is one multipart upload, completed at the end or aborted; readers see an object whole or not at all. What a
gateway that was killed had uploaded stays invisible and is the business of the bucket's lifecycle rule for incomplete
uploads (AWS: AbortIncompleteMultipartUpload).
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

_PART_BYTES = 8 << 20  # S3 takes 10,000 parts, so 80 GB
_CONCURRENCY = 4  # parts in flight: 32 MB of memory per put
_ABORT = bytes(2)  # handed in place of a chunk; known by identity
_ABORT_TIMEOUT_S = 5.0  # what a slower store completes all the same, `delete_orphans` finds

# A request waits for the wake, so an unreachable store must fail soon: the driver's defaults are ten tries over three
# minutes. Its 30 s for a whole request are too short for a large snapshot, so silence is bounded instead.
_CLIENT: ClientConfig = {"connect_timeout": "5s", "read_timeout": "60s", "timeout": "1h"}
_YES = ("1", "true", "on", "y", "yes")
_RETRIES: RetryConfig = {"max_retries": 3, "retry_timeout": timedelta(seconds=60)}


class ObjectStore:
    """A SnapshotStore on an object store. `driver` in place of the URL's own is for tests that share one."""

    def __init__(self, url: str, *, max_size: int | None = None, driver: Driver | None = None) -> None:
        self._url = url
        self._max_size = max_size
        try:
            self._driver = driver or _open(url)
        except (exceptions.BaseError, ValueError) as error:
            raise SettingsError(
                [f"snapshot store {url}: {_first_line(error)}; take s3://BUCKET/PREFIX, gs://, az:// or a folder"]
            ) from error

    async def put(self, session_id: SessionId, chunks: AsyncIterator[bytes]) -> SnapshotRef:
        """Store the stream durably under a new key, or nothing of it."""
        meter = Meter(self._max_size)
        key = new_key(session_id)
        handed: asyncio.Queue[bytes | None] = asyncio.Queue(1)
        uploading = asyncio.ensure_future(self._upload(key, handed))
        # The source is read here and not by the driver, whose reading a cancel would leave running for a while.
        uploading.add_done_callback(lambda _: handed.empty() or handed.get_nowait())  # lets go of who waits to hand
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
        except BaseException:  # cancellation included: without a reference nothing may stay in the store
            await self._undo(key, uploading, handed)
            raise
        return meter.ref(key)

    async def _upload(self, key: str, handed: asyncio.Queue[bytes | None]) -> None:
        async def taken() -> AsyncGenerator[bytes, None]:
            while (chunk := await handed.get()) is not None:
                if chunk is _ABORT:
                    raise EOFError  # the driver then aborts
                yield chunk

        await obstore.put_async(
            self._driver, key, taken(), use_multipart=True, chunk_size=_PART_BYTES, max_concurrency=_CONCURRENCY
        )

    async def _undo(self, key: str, uploading: asyncio.Future[None], handed: asyncio.Queue[bytes | None]) -> None:
        """Leave nothing of an upload, also if it has all its bytes and the store may be completing it."""
        if not handed.empty():
            handed.get_nowait()
        handed.put_nowait(_ABORT)
        if not (await asyncio.wait((uploading,), timeout=_ABORT_TIMEOUT_S))[0]:
            uploading.cancel()
        elif not uploading.cancelled() and uploading.exception() is None:
            with contextlib.suppress(SnapshotError):
                await self.delete(key)

    async def get(self, ref: SnapshotRef) -> AsyncGenerator[bytes, None]:
        """Yield the bytes as they were put; raises before the last one where they are not."""
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
        """Delete a snapshot; an absent one is success."""
        with self._translated(key), contextlib.suppress(FileNotFoundError):
            await obstore.delete_async(self._driver, key)

    async def list(self) -> AsyncGenerator[StoredSnapshot, None]:
        """Yield every stored snapshot, unfinished ones included."""
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
    """The driver of a URL. Raises BaseError of obstore, ValueError."""
    if url.startswith("memory:"):
        return from_url(url)
    # Options given here hide those in the driver's variables, so this one, for stores without TLS, is read by us.
    allowed = any(os.environ.get(f"{cloud}_ALLOW_HTTP", "").lower() in _YES for cloud in ("AWS", "AZURE", "GOOGLE"))
    return from_url(url, client_options={**_CLIENT, "allow_http": allowed}, retry_config=_RETRIES)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__).strip()
