"""Encryption at rest: keys, rotation, and tampering that fits the reference."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest

from gateway.core.errors import SettingsError, SnapshotCorruptError, SnapshotKeyError
from gateway.core.model import SessionId, SnapshotRef
from gateway.snapshots import FolderStore, SealedStore, SnapshotKeys, make_snapshot_store
from gateway.snapshots.sealed import CHUNK_BYTES
from tests.support.snapshot_streams import pieces, read_all

SESSION = SessionId("s")
OLD, NEW = os.urandom(32), os.urandom(32)
HEAD = 16 + 1 + len("old") + 16 + 32
SEALED_CHUNK = CHUNK_BYTES + 16


@pytest.fixture
def inner(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "snapshots")


async def put_tampered(inner: FolderStore, data: bytes) -> SnapshotRef:
    """What someone does who can write both the store and the reference: only the seal is left to tell."""
    return await inner.put(SESSION, pieces(data))


async def sealed_bytes(inner: FolderStore, data: bytes, keys: SnapshotKeys) -> bytes:
    return await read_all(inner, await SealedStore(inner, keys).put(SESSION, pieces(data)))


async def test_nothing_of_the_content_can_be_read(inner: FolderStore) -> None:
    """Neither the text nor its repetition shows, and no two snapshots look alike."""
    keys = SnapshotKeys("old", {"old": OLD})
    first, second = [await sealed_bytes(inner, b"a secret of the session. " * 10_000, keys) for _ in range(2)]

    assert b"secret" not in first
    assert len({first[HEAD + at : HEAD + at + 16] for at in range(0, 160_000, 16)}) == 10_000
    assert first[HEAD:] != second[HEAD:]


@pytest.mark.parametrize(
    "tamper",
    ["swap-chunks", "drop-chunk", "drop-last", "repeat-chunk", "append-chunk", "cut", "salt", "tag", "swap-snapshots"],
)
async def test_tampering_is_noticed_by_the_seal(inner: FolderStore, tamper: str) -> None:
    """Chunks moved, left out, repeated, cut off or taken from another snapshot, with a reference that fits."""
    keys = SnapshotKeys("old", {"old": OLD})
    whole = await sealed_bytes(inner, os.urandom(4 * CHUNK_BYTES), keys)
    other = await sealed_bytes(inner, os.urandom(4 * CHUNK_BYTES), keys)
    head, chunks = whole[:HEAD], [whole[at : at + SEALED_CHUNK] for at in range(HEAD, len(whole), SEALED_CHUNK)]
    assert len(chunks) == 4
    match tamper:
        case "swap-chunks":
            chunks[1], chunks[2] = chunks[2], chunks[1]
        case "drop-chunk":
            del chunks[1]
        case "drop-last":
            del chunks[-1]
        case "repeat-chunk":
            chunks.insert(1, chunks[1])
        case "append-chunk":
            chunks.append(chunks[-1])
        case "cut":
            chunks[-1] = chunks[-1][:-1]
        case "salt":
            head = head[:-1] + bytes([head[-1] ^ 1])
        case "tag":
            chunks[0] = chunks[0][:-1] + bytes([chunks[0][-1] ^ 1])
        case "swap-snapshots":
            chunks[2] = other[HEAD + 2 * SEALED_CHUNK : HEAD + 3 * SEALED_CHUNK]
    ref = await put_tampered(inner, head + b"".join(chunks))

    with pytest.raises(SnapshotCorruptError, match="fails authentication"):
        await read_all(SealedStore(inner, keys), ref)


async def test_truncated_head_is_reported_as_damage(inner: FolderStore) -> None:
    """A snapshot that ends within its head."""
    keys = SnapshotKeys("old", {"old": OLD})
    whole = await sealed_bytes(inner, b"", keys)
    for length in (17, HEAD - 1, HEAD, HEAD + 15):
        with pytest.raises(SnapshotCorruptError, match="damaged"):
            await read_all(SealedStore(inner, keys), await put_tampered(inner, whole[:length]))


async def test_keys_rotate(inner: FolderStore) -> None:
    """A new key in front seals what comes; what came before opens with the old one behind it."""
    before = await SealedStore(inner, SnapshotKeys("old", {"old": OLD})).put(SESSION, pieces(b"before"))
    rotated = SealedStore(inner, SnapshotKeys("new", {"new": NEW, "old": OLD}))
    after = await rotated.put(SESSION, pieces(b"after"))

    assert [await read_all(rotated, ref) for ref in (before, after)] == [b"before", b"after"]
    alone = SealedStore(inner, SnapshotKeys("new", {"new": NEW}))
    assert await read_all(alone, after) == b"after"
    with pytest.raises(SnapshotKeyError, match=r"with the key 'old', which this gateway does not have \(it has new\)"):
        await read_all(alone, before)


async def test_wrong_key_and_damage_are_different_errors(inner: FolderStore) -> None:
    """Another key under the same name, and a snapshot that was never sealed: a matter of keys."""
    ref = await SealedStore(inner, SnapshotKeys("k", {"k": OLD})).put(SESSION, pieces(bytes(3_000_000)))
    wrong = SealedStore(inner, SnapshotKeys("k", {"k": NEW}))
    plain = await inner.put(SESSION, pieces(bytes(3_000_000)))

    with pytest.raises(SnapshotKeyError, match="another key named 'k'"):
        await read_all(wrong, ref)
    with pytest.raises(SnapshotKeyError, match="is not encrypted"):
        await read_all(wrong, plain)


def encoded(key: bytes) -> str:
    return base64.b64encode(key).decode()


def test_keys_are_read_from_a_file(tmp_path: Path) -> None:
    """Lines of name and base64, the first one current; a bare key is named default; notes and blanks are skipped."""
    path = tmp_path / "keys"
    path.touch(0o600)
    path.write_text(f"# rotated in May\nnew:{encoded(NEW)}\n\nold: {encoded(OLD)}\n")

    assert SnapshotKeys.read(path) == SnapshotKeys("new", {"new": NEW, "old": OLD})
    assert SnapshotKeys.parse(encoded(OLD), "the variable") == SnapshotKeys("default", {"default": OLD})
    assert SnapshotKeys.parse(f"a:{encoded(OLD)},b:{encoded(NEW)}", "the variable").current == "a"
    assert encoded(OLD) not in repr(SnapshotKeys("a", {"a": OLD}))


def test_wrong_keys_are_all_reported_at_once() -> None:
    """Each with its place and what would be right, and never with the key itself."""
    text = f"short:{encoded(OLD[:16])}\nbad name:{encoded(OLD)}\nx:***\na:{encoded(OLD)}\na:{encoded(NEW)}"
    with pytest.raises(SettingsError) as caught:
        SnapshotKeys.parse(text, "K")

    assert [problem[:18] for problem in caught.value.problems] == [
        "K: key 1 (short): ",
        "K: key 2: a name m",
        "K: key 3 (x): must",
        "K: key 5: the name",
    ]
    assert encoded(OLD) not in str(caught.value)
    for nothing in ("", "\n# only a note\n"):
        with pytest.raises(SettingsError, match="contains no key"):
            SnapshotKeys.parse(nothing, "K")


def test_missing_key_file_is_reported(tmp_path: Path) -> None:
    """The error names the path of the key file."""
    with pytest.raises(SettingsError, match="nokeys: the snapshot keys cannot be read"):
        SnapshotKeys.read(tmp_path / "nokeys")


@pytest.mark.parametrize(("mode", "good"), [(0o600, True), (0o440, True), (0o644, False), (0o660, False)])
def test_key_file_must_be_closed_to_others(tmp_path: Path, mode: int, good: bool) -> None:
    """Its owner, and a group that may read it; anything more is refused with the mode and the cure."""
    path = tmp_path / "keys"
    path.write_text(encoded(OLD))
    path.chmod(mode)
    if good:
        assert SnapshotKeys.read(path).current == "default"
    else:
        with pytest.raises(SettingsError, match=rf"keys \(mode {mode:04o}\); chmod 600 {path}"):
            SnapshotKeys.read(path)


def test_store_urls_name_folders_and_object_stores(tmp_path: Path) -> None:
    """Folders by path or URL, object stores by theirs, anything else refused with what would do."""
    keys = SnapshotKeys("old", {"old": OLD})
    assert repr(make_snapshot_store(str(tmp_path))) == f"<UnsealedStore {FolderStore(tmp_path)}>"
    assert isinstance(make_snapshot_store(f"file://{tmp_path}", keys=keys), SealedStore)
    make_snapshot_store("s3://bucket/prefix")
    make_snapshot_store("memory:///")
    for wrong in ("file:///", "file://host/x", "", "ftp://x/y", "s3:/"):
        with pytest.raises(SettingsError, match="snapshot store"):
            make_snapshot_store(wrong)
