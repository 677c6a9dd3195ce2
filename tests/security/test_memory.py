"""Memory of a sandbox that no control group limits: what passes a limit of each process by itself."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from gateway.core.model import Limits, SandboxId, SessionId
from gateway.provider.local import memory_watch
from gateway.provider.local.cgroups import CgroupTree
from gateway.provider.local.memory_watch import MAX_SOCKET_BYTES, MemoryWatch, Usage, Watched, over_limit
from tests.support.local_engine import execute, python, runtime, serving

MB = 1 << 20
A, B = SessionId("session-a"), SessionId("session-b")
ONE, TWO = SandboxId("sb-one"), SandboxId("sb-two")
LIMITS = Limits(memory=160 * MB, processes=64)

CHILDREN = """
import os, signal
children = set()
for _ in range(8):
    if not (child := os.fork()):
        kept = b"x" * (40 << 20)
        signal.pause()
    children.add(child)
ended, status = os.waitpid(-1, 0)
print(status)
for each in children - {ended}:
    os.kill(each, signal.SIGTERM)
"""
SHARED_MAPPING = """
import mmap, os, signal
kept = mmap.mmap(-1, 600 << 20)
for part in range(6):
    if not os.fork():
        for at in range(part * 100 << 20, (part + 1) * 100 << 20, 4096):
            kept[at] = 1
        signal.pause()
signal.pause()
"""
ONE_HOG = """
import mmap
kept = mmap.mmap(-1, 600 << 20)
for at in range(0, len(kept), 4096):
    kept[at] = 1
"""
FILES_IN_MEMORY = """
import signal
for number in range(1000):
    open(f"/tmp/{number}", "wb").write(bytes(1 << 20))
"""
SOCKET_BUFFERS = """
import signal, socket
kept = []
for _ in range(1500):
    pair = socket.socketpair()
    pair[0].setblocking(False)
    try:
        while True: pair[0].send(bytes(65536))
    except BlockingIOError:
        kept.append(pair)
signal.pause()
"""
UNMAPPED = """
import ctypes, errno, os
libc = ctypes.CDLL(None, use_errno=True)
libc.shmget.argtypes = ctypes.c_int, ctypes.c_size_t, ctypes.c_int
def shmget(size):
    return "made" if libc.shmget(0, size, 0o1600) >= 0 else errno.errorcode[ctypes.get_errno()]
try:
    os.memfd_create("hidden"); print("made")
except OSError as error:
    print(errno.errorcode[error.errno])
print(shmget(64 << 20), shmget(1 << 32), shmget(4096))
"""


@pytest.fixture
def without_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for an ordinary user to whom no control group was delegated."""
    monkeypatch.setattr(CgroupTree, "open", classmethod(lambda cls, owner: cls(owner, {})))


@pytest.mark.usefixtures("without_groups")
@pytest.mark.parametrize(
    "code",
    [SHARED_MAPPING, FILES_IN_MEMORY, SOCKET_BUFFERS],
    ids=["shared mapping", "files in memory", "socket buffers"],
)
async def test_whole_sandbox_is_held_to_its_memory_without_control_groups(tmp_path: Path, code: str) -> None:
    """Each mapping, file and buffer is small enough by itself; their sum ends the sandbox and no other."""
    async with serving(tmp_path, runtime(limits=LIMITS)) as provider:
        assert "memory: watched" in provider.report.summary()
        hog, neighbour = await provider.claim(runtime().key, A), await provider.claim(runtime().key, B)
        events = aiter(provider.watch())
        running = asyncio.create_task(execute(hog, "python3", "-c", code, timeout="40s"))
        async with asyncio.timeout(40):
            event = await anext(events)
        await asyncio.gather(running, return_exceptions=True)
        assert event.sandbox_id == hog.id
        assert "out of memory: it uses" in event.reason
        assert "its limit is 160 MiB" in event.reason
        assert await python(neighbour, "print(6 * 7)") == "42"
        assert await provider.keep(hog.id, A) == A


@pytest.mark.usefixtures("without_groups")
async def test_children_are_killed_and_their_sandbox_survives(tmp_path: Path) -> None:
    """Each is small enough by itself; those that hold what their sum is too much by end, and nothing else."""
    async with serving(tmp_path, runtime(limits=LIMITS)) as provider:
        sandbox = await provider.claim(runtime().key, A)
        answer = await execute(sandbox, "python3", "-c", CHILDREN, timeout="30s")
        assert (answer["exit_code"], answer["stdout"]) == (0, f"{signal.SIGKILL}\n")
        assert await python(sandbox, "print(6 * 7)") == "42"


@pytest.mark.usefixtures("without_groups")
async def test_hog_is_killed_and_its_sandbox_survives(tmp_path: Path) -> None:
    """Shared memory, which no resource limit counts, of one process: that one ends."""
    async with serving(tmp_path, runtime(limits=LIMITS)) as provider:
        sandbox = await provider.claim(runtime().key, A)
        endless = ONE_HOG + "while True: pass"
        answer = await execute(sandbox, "python3", "-c", endless, timeout="30s")
        assert answer["exit_code"] not in (0, 124)  # 124: its time was over
        assert await python(sandbox, "print(6 * 7)") == "42"


