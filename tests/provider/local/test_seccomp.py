"""The filter of system calls: what it refuses in a real sandbox, and that ordinary programs do not notice it."""

from __future__ import annotations

import json
import platform
import re
import struct
from pathlib import Path

import pytest

from gateway.core.model import SessionId
from gateway.provider.local import seccomp
from tests.support.local_engine import python, runtime, serving

A = SessionId("session-a")
HEADERS = {
    "x86_64": ("/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "/usr/include/asm/unistd_64.h"),
    "aarch64": ("/usr/include/asm-generic/unistd.h",),
}
ASK = """
import ctypes, errno, json, socket
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    ctypes.set_errno(0)
    done = libc.syscall(ctypes.c_long(number), *(ctypes.c_long(each) for each in arguments))
    return errno.errorcode[ctypes.get_errno()] if done < 0 else "allowed"
def family(number):
    try:
        socket.socket(number, socket.SOCK_STREAM if number != 16 else socket.SOCK_RAW).close()
        return "allowed"
    except OSError as error:
        return errno.errorcode[error.errno]
"""
needs_filter = pytest.mark.skipif(seccomp.program(platform.machine()) is None, reason="no filter for this machine")


@needs_filter
async def test_sandbox_cannot_call_what_no_agent_needs(tmp_path: Path) -> None:
    """Calls that the kernel would grant to anybody (keyrings, io_uring, nested namespaces) are refused."""
    column = list(seccomp._EM).index(platform.machine())
    numbers = {
        name: table[name][column]
        for table in (seccomp._REFUSED, seccomp._MISSING)
        for name in table
        if table[name][column] is not None
    }
    async with serving(tmp_path, runtime()) as provider:
        sandbox = await provider.claim(runtime().key, A)
        asked = f"{ASK}\nprint(json.dumps({{name: call(number) for name, number in {numbers}.items()}}))"
        answer = json.loads(await python(sandbox, asked))
        assert answer == {name: "ENOSYS" if name in seccomp._MISSING else "EPERM" for name in numbers}
        clone, unshare, ioctl = (each[column] for each in (seccomp._CLONE, seccomp._UNSHARE, seccomp._IOCTL))
        asked = f"""{ASK}
import os
above = 1 << 32  # the kernel looks at the lower half of these arguments alone, and so must the filter
print(call({unshare}, 0x10000000), call({unshare}, 0x80), call({clone}, 0x10000011, 0, 0, 0, 0),
      call({clone}, above | 0x20000011, 0, 0, 0, 0), call({ioctl}, 0, 0x5412, 0), call({ioctl}, 0, above | 0x5412, 0),
      call({ioctl}, 0, 0x541C, 0), call({unshare}, 0x400))
"""
        assert (await python(sandbox, asked)).split() == ["EPERM"] * 7 + ["allowed"]


@needs_filter
async def test_room_on_the_disk_is_taken_by_writing_only(tmp_path: Path) -> None:
    """One fallocate would fill the disk at once; files get their blocks all the same, and may give some back."""
    async with serving(tmp_path, runtime()) as provider:
        sandbox = await provider.claim(runtime().key, A)
        code = f"""{ASK}
import os
fd = os.open("file", os.O_RDWR | os.O_CREAT)
fallocate = libc.fallocate
fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long)
def room(mode):
    done = fallocate(fd, mode, 0, 1 << 20)
    return errno.errorcode[ctypes.get_errno()] if done < 0 else "allowed"
print(room(0), room(1), room(16))
os.posix_fallocate(fd, 0, 1 << 20)
print(os.fstat(fd).st_blocks * 512 >= 1 << 20, room(3), os.fstat(fd).st_blocks)
"""
        assert await python(sandbox, code) == "ENOTSUP ENOTSUP ENOTSUP\nTrue allowed 0"


@needs_filter
async def test_sandbox_gets_ordinary_sockets_only(tmp_path: Path) -> None:
    """Unix, IP and netlink; not the hypervisor's (AF_VSOCK, which no network namespace holds back), nor the others."""
    async with serving(tmp_path, runtime()) as provider:
        sandbox = await provider.claim(runtime().key, A)
        asked = f"{ASK}\nprint({{number: family(number) for number in (1, 2, 10, 16, 17, 31, 38, 40, 44)}})"
        allowed = dict.fromkeys((1, 2, 10, 16), "allowed")
        refused = dict.fromkeys((17, 31, 38, 40, 44), "EAFNOSUPPORT")
        assert await python(sandbox, asked) == str(allowed | refused)


async def test_ordinary_programs_do_not_notice_the_filter(tmp_path: Path) -> None:
    """Threads, child processes of all kinds, pipes between them, and a loopback server work as ever."""
    async with serving(tmp_path, runtime()) as provider:
        sandbox = await provider.claim(runtime().key, A)
        code = """
import asyncio, concurrent.futures, multiprocessing, os, pty, subprocess, threading
def double(x):
    return 2 * x
async def echo():
    async def answer(reader, writer):
        writer.write(await reader.readline())
        writer.close()
    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"over loopback\\n")
        line = await reader.readline()
        writer.close()
        return line
thread = threading.Thread(target=print, args=("thread",)); thread.start(); thread.join()
print(subprocess.run(["sh", "-c", "echo child | cat"], capture_output=True, text=True).stdout.strip())
os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)
with multiprocessing.get_context("fork").Pool(2) as pool:
    print(pool.map(double, [1, 2]))
print(asyncio.run(echo()))
pid, fd = pty.fork()
if not pid:
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
        assert (await python(sandbox, code)).split("\n") == ["thread", "child", "[2, 4]", repr(b"over loopback\n"), "7"]


@pytest.mark.parametrize("machine", list(HEADERS))
def test_numbers_are_the_kernels(machine: str) -> None:
    """Each number is that of the headers of this machine, where it has them."""
    header = next((path for path in map(Path, HEADERS[machine]) if path.exists()), None)
    if header is None:
        pytest.skip("the kernel's headers are not installed")
    known = dict(re.findall(r"#define\s+__NR(?:3264)?_(\w+)\s+(\d+)", header.read_text()))
    column = list(seccomp._EM).index(machine)
    calls = {name: numbers[column] for name, numbers in (seccomp._REFUSED | seccomp._MISSING).items()}
    calls |= {"clone": seccomp._CLONE[column], "unshare": seccomp._UNSHARE[column], "ioctl": seccomp._IOCTL[column]}
    calls |= {"fallocate": seccomp._FALLOCATE[column]}
    calls |= {"socket": seccomp._SOCKET[column], "socketpair": seccomp._SOCKETPAIR[column]}
    assert {name: int(known[name]) for name, number in calls.items() if number is not None and name in known} == {
        name: number for name, number in calls.items() if number is not None and name in known
    }


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_jumps_stay_within_the_program(machine: str) -> None:
    """The kernel refuses a program that jumps out of itself or does not end; here for both machines."""
    program = seccomp.program(machine)
    assert program is not None
    code = [struct.unpack_from("<HBBI", program, at) for at in range(0, len(program), 8)]
    assert code[-1][0] == 0x06
    assert all(at + 1 + max(yes, no) < len(code) for at, (what, yes, no, _) in enumerate(code) if what & 7 == 5)
    assert seccomp.program("riscv64") is None
