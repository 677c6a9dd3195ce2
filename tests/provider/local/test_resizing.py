"""A real sandbox gets other limits while it runs, and its programs feel them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gateway.core.errors import ResizeError, ResizeUnsupportedError, SandboxGoneError
from gateway.core.model import Limits, Resources, SandboxId, SessionId
from gateway.provider.local import cgroups
from gateway.provider.local.cgroups import CONTROLLERS, Cgroup, CgroupTree, Hierarchy
from tests.support.local_engine import execute, python, runtime, serving

SESSION = SessionId("session-a")
MIB = 1 << 20
SMALL = Limits(memory=256 * MIB, cpus=1.0, processes=24)
RUNTIME = runtime(limits=SMALL, max_resources=Resources(memory=1024 * MIB, cpus=2.0, processes=200))

TAKE = "import sys; held = bytearray(int(sys.argv[1]) << 20); print(len(held) >> 20)"
SPAWN = """
import subprocess, sys
running = []
try:
    for _ in range(int(sys.argv[1])):
        running.append(subprocess.Popen(["sleep", "60"]))
except OSError as error:
    print(type(error).__name__)
print(len(running))
for each in running:
    each.kill()
"""


def needs_groups() -> None:
    probe = CgroupTree.open("test-resizing")
    try:
        if missing := [name for name in CONTROLLERS if name not in probe.in_force]:
            pytest.skip(f"this machine lets us write no control groups of {', '.join(missing)}")
    finally:
        probe.close()


async def test_sandbox_that_runs_gets_more_and_less(tmp_path: Path) -> None:
    """What its limits forbade works after it has grown, in the same sandbox, and is forbidden again."""
    needs_groups()
    async with serving(tmp_path, RUNTIME) as provider:
        sandbox = await provider.claim(RUNTIME.key, SESSION)
        assert (await execute(sandbox, "python3", "-c", TAKE, "500"))["exit_code"] != 0
        assert "BlockingIOError" in await python(sandbox, SPAWN, "60")

        await provider.resize_sandbox(sandbox.id, Limits(memory=1024 * MIB, cpus=2.0, processes=200))
        assert await python(sandbox, TAKE, "500") == "500"
        assert await python(sandbox, SPAWN, "60") == "60"

        await provider.resize_sandbox(sandbox.id, SMALL)
        assert (await execute(sandbox, "python3", "-c", TAKE, "500"))["exit_code"] != 0
        assert "BlockingIOError" in await python(sandbox, SPAWN, "60")


async def test_sandbox_is_not_made_smaller_than_what_it_uses(tmp_path: Path) -> None:
    """The kernel would kill its programs; nothing changes, and it says what to do."""
    needs_groups()
    async with serving(tmp_path, RUNTIME) as provider:
        sandbox = await provider.claim(RUNTIME.key, SESSION)
        await provider.resize_sandbox(sandbox.id, replace(SMALL, memory=1024 * MIB))
        await python(sandbox, "open('/tmp/held', 'wb').write(b'x' * (240 << 20))")
        with pytest.raises(ResizeError, match=r"memory: the sandbox uses 2.*too much for 256 MiB.*hibernate"):
            await provider.resize_sandbox(sandbox.id, replace(SMALL, processes=100))
        assert "BlockingIOError" in await python(sandbox, SPAWN, "60")
        assert await python(sandbox, "import os; print(os.stat('/tmp/held').st_size >> 20)") == "240"


async def test_size_is_fixed_where_no_control_group_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The refusal names what is missing, and the way out."""
    monkeypatch.setattr(CgroupTree, "open", classmethod(lambda cls, owner: cls(owner, {})))
    async with serving(tmp_path, RUNTIME) as provider:
        sandbox = await provider.claim(RUNTIME.key, SESSION)
        with pytest.raises(ResizeUnsupportedError, match=r"memory, processes: .*control group.*Delegate=yes"):
            await provider.resize_sandbox(sandbox.id, replace(SMALL, memory=512 * MIB, processes=100))
        with pytest.raises(SandboxGoneError):
            await provider.resize_sandbox(SandboxId("sb-unknown"), SMALL)


class FullGroups(CgroupTree):
    """Groups whose CPU refuses what it is given."""

    def _change(self, controller: str, folder: Path, before: Limits, after: Limits) -> None:
        if controller == "cpu" and (after.cpus or 0) > 1:
            raise OSError(22, "Invalid argument")
        super()._change(controller, folder, before, after)


def test_group_that_takes_a_part_only_is_as_before(tmp_path: Path) -> None:
    """All of it or nothing: what was written before the refusal is written back."""
    for name in ("pids", "cpu"):
        (tmp_path / name / "wakegate-x" / "sb-1").mkdir(parents=True)
    pids = tmp_path / "pids" / "wakegate-x" / "sb-1"
    (pids / "pids.max").write_text("25")
    for name in ("cpu.cfs_period_us", "cpu.cfs_quota_us"):
        (tmp_path / "cpu" / "wakegate-x" / "sb-1" / name).write_text("")
    tree = FullGroups("x", {name: Hierarchy(1, tmp_path / name) for name in ("pids", "cpu")})
    group = Cgroup({"pids": pids, "cpu": tmp_path / "cpu" / "wakegate-x" / "sb-1"})
    with pytest.raises(OSError, match="Invalid"):
        tree.resize(group, SMALL, replace(SMALL, processes=100, cpus=2.0))
    assert (pids / "pids.max").read_text()[:2] == "25"


def fake_tree(folder: Path, version: int) -> CgroupTree:
    tree = CgroupTree("x", {})
    tree.in_force = dict.fromkeys(CONTROLLERS, f"cgroup v{version}")
    for name in ("memory.max", "memory.swap.max", "cpu.max", "pids.max") if version == 2 else (
        "memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "cpu.cfs_period_us", "cpu.cfs_quota_us", "pids.max",
    ):  # fmt: skip
        (folder / name).write_text("")
    return tree


@pytest.mark.parametrize("version", [1, 2])
def test_limit_is_written_in_the_order_that_the_kernel_takes(
    tmp_path: Path, version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Version 1 refuses memory above memory and swap: to grow, that is written first; to shrink, last."""
    written: list[tuple[str, str]] = []
    tree = fake_tree(tmp_path, version)
    monkeypatch.setattr(cgroups, "_write", lambda path, text: written.append((path.name, text)))
    group = Cgroup(dict.fromkeys(CONTROLLERS, tmp_path))
    large = replace(SMALL, memory=1024 * MIB, cpus=None)
    for before, after in ((SMALL, large), (large, SMALL), (SMALL, replace(SMALL, memory=None))):
        tree.resize(group, before, after)
    memory = [(name, text) for name, text in written if name.startswith("memory")]
    cpu = [text for name, text in written if name in ("cpu.max", "cpu.cfs_quota_us")]
    if version == 2:
        assert [text for name, text in memory if name == "memory.max"] == [str(1024 * MIB), str(256 * MIB), "max"]
        assert cpu == ["max 100000", "100000 100000", "100000 100000"]
        return
    both = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes")
    assert [name for name, text in memory if text == str(1024 * MIB)] == [both[1], *both]
    assert [name for name, text in memory if text == str(256 * MIB)] == [*both]
    assert memory[-2:] == [(both[1], "-1"), (both[0], "-1")]
    assert cpu == ["-1", "100000", "100000"]
