"""The filter of system calls: what it refuses in a real sandbox, and that ordinary programs do not notice it."""

from __future__ import annotations

import errno
import json
import operator
import platform
import re
import struct
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from gateway.core.model import SessionId
from gateway.provider.local import seccomp, system_calls
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


# What Docker's default profile grants to a container without capabilities on x86_64 and aarch64, compared name
# by name with seccomp/default.json of moby/profiles (02e898b). That has since gained calls newer than Linux 6.10:
# getxattrat, setxattrat, listxattrat, removexattrat, listmount, statmount and uretprobe.
DOCKERS = (Path(__file__).parent / "docker_default_calls.txt").read_text().split()
ALLOW = "allowed"


def calls(machine: str, *tables: str) -> dict[str, int]:
    column = list(seccomp._EM).index(machine)
    return {name: number for table in tables for name, number in system_calls.numbers(table, column).items()}


def verdicts(machine: str, numbers: Iterable[int], *arguments: int, bound: bool = False) -> dict[int, str]:
    """What the program answers, run here as the kernel runs it (classic BPF, of which it uses these few codes)."""
    program = seccomp.program(machine, bound_shared_memory=bound)
    assert program is not None
    code = list(struct.iter_unpack("<HBBI", program))
    compare: dict[int, Callable[[int, int], bool]]
    compare = {0x15: operator.eq, 0x25: operator.gt, 0x35: operator.ge, 0x45: lambda a, b: bool(a & b)}

    def run(number: int) -> str:
        data = struct.pack("<iIQ6Q", number, seccomp._EM[machine], 0, *(*arguments, *[0] * 6)[:6])
        at = word = 0
        while True:
            what, yes, no, operand = code[at]
            at += 1
            if what == 0x20:
                (word,) = struct.unpack_from("<I", data, operand)
            elif what == 0x06:
                return ALLOW if operand == 0x7FFF0000 else errno.errorcode[operand & 0xFFFF]
            else:
                at += yes if compare[what](word, operand) else no

    return {number: run(number) for number in numbers}


@pytest.mark.parametrize("machine", list(HEADERS))
def test_what_containers_get_is_granted_and_nothing_else(machine: str) -> None:
    """Every number is tried: granted by name, refused where known, missing where newer than the list."""
    granted = calls(machine, system_calls.PLAIN, system_calls.CHECKED)
    missing = set(calls(machine, system_calls.MISSING).values())
    assert set(granted) <= set(DOCKERS)
    assert len(set(granted.values())) == len(granted)
    first, last = seccomp._GAPS[machine]
    for number, verdict in verdicts(machine, range(1024)).items():
        if number in missing or number > system_calls.LAST or first <= number <= last:
            expected = "ENOSYS"
        elif number in granted.values():
            expected = verdict if number == granted["socket"] or number == granted["socketpair"] else ALLOW
            expected = "ENOTSUP" if number == granted["fallocate"] else expected
        else:
            expected = "EPERM"
        assert (number, verdict) == (number, expected)


@pytest.mark.parametrize("machine", list(HEADERS))
def test_few_of_the_calls_that_containers_get_are_left_out(machine: str) -> None:
    """Those are named here, so that nothing goes missing by accident."""
    refused = set(DOCKERS) - set(calls(machine, system_calls.PLAIN, system_calls.CHECKED, system_calls.MISSING))
    only_x86 = set(calls("x86_64", system_calls.PLAIN)) - set(calls("aarch64", system_calls.PLAIN))
    assert refused - (only_x86 if machine == "aarch64" else set()) == {
        "adjtimex", "clock_adjtime", "fanotify_mark", "memfd_secret", "modify_ldt", "name_to_handle_at",
    }  # fmt: skip
    assert len(only_x86) == 38  # the older forms (open, fork, ...) that later machines never had


