"""A picod whose python3 is preloaded, and a look at the children that wait for a script."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.support.picod import Executor, picod_process
from tests.support.waiting import wait_until

AT_ONCE = ("--preload-delay", "0")
PYTHON = Path(sys.executable).parent / "python3"


@contextmanager
def preloaded(modules: str, **env: str) -> Iterator[Executor]:
    """A picod that preloads these; waits until it does. Without modules it starts python3 afresh each time."""
    command_env = {"PATH": f"{PYTHON.parent}:/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "TMPDIR": "/tmp", **env}
    environ = {"PICOD_COMMAND_ENV": json.dumps({**command_env, "HOME": "/nonexistent"})}
    with picod_process("--auth", "none", "--preload", modules, *AT_ONCE, environ=environ) as picod:
        if modules:
            waiting_child(picod)
        yield picod


def servers(picod: Executor) -> list[psutil.Process]:
    """The fork server, and the children of it that wait, as far as they are there now."""
    return [child for child in psutil.Process(picod.process.pid).children() if "forkserver" in " ".join(_line(child))]


def waiting_child(picod: Executor) -> int:
    """The pid of the child that waits for the next script; waits until there is one."""
    found: list[psutil.Process] = []

    def there() -> bool:
        all_of_them = servers(picod)
        found[:] = [child for child in all_of_them if child.num_threads() == 1]
        return len(found) < len(all_of_them) and bool(found)  # a server that starts has one thread too

    wait_until(there, "a forked child waits")
    return found[-1].pid


def server(picod: Executor) -> psutil.Process:
    """The fork server, when it is ready."""
    waiting_child(picod)
    return next(child for child in servers(picod) if child.num_threads() > 1)


def _line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
