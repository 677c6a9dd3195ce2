"""The seccomp filter of a sandbox, as a BPF program for bwrap to load. Pure.

Namespaces separate code from the host's objects, but not from the kernel: a fault in a part of it that no agent needs
(io_uring, bpf, keyrings, nested namespaces, odd socket families) is the way out. So only what system_calls.py lists is
granted. Other calls up to Linux 6.10 fail with EPERM. What is newer, or unknown, fails as if the kernel did not have it
(ENOSYS), so a C library that probes for a new call falls back.

Source: seccomp(2).
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable, Iterator

from gateway.provider.local import system_calls

_EM = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # AUDIT_ARCH_*: little-endian, 64 bits
_X32 = 0x40000000  # numbers of x86_64's second table, of 32-bit pointers, begin here
_GAPS = {"x86_64": (335, 423), "aarch64": (295, 423)}  # numbers that no call has; both tables agree from 424 on
_MAX_SEGMENT_BYTES = 16 << 10  # 4096 System V segments (kernel.shmmni) of this size: 64 MiB
_NEW_NAMESPACE = 0x7E020000  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
# Network namespaces do not hold back AF_VSOCK, which reaches the hypervisor; AF_ALG is the kernel's own cryptography.
_FAMILIES = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK)
_FREES_ROOM = 0x02 | 0x08  # FALLOC_FL_PUNCH_HOLE, FALLOC_FL_COLLAPSE_RANGE
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C  # put typed characters into a terminal
# Linux, Linux on 32-bit machines, each also with the kernel's old version number; and the question which it is.
_PERSONALITIES = (0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)

_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_LD, _JEQ, _JGT, _JGE, _JSET, _RET = 0x20, 0x15, 0x25, 0x35, 0x45, 0x06  # BPF_LD|W|ABS, BPF_JMP|*|K, BPF_RET|K
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data

_Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, operand


def program(machine: str, *, bound_shared_memory: bool = False) -> bytes | None:
    """The filter as an array of struct sock_filter, for `machine` as platform.machine() names it; None: not known.

    `bound_shared_memory`: also refuse memory that belongs to no process, where no control group counts it.
    """
    if machine not in _EM:
        return None
    column = list(_EM).index(machine)
    code: list[_Instruction] = [
        (_LD, 0, 0, _ARCHITECTURE),
        *_unless(_JEQ, _EM[machine], errno.ENOSYS),  # 32-bit calls have numbers of their own: none is allowed
        (_LD, 0, 0, _NUMBER),
    ]
    if machine == "x86_64":
        code += _when(_JGE, _X32, errno.ENOSYS)
    # clone3 among them: it takes its flags by a pointer, which a filter cannot follow, so new namespaces could not be
    # distinguished from new threads. C libraries then use clone, whose flags are an argument.
    for number in system_calls.numbers(system_calls.MISSING, column).values():
        code += _when(_JEQ, number, errno.ENOSYS)
    code += _when(_JGT, system_calls.LAST, errno.ENOSYS)
    first, last = _GAPS[machine]
    code += [(_JGE, 0, 2, first), (_JGT, 1, 0, last), (_RET, 0, 0, _ERRNO | errno.ENOSYS)]
    code += _checked(system_calls.numbers(system_calls.CHECKED, column), bound_shared_memory)
    for first, last in _ranges(system_calls.numbers(system_calls.PLAIN, column).values()):
        code += [(_JGT, 2, 0, last), (_JGE, 0, 1, first), (_RET, 0, 0, _ALLOW)]
    code.append((_RET, 0, 0, _ERRNO | errno.EPERM))
    return b"".join(struct.pack("<HBBI", *each) for each in code)


def _checked(numbers: dict[str, int], bound_shared_memory: bool) -> Iterator[_Instruction]:
    """Calls that are granted for some of their arguments."""
    if bound_shared_memory:
        yield from _when(_JEQ, numbers["memfd_create"], errno.ENOSYS)
        yield from _argument(numbers["shmget"], 1, _when(_JGT, _MAX_SEGMENT_BYTES, errno.ENOMEM), upper_half=True)
    else:
        for name in ("memfd_create", "shmget"):
            yield from ((_JEQ, 0, 1, numbers[name]), (_RET, 0, 0, _ALLOW))
    yield from _argument(numbers["clone"], 0, _when(_JSET, _NEW_NAMESPACE, errno.EPERM))
    for name in ("socket", "socketpair"):
        yield from _argument(numbers[name], 0, _one_of(map(int, _FAMILIES), errno.EAFNOSUPPORT))
    yield from _argument(numbers["personality"], 0, _one_of(_PERSONALITIES, errno.EPERM))
    # fallocate may free room but not take it: one call would fill the disk before it is measured (disk_quota.py), where
    # writing takes its time. At EOPNOTSUPP C libraries write the blocks instead.
    frees = [(_JSET, 1, 0, _FREES_ROOM), (_RET, 0, 0, _ERRNO | errno.EOPNOTSUPP)]
    yield from _argument(numbers["fallocate"], 1, frees)
    yield from _argument(
        numbers["ioctl"], 1, [*_when(_JEQ, _TIOCSTI, errno.EPERM), *_when(_JEQ, _TIOCLINUX, errno.EPERM)]
    )


def _ranges(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """The first and last of each run of consecutive numbers: a tenth of the comparisons."""
    runs: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][1] == number - 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return runs


def _one_of(values: Iterable[int], error: int) -> list[_Instruction]:
    allowed = [step for value in values for step in ((_JEQ, 0, 1, value), (_RET, 0, 0, _ALLOW))]
    return [*allowed, (_RET, 0, 0, _ERRNO | error)]


def _when(test: int, operand: int, error: int) -> list[_Instruction]:
    return [(test, 0, 1, operand), (_RET, 0, 0, _ERRNO | error)]


def _unless(test: int, operand: int, error: int) -> list[_Instruction]:
    return [(test, 1, 0, operand), (_RET, 0, 0, _ERRNO | error)]


def _argument(number: int, index: int, checks: list[_Instruction], *, upper_half: bool = False) -> list[_Instruction]:
    """For that call alone: look at the lower half of an argument, and allow what no check refuses.

    `upper_half`: the argument has 64 bits; refuse it when its upper half is not zero.
    """
    # Every way through `inner` returns: the accumulator holds an argument then, and the comparisons that follow expect
    # the call's number. The jump over it must stay below 256 instructions, one byte in struct sock_filter.
    inner = [(_LD, 0, 0, _ARGUMENTS + 8 * index), *checks, (_RET, 0, 0, _ALLOW)]
    if upper_half:
        inner = [(_LD, 0, 0, _ARGUMENTS + 8 * index + 4), *_when(_JGT, 0, errno.ENOMEM), *inner]
    return [(_JEQ, 0, len(inner), number), *inner]
