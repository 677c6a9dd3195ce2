"""Long actions show how far they are: on a terminal, on standard error, and never in what a program reads."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from gateway.cli.remote import progress
from gateway.cli.remote.advice import advice, advice_unreachable
from gateway.cli.remote.progress import Counted, waiting
from tests.support.waiting import LIMIT_S, wait_until
from wakegate_client import APIError

ROOT = Path(__file__).parents[2]
SESSION = {
    "id": "s-1", "state": "active", "runtime": {"namespace": "default", "name": "r"}, "createdAt": None,
    "lastActiveAt": None,
}  # fmt: skip


class SlowGateway(ThreadingHTTPServer):
    """Answers each request with a session, once `go` is set; until then a body is not read."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.go = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class _Answer(BaseHTTPRequestHandler):
    server: SlowGateway

    def do_POST(self) -> None:
        assert self.server.go.wait(LIMIT_S)
        self.rfile.read(int(self.headers.get("content-length", "0")))
        if self.headers.get("transfer-encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                self.rfile.read(size + 2)
            self.rfile.readline()
        body = json.dumps(SESSION).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_PUT = do_POST  # noqa: N815 (http.server's name)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def gateway() -> Iterator[SlowGateway]:
    """One that runs."""
    with SlowGateway() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.go.set()
        server.shutdown()
        thread.join()


@contextmanager
def command(gateway: SlowGateway, home: Path, *words: str) -> Iterator[tuple[subprocess.Popen[bytes], list[bytes]]]:
    """A command whose standard error alone is a terminal, and what it has written there so far."""
    ours, theirs = pty.openpty()
    environ = {**os.environ, "WAKEGATE_URL": gateway.url, "XDG_CONFIG_HOME": str(home), "TERM": "xterm"}
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway", *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=theirs,
        env=environ, cwd=ROOT,
    )  # fmt: skip
    os.close(theirs)
    said: list[bytes] = []

    def listen() -> None:
        try:
            while piece := os.read(ours, 4096):
                said.append(piece)
        except OSError:
            pass  # EIO: nobody has the terminal open any more

    listener = threading.Thread(target=listen)
    listener.start()
    try:
        yield process, said
    finally:
        gateway.go.set()
        process.communicate(timeout=LIMIT_S)
        listener.join()
        os.close(ours)


def test_clock_on_a_terminal_while_an_answer_takes_long(gateway: SlowGateway, tmp_path: Path) -> None:
    """It is drawn on standard error; the answer on standard output is JSON and nothing else."""
    with command(gateway, tmp_path, "create", "-o", "json") as (process, said):
        wait_until(lambda: b"a sandbox is being started" in b"".join(said), "the clock is drawn")
        gateway.go.set()
        assert process.stdout is not None
        assert json.loads(process.stdout.read())["id"] == "s-1"


def test_bar_on_a_terminal_while_a_file_is_sent(gateway: SlowGateway, tmp_path: Path) -> None:
    """Its name, and how much of it is under way though the gateway has not answered."""
    (tmp_path / "large.bin").write_bytes(bytes(64 << 20))  # more than the buffers of the socket hold
    with command(gateway, tmp_path, "cp", str(tmp_path / "large.bin"), "s-1:large.bin") as (process, said):
        wait_until(lambda: b"/67.1 MB" in b"".join(said), "the bar is drawn")
        assert b"large.bin" in b"".join(said)
        gateway.go.set()
        assert process.wait(LIMIT_S) == 0
        assert process.stdout is not None
        assert process.stdout.read() == b""


def test_lines_now_and_then_where_no_terminal_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each after twice the time of the one before, so that a log of ten minutes is six lines."""
    said = io.StringIO()
    monkeypatch.setattr(sys, "stderr", said)
    monkeypatch.setattr(progress, "_FIRST_LINE_S", 0.01)
    with waiting("packages are being installed"):
        wait_until(lambda: said.getvalue().count("\n") >= 3, "three lines")
    seconds = [line.partition(": ")[0] for line in said.getvalue().splitlines()]
    assert set(seconds) == {"packages are being installed"}


def test_what_is_short_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """No line and no bar."""
    said = io.StringIO()
    monkeypatch.setattr(sys, "stderr", said)
    with waiting("a moment"):
        pass
    assert said.getvalue() == ""


def test_bundle_is_sent_with_its_length_and_counted_as_it_is_read() -> None:
    """A Content-Length, not chunks: the gateway can refuse what is too large before it comes."""
    moved: list[int] = []
    request = httpx.Request("POST", "http://a/", content=Counted(bytes(200_000), moved.append))
    assert request.headers["content-length"] == "200000"
    assert len(b"".join(request.stream)) == 200_000  # type: ignore[arg-type]
    assert sum(moved) == 200_000
    assert len(moved) > 2


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (APIError(404, "SESSION_NOT_FOUND", ""), "wakegate ls"),
        (APIError(404, "RUNTIME_NOT_FOUND", ""), "wakegate runtimes"),
        (APIError(401, "UNAUTHORIZED", ""), "wakegate login"),
        (APIError(429, "OVERLOADED", ""), "wakegate rm"),
        (APIError(503, "UNAVAILABLE", ""), "wakegate top"),
    ],
)
def test_refusals_say_what_to_do(error: APIError, word: str) -> None:
    """Behind what was wrong; nothing for what only the text itself can tell."""
    assert word in advice(error)
    assert advice(APIError(400, "BAD_REQUEST", "")) == ""


def test_where_nothing_answers_the_advice_is_for_the_reason() -> None:
    """No gateway, another program, a certificate, a break."""
    assert "wakegate serve" in advice_unreachable("http://127.0.0.1:1: [Errno 111] Connection refused")
    assert "--ca" in advice_unreachable("https://a: [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed")
    assert "WAKEGATE_URL" in advice_unreachable("a:80 does not answer as Wakegate does")
    assert "wakegate ls" in advice_unreachable("http://a: Server disconnected without sending a response.")
