"""Servers that code starts inside a sandbox, reached from outside through a real gateway."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from websockets.sync.client import connect
from websockets.typing import Origin

from tests.support.serve import Server, serve
from tests.support.two_gateways import two

# The handshake and frames by hand: the interpreter of user code has no WebSocket library.
ECHO = """
import base64, hashlib, socketserver

class Echo(socketserver.StreamRequestHandler):
    def handle(self):
        self.rfile.readline()
        fields = {}
        while (line := self.rfile.readline().strip()):
            name, value = line.split(b": ", 1)
            fields[name.lower()] = value
        key = fields[b"sec-websocket-key"] + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = base64.b64encode(hashlib.sha1(key).digest())
        self.wfile.write(b"HTTP/1.1 101 Switching Protocols\\r\\nUpgrade: websocket\\r\\nConnection: Upgrade\\r\\n"
                         b"Sec-WebSocket-Accept: " + accept + b"\\r\\n\\r\\n")
        while True:
            kind, length = self.rfile.read(2)
            length &= 127
            if length == 126: length = int.from_bytes(self.rfile.read(2), "big")
            mask = self.rfile.read(4)
            data = bytes(b ^ mask[i % 4] for i, b in enumerate(self.rfile.read(length)))
            head = bytes([length]) if length < 126 else bytes([126]) + length.to_bytes(2, "big")
            self.wfile.write(bytes([kind]) + head + data)
            if kind == 0x88: return

socketserver.ThreadingTCPServer(("127.0.0.1", 9001), Echo).serve_forever()
"""
SERVERS = "python3 -m http.server --bind 127.0.0.1 8000 >/dev/null 2>&1 & python3 echo.py >/dev/null 2>&1 &"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One gateway for the module."""
    with serve(tmp_path_factory.mktemp("ports") / "state", "--warm-pool", "1") as running:
        yield running


@pytest.fixture(scope="module")
def session(server: Server) -> str:
    """A session in whose sandbox two servers listen."""
    session = server.session()
    server.run(session, "mkdir site; echo hello > site/a.txt; cat > echo.py <<'END'\n" + ECHO + "\nEND\n" + SERVERS)
    for port in (8000, 9001):
        listed = server.client.get(f"/api/ports?wait={port}", headers={"x-session-id": session}).json()
        assert {"port": port, "reachable": True} in listed["ports"]
    return session


def test_http_server_in_a_sandbox_is_reached_by_path_alone(server: Server, session: str) -> None:
    """No header is needed, so a browser can; its own redirects lead back to it."""
    base = f"/v1/sessions/{session}/ports/8000"
    assert server.client.get(f"{base}/site/a.txt").text == "hello\n"
    assert "a.txt" in server.client.get(f"{base}/site", follow_redirects=True).text
    assert server.client.get(f"{base}/none").status_code == 404
    answer = server.client.get(base)
    assert (answer.status_code, answer.headers["location"]) == (301, base + "/")
    assert answer.headers.get("x-session-id") in (None, session)


def test_answer_names_session_and_start(server: Server, session: str) -> None:
    """As any other answer of a sandbox."""
    answer = server.client.get(f"/v1/sessions/{session}/ports/8000/site/a.txt")
    assert answer.headers["x-session-id"] == session
    assert answer.headers["x-wakegate-start"] == "live"


def test_websocket_server_in_a_sandbox_echoes(server: Server, session: str) -> None:
    """Messages pass both ways, through two handshakes and the bridge."""
    url = server.url.replace("http", "ws") + f"/v1/sessions/{session}/ports/9001/chat?x=1"
    with connect(url, proxy=None) as client:
        for message in ("hello", b"\x00\xff", "x" * 60_000):
            client.send(message)
            assert client.recv(20) == message


def test_port_without_a_server_is_a_502_with_the_reason(server: Server, session: str) -> None:
    """With a code to tell it from a sandbox that is gone; for a WebSocket too."""
    answer = server.client.get(f"/v1/sessions/{session}/ports/8001/")
    assert (answer.status_code, answer.json()["code"]) == (502, "PORT_NOT_LISTENING")
    url = server.url.replace("http", "ws") + f"/v1/sessions/{session}/ports/8001/"
    with pytest.raises(Exception, match="HTTP 502"), connect(url, proxy=None):
        pass


def test_contradicting_session_header_is_refused(server: Server, session: str) -> None:
    """The path wins over nothing: two sessions are a 400."""
    answer = server.client.get(f"/v1/sessions/{session}/ports/8000/", headers={"x-session-id": "other"})
    assert (answer.status_code, answer.json()["code"]) == (400, "BAD_REQUEST")


def test_unknown_session_is_not_found(server: Server) -> None:
    """404, and no sandbox is made for it."""
    answer = server.client.get("/v1/sessions/none/ports/8000/")
    assert (answer.status_code, answer.json()["code"]) == (404, "SESSION_NOT_FOUND")


