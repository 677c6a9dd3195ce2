"""Snapshots of real workspaces when something breaks: each time a clear error, and nothing lost."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, given, settings

from gateway.core.clock import SystemClock
from gateway.core.errors import (
    SandboxGoneError,
    SnapshotCorruptError,
    SnapshotError,
    SnapshotKeyError,
    SnapshotNotFoundError,
    SnapshotStoreUnavailableError,
    SnapshotTooLargeError,
    UpstreamBrokenError,
)
from gateway.core.model import SessionId
from gateway.snapshots import SealedStore, SnapshotKeys
from gateway.snapshots.keeper import SnapshotKeeper
from tests.support.examples import examples
from tests.support.keepers import local
from tests.support.picod import ROOT, Executor, picod_process, running, with_mounts, without_capabilities
from tests.support.snapshots import SESSION, Chunks, World, executor_of
from tests.support.trees import empty_folder, grow, picture, trees
from tests.support.waiting import wait_until

pytestmark = pytest.mark.processes  # picods, and sandboxes

MEGABYTE = 1 << 20
PicodMaker = Callable[[], AbstractContextManager[Executor]]


@pytest.fixture(scope="module")
def source() -> Iterator[Executor]:
    with picod_process("--auth", "none", wrapper=without_capabilities) as executor:
        yield executor


@pytest.fixture(scope="module")
def target() -> Iterator[Executor]:
    with picod_process("--auth", "none", wrapper=without_capabilities) as executor:
        yield executor


def noise(executor: Executor, size: int, name: str = "noise") -> bytes:
    """Put into a workspace what does not compress."""
    data = os.urandom(size)
    (executor.workspace / name).write_bytes(data)
    return data


@pytest.fixture(autouse=True)
def _empty(source: Executor, target: Executor) -> None:
    for executor in (source, target):
        empty_folder(executor.workspace)


@pytest.fixture
def world(tmp_path: Path, source: Executor, target: Executor) -> World:
    return World(tmp_path, (source, target))


@settings(max_examples=examples(30), deadline=None, suppress_health_check=list(HealthCheck))
@given(tree=trees)
def test_arbitrary_tree_survives_keep_and_restore(
    tmp_path_factory: pytest.TempPathFactory, source: Executor, target: Executor, tree: dict[bytes, Any]
) -> None:
    """Bit for bit, sealed, through a folder, while the source stays as it was."""
    for executor in (source, target):
        empty_folder(executor.workspace)
    grow(source.workspace, tree)
    before = picture(source.workspace)

    async def there_and_back() -> None:
        world = World(tmp_path_factory.mktemp("tree"), (source, target))
        keys = SnapshotKeys("k", {"k": os.urandom(32)})
        keeper = SnapshotKeeper(SealedStore(world.store, keys), world.provider, executor_of(), SystemClock())
        old, new = await world.claim(), await world.claim()
        reference = await keeper.keep(old.id, SESSION)
        assert reference is not None
        assert await keeper.restore(reference, new.id, SESSION) == reference

    asyncio.run(there_and_back())
    assert picture(target.workspace) == before
    assert picture(source.workspace) == before


async def test_restore_removes_what_the_warm_sandbox_wrote(world: World, source: Executor, target: Executor) -> None:
    """The workspace is the session's alone."""
    noise(source, 1000, "mine")
    ref = await world.keep(await world.claim())
    (target.workspace / "stray").mkdir()
    noise(target, 1000, "stray/file")

    await world.keeper.restore(ref, (await world.claim()).id, SESSION)

    assert os.listdir(target.workspace) == ["mine"]


