"""The server under the app, and picod's life as a process."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.picod import ROOT, Executor, picod_process, running
from tests.support.waiting import wait_until


def talk(picod: Executor, *sent: bytes) -> bytes:
    """Send bytes, half-close nothing, read until the server closes."""
    with picod.connect() as connection:
        for piece in sent:
            connection.sendall(piece)
        received = b""
        while piece := connection.recv(65536):
            received += piece
        return received


def test_health_answers_as_agentcube_does(picod: Executor) -> None:
    """Service, status, uptime as a Go duration, version."""
    body = picod.client.get("/health").json()

    assert (body["service"], body["status"], body["version"]) == ("PicoD", "ok", "0.0.1")
    assert body["uptime"].endswith("s")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/nope"),
        ("HEAD", "/health"),
        ("POST", "/health"),
        ("GET", "/api/execute"),
        ("PATCH", "/api/files/x"),
        ("GET", "/health/"),
        ("GET", "/api/filesx"),
        ("OPTIONS", "*"),
    ],
)
def test_unknown_routes_and_methods_are_404(picod: Executor, method: str, path: str) -> None:
    """As gin answers: plain text, never 405."""
    reply = picod.client.request(method, path)

    assert (reply.status_code, reply.headers["content-type"]) == (404, "text/plain")
    assert reply.content == (b"" if method == "HEAD" else b"404 page not found")


def test_pipelined_requests_are_answered_in_order(picod: Executor) -> None:
    """Three at once on one connection, the slowest first."""
    orders = [
        json.dumps({"command": ["sh", "-c", f"sleep {pause}; echo {n}"]}).encode()
        for n, pause in enumerate((0.3, 0, 0))
    ]
    requests = b"".join(
        b"POST /api/execute HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%s" % (len(o), o) for o in orders
    )
    received = talk(picod, requests + b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")

    places = [received.index(part) for part in (b'"0\\n"', b'"1\\n"', b'"2\\n"', b"PicoD")]
    assert sorted(places) == places


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"nonsense\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost : x\r\n\r\n",
        b"POST /api/execute HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /api/execute HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nabcdef",
        b"GET /health HTTP/1.1\r\nx: " + b"a" * 300_000,
    ],
)
def test_broken_http_is_refused_and_closed(picod: Executor, request_bytes: bytes) -> None:
    """A 4xx, then the connection is closed, and picod keeps serving."""
    assert talk(picod, request_bytes)[:10] == b"HTTP/1.1 4"
    assert picod.client.get("/health").status_code == 200


def test_broken_chunks_end_the_request(picod: Executor) -> None:
    """The connection ends; nothing was written."""
    head = b"PUT /api/files/chunky HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    talk(picod, head, b"5\r\nhello\r\nzz\r\n")

    wait_until(lambda: list(picod.workspace.glob(".wakegate-*")) == [], "the temporary file is removed")
    assert not (picod.workspace / "chunky").exists()


def test_client_that_sends_slowly_is_served(picod: Executor) -> None:
    """A byte at a time is still a request."""
    order = b'{"command":["echo","slow"]}'
    request = b"POST /api/execute HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%s" % (
        len(order),
        order,
    )

    assert b"slow" in talk(picod, *(bytes([byte]) for byte in request))


def test_expect_continue_is_answered(picod: Executor) -> None:
    """100 first, so that the body comes; not when the answer is known without it."""
    with picod.connect() as connection:
        connection.sendall(
            b"PUT /api/files/expected HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n"
        )
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"ok")
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
    refused = talk(picod, b"PUT /nope HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n")
    assert refused.startswith(b"HTTP/1.1 404")


def test_refused_upload_still_gets_its_answer(picod: Executor) -> None:
    """The client writes on while we have answered: the answer is not lost to a reset, the connection stays usable."""
    with picod.connect() as connection:
        size = 8 << 20
        connection.sendall(b"PUT /nope HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % size)
        connection.sendall(bytes(size))
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        received = b""
        while piece := connection.recv(65536):
            received += piece

    assert received.startswith(b"HTTP/1.1 404")
    assert b"PicoD" in received


def test_http_1_0_and_close_end_the_connection(picod: Executor) -> None:
    """Answered whole, then closed."""
    assert b"PicoD" in talk(picod, b"GET /health HTTP/1.0\r\n\r\n")
    assert b"connection: close" in talk(picod, b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")


def test_upgrade_is_ignored(picod: Executor) -> None:
    """A request that offers h2c or a WebSocket is answered as it stands."""
    received = talk(picod, b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n")

    assert b"PicoD" in received


def test_two_hundred_clients_at_once_are_served(picod: Executor) -> None:
    """Each on its own connection, all open at the same time."""
    before = picod.descriptors()
    connections = [picod.connect() for _ in range(200)]
    for connection in connections:
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
    answers = [connection.recv(1000) for connection in connections]
    for connection in connections:
        connection.close()

    assert all(answer.startswith(b"HTTP/1.1 200") for answer in answers)
    wait_until(lambda: picod.descriptors() <= before, "descriptors come back")


NAP = f"301.{int.from_bytes(os.urandom(4), 'big')}"
LEFTOVERS = ["sh", "-c", f"setsid -f sleep {NAP} >/dev/null 2>&1; sleep {NAP} & sleep 0.1"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_end_of_picod_is_the_end_of_all_it_started(number: signal.Signals) -> None:
    """Daemons of finished commands, running commands, half uploads: gone, exit status 0."""
    with picod_process("--auth", "none") as picod, ThreadPoolExecutor(1) as pool:
        picod.execute(*LEFTOVERS)
        assert len(running(NAP)) == 2
        waiting = pool.submit(picod.client.post, "/api/execute", json={"command": ["sleep", NAP]})
        upload = picod.connect()
        upload.sendall(b"PUT /api/files/half HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n\r\nhalf")
        wait_until(lambda: len(running(NAP)) == 3 and os.listdir(picod.workspace) != [], "all is under way")
        picod.process.send_signal(number)

        assert picod.process.wait(20) == 0
        assert waiting.exception() is not None
        upload.close()
        assert running(NAP) == []
        assert os.listdir(picod.workspace) == []


def test_end_of_the_lifeline_is_the_end_of_all() -> None:
    """The parent's end closes, however: picod and every process of its go at once."""
    read_end, write_end = os.pipe()
    with socket.socket(socket.AF_UNIX) as listener:
        uds = Path(f"/tmp/picod-lifeline-{os.getpid()}.sock")
        listener.bind(str(uds))
        listener.listen()
        fds = [listener.fileno(), read_end]
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "picod",
                "--auth",
                "none",
                "--workspace",
                "/tmp",
                "--fd",
                str(fds[0]),
                "--lifeline-fd",
                str(fds[1]),
            ],
            cwd=ROOT,
            pass_fds=fds,
        )
    os.close(read_end)
    try:
        picod = Executor(uds.parent, process, uds)
        picod.execute(*LEFTOVERS)
        picod.client.close()
        assert len(running(NAP)) == 2
        os.close(write_end)

        assert process.wait(20) == 0
        assert running(NAP) == []
    finally:
        uds.unlink()
        process.kill()
        process.wait()


