"""A real gateway with a certificate of its own: every way in, clients that must show theirs, and files that change."""

from __future__ import annotations

import re
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from websockets.sync.client import connect

from tests.support.certificates import Authority
from tests.support.kube.served import in_cluster
from tests.support.redis_server import RedisServer
from tests.support.serve import Server, serve
from tests.support.waiting import wait_until

ECHO_HEAD = """
import http.server
class Echo(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = str(self.headers).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", 8000), Echo).serve_forever()
"""


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def server(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One gateway for the tests that leave it well."""
    state = tmp_path_factory.mktemp("tls") / "state"
    with serve(state, "--warm-pool", "1", *authority.issue("server").flags(), tls=authority.client()) as running:
        yield running


def serial_shown(server: Server, authority: Authority) -> int:
    """Of the certificate that a new connection is shown."""
    port = int(server.url.rpartition(":")[2])
    with (
        socket.create_connection(("127.0.0.1", port)) as plain,
        authority.client().wrap_socket(plain, server_hostname="127.0.0.1") as secure,
    ):
        shown = secure.getpeercert()
        assert shown is not None
        return int(str(shown["serialNumber"]), 16)


def test_banner_and_curl_speak_https(server: Server, authority: Authority) -> None:
    """And HTTP/1.1 is what ALPN agrees on, also with a client that would rather have HTTP/2."""
    assert server.url.startswith("https://")
    command = ["curl", "-sv", "--http2", "--cacert", str(authority.file), f"{server.url}/healthz"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert ran.returncode == 0, ran.stderr
    assert re.search(r"ALPN.*http/1\.1", ran.stderr)


def test_large_bodies_pass_both_ways(server: Server) -> None:
    """Ten megabytes up and down, whole."""
    headers, content = {"x-session-id": server.session()}, bytes(range(256)) * 40_000
    assert server.client.put("/api/files/big", content=content, headers=headers).status_code < 300
    assert server.client.get("/api/files/big", headers=headers).content == content


def test_sandbox_sees_that_its_client_used_https(server: Server) -> None:
    """So that links of what runs there are right."""
    session = server.session()
    server.run(session, f"cat > echo.py <<'END'\n{ECHO_HEAD}\nEND\npython3 echo.py >/dev/null 2>&1 &")
    server.client.get("/api/ports?wait=8000", headers={"x-session-id": session})
    said = server.client.get(f"/v1/sessions/{session}/ports/8000/").text.lower()
    assert "x-forwarded-proto: https" in said
    assert "proto=https" in said


def test_terminal_works_over_wss(server: Server, authority: Authority) -> None:
    """A WebSocket is an upgraded connection, and TLS is below it."""
    url = f"wss{server.url.removeprefix('https')}/v1/sessions/{server.session()}/terminal"
    with connect(url, ssl=authority.client(), proxy=None) as client:
        client.send(b"echo $((6*7))\n")
        seen = b""
        while b"42" not in seen:
            message = client.recv(20)
            seen += message if isinstance(message, bytes) else b""


def test_plain_http_on_the_tls_port_is_closed_without_a_traceback(server: Server) -> None:
    """A client's mistake, which must not fill the log with tracebacks."""
    with pytest.raises(httpx.HTTPError):
        httpx.get(server.url.replace("https", "http") + "/healthz")
    assert server.client.get("/healthz").status_code == 200
    assert "Traceback" not in server.log.read_text()


def test_changed_certificate_is_shown_to_new_connections_and_drops_none(authority: Authority, tmp_path: Path) -> None:
    """A connection from before goes on; a broken file changes nothing and is in the log."""
    pair = authority.issue("renewed")
    with serve(tmp_path / "state", "--warm-pool", "0", *pair.flags(), tls=authority.client()) as server:
        port = int(server.url.rpartition(":")[2])
        with (
            socket.create_connection(("127.0.0.1", port)) as plain,
            authority.client().wrap_socket(plain, server_hostname="127.0.0.1") as old,
        ):
            first = serial_shown(server, authority)
            authority.issue("renewed")
            wait_until(lambda: serial_shown(server, authority) != first, "the new certificate is shown")
            second = serial_shown(server, authority)
            pair.key.write_text("broken")
            wait_until(lambda: "TLS continues with the previous files" in server.log.read_text(), "it is told")
            assert serial_shown(server, authority) == second
            old.sendall(b"GET /healthz HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
            assert old.recv(64).startswith(b"HTTP/1.1 200")


def test_client_certificates_are_required_and_verified(authority: Authority, tmp_path: Path) -> None:
    """None, and one of another authority, are refused in the handshake; the right one is served."""
    flags = [*authority.issue("mutual").flags(), "--tls-client-ca", str(authority.file)]
    (tmp_path / "foreign").mkdir()
    stranger = Authority(tmp_path / "foreign", "stranger").issue("client")
    known = authority.client(authority.issue("client"))
    with serve(tmp_path / "state", "--warm-pool", "0", *flags, tls=known) as server:
        for context in (authority.client(), authority.client(stranger)):
            with pytest.raises((httpx.HTTPError, ssl.SSLError)):
                httpx.get(f"{server.url}/healthz", verify=context)
        assert httpx.get(f"{server.url}/healthz", verify=known).status_code == 200
        assert "Traceback" not in server.log.read_text()


def test_gateways_reach_each_other_over_tls(authority: Authority, tmp_path: Path) -> None:
    """Requests and WebSockets for a session that another one has, with client certificates required."""
    redis = RedisServer(tmp_path / "redis").start()
    flags = ["--store", redis.url, "--warm-pool", "1", "--tls-client-ca", str(authority.file)]
    tls = authority.client(authority.issue("client"))
    try:
        with (
            serve(tmp_path / "a", *flags, *authority.issue("a").flags(), tls=tls) as a,
            serve(tmp_path / "b", *flags, *authority.issue("b").flags(), tls=tls) as b,
        ):
            session = a.session()
            assert a.run(session, "echo kept > note").status_code == 200
            reply = b.run(session, "cat note")
            assert (reply.status_code, reply.json()["stdout"]) == (200, "kept\n"), reply.text
            url = f"wss{b.url.removeprefix('https')}/v1/sessions/{session}/terminal"
            with connect(url, ssl=tls, proxy=None) as client:
                client.send(b"echo $((6*7))\n")
                seen = b""
                while b"42" not in seen:
                    message = client.recv(20)
                    seen += message if isinstance(message, bytes) else b""
    finally:
        redis.kill()


def test_workers_share_a_tls_port(authority: Authority, tmp_path: Path) -> None:
    """Each of them reads the files, and answers https on the one port."""
    redis = RedisServer(tmp_path / "redis").start()
    tls = authority.client()
    try:
        flags = ["--workers", "2", "--store", redis.url, *authority.issue("workers").flags()]
        with in_cluster(tmp_path, *flags, tls=tls) as (server, _):
            assert server.url.startswith("https://")
            for _ in range(20):
                assert httpx.get(f"{server.url}/healthz", verify=tls).status_code == 200
    finally:
        redis.kill()