@pytest.mark.usefixtures("without_groups")
async def test_memory_of_no_process_is_refused_where_it_cannot_be_counted(tmp_path: Path) -> None:
    """Files in memory without a name, and large System V segments, which live without being mapped."""
    async with serving(tmp_path, runtime(limits=LIMITS)) as provider:
        if not provider.report.syscalls:
            pytest.skip("no filter for this machine")
        sandbox = await provider.claim(runtime().key, A)
        assert (await python(sandbox, UNMAPPED)).split() == ["ENOSYS", "ENOMEM", "ENOMEM", "made"]


async def test_runtime_without_limits_has_the_default_ones(tmp_path: Path) -> None:
    """The banner prints the values; where control groups can be written they are in force."""
    async with serving(tmp_path, runtime(limits=Limits())) as provider:
        summary = provider.report.summary()
        for value in ("1 GiB", "1 core)", "256", "5 GiB, 500000 files", "256 MiB"):
            assert value in summary
        if "memory: cgroup v1" not in summary:
            pytest.skip("no writable control group of version 1")
        sandbox = await provider.claim(runtime().key, A)
        group = provider._registry.alive()[0].group.folders
        assert (group["memory"] / "memory.limit_in_bytes").read_text().strip() == str(1 << 30)
        assert (group["cpu"] / "cpu.cfs_quota_us").read_text().strip() == "100000"
        assert (group["pids"] / "pids.max").read_text().strip() == "257"
        assert await python(sandbox, "print(6 * 7)") == "42"


def test_usage_sums_all_that_holds_memory() -> None:
    """Sockets count as much as their buffers may hold, beyond the few that any program has."""
    few, many = Usage({7: 40 * MB, 8: 10 * MB}, 30 * MB, 64, 10 * MB), Usage({9: 60 * MB}, 30 * MB, 64 + 100)
    assert few.total == 90 * MB
    assert many.total == 90 * MB + 100 * MAX_SOCKET_BYTES
    assert set(over_limit({ONE: few, TWO: many}, {ONE: 100 * MB, TWO: 100 * MB})) == {TWO}


def test_largest_processes_are_killed_where_that_suffices() -> None:
    """As the kernel's OOM killer does; only where processes are not the cause the sandbox ends."""
    private = {7: 35 * MB, 8: 40 * MB, 9: 5 * MB}
    usage = Usage(private, 30 * MB, 0, 10 * MB, private)
    assert over_limit({ONE: usage}, {ONE: 80 * MB})[ONE].victims == [8]
    assert over_limit({ONE: usage}, {ONE: 79 * MB})[ONE].victims == [8, 7]
    assert over_limit({ONE: usage}, {ONE: 39 * MB})[ONE].victims == ()
    assert over_limit({ONE: usage}, {ONE: 120 * MB}) == {}
    shared = Usage(private, 30 * MB, 0, 10 * MB, {7: 5 * MB, 8: 5 * MB, 9: 5 * MB})
    assert over_limit({ONE: shared}, {ONE: 80 * MB})[ONE].victims == [8]
    assert over_limit({ONE: shared}, {ONE: 79 * MB})[ONE].victims == (), "the end of some leaves the mapping"


def test_sandbox_ends_where_killing_several_processes_does_not_help(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is measured again at the next poll; one that keeps to its limit from then on goes on."""
    many = Usage({7: 40 * MB, 8: 40 * MB}, 0, 0, 0, {7: 40 * MB, 8: 40 * MB})
    usages = {1: many, 2: many}
    killed: list[tuple[Sequence[int], int]] = []
    monkeypatch.setattr(memory_watch, "available_memory", lambda: 1000 * MB)
    monkeypatch.setattr(memory_watch, "measure", usages.__getitem__)
    monkeypatch.setattr(memory_watch, "_kill", lambda victims, pid: killed.append((victims, pid)))
    watch, watched = MemoryWatch(), [Watched(ONE, 1, 30 * MB), Watched(TWO, 2, 30 * MB)]
    assert watch.measure(watched, 0.0) == {}
    assert killed == [([7, 8], 1), ([7, 8], 2)]
    usages[2] = Usage({}, 0, 0)
    for _ in range(2):
        assert watch.due(watched, 1000 * MB, 0.2)
        assert watch.measure(watched, 0.2) == {}
    usages[2] = many
    assert set(watch.measure(watched, 0.4)) == {ONE}
    assert len(killed) == 5


def test_measurement_is_due_when_memory_was_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading all processes costs: a step of the machine's memory, or some seconds, must have gone by."""
    monkeypatch.setattr(memory_watch, "available_memory", lambda: 1000 * MB)
    watch, watched = MemoryWatch(), [Watched(ONE, 1 << 30, 80 * MB)]
    assert not watch.due([], 1000 * MB, 0.0)
    assert watch.due(watched, 1000 * MB, 0.0)
    assert watch.measure(watched, 0.0) == {}
    assert not watch.due(watched, 991 * MB, 1.0)
    assert watch.due(watched, 990 * MB, 1.0)
    assert not watch.due(watched, 1100 * MB, 2.0)  # much was freed: what is taken counts from there
    assert watch.due(watched, 1090 * MB, 3.0)
    assert watch.due(watched, 1100 * MB, 5.0)
