"""Proxies in front, and gateways between: what a server in a sandbox hears of its client, and where links lead."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.serve import Server, serve
from tests.support.tool_calls import chat_call
from tests.support.two_gateways import two
from tests.support.waiting import wait_until

# Answers the fields that it was sent.
MIRROR = """
import http.server, json
class Mirror(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({name.lower(): self.headers.get_all(name) for name in self.headers}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.ThreadingHTTPServer(("127.0.0.1", 8000), Mirror).serve_forever()
"""
BEHIND_PROXY = {
    "x-forwarded-for": "198.51.100.1, 203.0.113.9",
    "x-forwarded-host": "gate.example",
    "x-forwarded-proto": "https",
}


def mirror(server: Server, session: str) -> None:
    """Start the server in the session's sandbox."""
    server.run(session, f"cat > mirror.py <<'END'\n{MIRROR}\nEND\npython3 mirror.py >/dev/null 2>&1 &")
    server.client.get("/api/ports?wait=8000", headers={"x-session-id": session})


def seen_through(server: Server, session: str, **headers: str) -> dict[str, list[str]]:
    """What the sandbox's server was sent of a request."""
    answer = server.client.get(f"/v1/sessions/{session}/ports/8000/", headers=headers)
    assert answer.status_code == 200, answer.text
    return {
        name: value for name, value in json.loads(answer.content).items() if "forwarded" in name or name == "origin"
    }


def test_every_gateway_sends_a_sandbox_the_same_client(tmp_path: Path) -> None:
    """Through the one that has the session, and through the other, which passes the request on."""
    flags = ("--trusted-proxies", "127.0.0.1", "--allowed-hosts", "gate.example")
    with two(tmp_path, *flags, "--access-log", "--log-format", "json") as (a, b, _):
        session = a.session()
        mirror(a, session)
        page = {"origin": "https://gate.example"}
        heard = seen_through(a, session, **BEHIND_PROXY, **page)
        assert heard == {
            "x-forwarded-for": ["203.0.113.9, 127.0.0.1"],
            "x-forwarded-host": ["gate.example"],
            "x-forwarded-proto": ["https"],
            "forwarded": ['for=203.0.113.9;host="gate.example";proto=https, for=127.0.0.1'],
            "x-forwarded-prefix": [f"/v1/sessions/{session}/ports/8000"],
            "origin": ["http://localhost:8000"],
        }
        assert seen_through(b, session, **BEHIND_PROXY, **page) == heard
        assert b.client.post(f"/v1/sessions/{session}/hibernate", headers=BEHIND_PROXY).status_code == 200

        def clients(path: str) -> list[str]:
            logged = [json.loads(line) for line in a.log.read_text().splitlines() if line.startswith("{")]
            return [line["client"] for line in logged if line.get("path") == path]

        wait_until(
            lambda: clients(f"/v1/sessions/{session}/hibernate") == ["203.0.113.9"], "the relayed request is logged"
        )
        assert clients(f"/v1/sessions/{session}/ports/8000/") == ["203.0.113.9"] * 2


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A gateway that trusts a proxy on this machine."""
    flags = ("--trusted-proxies", "127.0.0.1", "--allowed-hosts", "gate.example", "--code-context", "warm")
    with serve(tmp_path_factory.mktemp("proxied") / "state", *flags) as running:
        yield running


@pytest.mark.parametrize(
    ("headers", "base"),
    [(BEHIND_PROXY, "https://gate.example/"), ({"x-forwarded-proto": "https"}, "https://127.0.0.1:"), ({}, "http://127.0.0.1:")],
)  # fmt: skip
def test_links_lead_to_where_the_client_came_from(proxied: Server, headers: dict[str, str], base: str) -> None:
    """By the name and the scheme that a trusted proxy was asked under."""
    code = "from PIL import Image\nImage.new('RGB', (4, 4))"
    body = {"session_id": proxied.session(), "tool_calls": [chat_call("a", "run_python", code=code)]}
    (file,) = proxied.client.post("/v1/tool_calls", json=body, headers=headers).json()["files"]
    assert file["url"].startswith(base + ("" if base.endswith(":") else "v1/containers/")), file["url"]
    assert httpx.URL(file["url"]).path.endswith("/content")


def test_links_of_a_client_that_no_proxy_vouches_for_lead_to_the_host_it_named(tmp_path: Path) -> None:
    """A page or a program cannot have links made that lead elsewhere."""
    with serve(tmp_path / "state", "--code-context", "warm", "--warm-pool", "1") as server:
        code = "from PIL import Image\nImage.new('RGB', (4, 4))"
        body = {"session_id": server.session(), "tool_calls": [chat_call("a", "run_python", code=code)]}
        (file,) = server.client.post("/v1/tool_calls", json=body, headers=BEHIND_PROXY).json()["files"]
        assert file["url"].startswith(server.url)
