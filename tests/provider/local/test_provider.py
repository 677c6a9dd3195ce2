"""The local provider's pools with real sandboxes: warmth, failure, change, and clients who leave."""

from __future__ import annotations

import asyncio
import os
import select
import shutil
import signal
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.core.clock import SystemClock
from gateway.core.errors import SandboxStartError, SettingsError
from gateway.core.model import Limits, PoolSpec, Runtime, SandboxId, SessionId, StartKind
from gateway.provider.local import LocalProvider, consumption
from gateway.provider.local.booking import Booking
from gateway.provider.local.cgroups import Cgroup
from gateway.provider.local.registry import SandboxRegistry
from gateway.provider.local.sandbox import LocalSandbox
from tests.support.local_engine import KEY, SANDBOX_PYTHON, execute, filled, runtime, serving
from tests.support.waiting import LIMIT_S, eventually


async def test_warm_claim_awaits_nothing(tmp_path: Path) -> None:
    """A claim on a filled pool is done in the step it was made in: no process, file or socket in its way."""
    async with serving(tmp_path, runtime(warm=1)) as provider:
        await filled(provider)
        step = provider.claim(KEY, SessionId("s1"))
        with pytest.raises(StopIteration) as done:
            step.send(None)  # the first await of anything real would come back here instead
        assert done.value.value.start is StartKind.WARM
        await filled(provider)


async def test_claim_is_refused_where_the_workspaces_were_removed(tmp_path: Path) -> None:
    """What such a sandbox writes would be gone with it; once the folder is back, sandboxes start again."""
    async with serving(tmp_path, runtime(warm=1)) as provider:
        await filled(provider)
        assert provider._state_dir is not None
        workspaces = provider._state_dir.workspaces
        workspaces.rename(tmp_path / "away")
        try:
            with pytest.raises(SandboxStartError, match="was removed while this gateway ran"):
                await provider.claim(KEY, SessionId("s1"))
        finally:
            (tmp_path / "away").rename(workspaces)
        await filled(provider)
        assert (await provider.claim(KEY, SessionId("s2"))).session_id == "s2"


async def test_claim_reads_nothing_of_the_kernel_on_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a sandbox used while it was warm is measured beside the claim: it would delay all wakes behind it."""
    real, measured = consumption.cpu_s, list[int]()

    def cpu_s(group: Cgroup, pid: int) -> float:
        measured.append(threading.get_ident())
        return real(group, pid)

    async with serving(tmp_path, runtime(warm=1)) as provider:
        await filled(provider)
        monkeypatch.setattr(consumption, "cpu_s", cpu_s)
        await provider.claim(KEY, SessionId("s1"))
        assert not measured

        async def is_measured() -> bool:
            return bool(measured)

        await eventually(is_measured, "its CPU time was measured")
        assert threading.get_ident() not in measured


async def test_burst_beyond_the_pool_gets_cold_sandboxes(tmp_path: Path) -> None:
    """Twelve claims at once on a pool of three: three warm, nine cold, all different, all answering; it refills."""
    async with serving(tmp_path, runtime(warm=3)) as provider:
        await filled(provider)
        sandboxes = await asyncio.gather(*(provider.claim(KEY, SessionId(f"s{n}")) for n in range(12)))
        starts = [sandbox.start for sandbox in sandboxes]
        assert (starts.count(StartKind.WARM), starts.count(StartKind.COLD)) == (3, 9)
        assert len({sandbox.id for sandbox in sandboxes}) == 12
        answers = await asyncio.gather(*(execute(sandbox, "echo", sandbox.id) for sandbox in sandboxes))
        assert [answer["stdout"].strip() for answer in answers] == [sandbox.id for sandbox in sandboxes]
        await filled(provider)
        status = await provider.status(KEY)
        assert (status.ready, status.claimed) == (3, 12)
        assert 0 < (status.lead_time_p50 or 0) <= (status.lead_time_p90 or 0)


async def test_warm_sandbox_that_dies_is_replaced(tmp_path: Path) -> None:
    """It is noticed without anybody asking, another takes its place, and it is never claimed."""
    async with serving(tmp_path, runtime(warm=1)) as provider:
        await filled(provider)
        (dead,) = await provider.list()
        os.kill(provider.pid(dead.id), signal.SIGKILL)

        async def replaced() -> bool:
            return [each.id for each in await provider.list()] not in ([], [dead.id])

        await eventually(replaced, "another sandbox is in the pool")
        assert (await provider.status(KEY)).failures == 1  # it died young
        assert (await provider.claim(KEY, SessionId("s1"))).id != dead.id


async def test_warm_sandbox_that_was_killed_is_not_claimed(tmp_path: Path) -> None:
    """Not even before the event loop has been told of its end: the kernel is asked, and another is given."""
    async with serving(tmp_path, runtime(warm=2)) as provider:
        await filled(provider)
        first, second = await provider.list()
        pidfd = os.pidfd_open(provider.pid(first.id))
        try:
            os.kill(provider.pid(first.id), signal.SIGKILL)
            select.select([pidfd], [], [], LIMIT_S)  # blocks the event loop, so that nobody can have told the pool
        finally:
            os.close(pidfd)
        assert await provider.find(first.id) is None
        assert (await provider.claim(KEY, SessionId("s1"))).id == second.id


async def test_claim_takes_the_next_sandbox_when_one_ends_as_it_is_handed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cold start that ends in the step before its claim goes on is replaced by another, without an error."""
    start, doomed = SandboxRegistry.start, list[SandboxId]()

    async def one_doomed(self: SandboxRegistry, runtime: Runtime, booking: Booking | None = None) -> LocalSandbox:
        sandbox = await start(self, runtime, booking)
        if not doomed:
            doomed.append(sandbox.id)
            asyncio.get_running_loop().call_soon(self.end_soon, [sandbox])
        return sandbox

    async with serving(tmp_path, runtime()) as provider:
        monkeypatch.setattr(SandboxRegistry, "start", one_doomed)
        sandbox = await provider.claim(KEY, SessionId("s1"))
        assert sandbox.id not in doomed
        assert doomed
        assert (await execute(sandbox, "true"))["exit_code"] == 0


