"""GET /api/snapshot/fingerprint: equal while the workspace is unchanged, and only then."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.picod import Executor, picod_process
from tests.support.trees import empty_folder


@pytest.fixture(scope="module")
def picod() -> Iterator[Executor]:
    with picod_process("--auth", "none") as executor:
        yield executor


def fingerprint(picod: Executor) -> str:
    reply = picod.client.get("/api/snapshot/fingerprint")
    assert reply.status_code == 200, reply.text
    text = reply.json()["fingerprint"]
    assert isinstance(text, str)
    assert text
    return text


def _write(root: Path) -> None:
    """The same size and the same time of modification, as a program that hides its write would leave it."""
    status = (root / "file").stat()
    (root / "file").write_text("other")
    os.utime(root / "file", ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize(
    "change",
    [
        _write,
        lambda root: (root / "file").chmod(0o600),
        lambda root: (root / "file").rename(root / "renamed"),
        lambda root: (root / "file").rename(root / "folder/file"),
        lambda root: (root / "file").unlink(),
        lambda root: (root / "folder/deep/new").write_text(""),
        lambda root: (root / "folder/empty").mkdir(),
        lambda root: (root / "link").symlink_to("elsewhere"),
        lambda root: os.link(root / "file", root / "second"),
        lambda root: (root / "folder").chmod(0o755),
    ],
    ids=["write", "mode", "rename", "move", "unlink", "create", "mkdir", "symlink", "link", "folder mode"],
)
def test_every_change_is_seen(picod: Executor, change: object) -> None:
    root = picod.workspace
    empty_folder(root)
    (root / "folder/deep").mkdir(parents=True)
    (root / "folder").chmod(0o700)
    (root / "file").write_text("first")
    before = fingerprint(picod)
    assert fingerprint(picod) == before
    assert callable(change)
    change(root)
    assert fingerprint(picod) != before


def test_reading_changes_nothing(picod: Executor) -> None:
    """Neither a program that reads nor a snapshot, also where permissions have to be added for it."""
    root = picod.workspace
    empty_folder(root)
    (root / "closed/inner").mkdir(parents=True)
    (root / "closed/inner/file").write_text("x" * 1000)
    (root / "closed/inner").chmod(0)
    (root / "closed").chmod(0)
    try:
        before = fingerprint(picod)
        assert picod.client.get("/api/snapshot").status_code == 200
        assert fingerprint(picod) == before
    finally:
        (root / "closed").chmod(0o700)
        (root / "closed/inner").chmod(0o700)
