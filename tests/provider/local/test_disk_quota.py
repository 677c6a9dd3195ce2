"""Sandboxes that fill the disk: who is ended, who is left alone."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from gateway.core.clock import SystemClock
from gateway.core.model import Limits, Sandbox, SandboxEvent, SandboxId, SessionId
from gateway.provider.local import LocalProvider, disk_quota, disk_usage
from gateway.provider.local.disk_quota import Disk, DiskWatch, Held, Watched, offenders
from gateway.provider.local.disk_usage import Size
from tests.support.local_engine import SANDBOX_PYTHON, execute, python, runtime, serving
from tests.support.waiting import eventually

MB = 1_000_000
A, B = SessionId("session-a"), SessionId("session-b")
BIG, SMALL = SandboxId("sb-big"), SandboxId("sb-small")
FILL = """
import time
block = bytes(4 << 20)
for number in range(10_000):
    with open(f"file{number}", "wb") as file:
        file.write(block)
    time.sleep(0.02)
"""
FILL_UNSEEN = """
import os, time
block, kept = bytes(4 << 20), []
for number in range(10_000):
    kept.append(open("file", "wb", buffering=0))
    kept[-1].write(block)
    os.unlink("file")
    time.sleep(0.02)
"""


def held(baseline: int, now: int, limit: int | None = None, *, grace: bool = False, files: int = 0) -> Held:
    return Held(Size(baseline * MB), Size(now * MB, files), None if limit is None else limit * MB, 1000, grace)


@pytest.mark.parametrize(
    ("big", "small", "free", "filling", "ends"),
    [
        (held(0, 101, 100), held(0, 6, 100), 999, True, {BIG}),
        (held(0, 101, 100), held(0, 6, 100), 999, False, {BIG}),  # quiet now, but it took that much
        (held(120, 110, 100, grace=True), held(0, 6, 100), 999, True, set()),  # woken over its limit: it may delete
        (held(120, 121, 100, grace=True), held(0, 6, 100), 999, True, {BIG}),
        (held(120, 110, 100), held(0, 6, 100), 999, True, {BIG}),  # it did not
        (held(0, 500), held(0, 6), 999, True, set()),  # no limit is set, and there is space
        (held(0, 500), held(0, 99), 9, True, {BIG}),
        (held(0, 500), held(0, 99), 9, False, {BIG}),  # early growth counts when the disk is full later
        (held(480, 500), held(0, 99), 9, True, {SMALL}),  # what it was given is not what it took
        (held(500, 500), held(0, 30), 9, True, {BIG}),  # no one grew much: the largest, while the disk fills
        (held(500, 500), held(0, 30), 9, False, set()),  # the disk was full before
        (held(0, 101, 100), held(0, 500), 9, True, {BIG}),  # its end may suffice
        (held(0, 1, files=1001), held(0, 2), 999, True, {BIG}),  # many empty files
    ],
)
def test_offender_is_over_its_limit_or_fills_the_disk(
    big: Held, small: Held, free: int, filling: bool, ends: set[SandboxId]
) -> None:
    """What a workspace held when its sandbox was claimed or woken is the baseline; all above it is growth."""
    disk = Disk(free * MB, 10 * MB, filling=filling)
    assert set(offenders({BIG: big, SMALL: small}, disk)) == ends


def test_inodes_run_out_like_bytes() -> None:
    """Below the reserve of inodes the sandbox with the most new files ends."""
    many = Held(Size(), Size(MB, 9_000), None, None)
    given = Held(Size(MB, 20_000), Size(MB, 20_100), None, None)
    ends = offenders({BIG: many, SMALL: given}, Disk(999 * MB, 10 * MB, files=50, files_reserve=100))
    assert set(ends) == {BIG}
    assert "grew by 9000 files" in ends[BIG].reason


def test_measurement_is_due_when_much_was_taken_of_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Walking through all workspaces costs: a step of the disk's use, or a minute, must have gone by."""
    free = 1000 << 20  # others write to this disk while the test runs
    monkeypatch.setattr(
        os,
        "statvfs",
        lambda _: SimpleNamespace(
            f_blocks=2000 << 20, f_bfree=free, f_bavail=free, f_frsize=1, f_files=0, f_ffree=0, f_favail=0
        ),
    )
    watch = DiskWatch(tmp_path, 0)
    watched = Watched(BIG, tmp_path / "workspace", os.getpid(), 256 << 20)
    watched.workspace.mkdir()
    assert not watch.due([], 0.0)
    assert watch.due([watched], 0.0)
    watch.measure([watched], 0.0)
    assert not watch.due([watched], 1.0)
    free -= 31 << 20  # an eighth of the limit is the step
    assert not watch.due([watched], 2.0)
    free -= 1 << 20
    assert watch.due([watched], 3.0)
    watch.measure([watched], 3.0)
    assert not watch.due([watched], 4.0)
    free += 100 << 20  # much was freed: growth counts from there
    assert not watch.due([watched], 5.0)
    free -= 32 << 20
    assert watch.due([watched], 6.0)
    watch.measure([watched], 6.0)
    assert watch.due([watched], 66.0)


