"""No answer says twice what has one value, whoever had a hand in it: picod, a server in the sandbox, a peer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.support.serve import Server, serve
from tests.support.two_gateways import two

MAY_REPEAT = {"set-cookie", "vary", "www-authenticate", "link", "via", "warning"}
IN_A_SANDBOX = (
    "import http.server\n"
    "class Page(http.server.BaseHTTPRequestHandler):\n"
    "    def do_GET(self):\n"
    "        self.send_response(200)\n"
    "        self.send_header('content-length', '2')\n"
    "        self.end_headers()\n"
    "        self.wfile.write(b'ok')\n"
    "http.server.HTTPServer(('127.0.0.1', 8000), Page).serve_forever()\n"
)
# Method, path, body: `{s}` is the session. One of each kind of answer: short, long, streamed, empty, partial, refused.
UNKNOWN = [{"id": "2", "function": {"name": "x", "arguments": ""}}]
ASKED: list[tuple[str, str, Any]] = [
    ("GET", "/livez", None),
    ("GET", "/metrics", None),
    ("GET", "/openapi.json", None),
    ("GET", "/nowhere", None),
    ("GET", "/v1/sessions/{s}", None),
    ("PATCH", "/v1/sessions/{s}", {"idleTimeout": "soon"}),
    ("GET", "/v1/tools", None),
    ("GET", "/v1/tools?format=none", None),
    ("POST", "/v1/tool_calls", [{"id": "1", "function": {"name": "run_shell", "arguments": '{"command": "true"}'}}]),
    ("POST", "/v1/tool_calls", {"tool_calls": UNKNOWN, "stream": True}),
    ("POST", "/mcp", {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}),
    ("GET", "/v1/containers/{s}", None),
    ("GET", "/v1/containers/{s}/files", None),
    ("POST", "/api/execute", {"command": ["true"]}),
    ("POST", "/api/execute", {"command": ["head", "-c", "3000000", "/dev/zero"]}),
    ("POST", "/api/execute", {"command": ["true"], "stream": True}),
    ("POST", "/api/execute", {"command": []}),
    ("POST", "/api/run_code", {"code": "1"}),
    ("POST", "/api/run_code", {"code": "import time; time.sleep(0.3)"}),
    ("POST", "/api/run_code", {"code": "1", "stream": True}),
    ("PUT", "/api/files/note", b"some text"),
    ("GET", "/api/files/note", None),
    ("HEAD", "/api/files/note", None),
    ("GET", "/api/files/missing", None),
    ("GET", "/api/fs/archive?path=.", None),
    ("GET", "/v1/sessions/{s}/ports/8000/", None),
    ("GET", "/v1/sessions/{s}/ports/8001/", None),
    ("DELETE", "/api/files/note", None),
]  # fmt: skip


def doubled(fields: Iterable[tuple[str, str]]) -> list[str]:
    """Names of fields that come more than once and may not."""
    seen = Counter(name.lower() for name, _ in fields)
    return [name for name, times in seen.items() if times > 1 and name not in MAY_REPEAT]


def check_all(server: Server, session: str) -> None:
    """Ask for everything; each answer has a date and nothing doubled."""
    own = {"x-session-id": session, "accept": "application/json, text/event-stream"}
    for method, path, body in ASKED:
        sent = {"content": body} if isinstance(body, bytes) else {"json": body} if body is not None else {}
        reply = server.client.request(method, path.format(s=session), headers=own, **sent)
        asked = (method, path, reply.status_code)
        assert reply.status_code < 500 or "8001" in path, (asked, reply.text)
        assert doubled(reply.headers.multi_items()) == [], (asked, reply.headers.multi_items())
        assert "date" in reply.headers, asked
    assert server.client.put("/api/files/kept", content=b"kept", headers=own).is_success
    etag = server.client.get("/api/files/kept", headers=own).headers["etag"]
    for more, status in (({"if-none-match": etag}, 304), ({"range": "bytes=1-2"}, 206), ({"range": "bytes=9-"}, 416)):
        reply = server.client.get("/api/files/kept", headers={**own, **more})
        assert (reply.status_code, doubled(reply.headers.multi_items())) == (status, [])
    url = f"ws{server.url.removeprefix('http')}/v1/sessions/{session}"
    with connect(f"{url}/terminal") as socket:
        assert socket.response is not None
        assert doubled(socket.response.headers.raw_items()) == []
    with pytest.raises(InvalidStatus) as refused, connect(f"{url}/terminal?cols=wide"):
        pass
    assert doubled(refused.value.response.headers.raw_items()) == []


def begin(server: Server) -> str:
    """A session with a web server in it."""
    session = server.session()
    own = {"x-session-id": session}
    started = server.client.post("/api/processes", json={"command": ["python3", "-c", IN_A_SANDBOX]}, headers=own)
    assert started.status_code == 201, started.text
    assert server.client.get("/api/ports?wait=8000&timeout=30s", headers=own).status_code == 200
    return session


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serve(tmp_path / "state", "--warm-pool", "1") as started:
        yield started


def test_answers_repeat_no_header(server: Server) -> None:
    """All kinds of answers of one gateway."""
    check_all(server, begin(server))


def test_answers_through_another_gateway_repeat_no_header(tmp_path: Path) -> None:
    """The same, where each request is passed on to the gateway that has the session."""
    with two(tmp_path) as (a, b, _):
        session = begin(a)
        check_all(b, session)
