"""Ports that a session opened to anybody: reached without a credential, and nothing else of the session is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.support.serve import Server, serve
from tests.support.waiting import wait_until

pytestmark = pytest.mark.processes

MANIFEST = """
apiVersion: runtime.agentcube.volcano.sh/v1alpha1
kind: CodeInterpreter
metadata: {name: my-interpreter}
spec:
  template: {image: none}
  warmPoolSize: 1
  wakegate: {ports: [8000-8010], publicPorts: [8000, 8001]}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A gateway that asks for keys, with names for ports; its client has the administrator's key."""
    folder = tmp_path_factory.mktemp("public")
    (folder / "runtime.yaml").write_text(MANIFEST)
    (folder / "admin").write_text("wga_" + "k" * 43)
    flags = ["--runtime", str(folder / "runtime.yaml"), "--auth", "--domain", "sandboxes.example"]
    with serve(folder / "state", *flags, "--admin-key-file", str(folder / "admin")) as made:
        made.client.headers["authorization"] = f"Bearer {(folder / 'admin').read_text()}"
        yield made


@pytest.fixture
def stranger(server: Server) -> Iterator[httpx.Client]:
    """Somebody without any credential."""
    with httpx.Client(base_url=server.url, timeout=30) as client:
        yield client


def create(server: Server, **fields: Any) -> httpx.Response:
    return server.client.post("/v1/sessions", json={"runtime": "default/my-interpreter", **fields})


def shop(server: Server, *public: int) -> str:
    """A session with servers on 8000 and 8002, of which some ports are public."""
    reply = create(server, publicPorts=list(public))
    assert reply.status_code == 201, reply.text
    assert reply.json()["publicPorts"] == list(public)
    session = str(reply.json()["id"])
    script = "echo shown > index.html; for p in 8000 8002; do nohup python3 -m http.server $p >/dev/null 2>&1 & done"
    assert server.run(session, script).status_code == 200
    for port in (8000, 8002):
        path = f"/v1/sessions/{session}/ports/{port}/index.html"
        wait_until(lambda path=path: server.client.get(path).status_code == 200, "its server listens")  # type: ignore[misc]
    return session


def test_public_port_is_reached_by_anybody_and_the_rest_by_nobody(server: Server, stranger: httpx.Client) -> None:
    """By path and by name, with no credential and with a wrong one, also while the session sleeps."""
    session, private = shop(server, 8000), shop(server)
    path = f"/v1/sessions/{session}/ports/8000/index.html"
    assert stranger.get(path).text == "shown\n"
    assert stranger.get(path, headers={"authorization": "Basic YTpi"}).text == "shown\n"
    assert stranger.get("/index.html", headers={"host": f"8000-{session}.sandboxes.example"}).text == "shown\n"
    clicked = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    assert stranger.get(path, headers=clicked).text == "shown\n"
    assert stranger.get(path, headers={**clicked, "sec-fetch-dest": "iframe"}).status_code == 403

    assert server.client.post(f"/v1/sessions/{session}/hibernate").status_code == 200
    woken = stranger.get(path)  # wakes it; what listened before does not now
    assert woken.status_code == 502
    assert woken.json()["code"] == "PORT_NOT_LISTENING"

    for closed in (
        f"/v1/sessions/{session}/ports/8002/index.html", f"/v1/sessions/{session}/ports/08000/index.html",
        f"/v1/sessions/{private}/ports/8000/index.html", "/v1/sessions/unknown/ports/8000/", f"/v1/sessions/{session}",
        f"/v1/sessions/{session}/ports/8000/../../../sessions", f"/v1/sessions/{session}/ports/8000%2f../8002/",
    ):  # fmt: skip
        raw = stranger.build_request("GET", "/")
        raw.url = raw.url.copy_with(raw_path=closed.encode())
        assert stranger.send(raw).status_code in (400, 401, 403, 404), closed
    host = {"host": f"8002-{session}.sandboxes.example"}
    assert stranger.get("/index.html", headers=host).status_code == 401
    for header in ({"x-session-id": session}, {"x-agentcube-session-id": session}):
        assert stranger.post("/api/execute", json={"command": ["true"]}, headers=header).status_code == 401


def test_runtime_and_tenant_have_to_allow_it(server: Server, stranger: httpx.Client) -> None:
    """At creation, and for each request: a limit that is set later closes what is open."""
    for wrong in ([8002], [80], [0], [70000], ["8000"], [True], 8000, [8000] * 33):
        reply = create(server, publicPorts=wrong)
        assert reply.status_code == 400, wrong
        assert reply.json()["error"].startswith("publicPorts"), reply.text
    session = shop(server, 8000)
    path = f"/v1/sessions/{session}/ports/8000/index.html"
    assert stranger.get(path).status_code == 200
    limits = {"limits": {"publicPorts": False}}
    assert server.client.put("/v1/tenants/default", json=limits).status_code in (200, 201)
    try:
        wait_until(lambda: stranger.get(path).status_code == 401, "it is closed")
        assert server.client.get(path).status_code == 200
        assert create(server, publicPorts=[8000]).status_code == 403
    finally:
        assert server.client.put("/v1/tenants/default", json={"limits": {}}).status_code == 200
    wait_until(lambda: stranger.get(path).status_code == 200, "it is open again")
    assert server.client.delete(f"/v1/sessions/{session}").status_code in (200, 204)
    assert stranger.get(path).status_code in (401, 404, 410)
