"""Snapshots as files in a folder, which several gateways may share.

A put writes `<key>.part`, syncs it, renames it to `<key>`, and syncs the folder, so that a name without `.part` is
always a complete snapshot. A process that dies in between leaves a `.part` file, which `list` reports as partial.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import ParamSpec, TypeVar

from gateway.core.errors import SnapshotNotFoundError, SnapshotStoreFullError, SnapshotStoreUnavailableError
from gateway.core.model import SessionId, SnapshotRef, StoredSnapshot
from gateway.snapshots.stream import BATCH_BYTES, KEY_PATTERN, Meter, batched, checked, in_thread, new_key

_P = ParamSpec("_P")
_T = TypeVar("_T")

_PART = ".part"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class FolderStore:
    """A SnapshotStore on a file system. The folder is created by the first put."""

    def __init__(self, folder: Path, *, max_size: int | None = None) -> None:
        self._folder = folder
        self._max_size = max_size

    def __repr__(self) -> str:
        return f"<FolderStore {self._folder}>"

    async def put(self, session_id: SessionId, chunks: AsyncIterator[bytes]) -> SnapshotRef:
        """Store the stream durably under a new key, or nothing of it. Raises what SnapshotStore.put does."""
        meter = Meter(self._max_size)
        key = new_key(session_id)
        part = _PartialFile(self._folder / key)
        try:
            await self._do(part.open)
            async for batch in batched(chunks):
                meter.count(len(batch))
                await self._do(part.write, batch, meter)
            await self._do(part.commit)
        except BaseException:
            await in_thread(part.discard)  # on cancellation too: `in_thread` lets it finish
            raise
        return meter.ref(key)

    async def get(self, ref: SnapshotRef) -> AsyncGenerator[bytes, None]:
        """Yield the stored bytes. Raises before the last piece if they are not those that were stored."""
        async with aclosing(self._read(ref)) as pieces:
            async for piece in checked(ref, pieces):
                yield piece

    async def _read(self, ref: SnapshotRef) -> AsyncGenerator[bytes, None]:
        reader = _FileReader(self._path(ref.key))
        try:
            while piece := await self._do(reader.read):
                yield piece
        finally:
            reader.close()

    async def delete(self, key: str) -> None:
        """Delete a snapshot. An absent one is not an error."""
        path = self._path(key)
        await self._do(_delete, path)

    async def list(self) -> AsyncGenerator[StoredSnapshot, None]:
        """Yield every snapshot, including partial ones."""
        for found in await self._do(_entries, self._folder):
            yield found

    def _path(self, key: str) -> Path:
        if not KEY_PATTERN.fullmatch(key.removesuffix(_PART)):
            # Also what stops a key such as `../keys` that came from a tampered record.
            raise SnapshotNotFoundError(f"{key!r} is not a snapshot of the folder {self._folder}")
        return self._folder / key

    async def _do(self, work: Callable[_P, _T], *arguments: _P.args, **named: _P.kwargs) -> _T:
        """Run blocking work in a thread, and map an OSError to a SnapshotError."""
        try:
            return await in_thread(work, *arguments, **named)
        except FileNotFoundError as error:
            raise SnapshotNotFoundError(
                f"snapshot {error.filename} does not exist in the store that --snapshots names"
            ) from error
        except OSError as error:
            if error.errno in _FULL:
                raise SnapshotStoreFullError(
                    f"the snapshot folder {self._folder} is full ({error.strerror}); free space there"
                ) from error
            raise SnapshotStoreUnavailableError(
                f"the snapshot folder {self._folder} cannot be used: {error.strerror}"
            ) from error


class _PartialFile:
    """A snapshot that is being written. All methods block and may raise OSError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._part = path.with_name(path.name + _PART)
        self._fd = -1

    def open(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # O_EXCL: keys are random, so a file that is there belongs to somebody else. 0600: it is a user's workspace.
        self._fd = os.open(self._part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def write(self, data: bytearray, meter: Meter) -> None:
        meter.hash(data)
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]  # a write may take less, e.g. just before the disk is full

    def commit(self) -> None:
        # Content before name. The other way round, file systems with delayed allocation may have the name after a power
        # failure, and an empty file behind it.
        os.fsync(self._fd)
        os.rename(self._part, self._path)
        # Without a sync of the folder a power failure may undo the rename, after a record names the snapshot.
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        self._close()

    def discard(self) -> None:
        """Delete the file, even after `commit`: the caller may have been cancelled before it got the reference.

        Never raises: the failure that led here is the one to report, and a file that cannot be deleted is an orphan,
        which `delete_orphans` finds.
        """
        with contextlib.suppress(OSError):
            self._close()
        for path in (self._part, self._path):
            with contextlib.suppress(OSError):
                os.unlink(path)

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class _FileReader:
    """A snapshot that is being read; the first `read` opens it. All methods block."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1

    def read(self) -> bytes:
        if self._fd < 0:
            self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        return os.read(self._fd, BATCH_BYTES)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)


def _delete(path: Path) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def _entries(folder: Path) -> list[StoredSnapshot]:
    try:
        names = [name for name in os.listdir(folder) if KEY_PATTERN.fullmatch(name.removesuffix(_PART))]
    except FileNotFoundError:
        return []
    found = []
    for name in names:
        try:
            status = os.stat(folder / name)
        except FileNotFoundError:
            continue  # deleted or renamed since the listing
        found.append(StoredSnapshot(name, status.st_size, status.st_mtime, partial=name.endswith(_PART)))
    return found