@pytest.mark.parametrize("damage", ["first", "middle", "last", "cut", "missing"])
async def test_damaged_snapshot_is_refused_and_can_be_repaired(
    world: World, source: Executor, target: Executor, damage: str
) -> None:
    """Not a byte of it stays in the sandbox; the file is not touched, and once it is mended the session wakes."""
    data = noise(source, 3 * MEGABYTE)
    ref = await world.keep(await world.claim())
    new, path = await world.claim(), world.file(ref)
    whole = bytearray(path.read_bytes())
    broken = bytearray(whole)
    match damage:
        case "cut":
            del broken[-1000:]
        case "missing":
            path.unlink()
        case _:
            broken[{"first": 0, "middle": len(broken) // 2, "last": -1}[damage]] ^= 1
    if damage != "missing":
        path.write_bytes(broken)

    with pytest.raises(SnapshotNotFoundError if damage == "missing" else SnapshotCorruptError, match=ref.key):
        await world.keeper.restore(ref, new.id, SESSION)
    wait_until(lambda: os.listdir(target.workspace) == [], "the workspace is empty")
    assert await world.keeper.rollback(ref, new.id, SESSION) == ref
    assert not path.exists() if damage == "missing" else path.read_bytes() == broken

    path.write_bytes(whole)
    await world.keeper.restore(ref, new.id, SESSION)
    assert (target.workspace / "noise").read_bytes() == data


async def test_wrong_key_is_reported_and_the_right_one_decrypts(
    world: World, source: Executor, target: Executor
) -> None:
    """A gateway started with another key cannot wake the session; one with the key can."""
    data = noise(source, 1000)

    def keeper_with(key: bytes) -> SnapshotKeeper:
        store = SealedStore(world.store, SnapshotKeys("k", {"k": key}))
        return SnapshotKeeper(store, world.provider, executor_of(), SystemClock())

    reference = await keeper_with(b"1" * 32).keep((await world.claim()).id, SESSION)
    assert reference is not None
    new = await world.claim()
    with pytest.raises(SnapshotKeyError, match="another key named 'k'"):
        await keeper_with(b"2" * 32).restore(reference, new.id, SESSION)
    wait_until(lambda: os.listdir(target.workspace) == [], "the workspace is empty")

    await keeper_with(b"1" * 32).restore(reference, new.id, SESSION)
    assert (target.workspace / "noise").read_bytes() == data


async def test_workspace_over_the_limit_stays_awake_with_a_reason(tmp_path: Path, source: Executor) -> None:
    """The error has the figures and a sentence for the user; nothing is kept, the sandbox goes on, and less fits."""
    world = World(tmp_path, (source,), max_size=MEGABYTE)
    noise(source, 8 * MEGABYTE)
    sandbox = await world.claim()

    with pytest.raises(SnapshotTooLargeError, match="limit of 1048576 bytes") as caught:
        await world.keeper.keep(sandbox.id, SESSION)
    assert caught.value.limit == MEGABYTE
    assert MEGABYTE < caught.value.size < 4 * MEGABYTE
    assert caught.value.reason == (
        "cannot hibernate and keeps its sandbox until its maximum duration: a snapshot of its files exceeds the limit"
        " of 1 MiB; delete some of them"
    )
    assert world.kept() == []

    (source.workspace / "noise").unlink()
    assert source.execute("echo", "awake")["stdout"] == "awake\n"
    await world.keep(sandbox)


async def test_store_outage_during_a_put_keeps_the_earlier_snapshot(world: World, source: Executor) -> None:
    """The error is the store's; nothing new is there, the old one is; the next try works."""
    noise(source, 3 * MEGABYTE)
    sandbox = await world.claim()
    first = await world.keep(sandbox)

    async def going_away(chunks: Chunks) -> AsyncIterator[bytes]:
        async for chunk in chunks:
            yield chunk
            raise SnapshotStoreUnavailableError("the store went away")

    world.store.on_put = going_away
    with pytest.raises(SnapshotStoreUnavailableError, match="went away"):
        await world.keeper.keep(sandbox.id, SESSION)
    assert world.kept() == [first.key]
    assert source.execute("echo", "awake")["stdout"] == "awake\n"

    world.store.on_put = None
    second = await world.keep(sandbox)
    assert world.kept() == sorted((first.key, second.key))


async def test_store_outage_during_a_wake_leaves_no_partial_workspace(
    world: World, source: Executor, target: Executor
) -> None:
    """What had come is taken away again, and the snapshot wakes the session later."""
    data = noise(source, 3 * MEGABYTE)
    ref = await world.keep(await world.claim())
    new = await world.claim()

    async def going_away(chunks: Chunks) -> AsyncIterator[bytes]:
        async for chunk in chunks:
            yield chunk
            raise SnapshotStoreUnavailableError("the store went away")

    world.store.on_get = going_away
    with pytest.raises(SnapshotStoreUnavailableError, match="went away"):
        await world.keeper.restore(ref, new.id, SESSION)
    wait_until(lambda: os.listdir(target.workspace) == [], "the workspace is empty")

    world.store.on_get = None
    await world.keeper.restore(ref, new.id, SESSION)
    assert (target.workspace / "noise").read_bytes() == data


async def test_sandbox_that_dies_while_it_is_kept_keeps_the_earlier_snapshot(tmp_path: Path) -> None:
    """Half a stream is no snapshot: an error, and the store is as it was."""
    with picod_process("--auth", "none") as doomed:
        world = World(tmp_path, (doomed,))
        sandbox = await world.claim()
        first = await world.keep(sandbox)
        noise(doomed, 16 * MEGABYTE)

        async def killing(chunks: Chunks) -> AsyncIterator[bytes]:
            async for chunk in chunks:
                doomed.process.send_signal(signal.SIGKILL)
                yield chunk

        world.store.on_put = killing
        with pytest.raises(UpstreamBrokenError, match=f"sandbox {sandbox.id} closed the connection"):
            await world.keeper.keep(sandbox.id, SESSION)
        assert world.kept() == [first.key]
        doomed.process.wait()
        assert await world.keeper.keep(sandbox.id, SESSION) is None  # nobody listens there any more


async def test_picod_that_dies_during_a_wake_costs_a_sandbox_only(
    tmp_path: Path, source: Executor, target: Executor
) -> None:
    """The error says which sandbox; the same snapshot wakes the session on another."""
    with picod_process("--auth", "none") as doomed:
        world = World(tmp_path, (source, doomed, target))
        data = noise(source, 16 * MEGABYTE)
        ref = await world.keep(await world.claim())
        new = await world.claim()

        async def killing(chunks: Chunks) -> AsyncIterator[bytes]:
            async for chunk in chunks:
                doomed.process.send_signal(signal.SIGKILL)
                yield chunk

        world.store.on_get = killing
        with pytest.raises(UpstreamBrokenError, match=f"sandbox {new.id} closed the connection"):
            await world.keeper.restore(ref, new.id, SESSION)

    world.store.on_get = None
    assert await world.keeper.rollback(ref, new.id, SESSION) == ref
    await world.keeper.restore(ref, (await world.claim()).id, SESSION)
    assert (target.workspace / "noise").read_bytes() == data


async def test_sandbox_that_ended_during_a_wake_is_told_from_one_that_failed(
    tmp_path: Path, source: Executor, target: Executor
) -> None:
    """Where the engine has seen its end, another sandbox may do: the wake goes on with one."""
    with picod_process("--auth", "none") as doomed:
        world = World(tmp_path, (source, doomed, target))
        noise(source, 16 * MEGABYTE)
        ref = await world.keep(await world.claim())
        new = await world.claim()

        async def killing(chunks: Chunks) -> AsyncIterator[bytes]:
            async for chunk in chunks:
                if doomed.process.poll() is None:
                    doomed.process.send_signal(signal.SIGKILL)
                    doomed.process.wait()
                    world.provider.end(new.id, "was killed")
                yield chunk

        world.store.on_get = killing
        with pytest.raises(SandboxGoneError, match=f"sandbox {new.id} ended while its workspace was restored"):
            await world.keeper.restore(ref, new.id, SESSION)


async def test_workspace_without_room_is_reported(tmp_path: Path, source: Executor) -> None:
    """The new sandbox's disk is too small: its own words, an empty workspace, and the snapshot as it was."""

    def small(workspace: Path) -> Sequence[str]:
        return with_mounts("--size", str(MEGABYTE), "--tmpfs", str(workspace))

    with picod_process("--auth", "none", wrapper=small) as cramped:
        world = World(tmp_path, (source, cramped))
        noise(source, 16 * MEGABYTE)
        ref = await world.keep(await world.claim())
        new = await world.claim()
        with pytest.raises(SnapshotError, match=f"sandbox {new.id} cannot import the workspace: .*no space left"):
            await world.keeper.restore(ref, new.id, SESSION)
        assert cramped.execute("ls", "-A")["stdout"] == ""
    assert world.kept() == [ref.key]


async def test_cancelled_keep_leaves_the_session_running(world: World, source: Executor) -> None:
    """Its processes are not held still any longer, nothing is in the store, and it can be kept again."""
    noise(source, 16 * MEGABYTE)
    sandbox = await world.claim()
    command = asyncio.ensure_future(asyncio.to_thread(source.execute, "sleep", "4321.8"))
    await asyncio.to_thread(wait_until, lambda: len(running("4321.8")) == 1, "it runs")
    process = psutil.Process(running("4321.8")[0])
    begun = asyncio.Event()

    async def waiting(chunks: Chunks) -> AsyncIterator[bytes]:
        async for chunk in chunks:
            yield chunk
            begun.set()
            await asyncio.Event().wait()

    world.store.on_put = waiting
    keep = asyncio.ensure_future(world.keeper.keep(sandbox.id, SESSION))
    await begun.wait()
    assert process.status() == "stopped"
    keep.cancel()
    with pytest.raises(asyncio.CancelledError):
        await keep
    assert world.kept() == []

    await asyncio.to_thread(wait_until, lambda: process.status() == "sleeping", "the session's own process goes on")
    process.kill()
    await command
    world.store.on_put = None
    await world.keep(sandbox)


async def test_lost_sandbox_is_saved_by_the_engine_that_can(tmp_path: Path) -> None:
    """Over local sandboxes: one that was killed leaves its files, which are parked and wake; then snapshots go on."""
    async with local(tmp_path) as (provider, executor, subject):
        store = World(tmp_path, ()).store
        subject.keeper = SnapshotKeeper(store, provider, executor, SystemClock(), parking=provider)
        snapshot = await subject.asleep("old")
        sandbox = await subject.sandbox()
        assert await subject.keeper.restore(snapshot, sandbox.id, SESSION) == snapshot
        subject.write(sandbox, "newer than the snapshot")
        events = provider.watch()
        os.kill(provider.pid(sandbox.id), signal.SIGKILL)
        assert (await anext(events)).sandbox_id == sandbox.id

        parked = await subject.keeper.keep(sandbox.id, SESSION)
        assert parked == SESSION
        new = await subject.sandbox()
        assert await subject.keeper.restore(parked, new.id, SESSION) is None
        assert subject.read(new) == "newer than the snapshot"
        again = await subject.keeper.keep(new.id, SESSION)
        assert again is not None
        assert "#" in again

        async def known() -> AsyncIterator[str]:
            yield again

        await provider.release(new.id)
        assert await subject.keeper.delete_orphans(known, 0.0) == 1  # the first snapshot
        assert await subject.wake(again) == "newer than the snapshot"


async def test_parked_workspace_without_an_engine_that_parks_is_reported(world: World) -> None:
    """After a change of engines: named, and where it can be woken; the record goes on naming it."""
    sandbox = await world.claim()
    with pytest.raises(SnapshotNotFoundError, match=f"{SESSION} was parked by another engine"):
        await world.keeper.restore(SESSION, sandbox.id, SESSION)
    assert await world.keeper.rollback(SESSION, sandbox.id, SESSION) == SESSION


WORKER = """
import asyncio, sys
from pathlib import Path
from gateway.core.errors import SnapshotError
from tests.support.snapshots import SESSION, World
from tests.support.picod import picod_process

async def main(folder):
    with picod_process("--auth", "none") as picod:
        world = World(folder, (picod,))
        sandbox = await world.claim()
        (picod.workspace / "a").write_bytes(b"a")
        first = await world.keep(sandbox)
        with open("/dev/urandom", "rb") as noise:
            (picod.workspace / "large").write_bytes(noise.read(8 << 20))
        try:
            await world.keep(sandbox)
        except SnapshotError as error:
            print(error.status, error.code, error)
        print(world.kept() == [first.key], picod.execute("ls")["stdout"].split())
        (picod.workspace / "large").unlink()
        second = await world.keep(sandbox)
        print(world.kept() == sorted((first.key, second.key)))

asyncio.run(main(Path(sys.argv[1])))
"""


def test_full_snapshot_folder_is_an_error_and_the_session_keeps_its_sandbox(tmp_path: Path) -> None:
    """507 with folder and reason, the earlier snapshot and the live files as they were; with room it works again."""
    small_disk = with_mounts("--size", str(4 * MEGABYTE), "--tmpfs", str(tmp_path))
    run = subprocess.run(
        [*small_disk, sys.executable, "-c", WORKER, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=60
    )

    assert run.stderr == ""
    assert run.stdout == (
        f"507 SNAPSHOT_STORE_FULL the snapshot folder {tmp_path}/snapshots is full (No space left on device); free"
        " space there\nTrue ['a', 'large']\nTrue\n"
    )


async def test_sessions_have_different_keys_in_the_store(world: World, source: Executor) -> None:
    """Each has names of its own; a snapshot of one does not touch another's."""
    sandbox = await world.claim()
    refs = [await world.keeper.keep(sandbox.id, SessionId(f"session-{number}")) for number in range(3)]
    assert len({str(ref)[:32] for ref in refs}) == 3
    assert len(world.kept()) == 3


async def test_restored_snapshot_does_not_count_as_growth(tmp_path: Path) -> None:
    """The engine, which ends sandboxes that write too much, learns what was unpacked into this one."""
    async with local(tmp_path) as (provider, executor, subject):
        subject.keeper = SnapshotKeeper(World(tmp_path, ()).store, provider, executor, SystemClock(), parking=provider)
        snapshot = await subject.asleep("x" * (3 * MEGABYTE))
        sandbox = await subject.sandbox()
        await subject.keeper.restore(snapshot, sandbox.id, SESSION)
        baseline, _ = provider._disk._baselines[sandbox.id]
        assert 3 * MEGABYTE <= baseline.bytes <= 4 * MEGABYTE
