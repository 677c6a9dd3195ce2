"""Sandboxes that fill the disk: who is ended, who is left alone."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from gateway.core.clock import SystemClock
from gateway.core.model import Limits, Sandbox, SandboxEvent, SandboxId, SessionId
from gateway.provider.local import LocalProvider, disk_quota
from gateway.provider.local.disk_quota import DiskWatch, Held, Tenant, offenders
from tests.support.local_engine import SANDBOX_PYTHON, execute, python, runtime, serving

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


def held(first: int, last: int, now: int, limit: int | None = None) -> Held:
    return Held(first * MB, last * MB, now * MB, None if limit is None else limit * MB)


@pytest.mark.parametrize(
    ("big", "small", "free", "ends"),
    [
        (held(0, 90, 101, 100), held(0, 5, 6, 100), 999, {BIG}),
        (held(0, 101, 101, 100), held(0, 5, 6, 100), 999, set()),  # over its limit, but it does not grow: it may delete
        (held(0, 120, 110, 100), held(0, 5, 6, 100), 999, set()),
        (held(0, 400, 500), held(0, 5, 6), 999, set()),  # no limit is set, and there is space
        (held(0, 400, 500), held(0, 90, 99), 9, {BIG}),
        (held(480, 480, 500), held(0, 90, 99), 9, {SMALL}),  # what it was given is not what it took
        (held(0, 500, 500), held(0, 20, 30), 9, set()),  # the disk is full, by none of those that grow
        (held(0, 90, 101, 100), held(0, 400, 500), 9, {BIG}),  # its end may make room enough
    ],
)
def test_offender_is_who_grows_beyond_its_limit_or_fills_the_disk(
    big: Held, small: Held, free: int, ends: set[SandboxId]
) -> None:
    """Growth counts, and only while it goes on."""
    assert set(offenders({BIG: big, SMALL: small}, free * MB, 10 * MB)) == ends


def test_look_is_due_when_much_was_taken_of_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Walking through all workspaces costs: a step of the disk's use, or a minute, must have gone by."""
    free = 1000 << 20  # others write to this disk while the test runs
    monkeypatch.setattr(
        os, "statvfs", lambda _: SimpleNamespace(f_blocks=2000 << 20, f_bfree=free, f_bavail=free, f_frsize=1)
    )
    watch = DiskWatch(tmp_path, 0)
    tenant = Tenant(BIG, tmp_path / "workspace", os.getpid(), 256 << 20)
    tenant.workspace.mkdir()
    assert not watch.due([], 0.0)
    assert watch.due([tenant], 0.0)
    watch.look([tenant], 0.0)
    assert not watch.due([tenant], 1.0)
    free -= 31 << 20  # an eighth of the limit is the step
    assert not watch.due([tenant], 2.0)
    free -= 1 << 20
    assert watch.due([tenant], 3.0)
    watch.look([tenant], 3.0)
    assert not watch.due([tenant], 4.0)
    free += 100 << 20  # much was freed: growth counts from there
    assert not watch.due([tenant], 5.0)
    free -= 32 << 20
    assert watch.due([tenant], 6.0)
    watch.look([tenant], 6.0)
    assert watch.due([tenant], 66.0)


async def ended(provider: LocalProvider, sandbox: Sandbox, code: str) -> SandboxEvent:
    """Run code that never ends by itself; the event that says why its sandbox did."""
    events = provider.watch()
    running = asyncio.create_task(execute(sandbox, "python3", "-c", code, timeout="60s"))
    async with asyncio.timeout(40):
        event = await anext(aiter(events))
    await asyncio.gather(running, return_exceptions=True)
    return event


@pytest.mark.parametrize("code", [FILL, FILL_UNSEEN], ids=["files", "deleted files"])
async def test_sandbox_over_its_size_ends_and_says_why(tmp_path: Path, code: str) -> None:
    """Files that were deleted and are still open count; the neighbour works on, the workspace is kept."""
    async with serving(tmp_path, runtime(limits=Limits(processes=64, workspace_size=48 << 20))) as provider:
        filler, neighbour = await provider.claim(runtime().key, A), await provider.claim(runtime().key, B)
        event = await ended(provider, filler, code)
        assert event.sandbox_id == filler.id
        assert "the runtime allows 50 MB" in event.reason
        assert await python(neighbour, "print(6 * 7)") == "42"
        assert await provider.keep(filler.id, A) == A


async def test_sandbox_that_fills_the_disk_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a limit of its own too, once less than the reserve is left."""
    monkeypatch.setattr(disk_quota, "_STEP", 16 << 20)
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
