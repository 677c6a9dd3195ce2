"""User code runs as picod's user: what of picod it still cannot take."""

from __future__ import annotations

import json
from pathlib import Path

from gateway.core.model import SessionId
from tests.support.local_engine import python, runtime, serving

TAKE = """
import ctypes, errno, json, os
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p
def result(value):
    return errno.errorcode[ctypes.get_errno()] if value < 0 else "taken"
def opened(path):
    try:
        os.close(os.open(path, os.O_RDONLY))
        return "taken"
    except OSError as error:
        return errno.errorcode[error.errno]
picod = os.getppid()
buffer = ctypes.create_string_buffer(64)
class Vector(ctypes.Structure):
    _fields_ = ("base", ctypes.c_void_p), ("size", ctypes.c_size_t)
local, remote = Vector(ctypes.addressof(buffer), 64), Vector(0x400000, 64)
answers = {
    "pidfd_getfd": result(libc.syscall(438, os.pidfd_open(picod), 3, 0)),
    "process_vm_readv": result(libc.process_vm_readv(picod, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)),
    "ptrace": result(libc.ptrace(16, picod, None, None)),
    "mem": opened(f"/proc/{picod}/mem"),
    "environ": opened(f"/proc/{picod}/environ"),
    "fd": opened(f"/proc/{picod}/fd/0"),
}
print(open(f"/proc/{picod}/cmdline").read().replace(chr(0), " "))
print(json.dumps(answers))
"""


async def test_picod_cannot_be_inspected(tmp_path: Path) -> None:
    """Its descriptors, memory, environment and registers are closed to the code that it runs."""
    async with serving(tmp_path, runtime()) as provider:
        sandbox = await provider.claim(runtime().key, SessionId("session-a"))
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
