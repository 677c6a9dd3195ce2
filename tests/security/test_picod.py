"""What of picod the code that it runs cannot take, end, limit or hide from it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.core.model import Sandbox, SessionId
from gateway.provider.local import LocalProvider
from tests.support.local_engine import execute, python, runtime, serving

SESSION = SessionId("session-a")

CALLS = """
import ctypes, errno, json, os, resource, signal
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p
picod = os.getppid()
pidfd = os.pidfd_open(picod)
def result(value):
    return errno.errorcode[ctypes.get_errno()] if value < 0 else "taken"
def tried(call, *arguments):
    try:
        call(*arguments)
        return "taken"
    except OSError as error:
        return errno.errorcode[error.errno]
def opened(path, flags=os.O_RDONLY):
    return tried(lambda: os.close(os.open(path, flags)))
def take_descriptor():
    return result(libc.syscall(438, pidfd, 3, 0))
def trace():
    return result(libc.ptrace(16, picod, None, None))
def limit():
    return tried(resource.prlimit, picod, resource.RLIMIT_NOFILE, (5, 5))
"""
TAKE = (
    CALLS
    + """
buffer = ctypes.create_string_buffer(64)
class Vector(ctypes.Structure):
    _fields_ = ("base", ctypes.c_void_p), ("size", ctypes.c_size_t)
local, remote = Vector(ctypes.addressof(buffer), 64), Vector(0x400000, 64)
answers = {
    "pidfd_getfd": take_descriptor(),
    "process_vm_readv": result(libc.process_vm_readv(picod, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)),
    "ptrace": trace(),
    "mem": opened(f"/proc/{picod}/mem"),
    "environ": opened(f"/proc/{picod}/environ"),
    "fd": opened(f"/proc/{picod}/fd/0"),
}
print(open(f"/proc/{picod}/cmdline").read().replace(chr(0), " "))
print(json.dumps(answers))
"""
)
SIGNAL = (
    CALLS
    + """
numbers = sorted(set(signal.Signals) - {signal.SIGRTMIN, signal.SIGRTMAX})
print(json.dumps({
    "kill": sorted({tried(os.kill, picod, number) for number in (0, *numbers)}),
    "pidfd": tried(signal.pidfd_send_signal, pidfd, signal.SIGKILL),
    "thread": result(libc.syscall(200, picod, signal.SIGKILL)) if os.uname().machine == "x86_64" else "EPERM",
    "limit": limit(),
    "priority": tried(os.setpriority, os.PRIO_PROCESS, picod, 19),
    "affinity": tried(os.sched_setaffinity, picod, {0}),
    "code": opened("/opt/wakegate/picod/app.py", os.O_WRONLY),
    "its folder": tried(os.mkdir, "/opt/wakegate/picod/json"),
    "keys": tried(os.unlink, "/run/wakegate/keys/jwks.json"),
}))
"""
)
# Each of these is refused to another user. In the moment in which picod starts a command it has user code's user.
RACE = (
    CALLS
    + """
import time
open("begun", "w").close()
taken, end = set(), time.monotonic() + 60
while time.monotonic() < end and not os.path.exists("enough"):
    for name, call in (("descriptor", take_descriptor), ("trace", trace), ("limit", limit)):
        if call() == "taken":
            taken.add(name)
    for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        tried(os.kill, picod, number)
print(json.dumps(sorted(taken)))
"""
)


def apart(provider: LocalProvider) -> None:
    """Skip the test where picod has the user of user code for want of something that the machine lacks.

    A sandbox that was begun so and failed is no such reason, but a fault in how it is begun.
    """
    users = provider.report.users
    if "picod has another" not in users:
        lacks = ("all sandboxes share", "numbers of system calls", "could not be turned off", "fs.suid_dumpable")
        assert any(each in users for each in lacks), users
        pytest.skip(users)


async def call(sandbox: Sandbox, method: str, path: str, **fields: Any) -> httpx.Response:
    """One request to picod."""
    async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=sandbox.endpoint.uds), timeout=40.0) as client:
        return (await client.request(method, f"http://picod{path}", **fields)).raise_for_status()


@pytest.mark.parametrize("users", ["auto", "shared"])
async def test_picod_cannot_be_inspected(tmp_path: Path, users: str) -> None:
    """Its descriptors, memory, environment and registers are closed to the code that it runs."""
    async with serving(tmp_path, runtime(), sandbox_uids=users) as provider:
        sandbox = await provider.claim(runtime().key, SESSION)
        command, answers = (await python(sandbox, TAKE)).splitlines()
        assert "-m picod" in command
        assert json.loads(answers) == {
            "pidfd_getfd": "EPERM",
            "process_vm_readv": "EPERM",
            "ptrace": "EPERM",
            "mem": "EACCES",
            "environ": "EACCES",
            "fd": "EACCES",
        }


@pytest.mark.parametrize("users", ["auto", "shared"])
async def test_code_that_kills_all_does_not_end_picod(tmp_path: Path, users: str) -> None:
    """Whoever's user it has, picod is not ended or stopped by signals of the code, and the session goes on."""
    async with serving(tmp_path, runtime(), sandbox_uids=users) as provider:
        sandbox = await provider.claim(runtime().key, SESSION)
        for number in ("KILL", "STOP", "TERM", "INT", "HUP", "QUIT", "SEGV"):
            await execute(sandbox, "sh", "-c", f"kill -{number} 1; kill -{number} -1; exit 0")
            assert (await execute(sandbox, "echo", "well"))["stdout"] == "well\n"


