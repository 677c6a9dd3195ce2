"""Code that swaps a folder for a link out of the workspace while picod reads, writes and packs it."""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import zstandard

from tests.support.picod import Executor, picod_process

SECRET = b"a secret of the host"
TRIES = 150


@pytest.fixture
def picod() -> Iterator[Executor]:
    with picod_process("--auth", "none") as executor:
        yield executor


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder of the host with a file; all that may be in it afterwards."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "x").write_bytes(SECRET)
    return folder


_RENAME_EXCHANGE = 2


@contextlib.contextmanager
def swapping(workspace: Path, outside: Path) -> Iterator[None]:
    """`swap` is a folder with a file `x` or a link to `outside`, `file` a file or a link to the secret, in turn.

    They are exchanged in one step (renameat2), as fast as can be, so that neither is ever missing.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    pairs = [(workspace / "swap", workspace / ".link"), (workspace / "file", workspace / ".far")]
    pairs[0][0].mkdir()
    (pairs[0][0] / "x").write_bytes(b"inside")
    pairs[0][1].symlink_to(outside)
    pairs[1][0].write_bytes(b"inside")
    pairs[1][1].symlink_to(outside / "x")
    over = threading.Event()

    def run() -> None:
        while not over.is_set():
            for one, other in pairs:
                libc.renameat2(-100, bytes(one), -100, bytes(other), _RENAME_EXCHANGE)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        assert os.listdir(outside) == ["x"]
        assert (outside / "x").read_bytes() == SECRET


def test_reading_and_writing_never_leave_the_workspace(picod: Executor, outside: Path) -> None:
    """Whichever of the two is there, a read gives the inner file or none, and a write never reaches the host's."""
    seen = set()
    with swapping(picod.workspace, outside):
        for _ in range(TRIES):
            for path in ("swap/x", "file"):
                reply = picod.client.get(f"/api/files/{path}")
                assert SECRET not in reply.content
                seen.add(reply.status_code)
            for path in ("swap/x", "swap/new"):
                seen.add(picod.client.put(f"/api/files/{path}", content=b"inside").status_code)
            listed = picod.client.get("/api/files", params={"path": "swap"})
            seen.add(listed.status_code)
    assert seen <= {200, 201, 400, 404, 409}
    assert {200, 400} <= seen, "both were met"


def unzipped(reply: httpx.Response) -> bytes:
    with zipfile.ZipFile(io.BytesIO(reply.content)) as archive:
        return b"".join(archive.read(name) for name in archive.namelist())


@pytest.mark.parametrize("form", ["tar", "zip"])
def test_archive_holds_nothing_of_the_host(picod: Executor, outside: Path, form: str) -> None:
    """Downloads of the folder, and of all; uploads unpack nowhere else."""
    with swapping(picod.workspace, outside):
        for number in range(TRIES):
            path = "swap" if number % 2 else "."
            reply = picod.client.get("/api/fs/archive", params={"path": path, "format": form})
            assert SECRET not in (unzipped(reply) if form == "zip" and reply.status_code == 200 else reply.content)
            if form == "tar":
                packed = io.BytesIO()
                with tarfile.open(fileobj=packed, mode="w") as archive:
                    member = tarfile.TarInfo("swap/unpacked")
                    archive.addfile(member, io.BytesIO())
                picod.client.put("/api/fs/archive", params={"path": "."}, content=packed.getvalue())


def test_snapshot_holds_nothing_of_the_host(picod: Executor, outside: Path) -> None:
    """A link is kept as a link, never as what it points to."""
    with swapping(picod.workspace, outside):
        kept = 0
        for _ in range(TRIES):
            reply = picod.client.get("/api/snapshot")
            if reply.status_code == 200:
                whole = zstandard.ZstdDecompressor().decompressobj().decompress(reply.content)
                assert SECRET not in whole
                kept += b"inside" in whole
        assert kept
