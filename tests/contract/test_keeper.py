"""What every WorkspaceKeeper promises, over each implementation. A new one is one more line in KEEPERS."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from gateway.core.clock import SystemClock
from gateway.core.errors import SandboxStartError, SnapshotNotFoundError
from gateway.core.model import Sandbox, SandboxId, SessionId
from gateway.provider.kubernetes.engine import Remains
from gateway.provider.kubernetes.names import KEYS_CONFIGMAP
from gateway.runtimes.catalog import StaticCatalog
from gateway.sandbox.picod_client import PicodExecutor
from gateway.sandbox.signing_keys import KeyRing
from gateway.sandbox.tokens import TokenIssuer
from gateway.snapshots import FolderStore
from gateway.snapshots.keeper import SnapshotKeeper
from gateway.testing import ScriptedProvider
from tests.support.keepers import RUNTIME, SESSION, Subject, local
from tests.support.kube.clusters import make_cluster
from tests.support.kube.opened import open_provider


@asynccontextmanager
async def parking(folder: Path) -> AsyncIterator[Subject]:
    async with local(folder) as (_, _, subject):
        yield subject


@asynccontextmanager
async def snapshots(folder: Path) -> AsyncIterator[Subject]:
    async with local(folder) as (provider, executor, subject):
        subject.keeper = SnapshotKeeper(FolderStore(folder / "snapshots"), provider, executor, SystemClock())
        yield subject


@asynccontextmanager
async def kubernetes(folder: Path) -> AsyncIterator[Subject]:
    """Pods of a simulated cluster, with real picods in them."""
    keys, clock = KeyRing(folder / "keys"), SystemClock()
    keys.open()
    async with make_cluster().running() as cluster:
        text = (keys.public_dir / "jwks.json").read_text()
        cluster.create("configmaps", KEYS_CONFIGMAP, namespace="default", data={"jwks.json": text})
        provider = await open_provider(cluster, folder)
        await provider.apply([RUNTIME])

        def file(sandbox: Sandbox) -> Path:
            return cluster.kubelet.volume(sandbox.id, "workspace") / "folder" / "content"

        def write(sandbox: Sandbox, content: str) -> None:
            file(sandbox).parent.mkdir(exist_ok=True)
            file(sandbox).write_text(content)

        executor = PicodExecutor(StaticCatalog([RUNTIME]), TokenIssuer(keys, clock))
        keeper = SnapshotKeeper(FolderStore(folder / "snapshots"), Remains(provider), executor, clock)
        yield Subject(keeper, provider, write, lambda sandbox: file(sandbox).read_text())
        await provider.aclose()


@asynccontextmanager
async def scripted(folder: Path) -> AsyncIterator[Subject]:
    provider = ScriptedProvider()
    await provider.apply([RUNTIME])

    def write(sandbox: Sandbox, content: str) -> None:
        provider.contents[sandbox.id] = content

    yield Subject(provider, provider, write, lambda sandbox: provider.contents[sandbox.id])


KEEPERS: dict[str, Callable[[Path], AbstractAsyncContextManager[Subject]]] = {
    "local-parking": parking,
    "snapshots": snapshots,
    "scripted": scripted,
    "kubernetes": kubernetes,
}


@pytest.fixture(
    params=[
        # All but the fake start sandboxes.
        name if name == "scripted" else pytest.param(name, marks=pytest.mark.processes)
        for name in KEEPERS
    ]
)
async def subject(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Subject]:
    async with KEEPERS[request.param](tmp_path) as opened:
        yield opened


def references(*known: str | None) -> Callable[[], AsyncIterator[str]]:
    """What `delete_orphans` asks of the records."""

    async def each() -> AsyncIterator[str]:
        for reference in known:
            if reference is not None:
                yield reference

    return each


async def test_keeper_gives_back_what_it_kept(subject: Subject) -> None:
    """To another sandbox, after the first is gone; twice over, each time with the latest."""
    reference = await subject.asleep("first")
    await subject.keeper.check(reference)
    sandbox = await subject.sandbox()
    await subject.keeper.restore(reference, sandbox.id, SESSION)
    assert subject.read(sandbox) == "first"

    subject.write(sandbox, "second")
    second = await subject.keeper.keep(sandbox.id, SESSION)
    await subject.provider.release(sandbox.id)
    assert second is not None
    assert await subject.wake(second) == "second"


async def test_keeper_declares_whether_the_sandbox_keeps_running(subject: Subject) -> None:
    """As `leaves_running` has it, after `keep`; releasing it then is success either way and takes nothing away."""
    sandbox = await subject.sandbox("content")
    reference = await subject.keeper.keep(sandbox.id, SESSION)
    assert reference is not None
    assert (await subject.provider.find(sandbox.id) is not None) == subject.keeper.leaves_running

    await subject.provider.release(sandbox.id)
    assert await subject.wake(reference) == "content"


async def test_keeper_returns_whether_a_reference_can_be_restored_again(subject: Subject) -> None:
    """What `restore` returns can be given once more; if it returns nothing, that was the last time."""
    reference = await subject.asleep("content")
    sandbox = await subject.sandbox()
    remains = await subject.keeper.restore(reference, sandbox.id, SESSION)
    if remains is not None:
        assert await subject.wake(remains) == "content"
    else:
        other = await subject.sandbox()
        with pytest.raises(SnapshotNotFoundError):
            await subject.keeper.restore(reference, other.id, SESSION)


async def test_keeper_has_nothing_of_a_sandbox_that_is_gone(subject: Subject) -> None:
    """Released, or never there: no reference, and no error."""
    sandbox = await subject.sandbox("content")
    await subject.provider.release(sandbox.id)
    assert await subject.keeper.keep(sandbox.id, SESSION) is None
    assert await subject.keeper.keep(SandboxId("sb-never"), SessionId("never")) is None
    assert await subject.keeper.checkpoint(sandbox.id, SESSION) is None


async def test_failed_wake_leaves_what_is_kept(subject: Subject) -> None:
    """The sandbox was gone when the workspace came: `rollback` names it, and the next sandbox gets it."""
    reference = await subject.asleep("content")
    sandbox = await subject.sandbox()
    await subject.provider.release(sandbox.id)
    with pytest.raises(SandboxStartError, match="ended before its workspace was restored"):
        await subject.keeper.restore(reference, sandbox.id, SESSION)

    again = await subject.keeper.rollback(reference, sandbox.id, SESSION)
    assert again is not None
    assert await subject.wake(again) == "content"


async def test_wake_of_unknown_end_can_be_undone(subject: Subject) -> None:
    """The workspace had come, the record could not be written: put back, the sandbox released, and whole elsewhere."""
    reference = await subject.asleep("content")
    sandbox = await subject.sandbox()
    await subject.keeper.restore(reference, sandbox.id, SESSION)
    again = await subject.keeper.rollback(reference, sandbox.id, SESSION)
    await subject.provider.release(sandbox.id)
    assert again is not None
    assert await subject.wake(again) == "content"


async def test_unknown_reference_is_reported(subject: Subject) -> None:
    """By name, whichever kind it is of; the sandbox stays empty."""
    sandbox = await subject.sandbox()
    for reference in ("5b0e1b63-7a2f-4f0f-9c45-00000000dead", f"{'0' * 32}-{'1' * 32}#3-{'2' * 64}"):
        with pytest.raises(SnapshotNotFoundError, match=reference.partition("#")[0]):
            await subject.keeper.restore(reference, sandbox.id, SESSION)


async def test_failed_restore_of_what_is_elsewhere_changes_nothing(subject: Subject) -> None:
    """The reference stays, and the empty workspace of the sandbox that should have had it is not kept in its place."""
    for reference in (str(SESSION), f"{'0' * 32}-{'1' * 32}#3-{'2' * 64}"):
        with pytest.raises(SnapshotNotFoundError):
            await subject.keeper.check(reference)
        sandbox = await subject.sandbox()
        with pytest.raises(SnapshotNotFoundError):
            await subject.keeper.restore(reference, sandbox.id, SESSION)
        assert await subject.keeper.rollback(reference, sandbox.id, SESSION) == reference
        await subject.provider.release(sandbox.id)
    assert await subject.keeper.delete_orphans(references(), 0.0) == 0


async def test_deleted_workspace_is_gone(subject: Subject) -> None:
    """Dropping it again is success."""
    reference = await subject.asleep("content")
    await subject.keeper.delete(reference)
    await subject.keeper.delete(reference)
    sandbox = await subject.sandbox()
    with pytest.raises(SnapshotNotFoundError):
        await subject.keeper.restore(reference, sandbox.id, SESSION)


async def test_orphans_are_what_no_record_names(subject: Subject) -> None:
    """What a record names stays, what is younger than asked for stays, the rest goes."""
    named, orphan = [
        await subject.asleep(text, SessionId(f"5b0e1b63-7a2f-4f0f-9c45-00000000000{number}"))
        for number, text in enumerate(("named", "orphan"), 1)
    ]
    assert await subject.keeper.delete_orphans(references(named), 3600.0) == 0
    assert await subject.keeper.delete_orphans(references(named, "other#1-2", "another"), 0.0) == 1
    assert await subject.keeper.delete_orphans(references(named), 0.0) == 0

    assert await subject.wake(named) == "named"
    sandbox = await subject.sandbox()
    with pytest.raises(SnapshotNotFoundError):
        await subject.keeper.restore(orphan, sandbox.id, SESSION)


async def test_orphans_are_compared_with_records_read_after_the_list(subject: Subject) -> None:
    """What comes to be named while they are looked for is spared."""
    await subject.asleep("orphan")
    late: list[str] = []

    async def known() -> AsyncIterator[str]:
        if not late:
            late.append(await subject.asleep("late", SessionId("5b0e1b63-7a2f-4f0f-9c45-000000000002")))
        yield late[0]

    assert await subject.keeper.delete_orphans(known, 0.0) == 1
    assert await subject.wake(late[0]) == "late"


async def test_checkpoint_leaves_the_session_awake(subject: Subject) -> None:
    """Its sandbox and files go on; a reference, if there is one, is of the moment of the checkpoint."""
    sandbox = await subject.sandbox("before")
    reference = await subject.keeper.checkpoint(sandbox.id, SESSION)
    assert await subject.provider.find(sandbox.id) is not None
    assert subject.read(sandbox) == "before"
    if reference is not None:
        subject.write(sandbox, "after")
        assert await subject.wake(reference) == "before"


async def test_checkpoint_copies_an_unchanged_workspace_once(subject: Subject) -> None:
    """The last reference is returned while nothing changed, and only if it is the one that the copy was made as."""
    sandbox = await subject.sandbox("one")
    first = await subject.keeper.checkpoint(sandbox.id, SESSION)
    if first is None:
        pytest.skip("this keeper cannot copy a sandbox that keeps running")
    assert await subject.keeper.checkpoint(sandbox.id, SESSION, last=first) == first
    subject.write(sandbox, "two")  # of the same size
    second = await subject.keeper.checkpoint(sandbox.id, SESSION, last=first)
    assert second not in (None, first)
    assert await subject.keeper.checkpoint(sandbox.id, SESSION, last=first) not in (first, second)
    assert await subject.wake(second) == "two"


async def test_cancelled_keep_loses_nothing(subject: Subject) -> None:
    """Cut off at whatever step, the next `keep` has the whole; a sandbox that runs on is as it was."""

    async def cut(turns: int) -> None:
        session = SessionId(f"5b0e1b63-7a2f-4f0f-9c45-0000000000{turns:02}")
        sandbox = await subject.sandbox(f"content {turns}", session)
        keep = asyncio.ensure_future(subject.keeper.keep(sandbox.id, session))
        for _ in range(turns):
            await asyncio.sleep(0)
        keep.cancel()
        await asyncio.gather(keep, return_exceptions=True)
        if subject.keeper.leaves_running:
            assert subject.read(sandbox) == f"content {turns}"
        reference = await subject.keeper.keep(sandbox.id, session)
        await subject.provider.release(sandbox.id)
        assert reference is not None
        assert await subject.wake(reference) == f"content {turns}"

    for turns in (1, 3, 20):
        await cut(turns)


async def test_keeps_and_wakes_at_once_do_not_mix(subject: Subject) -> None:
    """Four sessions at the same time, each with its own."""

    async def there_and_back(number: int) -> bool:
        reference = await subject.asleep(f"content {number}", SessionId(f"5b0e1b63-7a2f-4f0f-9c45-00000000001{number}"))
        return await subject.wake(reference) == f"content {number}"

    done: list[Awaitable[bool]] = [there_and_back(number) for number in range(4)]
    assert all(await asyncio.gather(*done))
