"""Hostile code in a real sandbox: what it must not see, reach, write or use up."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from gateway.core.model import Limits, SessionId
from gateway.provider.local import process_tree
from tests.support.local_engine import ROOT, execute, python, runtime, serving

A, B = SessionId("session-a"), SessionId("session-b")


async def test_sandbox_cannot_see_the_hosts_files(tmp_path: Path) -> None:
    """Files of the host, of its users, of the checkout and of the state directory do not exist inside."""
    (tmp_path / "canary").write_text("secret")
    hidden = [
        str(tmp_path / "canary"),
        str(tmp_path / "state"),
        "/etc/shadow",
        "/etc/hostname",
        "/boot",
        "/sys/class",
    ]
    hidden += [str(ROOT / "gateway"), str(ROOT / "tests"), str(ROOT / ".git"), "/root/.bashrc", "/root/.profile"]
    hidden = [path for path in hidden if path != f"/{ROOT.parts[1]}"]  # the way to the checkout's own interpreter shows
    assert os.path.exists(hidden[0])
    async with serving(tmp_path, runtime()) as provider:
        sandbox = await provider.claim(runtime().key, A)
        # .matplotlib: picod's list of fonts, where the environment has one.
        code = """
import os, sys
print([path for path in sys.argv[1:] if os.path.lexists(path)], sorted({*os.listdir("/tmp")} - {".matplotlib"}))
print(sorted(os.listdir("/home")))
"""
        # A checkout below /tmp has its interpreter bound at its own path there, so the way to it shows.
        way = [ROOT.parts[2]] if ROOT.parts[1] == "tmp" else []
        homes = sorted({"user", *([ROOT.parts[2]] if ROOT.parts[1] == "home" else [])})
        assert await python(sandbox, code, *hidden) == f"[] {way}\n{homes}"


async def test_sandbox_cannot_see_the_hosts_processes(tmp_path: Path) -> None:
    """Its /proc holds its own processes only, and none of their arguments shows where its state is on the host."""
    outside = subprocess.Popen(["sleep", "4321.5"])
    try:
        async with serving(tmp_path, runtime()) as provider:
            sandbox = await provider.claim(runtime().key, A)
            code = """
import os
for pid in filter(str.isdigit, os.listdir("/proc")):
    print(repr(open(f"/proc/{pid}/cmdline").read()))
"""
            seen = await python(sandbox, code)
            assert "picod" in seen
            assert "4321.5" not in seen
            assert str(tmp_path) not in seen
            assert len(seen.splitlines()) == 2  # picod, this command
    finally:
        outside.kill()
        outside.wait()


async def test_sandbox_has_no_network(tmp_path: Path) -> None:
    """It has a loopback of its own: neither a TCP port nor an abstract socket of the host can be reached."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind("\0wakegate-test-abstract")
        abstract.listen()
        async with serving(tmp_path, runtime()) as provider:
            sandbox = await provider.claim(runtime().key, A)
            code = """
import socket, sys
def tries(family, address):
    with socket.socket(family) as s:
        s.settimeout(2)
        try:
            s.connect(address)
            return "reached"
        except OSError as error:
            return type(error).__name__
print([name for _, name in socket.if_nameindex()])
print(tries(socket.AF_INET, ("127.0.0.1", int(sys.argv[1]))))
print(len(open("/proc/net/route").readlines()) - 1, "routes")
print(tries(socket.AF_UNIX, chr(0) + "wakegate-test-abstract"))
"""
            lines = (await python(sandbox, code, str(listener.getsockname()[1]))).splitlines()
            assert lines == ["['lo']", "ConnectionRefusedError", "0 routes", "ConnectionRefusedError"]


