"""What the local engine measures of its sandboxes, real ones."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gateway.core.model import SandboxId, SessionId
from gateway.provider.local import consumption
from gateway.provider.local.cgroups import Cgroup
from tests.support.local_engine import KEY, execute, filled, runtime, serving

BURN = "import time\nwhile time.process_time() < 0.5: pass"


async def test_cpu_time_counts_from_the_claim_and_outlives_the_sandbox(tmp_path: Path) -> None:
    """Half a second of user code counts, processes that ended included; the last reading is there after the end."""
    async with serving(tmp_path, runtime(warm=1)) as provider:
        await filled(provider)
        sandbox = await provider.claim(KEY, SessionId("s1"))
        before = (await provider.usage([sandbox.id]))[sandbox.id]
        await execute(sandbox, "python3", "-c", BURN)
        after = (await provider.usage([sandbox.id]))[sandbox.id]
        await provider.release(sandbox.id)
        last = (await provider.usage([sandbox.id]))[sandbox.id]
        unknown = await provider.usage([SandboxId("sb-unknown")])

    assert before.cpu_s is not None
    assert after.cpu_s is not None
    assert last.cpu_s is not None
    assert after.cpu_s - before.cpu_s >= 0.4  # of 0.5: the kernel counts in ticks
    assert last.cpu_s >= after.cpu_s
    assert (after.memory_bytes or 0) > 5 << 20  # picod alone has more
    assert last.memory_bytes is None
    assert unknown == {}


async def test_memory_that_user_code_holds_is_measured(tmp_path: Path) -> None:
    """A file of 64 MiB in /dev/shm is memory of the sandbox."""
    async with serving(tmp_path, runtime()) as provider:
        sandbox = await provider.claim(KEY, SessionId("s1"))
        before = (await provider.usage([sandbox.id]))[sandbox.id].memory_bytes or 0
        await execute(sandbox, "sh", "-c", "head -c 67108864 /dev/zero > /dev/shm/held")
        after = (await provider.usage([sandbox.id]))[sandbox.id].memory_bytes or 0

    assert after - before > 48 << 20


@pytest.mark.parametrize(
    ("files", "cpu", "memory"),
    [
        (
            {
                "cpu.stat": "usage_usec 2500000\nuser_usec 1\n", "memory.current": "1000\n",
                "memory.stat": "anon 1\ninactive_file 300\n",
            },
            2.5, 700.0,
        ),
        (
            {
                "cpuacct.usage": "1500000000\n", "memory.usage_in_bytes": "1000\n",
                "memory.stat": "inactive_file 1\ntotal_inactive_file 400\n",
            },
            1.5, 600.0,
        ),
    ],
)  # fmt: skip
def test_both_versions_of_control_groups_are_read(
    tmp_path: Path, files: dict[str, str], cpu: float, memory: float
) -> None:
    """The files that the kernel has in version 2, and in version 1."""
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    group = Cgroup({"cpu": tmp_path, "memory": tmp_path})

    assert consumption.cpu_s(group, os.getpid()) == cpu
    assert consumption.memory_bytes(group) == memory


def test_without_a_group_processes_are_read() -> None:
    """CPU time comes from /proc then, and memory is left to the measurement of processes."""
    assert consumption.cpu_s(Cgroup({}), os.getpid()) > 0
    assert consumption.memory_bytes(Cgroup({})) is None
