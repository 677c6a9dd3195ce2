"""Snapshots in an object store, by the driver that talks to S3, against a server that can break off."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.core.clock import SystemClock
from gateway.core.errors import SnapshotNotFoundError, SnapshotStoreUnavailableError
from gateway.core.interfaces import SnapshotStore
from gateway.core.model import SessionId, SnapshotRef
from gateway.snapshots import SealedStore, SnapshotKeys, make_snapshot_store
from gateway.snapshots.keeper import SnapshotKeeper
from gateway.snapshots.objects import ObjectStore
from tests.support.picod import picod_process
from tests.support.s3 import Objects, s3
from tests.support.snapshot_streams import listed, pieces, read_all
from tests.support.snapshots import SESSION, World, executor_of
from tests.support.waiting import eventually

MEGABYTE = 1 << 20
Query = dict[str, list[str]]


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Objects]:
    """A bucket, found by the variables that S3's own tools read."""
    async with s3() as (objects, url):
        for name, value in {
            "ENDPOINT": url, "ALLOW_HTTP": "true", "ACCESS_KEY_ID": "id", "SECRET_ACCESS_KEY": "secret",
            "REGION": "us-east-1",
        }.items():  # fmt: skip
            monkeypatch.setenv(f"AWS_{name}", value)
        yield objects


@pytest.fixture
def store(server: Objects) -> SnapshotStore:
    return ObjectStore("s3://bucket/some/prefix")


async def test_snapshots_live_in_a_bucket(server: Objects, store: SnapshotStore) -> None:
    """Put in parts, read back, listed over several pages without what is somebody else's, and deleted."""
    data = os.urandom(20 * MEGABYTE)
    refs = [await store.put(SESSION, pieces(data))]
    refs += [await store.put(SessionId(f"s{number}"), pieces(b"small")) for number in range(4)]
    server.objects["some/prefix/notes.txt"] = server.objects["other"] = b"mine"

    assert await read_all(store, refs[0]) == data
    assert {found.key for found in await listed(store)} == {ref.key for ref in refs}
    assert {key.rpartition("/")[0] for key in server.objects} == {"some/prefix", ""}
    assert server.uploads == {}

    for ref in refs:
        await store.delete(ref.key)
    with pytest.raises(SnapshotNotFoundError, match=refs[0].key):
        await read_all(store, refs[0])
    assert sorted(server.objects) == ["other", "some/prefix/notes.txt"]


async def test_real_workspace_is_kept_in_a_bucket(server: Objects, store: SnapshotStore, tmp_path: Path) -> None:
    """Sealed, from one sandbox into another."""
    with picod_process("--auth", "none") as old, picod_process("--auth", "none") as new:
        world = World(tmp_path, (old, new))
        sealed = SealedStore(store, SnapshotKeys("k", {"k": os.urandom(32)}))
        keeper = SnapshotKeeper(sealed, world.provider, executor_of(), SystemClock())
        (old.workspace / "file").write_bytes(data := os.urandom(10 * MEGABYTE))
        reference = await keeper.keep((await world.claim()).id, SESSION)
        assert reference is not None
        await keeper.restore(reference, (await world.claim()).id, SESSION)
        assert (new.workspace / "file").read_bytes() == data

        async def another() -> AsyncIterator[str]:
            yield "somebody-else#1-2"

        assert await keeper.delete_orphans(another, 0.0) == 1
        assert server.objects == {}


async def test_single_failures_are_retried(server: Objects, store: SnapshotStore) -> None:
    """Each kind of request fails once, a download in its middle, and all is well."""
    failed: set[str] = set()

    async def once(method: str, query: Query) -> bool:
        kind = f"{method} {sorted(query)}"
        return kind not in failed and not failed.add(kind)  # type: ignore[func-returns-value]

    server.fault = once
    data = os.urandom(10 * MEGABYTE)
    ref = await store.put(SESSION, pieces(data))
    assert await read_all(store, ref) == data
    assert len(await listed(store)) == 1
    await store.delete(ref.key)
    assert len(failed) >= 5
    assert (server.objects, server.uploads) == ({}, {})