async def test_code_may_neither_signal_nor_limit_picod(tmp_path: Path) -> None:
    """picod has another user: what a process may do to others of its user is refused, and so are picod's folders."""
    async with serving(tmp_path, runtime()) as provider:
        apart(provider)
        sandbox = await provider.claim(runtime().key, SESSION)
        assert json.loads(await python(sandbox, SIGNAL)) == {
            "kill": ["EPERM"],
            "pidfd": "EPERM",
            "thread": "EPERM",
            "limit": "EPERM",
            "priority": "EPERM",
            "affinity": "EPERM",
            "code": "EROFS",
            "its folder": "EROFS",
            "keys": "EROFS",
        }
        rights = await execute(sandbox, "grep", "-hE", "^(Cap|Uid|Gid)", "/proc/self/status")
        assert set(rights["stdout"].split()[1::2]) >= {"0000000000000000"}
        assert "1000\t1000\t1000\t1000" in rights["stdout"]
        assert (await execute(sandbox, "unshare", "-U", "true"))["exit_code"] != 0


async def test_nothing_is_taken_while_commands_start(tmp_path: Path) -> None:
    """Code that tries without a pause gets nothing in the moments in which picod starts commands as user code."""
    async with serving(tmp_path, runtime()) as provider:
        apart(provider)
        sandbox = await provider.claim(runtime().key, SESSION)
        attack = asyncio.create_task(python(sandbox, RACE, timeout="70s"))
        while (await execute(sandbox, "test", "-e", "begun"))["exit_code"]:
            assert not attack.done()
        read = ("grep", "open files", "/proc/1/limits")  # another of picod's changes when it starts a command
        before = (await execute(sandbox, *read))["stdout"]
        for _ in range(150):
            assert (await execute(sandbox, "true"))["exit_code"] == 0
        assert (await execute(sandbox, *read))["stdout"] == before
        await execute(sandbox, "touch", "enough")
        assert json.loads(await attack) == []


async def test_what_picod_makes_belongs_to_the_code(tmp_path: Path) -> None:
    """Files, folders and unpacked archives are user code's, which it closes to all others and which picod still reads.

    So is a terminal.
    """
    async with serving(tmp_path, runtime()) as provider:
        apart(provider)
        sandbox = await provider.claim(runtime().key, SESSION)
        await call(sandbox, "PUT", "/api/files/folder/small", content=b"small")
        await call(sandbox, "PUT", "/api/files/folder/large", content=bytes(3 << 20))  # by another thread
        packed = await call(sandbox, "GET", "/api/fs/archive", params={"path": "folder"})
        await call(sandbox, "PUT", "/api/fs/archive", params={"path": "copy"}, content=packed.content)
        made = await execute(sandbox, "sh", "-c", "find . -mindepth 1 -path ./.wakegate -prune -o -printf '%U %p\\n'")
        owners = dict(line.split()[::-1] for line in made["stdout"].splitlines())
        assert {"./folder", "./folder/small", "./folder/large", "./copy"} <= set(owners)
        assert set(owners.values()) == {"1000"}

        tool = "printf '#!/bin/sh\\necho from the tool\\n' > folder/tool; chmod 700 folder folder/tool"
        assert (await execute(sandbox, "sh", "-c", tool))["exit_code"] == 0
        assert (await call(sandbox, "GET", "/api/files/folder/small")).content == b"small"
        tree = await call(sandbox, "GET", "/api/fs/tree", params={"path": "folder", "depth": "2"})
        assert "permission denied" not in tree.text
        by_path = {"command": ["tool"], "env": {"PATH": "/workspace/folder"}}
        assert (await call(sandbox, "POST", "/api/execute", json=by_path)).json()["stdout"] == "from the tool\n"

        ran = await execute(sandbox, "python3", "-c", "import pty, os; pty.spawn(['sh', '-c', 'stat -c %u $(tty)'])")
        assert ran["stdout"].split() == ["1000"]