async def ended(provider: LocalProvider, sandbox: Sandbox, code: str) -> SandboxEvent:
    """Run code that never ends by itself; the event that says why its sandbox did."""
    events = provider.watch()
    running = asyncio.create_task(execute(sandbox, "python3", "-c", code, timeout="60s"))
    async with asyncio.timeout(40):
        event = await anext(aiter(events))
    await asyncio.gather(running, return_exceptions=True)
    return event


@pytest.mark.parametrize("code", [FILL, FILL_UNSEEN], ids=["files", "deleted files"])
async def test_sandbox_over_its_size_ends_with_the_reason(tmp_path: Path, code: str) -> None:
    """Files that were deleted and are still open count; the neighbour works on, the workspace is kept."""
    async with serving(tmp_path, runtime(limits=Limits(processes=64, workspace_size=48 << 20))) as provider:
        filler, neighbour = await provider.claim(runtime().key, A), await provider.claim(runtime().key, B)
        event = await ended(provider, filler, code)
        assert event.sandbox_id == filler.id
        assert "the runtime allows 50 MB" in event.reason
        assert await python(neighbour, "print(6 * 7)") == "42"
        assert await provider.keep(filler.id, A) == A


async def test_woken_workspace_does_not_count_as_growth(tmp_path: Path) -> None:
    """What was parked is measured then, so a wake neither ends its sandbox nor forgives what it holds."""
    async with serving(tmp_path, runtime(limits=Limits(processes=64, workspace_size=8 << 20))) as provider:
        first = await provider.claim(runtime().key, A)
        await python(first, "open('kept', 'wb').write(bytes(7 << 20))")
        reference = await provider.keep(first.id, A)
        assert reference is not None
        second = await provider.claim(runtime().key, A)
        await provider.restore(reference, second.id, A)
        baseline, _ = provider._disk._baselines[second.id]
        assert 7 << 20 <= baseline.bytes <= 8 << 20
        event = await ended(provider, second, "import os, time; os.posix_fallocate(os.open('more', 66), 0, 2 << 20)\n"
                            "time.sleep(60)")  # fmt: skip
        assert "the runtime allows 8 MB" in event.reason


async def test_many_empty_files_end_a_sandbox(tmp_path: Path) -> None:
    """Inodes are limited as bytes are."""
    async with serving(tmp_path, runtime(limits=Limits(processes=64, workspace_files=2_000))) as provider:
        filler = await provider.claim(runtime().key, A)
        event = await ended(provider, filler, "import time\nfor n in range(4000): open(str(n), 'w')\ntime.sleep(60)")
        assert "a sandbox may have 2000" in event.reason


