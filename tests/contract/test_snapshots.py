"""What every snapshot store promises: one suite over a folder, object stores, and encryption around each."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import obstore
import pytest
from obstore.store import LocalStore, MemoryStore

from gateway.core.clock import SystemClock
from gateway.core.errors import SnapshotCorruptError, SnapshotNotFoundError, SnapshotTooLargeError
from gateway.core.interfaces import SnapshotStore
from gateway.core.model import SessionId, SnapshotRef
from gateway.snapshots import FolderStore, SealedStore, SnapshotKeys
from gateway.snapshots.memory import MemorySnapshots
from gateway.snapshots.objects import ObjectStore
from tests.support.snapshot_streams import listed, pieces, read_all
from tests.support.waiting import wait_until

SESSION = SessionId("s1")
KEYS = SnapshotKeys("k", {"k": bytes(32)})
LIMIT = 4 << 20
SIZES = [0, 1, 65_535, 65_536, 65_537, 131_072, 3_000_000]


@dataclass
class Kit:
    """A store, and a way behind its back to what it keeps."""

    store: SnapshotStore
    read: Callable[[str], bytes]
    write: Callable[[str, bytes], object]


def make_kit(kind: str, folder: Path) -> Kit:
    if kind == "dictionary":
        remembered = MemorySnapshots(SystemClock(), LIMIT)
        kit = Kit(
            remembered,
            lambda key: remembered.kept[key][0],
            lambda key, data: remembered.kept.__setitem__(key, (data, 0.0)),
        )
    elif "folder" in kind:
        inner: SnapshotStore = FolderStore(folder / "snapshots", max_size=LIMIT)
        kit = Kit(
            inner,
            lambda key: (folder / "snapshots" / key).read_bytes(),
            lambda key, data: (folder / "snapshots" / key).write_bytes(data),
        )
    else:
        driver: MemoryStore | LocalStore = MemoryStore()
        if "local" in kind:
            driver = LocalStore(folder / "objects", mkdir=True)
        kit = Kit(
            ObjectStore("memory:///", max_size=LIMIT, driver=driver),
            lambda key: bytes(obstore.get(driver, key).bytes()),
            lambda key, data: obstore.put(driver, key, data),
        )
    if "sealed" in kind:
        kit.store = SealedStore(kit.store, KEYS)
    return kit


@pytest.fixture(params=["dictionary", "folder", "memory", "local", "sealed-folder", "sealed-memory"])
def kit(request: pytest.FixtureRequest, tmp_path: Path) -> Kit:
    return make_kit(request.param, tmp_path)


@pytest.mark.parametrize("size", SIZES)
async def test_snapshot_comes_back_as_it_went_in(kit: Kit, size: int) -> None:
    """Empty, tiny, and around the borders of chunks."""
    data = os.urandom(size)
    ref = await kit.store.put(SESSION, pieces(data))

    assert await read_all(kit.store, ref) == data


async def test_cuts_of_the_stream_do_not_matter(kit: Kit) -> None:
    """Whatever pieces it came in, empty ones too."""
    for sizes in ([], [0], [0, 1, 0, 65_536, 65_535, 0], [200_000] * 6, [1] * 50, [1_048_576, 1], [1, 1_048_576]):
        parts = [os.urandom(size) for size in sizes]
        ref = await kit.store.put(SESSION, pieces(*parts))
        assert await read_all(kit.store, ref) == b"".join(parts)


async def test_reference_has_size_and_hash_of_what_is_stored(kit: Kit) -> None:
    """Key, size and hash of the bytes as they lie there; the text alone is enough to get it."""
    ref = await kit.store.put(SESSION, pieces(b"abc" * 1000))
    stored = kit.read(ref.key)

    assert (ref.size, ref.sha256) == (len(stored), hashlib.sha256(stored).hexdigest())
    assert await read_all(kit.store, SnapshotRef(str(ref))) == b"abc" * 1000


async def test_each_put_is_a_snapshot_of_its_own(kit: Kit) -> None:
    """The earlier one of the same session stays until it is deleted; ids may be any text."""
    first = await kit.store.put(SESSION, pieces(b"first"))
    second = await kit.store.put(SESSION, pieces(b"second"))
    other = await kit.store.put(SessionId("../ü/\0🦊\ud800"), pieces(b"other"))

    assert [await read_all(kit.store, ref) for ref in (first, second, other)] == [b"first", b"second", b"other"]
    assert {found.key for found in await listed(kit.store)} == {first.key, second.key, other.key}


async def test_deleted_snapshot_is_gone(kit: Kit) -> None:
    """It is not found any more and not listed; deleting it again is success; the others stay."""
    ref, kept = [await kit.store.put(SESSION, pieces(b"x" * 100)) for _ in range(2)]
    await kit.store.delete(ref.key)
    await kit.store.delete(ref.key)

    with pytest.raises(SnapshotNotFoundError, match=ref.key):
        await read_all(kit.store, ref)
    assert [found.key for found in await listed(kit.store)] == [kept.key]


async def test_empty_store_lists_nothing(kit: Kit) -> None:
    """Also before the first put."""
    assert await listed(kit.store) == []


async def test_list_has_size_and_time(kit: Kit, tmp_path: Path) -> None:
    """What the sweep for orphans decides by."""
    (tmp_path / "now").touch()
    ref = await kit.store.put(SESSION, pieces(b"x" * 100))
    (found,) = await listed(kit.store)

    assert (found.key, found.size) == (ref.key, ref.size)
    assert found.at == pytest.approx((tmp_path / "now").stat().st_mtime, abs=30)


@pytest.mark.parametrize("size", [10, 3_000_000])
@pytest.mark.parametrize("damage", ["cut", "cut-at-border", "longer", "empty", "first", "middle", "last"])
async def test_damaged_snapshot_is_never_read_to_its_end(kit: Kit, size: int, damage: str) -> None:
    """Whatever was done to it, the reader gets an error and never sees an end."""
    data = os.urandom(size)
    ref = await kit.store.put(SESSION, pieces(data))
    stored = bytearray(kit.read(ref.key))
    match damage:
        case "cut":
            del stored[-1]
        case "cut-at-border":
            del stored[len(stored) // 2 :]
        case "longer":
            stored += b"\0"
        case "empty":
            stored.clear()
        case _:
            at = {"first": 0, "middle": len(stored) // 2, "last": len(stored) - 1}[damage]
            stored[at] ^= 1
    kit.write(ref.key, bytes(stored))

    with pytest.raises(SnapshotCorruptError, match="damaged"):
        await read_all(kit.store, ref)


async def test_snapshot_over_the_limit_is_refused(kit: Kit) -> None:
    """As soon as it is known, with the limit named; nothing stays."""
    taken = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        while True:
            taken += 1 << 18
            yield bytes(1 << 18)

    with pytest.raises(SnapshotTooLargeError, match=f"limit of {LIMIT} bytes"):
        await kit.store.put(SESSION, endless())
    assert taken < LIMIT + (16 << 20)
    assert await listed(kit.store) == []


async def test_failed_source_leaves_nothing(kit: Kit) -> None:
    """Its own error comes through, whether little or much went before."""
    for amount in (0, 10, 3_000_000):

        async def breaking(amount: int = amount) -> AsyncIterator[bytes]:
            yield bytes(amount)
            raise ConnectionResetError("the sandbox is gone")

        with pytest.raises(ConnectionResetError, match="the sandbox is gone"):
            await kit.store.put(SESSION, breaking())
    assert await listed(kit.store) == []


async def test_cancelled_put_leaves_nothing(kit: Kit) -> None:
    """At whatever step it is cut off."""
    for turns in range(0, 40, 3):
        reached = asyncio.Event()

        async def source(reached: asyncio.Event = reached) -> AsyncIterator[bytes]:
            reached.set()
            for _ in range(3):
                yield bytes(1 << 20)

        put = asyncio.ensure_future(kit.store.put(SESSION, source()))
        await reached.wait()
        for _ in range(turns):
            await asyncio.sleep(0)
        put.cancel()
        if (await asyncio.gather(put, return_exceptions=True))[0].__class__ is SnapshotRef:
            await kit.store.delete(put.result().key)  # it was quicker
    assert await listed(kit.store) == []


async def test_put_cancelled_at_its_end_leaves_nothing(kit: Kit) -> None:
    """The store has every byte by then, and may be completing it."""
    puts: list[asyncio.Future[SnapshotRef]] = []

    async def source() -> AsyncIterator[bytes]:
        yield bytes(1 << 10)
        puts[-1].cancel()

    for _ in range(100):
        puts.append(asyncio.ensure_future(kit.store.put(SESSION, source())))
        with pytest.raises(asyncio.CancelledError):
            await puts[-1]
    assert await listed(kit.store) == []


async def test_abandoned_get_lets_go(kit: Kit) -> None:
    """A reader that stops early leaves no descriptor open."""
    ref = await kit.store.put(SESSION, pieces(os.urandom(3_000_000)))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        stream = kit.store.get(ref)
        await anext(stream)
        await stream.aclose()

    wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before, "all descriptors closed")


async def test_many_puts_and_gets_at_once(kit: Kit) -> None:
    """Concurrent puts and gets do not mix their data."""

    async def there_and_back(number: int) -> bool:
        data = os.urandom(100_000 + number)
        ref = await kit.store.put(SessionId(f"s{number % 3}"), pieces(data[:50_000], data[50_000:]))
        return await read_all(kit.store, ref) == data

    assert all(await asyncio.gather(*(there_and_back(number) for number in range(20))))