@pytest.mark.parametrize("machine", list(HEADERS))
def test_arguments_decide_where_the_list_says_so(machine: str) -> None:
    """Personalities of other machines, segments that no control group counts, and namespaces are refused."""
    granted = calls(machine, system_calls.CHECKED)

    def verdict(name: str, *arguments: int, bound: bool = False) -> str:
        number = granted[name]
        return verdicts(machine, [number], *arguments, bound=bound)[number]

    assert [verdict("personality", each) for each in (0, 8, 0x20000, 0xFFFFFFFF, 0x40000)] == [ALLOW] * 4 + ["EPERM"]
    assert [verdict("clone", each) for each in (17, 0x10000011)] == [ALLOW, "EPERM"]
    assert [verdict("socket", each) for each in (1, 2, 10, 16, 38)] == [ALLOW] * 4 + ["EAFNOSUPPORT"]
    assert [verdict("ioctl", 0, each) for each in (0x5401, 0x5412)] == [ALLOW, "EPERM"]
    assert [verdict("fallocate", 0, each) for each in (0, 1, 3)] == ["ENOTSUP", "ENOTSUP", ALLOW]
    assert [verdict("shmget", 0, each) for each in (1 << 14, 1 << 20)] == [ALLOW, ALLOW]
    assert [verdict("shmget", 0, each, bound=True) for each in (1 << 14, 1 << 20)] == [ALLOW, "ENOMEM"]
    assert [verdict("memfd_create", bound=each) for each in (False, True)] == [ALLOW, "ENOSYS"]


@needs_filter
async def test_sandbox_cannot_call_what_no_agent_needs(tmp_path: Path) -> None:
    """Every call that is not on the list is made in a real sandbox, and refused before the kernel looks at it."""
    machine = platform.machine()
    granted = calls(machine, system_calls.PLAIN, system_calls.CHECKED)
    # 335, 336: the kernel calls them itself from where a uprobe stands, past any filter, and kills other callers.
    others = sorted(set(range(600)) - set(granted.values()) - {335, 336})
    async with serving(tmp_path, runtime()) as provider:
        sandbox = await provider.claim(runtime().key, A)
        asked = f"{ASK}\nprint(json.dumps([call(number) for number in {others}]))"
        answer = dict(zip(others, json.loads(await python(sandbox, asked)), strict=True))
        assert answer == verdicts(machine, others)
        assert set(answer.values()) == {"EPERM", "ENOSYS"}
        clone, ioctl, personality = (granted[name] for name in ("clone", "ioctl", "personality"))
        asked = f"""{ASK}
above = 1 << 32  # the kernel looks at the lower half of these arguments alone, and so must the filter
print(call({clone}, 0x10000011, 0, 0, 0, 0), call({clone}, above | 0x20000011, 0, 0, 0, 0),
      call({ioctl}, 0, 0x5412, 0), call({ioctl}, 0, above | 0x5412, 0), call({ioctl}, 0, 0x541C, 0),
      call({personality}, 0x40000), call({personality}, 0xFFFFFFFF))
"""
        assert (await python(sandbox, asked)).split() == ["EPERM"] * 6 + ["allowed"]


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
def test_system_call_numbers_are_the_kernels(machine: str) -> None:
    """Each number is that of the headers of this machine, where it has them."""
    header = next((path for path in map(Path, HEADERS[machine]) if path.exists()), None)
    if header is None:
        pytest.skip("the kernel's headers are not installed")
    known = dict(re.findall(r"#define\s+__NR(?:3264)?_(\w+)\s+(\d+)", header.read_text()))
    listed = calls(machine, system_calls.PLAIN, system_calls.CHECKED, system_calls.MISSING)
    numbers = {{"fstatat": "newfstatat"}.get(name, name): int(number) for name, number in known.items()}
    in_both = listed.keys() & numbers.keys()
    assert len(in_both) > 250
    assert {name: numbers[name] for name in in_both} == {name: listed[name] for name in in_both}


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_jumps_stay_within_the_program(machine: str) -> None:
    """The kernel refuses a program that jumps out of itself or does not end; here for both machines."""
    program = seccomp.program(machine)
    assert program is not None
    code = [struct.unpack_from("<HBBI", program, at) for at in range(0, len(program), 8)]
    assert code[-1][0] == 0x06
    assert all(at + 1 + max(yes, no) < len(code) for at, (what, yes, no, _) in enumerate(code) if what & 7 == 5)
    assert seccomp.program("riscv64") is None
