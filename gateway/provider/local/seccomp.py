"""The seccomp filter of a sandbox, as a BPF program for bwrap to load. Pure.

Namespaces separate code from the host's objects, but not from the kernel: a fault in a part of it that no agent needs
(io_uring, bpf, keyrings, nested namespaces, odd socket families) is the way out. So those parts are closed.

An allow list: the calls of Linux up to 6.10 (_LAST) that Docker's default profile grants a container without
capabilities, written as all known numbers without the refused ones. ptrace and the NUMA calls are granted besides,
because debuggers and numerical code use them. fallocate may free room but not take it: one call would fill the disk
before it is measured, while what is written takes its time; C libraries then write the blocks. What is newer, or
unknown, fails as if the kernel did not have it (ENOSYS), so a C library that probes for a new call falls back. clone3
and io_uring fail alike: clone3 takes its flags by a pointer, which a filter cannot follow.

Source: seccomp(2); numbers from asm/unistd_64.h and asm-generic/unistd.h.
"""

from __future__ import annotations

import errno
import socket
import struct

_EM = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # AUDIT_ARCH_*: little-endian, 64 bits
_X32 = 0x40000000  # numbers of x86_64's second table, of 32-bit pointers, begin here

# name -> its numbers on x86_64 and aarch64; None where it does not exist.
_REFUSED: dict[str, tuple[int | None, int | None]] = {
    # Keyrings are not namespaced.
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    # Programs in the kernel, and what watches it.
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "lookup_dcookie": (212, 18),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),  # takes descriptors out of another process
    "process_madvise": (440, 440),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    "memfd_secret": (447, 447),  # memory that no reader of /proc sees
    "statmount": (457, 457),
    "listmount": (458, 458),
    "lsm_get_self_attr": (459, 459),
    "lsm_set_self_attr": (460, 460),
    "lsm_list_modules": (461, 461),
    "fanotify_init": (300, 262),
    "syslog": (103, 116),
    # Mounts and namespaces: bwrap has made those that are needed.
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "setns": (308, 268),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "mount_setattr": (442, 442),
    "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264),
    # The machine itself.
    "acct": (163, 89),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "reboot": (169, 142),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "vhangup": (153, 58),
    "iopl": (172, None),
    "ioperm": (173, None),
    "modify_ldt": (154, None),
    "uselib": (134, None),
    "ustat": (136, None),
    "sysfs": (139, None),
    "nfsservctl": (180, 42),
    "_sysctl": (156, None),
    "create_module": (174, None),
    "get_kernel_syms": (177, None),
    "query_module": (178, None),
    "getpmsg": (181, None),
    "putpmsg": (182, None),
    "afs_syscall": (183, None),
    "tuxcall": (184, None),
    "security": (185, None),
    "vserver": (236, None),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
}
_MISSING: dict[str, tuple[int | None, int | None]] = {
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "clone3": (435, 435),
}
_LAST = 462  # mseal, Linux 6.10: the newest call that was looked at
_GAPS = {"x86_64": (335, 423), "aarch64": (295, 423)}  # numbers that no call has; both tables agree from 424 on
_MEMFD_CREATE, _SHMGET = (319, 279), (29, 194)
_MAX_SEGMENT_BYTES = 16 << 10  # 4096 System V segments (kernel.shmmni) of this size: 64 MiB
_CLONE, _UNSHARE, _SOCKET, _SOCKETPAIR, _IOCTL = (56, 220), (272, 97), (41, 198), (53, 199), (16, 29)
_NEW_NAMESPACE = 0x7E020000  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
_NEW_TIME = 0x80  # of unshare; in clone these bits are the signal of the child's end
# Network namespaces do not hold back AF_VSOCK, which reaches the hypervisor; AF_ALG is the kernel's own cryptography.
_FAMILIES = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK)
_FALLOCATE = (285, 47)
_FREES_ROOM = 0x02 | 0x08  # FALLOC_FL_PUNCH_HOLE, FALLOC_FL_COLLAPSE_RANGE
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C  # put typed characters into a terminal

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

    def numbers(table: dict[str, tuple[int | None, int | None]]) -> list[int]:
        return sorted(number for each in table.values() if (number := each[column]) is not None)

    code: list[_Instruction] = [
        (_LD, 0, 0, _ARCHITECTURE),
        *_unless(_JEQ, _EM[machine], errno.ENOSYS),  # 32-bit calls have numbers of their own: none is allowed
        (_LD, 0, 0, _NUMBER),
    ]
    if machine == "x86_64":
        code += _when(_JGE, _X32, errno.ENOSYS)
    for number in numbers(_REFUSED):
        code += _when(_JEQ, number, errno.EPERM)
    for number in numbers(_MISSING):
        code += _when(_JEQ, number, errno.ENOSYS)
    code += _when(_JGT, _LAST, errno.ENOSYS)
    first, last = _GAPS[machine]
    code += [(_JGE, 0, 2, first), (_JGT, 1, 0, last), (_RET, 0, 0, _ERRNO | errno.ENOSYS)]
    if bound_shared_memory:
        code += _when(_JEQ, _MEMFD_CREATE[column], errno.ENOSYS)
        code += _argument(_SHMGET[column], 1, _when(_JGT, _MAX_SEGMENT_BYTES, errno.ENOMEM), upper_half=True)
    code += _argument(_CLONE[column], 0, _when(_JSET, _NEW_NAMESPACE, errno.EPERM))
    code += _argument(_UNSHARE[column], 0, _when(_JSET, _NEW_NAMESPACE | _NEW_TIME, errno.EPERM))
    families = [step for family in _FAMILIES for step in ((_JEQ, 0, 1, int(family)), (_RET, 0, 0, _ALLOW))]
    families.append((_RET, 0, 0, _ERRNO | errno.EAFNOSUPPORT))
    for number in (_SOCKET[column], _SOCKETPAIR[column]):
        code += _argument(number, 0, families)
    code += _argument(_FALLOCATE[column], 1, [(_JSET, 1, 0, _FREES_ROOM), (_RET, 0, 0, _ERRNO | errno.EOPNOTSUPP)])
    pushes = [*_when(_JEQ, _TIOCSTI, errno.EPERM), *_when(_JEQ, _TIOCLINUX, errno.EPERM)]
    code += _argument(_IOCTL[column], 1, pushes)
    code.append((_RET, 0, 0, _ALLOW))
    return b"".join(struct.pack("<HBBI", *each) for each in code)


def _when(test: int, operand: int, error: int) -> list[_Instruction]:
    return [(test, 0, 1, operand), (_RET, 0, 0, _ERRNO | error)]


def _unless(test: int, operand: int, error: int) -> list[_Instruction]:
    return [(test, 1, 0, operand), (_RET, 0, 0, _ERRNO | error)]


def _argument(number: int, index: int, checks: list[_Instruction], *, upper_half: bool = False) -> list[_Instruction]:
    """For that call alone: look at the lower half of an argument, and allow what no check refuses.

    `upper_half`: the argument has 64 bits; refuse it when its upper half is not zero.
    """
    inner = [(_LD, 0, 0, _ARGUMENTS + 8 * index), *checks, (_RET, 0, 0, _ALLOW)]
    if upper_half:
        inner = [(_LD, 0, 0, _ARGUMENTS + 8 * index + 4), *_when(_JGT, 0, errno.ENOMEM), *inner]
    return [(_JEQ, 0, len(inner), number), *inner]