async def test_sandbox_cannot_reach_another_sandbox(tmp_path: Path) -> None:
    """Neither the socket nor the workspace of a neighbour can be found from inside."""
    async with serving(tmp_path, runtime()) as provider:
        one, other = await provider.claim(runtime().key, A), await provider.claim(runtime().key, B)
        await execute(one, "sh", "-c", "echo mine > /workspace/needle-71")
        code = """
import os, stat, sys
for top, folders, files in os.walk("/"):
    if top == "/":
        folders[:] = [name for name in folders if name not in ("proc", "usr")]
    for name in files:
        path = os.path.join(top, name)
        if "needle" in name or stat.S_ISSOCK(os.lstat(path).st_mode):
            print(path)
print(os.path.exists(sys.argv[1]))
"""
        assert await python(other, code, str(one.endpoint.uds)) == "False"
        assert (await execute(one, "cat", "/workspace/needle-71"))["stdout"] == "mine\n"


async def test_sandbox_can_write_its_workspace_and_temporary_folders_only(tmp_path: Path) -> None:
    """Every other mount is read-only, the root and picod's code included."""
    async with serving(tmp_path, runtime()) as provider:
        sandbox = await provider.claim(runtime().key, A)
        code = """
import os
for line in open("/proc/self/mountinfo"):
    fields = line.split()
    if "ro" not in fields[5].split(","):
        print(fields[4])
for folder in ("/", "/etc", "/usr", "/usr/local/bin", "/dev", "/var", "/run/wakegate/keys", "/opt/wakegate/picod"):
    try:
        os.close(os.open(folder + "/written", os.O_CREAT | os.O_WRONLY))
        print("wrote in", folder)
    except OSError:
        pass
"""
        writable = set((await python(sandbox, code)).splitlines())
        devices = {f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "tty", "pts", "console")}
        assert {"/workspace", "/tmp", "/dev/shm"} <= writable
        assert writable - devices == {"/workspace", "/home/user", "/tmp", "/dev/shm"}


async def test_sandbox_cannot_write_kernel_settings(tmp_path: Path) -> None:
    """No regular file of /proc outside its own processes may be written, even when root runs the gateway.

    Asked with access(2): a test that tried for real would change the machine in the moment it fails.
    """
    async with serving(tmp_path, runtime()) as provider:
        sandbox = await provider.claim(runtime().key, A)
        code = """
import os, stat
seen = 0
for top, folders, files in os.walk("/proc"):
    if top == "/proc":
        folders[:] = [name for name in folders if not name.isdigit() and name not in ("self", "thread-self")]
    for name in files:
        path = os.path.join(top, name)
        seen += 1
        if stat.S_ISREG(os.lstat(path).st_mode) and os.access(path, os.W_OK):
            print(path)
print(seen > 100)
"""
        assert await python(sandbox, code) == "True"


async def test_sandbox_sees_no_devices_or_drivers_of_the_machine(tmp_path: Path) -> None:
    """Disks, buses, interrupts and file systems of the host are none of its business: empty where they are there."""
    async with serving(tmp_path, runtime()) as provider:
        sandbox = await provider.claim(runtime().key, A)
        code = """
import os
for name in ("acpi", "asound", "bus", "driver", "fs", "irq", "scsi"):
    if os.path.isdir("/proc/" + name) and os.listdir("/proc/" + name):
        print(name)
for name in ("interrupts", "iomem", "ioports", "pagetypeinfo", "kcore", "keys"):
    try:
        print(name, open("/proc/" + name, "rb").read(1))
    except OSError:
        pass  # a device in its place, which may not be opened
"""
        assert await python(sandbox, code) == ""


async def test_sandbox_sees_of_sys_how_many_processors_there_are(tmp_path: Path) -> None:
    """lscpu works, and nothing else of the machine's devices is there, nor can be written."""
    async with serving(tmp_path, runtime()) as provider:
        sandbox = await provider.claim(runtime().key, A)
        code = """
import os
for top, _, files in os.walk("/sys"):
    for name in files:
        print(name, open(os.path.join(top, name)).read().strip(), os.access(os.path.join(top, name), os.W_OK))
"""
        seen = {line.split()[0]: line.split()[1:] for line in (await python(sandbox, code)).splitlines()}
        names = [name for name in ("possible", "present", "online") if Path("/sys/devices/system/cpu", name).exists()]
        assert seen == {name: [Path("/sys/devices/system/cpu", name).read_text().strip(), "False"] for name in names}
        if names and shutil.which("lscpu"):
            assert "CPU(s):" in (await execute(sandbox, "lscpu"))["stdout"]