def test_ballast_is_released_while_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records and deletions find room on a full disk until the sandboxes that filled it have ended."""
    free = 1 << 30
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=free, f_frsize=1))
    watch = DiskWatch(tmp_path, 1 << 20)
    watch.keep_ballast()
    assert (tmp_path / "ballast").stat().st_blocks * 512 >= 16 << 20
    free = 1 << 20
    watch.keep_ballast()
    assert not (tmp_path / "ballast").exists()
    free = 40 << 20  # not enough to take it back
    watch.keep_ballast()
    assert not (tmp_path / "ballast").exists()


async def test_sandbox_that_fills_the_disk_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a limit of its own too, once less than the reserve is left."""
    monkeypatch.setattr(disk_quota, "_STEP_BYTES", 16 << 20)
    environment = SANDBOX_PYTHON if SANDBOX_PYTHON.exists() else None
    provider = LocalProvider(
        tmp_path / "state", tmp_path / "keys", SystemClock(), "bubblewrap", environment, disk_reserve=1 << 60
    )
    await provider.apply([runtime()])
    await provider.start()
    try:
        filler = await provider.claim(runtime().key, A)
        event = await ended(provider, filler, FILL)
        assert "the disk is nearly full" in event.reason
    finally:
        await provider.aclose()


UNSEEN = """
import os, time
os.mkdir("unseen")
os.chmod("unseen", 0o300)
open("unseen/file", "wb").write(bytes(12 << 20))
time.sleep(60)
"""


async def test_folder_that_may_not_be_listed_counts(tmp_path: Path) -> None:
    """Code can write below a folder of mode 0300; du(1) of an ordinary user could not look into it."""
    async with serving(tmp_path, runtime(limits=Limits(processes=64, workspace_size=8 << 20))) as provider:
        filler = await provider.claim(runtime().key, A)
        event = await ended(provider, filler, UNSEEN)
        assert "the runtime allows 8 MB" in event.reason


def test_failed_measurement_is_not_taken_for_an_empty_disk(tmp_path: Path) -> None:
    """A du that does not start says nothing of any folder; the limits would silently be off."""
    with pytest.raises(OSError, match="nosuch"):
        disk_usage.sizes([tmp_path], ("env", "--chdir=/nosuch"))
    assert disk_usage.sizes([tmp_path / "ended meanwhile"]) == {}


def test_unpacked_snapshot_does_not_count_as_growth(tmp_path: Path) -> None:
    """Over the limit when it was kept, a session must wake all the same, to delete some; then it has the grace."""
    watched = Watched(BIG, tmp_path / "workspace", os.getpid(), 1 << 20)
    watched.workspace.mkdir()
    watch = DiskWatch(tmp_path, 0)
    watch.begin_restore(BIG)
    (watched.workspace / "file").write_bytes(bytes(2 << 20))
    assert watch.measure([watched], 0.0) == {}
    assert watch.measure([watched], 100.0) == {}  # it may take longer than the grace
    watch.end_restore(BIG, watched.workspace)
    assert watch.measure([watched], 101.0) == {}
    (watched.workspace / "more").write_bytes(bytes(1 << 20))
    assert set(watch.measure([watched], 102.0)) == {BIG}


async def test_workspace_over_its_limit_is_cut_when_the_disk_has_no_room(tmp_path: Path) -> None:
    """What one sandbox took at once must not keep the disk full for all until its session is deleted."""
    size = 8 << 20
    (tmp_path / "outside").write_bytes(bytes(size))
    limits = Limits(processes=64, workspace_size=size)
    async with serving(tmp_path, runtime(limits=limits), disk_reserve=1 << 60) as provider:
        filler = await provider.claim(runtime().key, A)
        code = f"""
import os, time
open("small", "w").write("kept")
os.symlink("{tmp_path}/outside", "link")
for depth in range(60):
    os.mkdir("d" * 100)
    os.chdir("d" * 100)
for number in range(9):
    open(str(number), "wb").write(bytes({size // 3}))
time.sleep(60)
"""
        event = await ended(provider, filler, code)
        assert "its largest files are deleted" in event.reason
        assert await provider.keep(filler.id, A) == A
        parked = tmp_path / "state" / "parked" / A

        async def fits() -> bool:
            return disk_usage.sizes([parked])[parked].bytes <= size

        await eventually(fits, "the workspace fits its limit")
        assert (parked / "small").read_text() == "kept"
        assert (tmp_path / "outside").stat().st_size == size