def test_invalid_start_reports_the_reason(tmp_path: Path) -> None:
    """A workspace that cannot be: status 2 and a sentence, no traceback."""
    (tmp_path / "file").touch()
    command = [
        sys.executable,
        "-m",
        "picod",
        "--auth",
        "none",
        "--workspace",
        str(tmp_path / "file/x"),
        "--uds",
        str(tmp_path / "s"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert (done.returncode, "cannot start" in done.stderr, "Traceback" in done.stderr) == (2, True, False)


@pytest.mark.parametrize("where", ["tcp", "uds"])
def test_own_listeners_work(tmp_path: Path, short_path: Path, where: str) -> None:
    """A port or a socket path in place of an inherited descriptor; a stale socket file does not matter."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    path = short_path / "s.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    flags = ["--port", str(port)] if where == "tcp" else ["--uds", str(path)]
    process = subprocess.Popen(
        [sys.executable, "-m", "picod", "--auth", "none", "--workspace", str(tmp_path), *flags], cwd=ROOT
    )

    def answers() -> bool:
        with socket.socket(socket.AF_INET if where == "tcp" else socket.AF_UNIX) as connection:
            try:
                connection.connect(("127.0.0.1", port) if where == "tcp" else str(path))
            except OSError:
                return False
            connection.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
            return connection.recv(100).startswith(b"HTTP/1.1 200")

    try:
        wait_until(answers, "picod answers")
    finally:
        process.terminate()
        assert process.wait(20) == 0


def test_idle_picod_stays_small(tmp_path: Path) -> None:
    """The share of memory of one that has its token library loaded: under 40 of the 45 MB a warm sandbox may take."""
    keys = tmp_path / "keys.json"
    keys.write_text('{"keys": []}')
    with picod_process("--audience", "a", "--keys-file", str(keys)) as picod:
        refused = picod.client.get("/api/files?path=.", headers={"authorization": "Bearer a.b.c"})
        assert refused.status_code == 401
        rollup = Path(f"/proc/{picod.process.pid}/smaps_rollup").read_text().splitlines()
        pss = int(next(line for line in rollup if line.startswith("Pss:")).split()[1])

    assert pss < 40_000