async def test_broken_runtime_backs_off_visibly_and_recovers(tmp_path: Path) -> None:
    """Starts that fail are counted, paused and explained; claims are refused with the reason and a time to return."""
    environment = tmp_path / "python"
    broken = runtime(warm=2, python=str(environment))
    async with serving(tmp_path, broken) as provider:

        async def given_up() -> bool:
            return (await provider.status(KEY)).failures >= 3

        await eventually(given_up, "three starts have failed")
        status = await provider.status(KEY)
        assert status.retry_at is not None
        assert status.settled
        assert f"{environment} is not a Python environment" in status.last_error
        with pytest.raises(SandboxStartError, match="has no bin/python3") as refused:
            await provider.claim(KEY, SessionId("s1"))
        assert refused.value.retry_after is not None
        assert 0 < refused.value.retry_after <= 4
        assert (await provider.status(KEY)).failures == status.failures  # the refused claim started nothing
        environment.symlink_to(SANDBOX_PYTHON)
        await filled(provider)
        assert (await provider.status(KEY)).failures == 0
        assert (await provider.claim(KEY, SessionId("s1"))).start is StartKind.WARM


async def test_failed_start_reports_what_picod_printed(tmp_path: Path) -> None:
    """The reason carries the exit status and the last words of the sandbox; nothing of it is left on disk."""
    async with serving(tmp_path, replace(runtime(), auth=True, limits=Limits(memory=1 << 20))) as provider:
        with pytest.raises(SandboxStartError, match=r"default/hostile could not be started: .*exited with status \d+"):
            await provider.claim(KEY, SessionId("s1"))
        assert not list((tmp_path / "state" / "workspaces").iterdir())
        assert not list((tmp_path / "state").rglob("*.sock"))


