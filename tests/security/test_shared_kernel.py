"""What the kernel grants to a user as a whole: one sandbox must not take it from the others, nor from the gateway."""

from __future__ import annotations

import asyncio
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.core.model import SessionId
from gateway.provider.local import namespace_limits, rlimits, seccomp, system_calls, terminals
from gateway.provider.local.bwrap import find_bwrap
from tests.support.local_engine import python, runtime, serving

A, B = SessionId("session-a"), SessionId("session-b")
WATCH = """
import ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
taken = 0
while libc.inotify_init1(0) >= 0:
    taken += 1
print(taken, errno.errorcode[ctypes.get_errno()])
"""
TERMINALS = """
import errno, os
taken = 0
try:
    while True:
        os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY)
        taken += 1
except OSError as error:
    print(taken, errno.errorcode[error.errno])
"""
SIGNALS = """
import ctypes, errno, os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGRTMIN])
libc = ctypes.CDLL(None, use_errno=True)
sent = 0
while libc.sigqueue(os.getpid(), int(signal.SIGRTMIN), ctypes.c_void_p(0)) == 0:
    sent += 1
print(sent, errno.errorcode[ctypes.get_errno()])
"""


async def test_sandbox_takes_its_own_share_of_file_watchers_only(tmp_path: Path) -> None:
    """One that opens all it can leaves another its own; the kernel counts both for one user outside."""
    async with serving(tmp_path, runtime()) as provider:
        if not provider.report.namespace_limits:
            pytest.skip("this kernel lets nobody set limits of a user namespace")
        greedy, other = await provider.claim(runtime().key, A), await provider.claim(runtime().key, B)
        own, shared = (
            namespace_limits.INOTIFY_INSTANCES,
            int(Path("/proc/sys/fs/inotify/max_user_instances").read_text()),
        )
        for sandbox in (greedy, other):
            taken, error = (await python(sandbox, WATCH)).split()
            assert 0 < int(taken) <= own < shared
            assert error == "EMFILE"
        assert "file watches: user namespace (16384 in 16 inotify instances)" in provider.report.summary()


async def test_sandbox_takes_its_own_share_of_pseudo_terminals_only(tmp_path: Path) -> None:
    """One process can have all that the machine has; the limit is the sandbox's, in whichever of its processes."""
    if not terminals.may_be_set():
        pytest.skip("the gateway is no root")
    async with serving(tmp_path, runtime()) as provider:
        greedy, other = await provider.claim(runtime().key, A), await provider.claim(runtime().key, B)
        for sandbox in (greedy, other):
            taken, error = (await python(sandbox, TERMINALS)).split()
            assert 200 < int(taken) <= terminals.MOST
            assert error == "ENOSPC"


async def test_sandbox_reserves_no_asynchronous_requests_of_all(tmp_path: Path) -> None:
    """One call of io_setup(2) could take all that the kernel has (fs.aio-max-nr); programs fall back without it."""
    number = system_calls.numbers(system_calls.MISSING, list(seccomp._EM).index(platform.machine()))["io_setup"]
    code = "import ctypes, errno; c = ctypes.CDLL(None, use_errno=True); v = ctypes.c_ulong(0)\n"
    code += f"print(c.syscall({number}, 65536, ctypes.byref(v)), errno.errorcode[ctypes.get_errno()])"
    async with serving(tmp_path, runtime()) as provider:
        sandbox = await provider.claim(runtime().key, A)
        assert (await python(sandbox, code)).split() == ["-1", "ENOSYS"]


async def test_sandbox_queues_its_own_share_of_signals_only(tmp_path: Path) -> None:
    """Real-time signals and timers that wait are counted for the user, too."""
    async with serving(tmp_path, runtime()) as provider:
        sandbox = await provider.claim(runtime().key, A)
        sent, error = (await python(sandbox, SIGNALS)).split()
        assert 0 < int(sent) <= rlimits.PENDING_SIGNALS
        assert error == "EAGAIN"


async def test_namespace_without_a_map_is_waited_for(tmp_path: Path) -> None:
    """bwrap makes its second namespace while the first is looked at; the limits are set once it can be entered."""
    bwrap = find_bwrap()
    if bwrap is None or not namespace_limits.may_be_set(bwrap):
        pytest.skip("this kernel lets nobody set limits of a user namespace")
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    unmapped = ["unshare", "--user", sys.executable, "-c", code]
    with subprocess.Popen(unmapped, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        setting = asyncio.create_task(namespace_limits.apply(bwrap, process.pid))
        done, _ = await asyncio.wait([setting], timeout=0.1)
        assert not done
        own = Path(f"/proc/{process.pid}")
        (own / "setgroups").write_text("deny")
        (own / "gid_map").write_text(f"1000 {os.getegid()} 1")
        (own / "uid_map").write_text(f"1000 {os.geteuid()} 1")
        await setting
        process.kill()