async def test_sandbox_cannot_mount_or_make_namespaces(tmp_path: Path) -> None:
    """It holds no capability and cannot get one by a user namespace of its own."""
    async with serving(tmp_path, runtime()) as provider:
        assert not any("nested" in warning for warning in provider.report.warnings)
        sandbox = await provider.claim(runtime().key, A)
        code = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
print([line.split()[1] for line in open("/proc/self/status") if line.startswith("Cap")])
print(libc.unshare(0x10000000), libc.unshare(0x00020000), libc.mount(b"x", b"/workspace", b"tmpfs", 0, None))
"""
        lines = (await python(sandbox, code)).splitlines()
        assert lines == [str(["0" * 16] * 5), "-1 -1 -1"]


async def test_environment_of_the_gateway_does_not_leak_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands see a fixed set of variables and the runtime's; no process inside holds one of the gateway's."""
    monkeypatch.setenv("WG_TEST_SECRET", "s3cr3t-in-environment")
    async with serving(tmp_path, runtime(environment={"GREETING": "hello"})) as provider:
        sandbox = await provider.claim(runtime().key, A)
        code = """
import glob, json, os
def read(path):
    try:
        return open(path, "rb").read()
    except PermissionError:
        return b""  # picod's and its parent's: test_picod_cannot_be_inspected
every = b"".join(map(read, glob.glob("/proc/[0-9]*/environ")))
print(json.dumps([dict(os.environ), b"s3cr3t" in every]))
"""
        environment, leaked = json.loads(await python(sandbox, code))
        path = environment.pop("PATH")
        assert path.split(":")[0].endswith("/bin")
        # Where the environment of user code brings a list of fonts along.
        assert environment.pop("MPLCONFIGDIR", "/tmp/.matplotlib") == "/tmp/.matplotlib"
        assert environment == {
            "HOME": "/workspace",
            "LANG": "C.UTF-8",
            "TMPDIR": "/tmp",
            "USER": "sandbox",
            "OMP_NUM_THREADS": "1",  # of numerical libraries: the cores of the runtime's limit
            "GREETING": "hello",
        }
        assert not leaked


async def test_user_code_gets_a_python_of_its_own(tmp_path: Path) -> None:
    """`python3` is the sandbox environment, not the gateway's: its packages are not importable."""
    async with serving(tmp_path, runtime()) as provider:
        sandbox = await provider.claim(runtime().key, A)
        code = (
            "import sys, importlib.util as u; print(sys.prefix); print(u.find_spec('httptools'), u.find_spec('picod'))"
        )
        prefix, modules = (await python(sandbox, code)).splitlines()
        assert prefix == str(ROOT / ".venv-sandbox")
        assert modules == "None None"


async def test_fork_bomb_leaves_neighbours_alone(tmp_path: Path) -> None:
    """The bomb meets its limit, the neighbour answers meanwhile, and when the command ends so does the bomb."""
    async with serving(tmp_path, runtime(limits=Limits(processes=40))) as provider:
        if provider.report.limits["processes"] == "not enforced":
            pytest.skip("this machine limits no process counts")
        bomber, neighbour = await provider.claim(runtime().key, A), await provider.claim(runtime().key, B)
        bomb = asyncio.create_task(execute(bomber, "bash", "-c", "b() { b | b & sleep 9; }; b", timeout="2s"))
        for _ in range(5):
            assert (await execute(neighbour, "echo", "well"))["stdout"] == "well\n"
        assert (await bomb)["exit_code"] != 0
        count = "import os; print(sum(name.isdigit() for name in os.listdir('/proc')))"
        assert int(await python(neighbour, count)) == 2


async def test_facts_of_the_hosts_kernel_are_masked(tmp_path: Path) -> None:
    """Its parameters, its configuration, its symbols and its memory read as empty or not at all."""
    names = ("cmdline", "config.gz", "kallsyms", "kcore")
    code = (
        f"for name in {names}:\n"
        "    try: print(len(open('/proc/' + name, 'rb').read(64)))\n"
        "    except OSError: print(0)\n"
    )
    async with serving(tmp_path, runtime()) as provider:
        sandbox = await provider.claim(runtime().key, A)
        assert (await python(sandbox, code)).split() == ["0"] * len(names)