async def test_sandbox_that_ends_as_it_is_handed_over_is_not_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the very step between its arrival and the claim that waits for it: reported as a failed start."""
    start = SandboxRegistry.start

    async def doomed(self: SandboxRegistry, runtime: Runtime, booking: Booking | None = None) -> LocalSandbox:
        sandbox = await start(self, runtime, booking)
        asyncio.get_running_loop().call_soon(self.end_soon, [sandbox])
        return sandbox

    async with serving(tmp_path, runtime()) as provider:
        with monkeypatch.context() as patched:
            patched.setattr(SandboxRegistry, "start", doomed)
            with pytest.raises(SandboxStartError, match="ended as soon as it was ready"):
                await provider.claim(KEY, SessionId("s1"))
        sandbox = await provider.claim(KEY, SessionId("s1"))
        assert (await execute(sandbox, "true"))["exit_code"] == 0


async def test_claim_whose_client_left_leaves_no_sandbox_bound(tmp_path: Path) -> None:
    """Cancelled claims wait for nothing and bind nothing; what was started for them does not stay."""
    async with serving(tmp_path, runtime()) as provider:
        claims = [asyncio.create_task(provider.claim(KEY, SessionId(f"s{n}"))) for n in range(3)]
        await asyncio.sleep(0)
        for claim in claims:
            claim.cancel()
        assert all(
            isinstance(each, asyncio.CancelledError) for each in await asyncio.gather(*claims, return_exceptions=True)
        )

        async def empty() -> bool:
            status = await provider.status(KEY)
            return status.starting == 0 and not list((tmp_path / "state" / "workspaces").iterdir())

        await eventually(empty, "no sandbox is left, nor its workspace")
        assert await provider.list() == []


async def test_released_sandbox_is_gone_with_its_workspace(tmp_path: Path) -> None:
    """When release returns no process of it runs, its workspace is not at its place, and it cannot be dialled."""
    async with serving(tmp_path, runtime()) as provider:
        sandbox = await provider.claim(KEY, SessionId("s1"))
        workspace = provider.workspace(sandbox.id)
        assert workspace is not None
        await execute(sandbox, "sh", "-c", "mkdir -p a/b && echo x > a/b/c && chmod 0 a && setsid -f sleep 1000")
        assert (workspace / "a").exists()
        pid = provider.pid(sandbox.id)
        await asyncio.gather(provider.release(sandbox.id), provider.release(sandbox.id))
        assert not os.path.exists(f"/proc/{pid}")
        assert not workspace.exists()
        assert not os.path.exists(str(sandbox.endpoint.uds))

        async def emptied() -> bool:
            return not list((tmp_path / "state" / "trash").iterdir())

        await eventually(emptied, "its files are deleted")


async def test_changed_runtime_replaces_warm_sandboxes_and_spares_claimed_ones(tmp_path: Path) -> None:
    """New claims run the new version; a session goes on with the sandbox it has."""
    old, new = runtime(warm=1, environment={"V": "1"}), runtime(warm=1, environment={"V": "2"})
    async with serving(tmp_path, old) as provider:
        await filled(provider)
        kept = await provider.claim(KEY, SessionId("s1"))
        await filled(provider)
        await provider.apply([new])
        await filled(provider)
        fresh = await provider.claim(KEY, SessionId("s2"))
        versions = [(await execute(each, "printenv", "V"))["stdout"] for each in (kept, fresh)]
        assert versions == ["1\n", "2\n"]


async def test_pool_keeps_its_size_when_the_same_runtimes_are_applied_again(tmp_path: Path) -> None:
    """Reading the files again does not undo a resize, and ends nothing."""
    async with serving(tmp_path, runtime(warm=1)) as provider:
        await provider.resize(KEY, 2)
        await filled(provider)
        before = {each.id for each in await provider.list()}
        await provider.apply([runtime(warm=1)])
        assert (await provider.status(KEY)).target == 2
        assert {each.id for each in await provider.list()} == before
        await provider.apply([replace(runtime(), pool=PoolSpec(size=1))])
        assert (await provider.status(KEY)).target == 2


async def test_key_set_is_seen_after_it_was_replaced(tmp_path: Path) -> None:
    """Keys rotate by renaming a new file over the old: a running sandbox reads the new one, and cannot write it."""
    (tmp_path / "keys").mkdir()
    async with serving(tmp_path, runtime()) as provider:
        sandbox = await provider.claim(KEY, SessionId("s1"))
        (tmp_path / "keys" / "new").write_text('{"keys": ["rotated"]}')
        os.replace(tmp_path / "keys" / "new", tmp_path / "keys" / "jwks.json")
        assert "rotated" in (await execute(sandbox, "cat", "/run/wakegate/keys/jwks.json"))["stdout"]
        assert (await execute(sandbox, "rm", "/run/wakegate/keys/jwks.json"))["exit_code"] != 0


async def test_missing_isolation_stops_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where bubblewrap is not to be had nothing starts, and the state directory is free for another try."""
    monkeypatch.setattr("gateway.provider.local.bwrap.find_bwrap", lambda: Path(shutil.which("false") or "/bin/false"))
    provider = LocalProvider(tmp_path / "state", tmp_path / "keys", SystemClock())
    with pytest.raises(SettingsError, match="--isolation process"):
        await provider.start()
    monkeypatch.undo()
    async with serving(tmp_path, runtime()):
        pass
