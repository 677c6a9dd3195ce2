"""What the kernel kills when a sandbox is over its memory: what user code started, not picod."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from gateway.core.model import Limits, Sandbox, SessionId
from gateway.provider.local import Isolation, LocalProvider, process_tree
from tests.support.local_engine import execute, python, runtime, serving
from tests.support.waiting import eventually

MB = 1 << 20
A = SessionId("session-a")
# Each is smaller than picod, which the kernel would choose by size; together they are over the limit.
MANY_SMALL = """
import os, signal
for _ in range(200):
    if not os.fork():
        kept = b"x" * (4 << 20)
        signal.pause()
signal.pause()
"""
OWN = "print(open('/proc/self/oom_score_adj').read())"


def values(provider: LocalProvider) -> list[int]:
    """oom_score_adj of the only sandbox's own processes, the outermost left out."""
    (sandbox,) = provider._registry.alive()
    _, *inside = process_tree.descendants(sandbox.process.pid)
    return [int(Path(f"/proc/{pid}/oom_score_adj").read_text()) for pid in inside]


def left(provider: LocalProvider) -> list[int]:
    """What user code started and still runs."""
    (sandbox,) = provider._registry.alive()
    found = []
    for pid in process_tree.descendants(sandbox.process.pid):
        with suppress(OSError):
            if Path(f"/proc/{pid}/oom_score_adj").read_text() == "1000\n":
                found.append(pid)
    return found


async def read(sandbox: Sandbox, name: str) -> str:
    """A file, which picod reads without starting a process."""
    async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=sandbox.endpoint.uds), timeout=40.0) as client:
        reply = await client.get(f"http://picod/api/files/{name}")
    assert reply.status_code == 200, reply.text
    return reply.text


@pytest.mark.parametrize(
    "start", [("python3", "-c"), ("/bin/sh", "-c", 'exec python3 -c "$0"')], ids=["python", "shell"]
)
async def test_many_small_processes_over_the_memory_limit_cost_themselves_only(
    tmp_path: Path, start: tuple[str, ...]
) -> None:
    """The sandbox stays, with its files, and takes the next command once they have gone.

    Before that it starts none here: while it starts one picod is no better off than they are, and larger than each.
    """
    async with serving(tmp_path, runtime(limits=Limits(memory=192 * MB))) as provider:
        if "memory: cgroup" not in provider.report.summary():
            pytest.skip("no writable control group for memory")
        sandbox = await provider.claim(runtime().key, A)
        await python(sandbox, "open('note', 'w').write('kept')")
        answer = await execute(sandbox, *start, MANY_SMALL, timeout="3s")
        assert answer["exit_code"] in (124, 137), answer
        (alive,) = provider._registry.alive()
        assert alive.group.oom_kills() > 0, "the limit was never met"
        assert await read(sandbox, "note") == "kept"
        for pid in left(provider):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await eventually(lambda: not left(provider), "what was left of them has gone")
        assert await python(sandbox, "print(open('note').read())") == "kept"
        assert values(provider) == [500]


async def test_picod_is_spared_and_what_it_starts_is_not(tmp_path: Path) -> None:
    """The first process of its namespace and picod have half of the limit ahead of everything of user code."""
    async with serving(tmp_path, runtime()) as provider:
        sandbox = await provider.claim(runtime().key, A)
        assert values(provider) == [500]
        assert await python(sandbox, OWN) == "1000"
        shell = await execute(sandbox, "sh", "-c", "(cat /proc/self/oom_score_adj)")
        assert shell["stdout"] == "1000\n"
        assert values(provider) == [500]


@pytest.mark.parametrize("isolation", ["process"])
async def test_picod_raises_what_it_starts_by_itself_where_it_may(tmp_path: Path, isolation: Isolation) -> None:
    """Without isolation, and in a pod, its /proc can be written."""
    async with serving(tmp_path, runtime(), isolation=isolation) as provider:
        sandbox = await provider.claim(runtime().key, A)
        assert await python(sandbox, OWN) == "1000"
        (own,) = provider._registry.alive()
        assert int(Path(f"/proc/{own.process.pid}/oom_score_adj").read_text()) == 500
