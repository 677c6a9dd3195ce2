"""Reads files that the operator or a manifest names: whole, within a bound, and none that keeps its reader waiting.

Opening a named pipe blocks until somebody writes to it, and reading a device may never end.
"""

from __future__ import annotations

import errno
import os
import stat

MAX_TEXT_BYTES = 1 << 20  # of settings, keys, limits and prices: they have a few KiB
_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def read_file(path: str | os.PathLike[str], most: int = MAX_TEXT_BYTES, *, exact: bool = False) -> bytes:
    """The content of a file. A shell's `<(command)` counts as one: it is a pipe without a name, whose writer runs.

    `exact`: `path` was checked before, and nothing else may be read by now; a symbolic link in it is refused.

    Blocks. Raises OSError, whose `strerror` says what is wrong also where the file is none, or has more than `most`
    bytes.
    """
    # Not blocking: to open a named pipe for reading waits for a writer otherwise.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        _require_file(descriptor, path)
        if exact and os.readlink(f"/proc/self/fd/{descriptor}") != os.fspath(path):
            raise _problem(errno.ELOOP, "it was replaced by a symbolic link since it was checked", path)
        with open(descriptor, "rb", closefd=False) as file:
            # The last byte shows that there is more. None: a file of the kernel's that has nothing to say now.
            data = file.read(most + 1) or b""
    finally:
        os.close(descriptor)
    if len(data) > most:
        size = f"{most >> 20} MiB" if most >= 1 << 20 else f"{most} bytes"
        raise _problem(errno.EFBIG, f"it is larger than {size}", path)
    return data


def _require_file(descriptor: int, path: str | os.PathLike[str]) -> None:
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISFIFO(mode) and not os.path.exists(os.path.realpath(path)):
        os.set_blocking(descriptor, True)
    elif stat.S_ISDIR(mode):
        raise _problem(errno.EISDIR, os.strerror(errno.EISDIR), path)
    elif not stat.S_ISREG(mode):
        raise _problem(errno.EINVAL, f"it is {_KINDS.get(stat.S_IFMT(mode), 'no file')}; expected a file", path)


def _problem(code: int, text: str, path: str | os.PathLike[str]) -> OSError:
    return OSError(code, text, os.fspath(path))