def test_runtime_decides_which_ports_may_be_reached(tmp_path: Path) -> None:
    """spec.wakegate.ports is a list of ports and ranges; others answer 403."""
    manifest = tmp_path / "runtime.yaml"
    manifest.write_text(
        "apiVersion: runtime.agentcube.volcano.sh/v1alpha1\nkind: CodeInterpreter\nmetadata: {name: my-interpreter}\n"
        "spec: {template: {image: x}, wakegate: {ports: [8000, 9000-9100]}}\n"
    )
    with serve(tmp_path / "state", "--runtime", str(manifest)) as server:
        session = server.session()
        statuses = {
            port: server.client.get(f"/v1/sessions/{session}/ports/{port}/").status_code
            for port in (8000, 8001, 8999, 9000, 9100, 9101)
        }
    assert statuses == {8000: 502, 8001: 403, 8999: 403, 9000: 502, 9100: 502, 9101: 403}


def test_upload_to_a_port_is_streamed(server: Server, session: str) -> None:
    """An HTTP server in the sandbox answers with the size of what it was sent, chunked or not."""
    code = (
        "import http.server as h\n"
        "class H(h.BaseHTTPRequestHandler):\n"
        "  def do_POST(self):\n"
        "    n=len(self.rfile.read(int(self.headers['content-length'])))\n"
        "    self.send_response(200); self.end_headers(); self.wfile.write(str(n).encode())\n"
        "h.HTTPServer(('127.0.0.1', 8002), H).serve_forever()\n"
    )
    server.run(session, f"cat > up.py <<'END'\n{code}END\npython3 up.py >/dev/null 2>&1 &")
    server.client.get("/api/ports?wait=8002", headers={"x-session-id": session})
    answer = server.client.post(f"/v1/sessions/{session}/ports/8002/", content=bytes(8 << 20))
    assert answer.text == str(8 << 20)


REDIRECTING = """
import http.server, json
class App(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/":
            self.send_response(302)
            self.send_header("location", "http://localhost:8003/v1/sessions?x=1")
            self.send_header("set-cookie", "seen=1; Domain=sandboxes.example; Path=/")
            body = b""
        else:
            self.send_response(200)
            fields = {name.lower(): self.headers[name] for name in self.headers}
            body = json.dumps({"path": self.path, **fields}).encode()
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.ThreadingHTTPServer(("127.0.0.1", 8003), App).serve_forever()
"""


def test_port_with_a_host_of_its_own_is_a_site_of_its_own(tmp_path: Path) -> None:
    """Its redirects, cookies, paths, Origin and WebSockets, also through a gateway that passes the request on."""
    with two(tmp_path, "--domain", "sandboxes.example") as (a, b, _):
        session = a.session()
        code = f"cat > app.py <<'END'\n{REDIRECTING}END\ncat > echo.py <<'END'\n{ECHO}\nEND\n"
        a.run(session, code + "python3 app.py >/dev/null 2>&1 & python3 echo.py >/dev/null 2>&1 &")
        for port in (8003, 9001):
            a.client.get(f"/api/ports?wait={port}", headers={"x-session-id": session})
        for server in (a, b):
            host = f"8003-{session}.sandboxes.example"
            page = {"host": host, "origin": f"https://{host}", "cookie": "__Host-a=1"}
            answer = server.client.get("/", headers=page)
            assert (answer.status_code, answer.headers["location"]) == (302, "/v1/sessions?x=1")
            assert answer.headers["set-cookie"] == "seen=1; Path=/"
            seen = server.client.get(answer.headers["location"], headers=page).json()
            assert seen["path"] == "/v1/sessions?x=1"
            assert (seen["x-forwarded-host"], seen["origin"]) == (host, "http://localhost:8003")
            assert seen["cookie"] == "__Host-a=1"
            assert not {"x-forwarded-prefix", "x-wakegate-mount"} & seen.keys()
            missing = server.client.get("/", headers={"host": f"8004-{session}.sandboxes.example"})
            assert (missing.status_code, missing.json()["code"]) == (502, "PORT_NOT_LISTENING")
            url = f"ws://9001-{session}.sandboxes.example/chat"
            dialled = (httpx.URL(server.url).host, httpx.URL(server.url).port)
            with connect(url, origin=Origin(url[:-5].replace("ws", "https")), address=dialled, proxy=None) as client:
                client.send("hello")
                assert client.recv(20) == "hello"


@pytest.mark.parametrize("port", ["0", "65536", "x", "-1", "08000", ""])
def test_malformed_ports_are_refused(server: Server, session: str, port: str) -> None:
    """Before anything is sent to the sandbox."""
    answer = httpx.get(f"{server.url}/v1/sessions/{session}/ports/{port}/")
    assert answer.status_code == 400
    assert "malformed port" in answer.json()["error"]
