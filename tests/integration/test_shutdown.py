"""The end of a gateway as its clients see it: SIGTERM cuts nothing that is on its way."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil

from tests.support.serve import Server, serve
from tests.support.waiting import LIMIT_S, wait_until

ASK = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n"


def connect(server: Server) -> socket.socket:
    address = urlsplit(server.url)
    assert address.hostname
    assert address.port
    return socket.create_connection((address.hostname, address.port), timeout=LIMIT_S)


def answer(client: socket.socket) -> bytes:
    """Read one whole answer to ASK."""
    held = b""
    while not held.endswith(b'{"status":"alive"}'):
        more = client.recv(65536)
        assert more, f"cut off after {held!r}"
        held += more
    return held


@contextmanager
def stopped(server: Server) -> Iterator[None]:
    """While the block runs the gateway does not: what is sent to it waits in the kernel."""
    process = psutil.Process(server.process.pid)
    process.suspend()
    try:
        wait_until(lambda: process.status() == psutil.STATUS_STOPPED, "the gateway stops")
        yield
    finally:
        process.resume()


def test_shutdown_gives_notice_before_it_refuses(tmp_path: Path) -> None:
    """After SIGTERM readiness fails while requests are still answered, on kept connections and new ones, each answer
    being its connection's last; a second signal ends the wait."""
    with serve(tmp_path / "state", "--shutdown-delay", "1h") as server, connect(server) as kept:
        kept.sendall(ASK)
        assert b"connection: close" not in answer(kept)
        os.kill(server.process.pid, signal.SIGTERM)
        wait_until(lambda: httpx.get(f"{server.url}/readyz").status_code == 503, "readiness fails")
        assert "this gateway is shutting down" in httpx.get(f"{server.url}/readyz").json()["reasons"]
        kept.sendall(ASK)
        assert b"connection: close" in answer(kept)
        assert kept.recv(1) == b""
        assert httpx.get(f"{server.url}/healthz").headers["connection"] == "close"
        session = server.session()
        assert server.run(session, "echo served").json()["stdout"] == "served\n"
        assert server.terminate() == 0


def test_shutdown_answers_what_waits_in_the_kernel(tmp_path: Path) -> None:
    """Requests that were sent, on kept connections and on ones not yet accepted, before the gateway saw the signal."""
    with serve(tmp_path / "state", "--shutdown-delay", "200ms") as server, ExitStack() as stack:
        clients = [stack.enter_context(connect(server)) for _ in range(8)]
        for client in clients:
            client.sendall(ASK)
            answer(client)
        with stopped(server):
            os.kill(server.process.pid, signal.SIGTERM)
            clients += [stack.enter_context(connect(server)) for _ in range(8)]
            for client in clients:
                client.sendall(ASK)
        assert [answer(client)[:15] for client in clients] == [b"HTTP/1.1 200 OK"] * 16
        assert server.process.wait(LIMIT_S) == 0


def test_shutdown_resets_no_connection_of_a_crowd(tmp_path: Path) -> None:
    """Clients that connect anew for each request, as fast as they can: each is answered until it is refused."""
    answered, cut = [], []
    with serve(tmp_path / "state", "--shutdown-delay", "200ms") as server:

        def visit() -> None:
            while True:
                try:
                    client = connect(server)
                except ConnectionRefusedError:
                    return
                with client:
                    try:
                        client.sendall(ASK)
                        answered.append(answer(client))
                    except (OSError, AssertionError) as error:
                        cut.append(error)

        with ThreadPoolExecutor(16) as crowd:
            visits = [crowd.submit(visit) for _ in range(16)]
            wait_until(lambda: len(answered) > 100, "they are answered")
            os.kill(server.process.pid, signal.SIGTERM)
            for each in visits:
                each.result(LIMIT_S)
        assert server.process.wait(LIMIT_S) == 0
    assert cut == []
