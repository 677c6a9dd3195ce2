"""Uploads of agents' files are hostile archives."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from pathlib import Path

import pytest

from gateway.agents import bundles
from gateway.agents.bundles import BundleStore
from gateway.core.errors import BadRequestError, QuotaExceededError, TooLargeError


def archive(*members: tuple[str, bytes | tarfile.TarInfo]) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz") as made:
        for name, content in members:
            if isinstance(content, tarfile.TarInfo):
                made.addfile(content)
            else:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                made.addfile(info, io.BytesIO(content))
    return raw.getvalue()


def link(name: str, kind: bytes) -> tuple[str, tarfile.TarInfo]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return name, info


def test_files_are_kept_under_the_digest_of_what_was_sent(tmp_path: Path) -> None:
    """Once, however often they are sent."""
    store = BundleStore(tmp_path / "agents")
    sent = archive(("a.py", b"1"), ("pkg/b.py", b"2"))
    digest = store.add(io.BytesIO(sent))
    assert store.add(io.BytesIO(sent)) == digest
    assert store.has(digest)
    assert (store.path(digest) / "pkg" / "b.py").read_bytes() == b"2"
    assert [each.name for each in (tmp_path / "agents").iterdir()] == [digest.removeprefix("sha256:")]


@pytest.mark.parametrize(
    "sent",
    [
        archive(("../a", b"1")),
        archive(("/etc/a", b"1")),
        archive(("a", b"1"), ("a", b"2")),
        archive(("a", b"1"), ("a/b", b"2")),
        archive(link("a", tarfile.SYMTYPE)),
        archive(link("a", tarfile.LNKTYPE)),
        archive(link("a", tarfile.FIFOTYPE)),
        b"no archive",
        archive(("a", b"1" * 100_000))[:40],
        archive(),
        gzip.compress(bytes(1 << 20)),
    ],
    # An archive has the time in it, and each process that runs tests must give them the same names.
    ids=[
        "parent",
        "absolute",
        "twice",
        "file and folder",
        "symlink",
        "hard link",
        "FIFO",
        "no archive",
        "cut",
        "no file",
        "zeros",
    ],
)
def test_what_could_leave_its_folder_or_is_no_archive_is_refused(tmp_path: Path, sent: bytes) -> None:
    """And nothing of it stays."""
    store = BundleStore(tmp_path / "agents")
    with pytest.raises(BadRequestError):
        store.add(io.BytesIO(sent))
    assert list((tmp_path / "agents").iterdir()) == []


def test_a_small_archive_of_large_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it has filled the disk; so is one of many files."""
    store = BundleStore(tmp_path / "agents")
    monkeypatch.setattr(bundles, "MAX_BYTES", 1000)
    monkeypatch.setattr(bundles, "MAX_FILES", 3)
    with pytest.raises(TooLargeError):
        store.add(io.BytesIO(archive(("a", bytes(1001)))))
    for names in (["a", "b", "c", "d"], ["a/b/c/d"], ["a/b", "c/d"]):  # the folders of a path take room too
        with pytest.raises(TooLargeError, match="more than 3 files and folders"):
            store.add(io.BytesIO(archive(*((name, b"") for name in names))))
    assert list((tmp_path / "agents").iterdir()) == []


def test_files_that_no_agent_needs_go_and_too_many_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those in use stay whatever their age, and those that were sent again a moment ago."""
    store = BundleStore(tmp_path / "agents")
    used, old, fresh = (store.add(io.BytesIO(archive((name, b"1")))) for name in "abc")
    for digest in (used, old, fresh):
        os.utime(store.path(digest), (1000, 1000))
    store.add(io.BytesIO(archive(("c", b"1"))))
    assert store.sweep([used], 2000.0) == 1
    assert [store.has(digest) for digest in (used, old, fresh)] == [True, False, True]
    monkeypatch.setattr(bundles, "MAX_BUNDLES", 2)
    with pytest.raises(QuotaExceededError):
        store.add(io.BytesIO(archive(("d", b"1"))))
    assert store.add(io.BytesIO(archive(("a", b"1")))) == used
