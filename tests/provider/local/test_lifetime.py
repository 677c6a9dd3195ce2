"""A gateway that is killed with -9: nothing of its sandboxes outlives it, and the next run starts clean."""

from __future__ import annotations

import asyncio
import os
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.core.errors import SettingsError
from gateway.core.model import SessionId
from gateway.provider.local import Isolation
from tests.support.local_engine import KEY, ROOT, execute, filled, owner_mark, processes_with, runtime, serving
from tests.support.waiting import eventually

SESSION = SessionId("session")


def kill_a_gateway(folder: Path, isolation: Isolation, word: str) -> None:
    """Run the doomed gateway until it is ready, then SIGKILL."""
    command = [sys.executable, "-m", "tests.support.doomed_gateway", str(folder), isolation, word]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as gateway:
        assert gateway.stdout is not None
        assert gateway.stdout.readline() == "ready\n"
        assert processes_with(word)
        gateway.kill()


def control_groups() -> set[str]:
    """Names of all groups of this machine. os.walk passes over those that others remove meanwhile; rglob raises."""
    return {name for _, folders, _ in os.walk("/sys/fs/cgroup") for name in folders}


async def test_sandboxes_do_not_outlive_a_killed_gateway(tmp_path: Path) -> None:
    """All processes of all its sandboxes end, also one that left its session; no clean-up is needed for that."""
    word = f"stubborn-{secrets.token_hex(4)}"
    await asyncio.to_thread(kill_a_gateway, tmp_path, "bubblewrap", word)

    async def gone() -> bool:
        return not processes_with(word) and not processes_with(owner_mark(tmp_path))

    await eventually(gone, "no process of the killed gateway's sandboxes is left")
    async with serving(tmp_path, runtime()):
        pass  # removes the control groups, which only a later run can


async def test_next_life_clears_what_a_killed_gateway_left(tmp_path: Path) -> None:
    """Sockets and control groups of the earlier run are removed, and workspaces that were not kept; the pool fills."""
    await asyncio.to_thread(kill_a_gateway, tmp_path, "bubblewrap", "stubborn-x")
    state = tmp_path / "state"
    old = {path.name for path in (state / "workspaces").iterdir()}
    assert old
    async with serving(tmp_path, runtime(warm=1)) as provider:
        await filled(provider)
        await provider.retain_abandoned()
        (sandbox,) = await provider.list()
        assert {path.name for path in (state / "workspaces").iterdir()} == {sandbox.id}
        assert not old & control_groups()

        async def emptied() -> bool:
            return not list((state / "trash").iterdir())

        await eventually(emptied, "the old workspaces are deleted")


async def test_next_life_keeps_a_workspace_that_no_record_names(tmp_path: Path) -> None:
    """The records may be what is missing: it is found by its sandbox in any later life, until its time is over."""
    for _ in range(2):
        async with serving(tmp_path, runtime()) as provider:
            sandbox = await provider.claim(KEY, SESSION)
            await execute(sandbox, "sh", "-c", "echo precious >note")
    async with serving(tmp_path, runtime()) as provider:
        await provider.retain_abandoned()
        assert await provider.delete_orphans(no_references, 3600.0) == 0
    async with serving(tmp_path, runtime()) as provider:
        await provider.retain_abandoned()
        assert await provider.keep(sandbox.id, SESSION) == SESSION
        assert (tmp_path / "state" / "parked" / SESSION / "note").read_text() == "precious\n"
        assert await provider.delete_orphans(no_references, -60.0) == 2  # this one, and that of the first life


async def test_next_start_distinguishes_an_interrupted_restore_from_none(tmp_path: Path) -> None:
    """After a crash: a workspace that had been moved to the sandbox is parked again; without one nothing is."""
    other = SessionId("other")
    async with serving(tmp_path, runtime()) as provider:
        first = await provider.claim(KEY, SESSION)
        await execute(first, "sh", "-c", "echo precious >note")
        assert await provider.keep(first.id, SESSION) == SESSION
        moved, empty = await provider.claim(KEY, SESSION), await provider.claim(KEY, other)
        await provider.restore(SESSION, moved.id, SESSION)
    async with serving(tmp_path, runtime()) as provider:
        assert await provider.rollback(other, empty.id, other) == other
        assert await provider.rollback(SESSION, moved.id, SESSION) == SESSION
    parked = tmp_path / "state" / "parked"
    assert (parked / SESSION / "note").read_text() == "precious\n"
    assert not (parked / other).exists()


async def no_references() -> AsyncIterator[str]:
    """What records name: nothing."""
    for reference in list[str]():
        yield reference


async def test_next_life_ends_what_escaped_without_isolation(tmp_path: Path) -> None:
    """Isolation `process` has no pid namespace: what outlived the gateway there is found by its tag and ended."""
    word = f"stubborn-{secrets.token_hex(4)}"
    await asyncio.to_thread(kill_a_gateway, tmp_path, "process", word)
    async with serving(tmp_path, runtime(), isolation="process"):
        assert not processes_with(word)


async def test_closed_provider_leaves_nothing(tmp_path: Path) -> None:
    """After aclose no process, socket, workspace or control group of it exists."""
    async with serving(tmp_path, runtime(warm=2)) as provider:
        await filled(provider)
        assert len(processes_with(owner_mark(tmp_path))) >= 2
    state = tmp_path / "state"
    owner = (state / "owner").read_text()
    assert not processes_with(owner_mark(tmp_path))
    assert not list((state / "workspaces").iterdir()) + list((state / "trash").iterdir())
    assert f"wakegate-{owner}" not in control_groups()
    assert not (state / "run").exists() or not list((state / "run").iterdir())


async def test_process_that_is_ended_twice_at_once_is_gone_for_both(tmp_path: Path) -> None:
    """As when it is ended for what it wrote, and removed because it has ended: neither waits for a lost wake-up."""
    async with serving(tmp_path, runtime()) as provider:
        process = provider._registry.get((await provider.claim(KEY, SESSION)).id).process  # type: ignore[union-attr]
        await asyncio.gather(process.end(), process.end(), process.end())


async def test_second_owner_of_a_state_directory_is_refused(tmp_path: Path) -> None:
    """Two gateways on one state directory would end each other's sandboxes; the second hears who is there."""
    async with serving(tmp_path, runtime()):
        with pytest.raises(SettingsError, match=r"in use by process \d+"):
            async with serving(tmp_path, runtime()):
                pass
    async with serving(tmp_path, runtime()):
        pass  # free again
