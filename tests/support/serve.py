"""A real gateway process with real sandboxes, as a user starts it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from gateway.provider.local import process_tags
from tests.support.waiting import LIMIT_S, wait_until

RUNTIME = "default/my-interpreter"
# What a gateway may take to end in order: gateway/sessions/hibernation.py adds it up. A machine that runs other tests
# beside this one has been seen to need more than 20 s of it.
END_LIMIT_S = 40.0  # within the time limit of a test, so that the log is shown


@dataclass
class Server:
    """One gateway process and a client of it."""

    process: subprocess.Popen[str]
    url: str
    client: httpx.Client
    log: Path

    def session(self, runtime: str = RUNTIME) -> str:
        """Create a session. Returns its id."""
        reply = self.client.post("/v1/sessions", json={"runtime": runtime})
        assert reply.status_code == 201, reply.text
        return str(reply.json()["id"])

    def run(self, session: str, script: str, **fields: Any) -> httpx.Response:
        """Run a shell script in the session's sandbox."""
        body = {"command": ["sh", "-c", script], **fields}
        return self.client.post("/api/execute", json=body, headers={"x-session-id": session})

    def state(self, session: str) -> dict[str, Any]:
        """The session as the API shows it."""
        document: dict[str, Any] = self.client.get(f"/v1/sessions/{session}").json()
        return document

    def kill(self) -> None:
        """Kill the gateway with SIGKILL and wait for its end."""
        self.process.kill()
        self.process.wait()

    def terminate(self) -> int:
        """SIGTERM; returns the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(LIMIT_S)


@contextlib.contextmanager
def serve(
    state: Path,
    *flags: str,
    program: str = "gateway",
    port: int = 0,
    tls: ssl.SSLContext | None = None,
    wrapper: Sequence[str] = (),
    bridge: Callable[[int], contextlib.AbstractContextManager[httpx.HTTPTransport]] | None = None,
) -> Iterator[Server]:
    """Start `wakegate serve` (on a free port), wait until it is ready, and end it with the block.

    `tls`: what the client uses where the flags turn TLS on. `wrapper`: a command that runs it, such as
    support.picod.with_mounts. `bridge(port)`: the way to its port, where that is in another network namespace.
    """
    log = state.parent / f"{state.name}.log"
    argv = [*wrapper, sys.executable, "-m", program, "serve", "--port", str(port), "--state-dir", str(state)]
    # A kernel in each sandbox, more than one that is warm, and a notice before the end, only where a test asks for it.
    argv += ["--code-context", "lazy", "--warm-pool", "1", "--shutdown-delay", "0", *flags]
    if "--runtime" in flags:  # and only those that the test names
        argv.append("--no-default-runtime")
    environ = {name: value for name, value in os.environ.items() if not name.startswith("WAKEGATE_")}
    with open(log, "a") as errors:
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=errors, text=True, env=environ)
    assert process.stdout is not None
    try:
        said = process.stdout.readline()
        found = re.search(r'https?://[^\s"]+', said)
        assert found is not None, said + log.read_text()
        with contextlib.ExitStack() as stack:
            way = None if bridge is None else stack.enter_context(bridge(int(found[0].rpartition(":")[2])))
            client = stack.enter_context(
                httpx.Client(base_url=found[0], timeout=LIMIT_S, verify=tls or True, transport=way)
            )
            wait_until(lambda: client.get("/readyz").status_code == 200, "the gateway is ready")
            yield Server(process, found[0], client, log)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(END_LIMIT_S)
            except BaseException as error:  # the test's own time limit too: what is left running disturbs other tests
                process.kill()
                process.wait()
                if not isinstance(error, subprocess.TimeoutExpired):
                    raise
                raise AssertionError(f"the gateway did not end: {log.read_text()[-3000:]}") from None
            finally:
                process.stdout.close()
        else:
            process.stdout.close()


def processes_of(state: Path, seen: Path | None = None) -> list[psutil.Process]:
    """All processes whose command line or environment names that state folder's sandboxes.

    `seen`: where the folder is from here, if it is on a disk that only the gateway has.
    """
    owner = ((seen or state) / "owner").read_text().strip()
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if owner in " ".join(process.environ().values()) or str(state) in " ".join(process.cmdline()):
                found.append(process)
    return found


def child_that_runs(server: Server, word: str) -> psutil.Process:
    """The one child of a gateway that has this word on its command line, among others that may end at any moment."""
    found = []
    for process in psutil.Process(server.process.pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended, and may be a zombie still
            if word in process.cmdline():
                found.append(process)
    (only,) = found
    return only


def sandboxes_of(state: Path, seen: Path | None = None) -> set[str]:
    """The sandboxes that run over that state folder, by the tags of their outermost processes; `seen` as above."""
    tags = set()
    for process in processes_of(state, seen):
        with contextlib.suppress(psutil.Error):
            tags.add(process.environ().get(process_tags.VARIABLE, ""))
    return tags - {""}