async def test_process_count_is_limited(tmp_path: Path) -> None:
    """A sandbox allowed 20 processes cannot have 21."""
    async with serving(tmp_path, runtime(limits=Limits(processes=20))) as provider:
        if provider.report.limits["processes"] == "not enforced":
            pytest.skip("this machine limits no process counts")
        sandbox = await provider.claim(runtime().key, A)
        code = """
import os, signal
children = []
try:
    for _ in range(100):
        pid = os.fork()
        if not pid:
            signal.pause()
        children.append(pid)
except BlockingIOError:
    pass
print(len(children))
for pid in children:
    os.kill(pid, signal.SIGKILL)
"""
        assert 10 <= int(await python(sandbox, code)) < 20


async def test_memory_bomb_is_contained(tmp_path: Path) -> None:
    """A process that takes more than the sandbox's memory ends; its sandbox and the neighbour go on."""
    async with serving(tmp_path, runtime(limits=Limits(memory=96 << 20, processes=64))) as provider:
        bomber, neighbour = await provider.claim(runtime().key, A), await provider.claim(runtime().key, B)
        # Small steps, so that the control group is met before the resource limit of the process.
        bomb = "kept = []\nwhile True: kept.append(b'x' * (4 << 20)); print(len(kept), flush=True)"
        answer, other = await asyncio.gather(execute(bomber, "python3", "-c", bomb), execute(neighbour, "echo", "well"))
        assert answer["exit_code"] != 0
        assert int(answer["stdout"].split()[-1]) * 4 < 96
        assert other["stdout"] == "well\n"
        assert (await execute(bomber, "echo", "still here"))["stdout"] == "still here\n"


async def test_endless_file_is_stopped(tmp_path: Path) -> None:
    """A file grows to the runtime's file size and no further."""
    async with serving(tmp_path, runtime(limits=Limits(file_size=1 << 20, processes=64))) as provider:
        sandbox = await provider.claim(runtime().key, A)
        answer = await execute(sandbox, "sh", "-c", "cat /dev/zero > /workspace/endless; stat -c %s /workspace/endless")
        assert answer["stdout"].strip() == str(1 << 20)


async def test_full_tmp_is_an_error_inside_only(tmp_path: Path) -> None:
    """Writing more than /tmp holds is ENOSPC for the writer."""
    async with serving(tmp_path, runtime(limits=Limits(tmp_size=2 << 20, processes=64))) as provider:
        sandbox = await provider.claim(runtime().key, A)
        code = """
import errno
try:
    open("/tmp/full", "wb").write(bytes(4 << 20))
except OSError as error:
    print(errno.errorcode[error.errno])
"""
        assert await python(sandbox, code) == "ENOSPC"


async def test_cpu_share_is_limited(tmp_path: Path) -> None:
    """A sandbox allowed a fifth of a core gets about that much CPU time out of a second."""
    async with serving(tmp_path, runtime(limits=Limits(cpus=0.2, processes=64))) as provider:
        if not provider.report.limits["cpu"].startswith("cgroup"):
            pytest.skip("no writable cpu control group")
        sandbox = await provider.claim(runtime().key, A)
        code = "import time\nend = time.monotonic() + 1\nwhile time.monotonic() < end: pass\nprint(time.process_time())"
        assert float(await python(sandbox, code)) < 0.6


async def test_killed_picod_ends_the_sandbox_and_is_reported(tmp_path: Path) -> None:
    """The sandbox ends with it, and every watcher is notified with the reason."""
    async with serving(tmp_path, runtime()) as provider:
        events = provider.watch()
        sandbox = await provider.claim(runtime().key, A)
        async with asyncio.timeout(20):
            os.kill(process_tree.descendants(provider.pid(sandbox.id))[1], signal.SIGKILL)
            event = await anext(events)
        assert (event.sandbox_id, event.session_id) == (sandbox.id, A)
        assert "137" in event.reason
        assert signal.SIGKILL.name in event.reason
        assert await provider.find(sandbox.id) is None
