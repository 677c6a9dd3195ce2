"""Which commands may run on the preloaded interpreter. Pure."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

# Variables that the interpreter or C libraries read while they load. Those that the Python code of preloaded modules
# has read come from the fork server, which records them (userside/preload_imports.py).
_SENSITIVE_NAMES = frozenset((b"HOME", b"LANG", b"LANGUAGE", b"LOCPATH", b"NLSPATH", b"GCONV_PATH"))
_SENSITIVE_PREFIXES = (
    b"LD_", b"LC_", b"GLIBC_", b"MALLOC_", b"OMP_", b"GOMP_", b"KMP_", b"OPENBLAS_", b"GOTO_", b"MKL_", b"BLIS_",
    b"NUMEXPR_", b"NPY_", b"OPENSSL_", b"SSL_",
)  # fmt: skip


def is_script(command: Sequence[bytes]) -> bool:
    """Whether a command is `python3 FILE ...`, `python3 -c CODE ...` or `python3 -m MODULE ...`, without other flags.

    pip is excluded: a fresh interpreter directs it to the session's packages (userside/wakegate_workspace.py).
    """
    if len(command) < 2 or not command[1]:
        return False
    if command[1] in (b"-c", b"-m"):
        return len(command) > 2 and bool(command[2]) and not (command[1] == b"-m" and command[2] == b"pip")
    return not command[1].startswith(b"-") and not os.path.basename(command[1]).startswith(b"pip")


def may_share(env: Mapping[bytes, bytes], base: Mapping[bytes, bytes], looked_at: frozenset[bytes]) -> bool:
    """Whether an interpreter that has started and imported under `base` can stand for one that starts under `env`."""
    if any(name.startswith(b"PYTHON") for name in env):  # read once, when an interpreter starts: it is too late
        return False
    return not any(
        name in looked_at or name in _SENSITIVE_NAMES or name.startswith(_SENSITIVE_PREFIXES)
        for name in env.keys() | base.keys()
        if env.get(name) != base.get(name)
    )
