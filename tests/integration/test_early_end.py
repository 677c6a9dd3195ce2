"""SIGTERM before a gateway serves: it ends, also as the first process of a container."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from gateway.provider.local.bwrap import find_bwrap
from tests.support.waiting import LIMIT_S, wait_until

TERMINATED = 143
# What Python runs first: the import of the command stops until a signal comes, as it does on a busy node.
_SLOW_IMPORT = """
import pathlib, sys, time
class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "gateway.cli.command":
            pathlib.Path(__file__).with_name("importing").touch()
            time.sleep(60)
sys.meta_path.insert(0, Slow())
"""


def start(folder: Path, *flags: str, first: bool = False, path: str = "") -> subprocess.Popen[bytes]:
    """A gateway; `first`: as process 1 of a process namespace, where signals without a handler are not given."""
    wrapper: list[str] = []
    if first:
        bwrap = find_bwrap()
        assert bwrap is not None
        wrapper = [str(bwrap), "--dev-bind", "/", "/", "--unshare-user", "--unshare-pid", "--as-pid-1", "--"]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("WAKEGATE_")}
    root = str(Path(__file__).resolve().parents[2])
    environ["PYTHONPATH"] = os.pathsep.join(filter(None, (path, root)))
    argv = [*wrapper, sys.executable, "-m", "gateway", "serve", "--port", "0", "--state-dir", str(folder / "state")]
    return subprocess.Popen([*argv, *flags], env=environ, stdout=subprocess.DEVNULL)


def terminate(process: subprocess.Popen[bytes], *, first: bool) -> int:
    """Send it SIGTERM. Returns its exit status."""
    inner = psutil.Process(process.pid)
    if first:  # bubblewrap passes no signals on: they are for the process in the namespace
        wait_until(lambda: psutil.Process(process.pid).children(), "the namespace has its first process")
        inner = psutil.Process(process.pid).children()[0]
    try:
        inner.send_signal(signal.SIGTERM)
        return process.wait(LIMIT_S)
    finally:
        if process.poll() is None:
            inner.kill()
            process.wait()


@pytest.mark.parametrize("first", [False, True], ids=["process", "first process"])
def test_sigterm_during_the_imports_ends_the_process(first: bool, tmp_path: Path) -> None:
    """It would otherwise be lost for the first process of a container, which then served until it was killed."""
    (tmp_path / "sitecustomize.py").write_text(_SLOW_IMPORT)
    process = start(tmp_path, first=first, path=str(tmp_path))
    wait_until((tmp_path / "importing").exists, "it imports")
    assert terminate(process, first=first) == TERMINATED


def test_sigterm_during_the_start_undoes_it(tmp_path: Path) -> None:
    """While a store does not answer, which would end it with another status."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(LIMIT_S)
        process = start(tmp_path, "--store", f"redis://127.0.0.1:{silent.getsockname()[1]}")
        connection, _ = silent.accept()
        with connection:
            assert terminate(process, first=False) == TERMINATED