async def test_store_that_fails_in_the_middle_of_a_put_has_nothing(server: Objects, store: SnapshotStore) -> None:
    """The second part is refused: an error is raised, the earlier snapshot stays, and no part is left behind."""
    first = await store.put(SESSION, pieces(b"first"))

    async def second_part(method: str, query: Query) -> bool:
        return query.get("partNumber") == ["2"]

    server.fault = second_part
    with pytest.raises(SnapshotStoreUnavailableError, match="s3://bucket/some/prefix does not serve"):
        await store.put(SESSION, pieces(os.urandom(20 * MEGABYTE)))
    assert [found.key for found in await listed(store)] == [first.key]
    assert await read_all(store, first) == b"first"
    assert server.uploads == {}


async def test_put_cancelled_in_its_middle_is_aborted(server: Objects, store: SnapshotStore) -> None:
    """No part of it stays in the bucket, where parts cost money and no list shows them."""
    begun = asyncio.Event()

    async def stalling() -> AsyncIterator[bytes]:
        yield bytes(20 * MEGABYTE)
        begun.set()
        await asyncio.Event().wait()

    put = asyncio.ensure_future(store.put(SESSION, stalling()))
    await begun.wait()
    await eventually(lambda: any(server.uploads.values()), "parts in the bucket")
    put.cancel()
    with pytest.raises(asyncio.CancelledError):
        await put
    assert (server.objects, server.uploads) == ({}, {})


async def test_put_cancelled_as_the_store_completes_it_is_taken_back(server: Objects, store: SnapshotStore) -> None:
    """It has every byte and answers late: the cancel waits for what comes of it, and deletes that."""
    completing, answered = asyncio.Event(), asyncio.Event()

    async def late(method: str, query: Query) -> bool:
        if method == "POST" and "uploadId" in query:
            completing.set()
            await answered.wait()
        return False

    server.fault = late
    put = asyncio.ensure_future(store.put(SESSION, pieces(os.urandom(10 * MEGABYTE))))
    await completing.wait()
    put.cancel()
    asyncio.get_running_loop().call_soon(answered.set)
    with pytest.raises(asyncio.CancelledError):
        await put
    assert (server.objects, server.uploads) == ({}, {})


async def test_get_that_breaks_off_is_an_error_and_no_short_snapshot(server: Objects, store: SnapshotStore) -> None:
    """Each try breaks off: an error, not a short snapshot."""
    ref = await store.put(SESSION, pieces(os.urandom(10 * MEGABYTE)))

    async def every_get(method: str, query: Query) -> bool:
        return method == "GET"

    server.fault = every_get
    with pytest.raises(SnapshotStoreUnavailableError, match=ref.key):
        await read_all(store, ref)


async def test_unavailable_store_is_reported(store: SnapshotStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody listens: 503 with the store's URL, from each verb."""
    monkeypatch.setenv("AWS_ENDPOINT", "http://127.0.0.1:9")
    away = make_snapshot_store("s3://bucket/away")
    ref = SnapshotRef.of(f"{'0' * 32}-{'1' * 32}", 3, "2" * 64)
    for verb in (away.put(SESSION, pieces(b"x")), read_all(away, ref), away.delete(ref.key), listed(away)):
        with pytest.raises(SnapshotStoreUnavailableError, match="s3://bucket/away does not serve") as caught:
            await verb
        assert (caught.value.status, caught.value.retry_after) == (503, 1.0)


async def test_cancelled_put_leaves_no_object(server: Objects, store: SnapshotStore) -> None:
    """A put that is cancelled after some parts leaves neither object nor parts."""
    reached = asyncio.Event()

    async def source() -> AsyncIterator[bytes]:
        yield os.urandom(10 * MEGABYTE)
        reached.set()
        await asyncio.Event().wait()

    put = asyncio.ensure_future(store.put(SESSION, source()))
    await asyncio.wait([put, asyncio.ensure_future(reached.wait())], return_when=asyncio.FIRST_COMPLETED)
    put.cancel()
    with pytest.raises(asyncio.CancelledError):
        await put
    assert server.objects == {}
    assert await listed(store) == []
