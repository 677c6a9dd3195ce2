"""Agents through the API of a real gateway: created, changed, undone, stopped, deleted."""

from __future__ import annotations

import socket
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.serve import Server, serve
from tests.support.waiting import wait_until

pytestmark = pytest.mark.processes

PROGRAM = """
import http.server, os
class Agent(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        fails = os.environ.get("FAILS") and self.path != "/ready"
        data = os.environ.get("SAYS", "").encode()
        self.send_response(500 if fails else 200)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
http.server.ThreadingHTTPServer(("127.0.0.1", 8080), Agent).serve_forever()
"""


def spec(says: str, program: str = PROGRAM, **more: str) -> dict[str, Any]:
    """An agent that says a word, without any file."""
    environment = [{"name": name, "value": value} for name, value in {"SAYS": says, **more}.items()]
    container = {
        "name": "agent", "image": "x", "command": ["python3", "-c", program], "env": environment,
        "readinessProbe": {"httpGet": {"path": "/ready", "port": 8080}, "periodSeconds": 1},
    }  # fmt: skip
    return {"targetPort": [{"port": 8080, "protocol": "HTTP"}], "podTemplate": {"spec": {"containers": [container]}}}


def ask(server: Server, name: str = "greeter", session: str = "", **headers: str) -> httpx.Response:
    """A request to the agent, on a new session or on one that there is."""
    if session:
        headers["x-session-id"] = session
    return server.client.get(f"/v1/namespaces/default/agent-runtimes/{name}/invocations/", headers=headers)


def status(server: Server, name: str = "greeter") -> dict[str, Any]:
    found: dict[str, Any] = server.client.get(f"/v1/agents/{name}").json()["status"]
    return found


def answers(server: Server, path: str) -> bool:
    return server.client.get(path).status_code == 200


def created(server: Server, **fields: Any) -> httpx.Response:
    return server.client.post("/v1/agents", json={"name": "greeter", "spec": spec("one"), **fields})


def test_an_agent_is_created_changed_undone_stopped_and_deleted(tmp_path: Path) -> None:
    """Sessions keep their revision; a change serves once it is ready; undo brings the one before back."""
    with serve(tmp_path / "state") as server:
        made = created(server)
        assert made.status_code == 201, made.text
        assert made.json()["phase"] in ("Pending", "Running")
        first = ask(server)
        assert (first.status_code, first.text) == (200, "one")
        session = first.headers["x-session-id"]
        assert server.state(session)["revision"] == 1
        assert created(server).status_code == 409
        listed = server.client.get("/v1/agents").json()["agents"]
        assert [(each["name"], each["managedBy"]) for each in listed] == [("greeter", "api")]
        runtimes = server.client.get("/v1/runtimes").json()["runtimes"]
        assert "greeter" in [each["name"] for each in runtimes]
        changed = server.client.patch("/v1/agents/greeter", json={"spec": spec("two"), "reason": "say two"})
        assert changed.status_code == 200, changed.text
        wait_until(lambda: status(server)["stable"] == 2, "the second revision serves")
        assert ask(server).text == "two"
        # Its pools by the names that they are listed with, which a page of all pools asks for, and by the agent's.
        for name in ("greeter@2", "greeter"):
            for part in ("forecasts", "what-if"):
                path = f"/v1/autoscaler/{name}/{part}?kind=AgentRuntime"
                wait_until(partial(answers, server, path), f"{path} is answered")
        for name, refused in (("greeter@99", 404), ("greeter@x", 400), ("greeter@", 400)):
            assert server.client.get(f"/v1/autoscaler/{name}/what-if?kind=AgentRuntime").status_code == refused
        assert ask(server, session=session).text == "one"
        (newest, _) = server.client.get("/v1/agents/greeter/revisions").json()["revisions"]
        assert (newest["revision"], newest["reason"], newest["createdBy"]) == (2, "say two", "anonymous")
        (difference,) = newest["diff"]
        assert (difference["from"], difference["to"]) == ("one", "two")
        undone = server.client.post("/v1/agents/greeter/rollout", json={"action": "undo"})
        assert undone.json()["stable"] == 1, undone.text
        assert ask(server).text == "one"
        stopped = server.client.post("/v1/agents/greeter/stop")
        assert (stopped.json()["phase"], stopped.json()["status"]["sessions"]) == ("Stopped", [])
        assert ask(server).status_code == 409
        assert server.client.post("/v1/agents/greeter/start").status_code == 200
        assert ask(server).text == "one"
        assert server.client.get("/v1/agents/greeter").json()["status"]["metrics"]["requests"] > 0
        assert server.client.delete("/v1/agents/greeter").status_code == 204
        assert ask(server).status_code == 404
        assert server.client.get("/v1/agents/greeter").status_code == 404


def test_a_revision_that_fails_is_rolled_back_by_itself(tmp_path: Path) -> None:
    """One whose process ends never serves; one that answers 500 is a canary, and only its own sessions see it."""
    with serve(tmp_path / "state") as server:
        created(server)
        wait_until(lambda: ask(server).text == "one", "it answers")
        broken = spec("x", program="raise SystemExit('no such model')")
        server.client.patch("/v1/agents/greeter", json={"spec": broken, "strategy": {"startTimeout": 3}})
        wait_until(lambda: "rolled back" in status(server)["events"][0]["text"], "it is rolled back")
        assert ask(server).text == "one"
        canary = {"canary": {"header": "x-try", "value": "yes"}, "window": 60, "minRequests": 5}
        server.client.patch("/v1/agents/greeter", json={"spec": spec("bad", FAILS="1"), "strategy": canary})
        wait_until(lambda: (status(server)["rollout"] or {}).get("phase") == "canary", "the canary begins")
        failing = ask(server, **{"x-try": "yes"})
        assert failing.status_code == 500
        for _ in range(8):
            assert ask(server, session=failing.headers["x-session-id"]).status_code == 500
            assert ask(server).status_code == 200
        wait_until(lambda: status(server)["rollout"] is None, "it is rolled back")
        assert "requests failed" in status(server)["events"][0]["text"]
        assert ask(server, **{"x-try": "yes"}).text == "one"


def test_agents_survive_the_end_of_the_gateway(tmp_path: Path) -> None:
    """Also kill -9: they are in the store."""
    with serve(tmp_path / "state") as server:
        created(server)
        server.kill()
    with serve(tmp_path / "state") as server:
        assert ask(server).text == "one"


def test_what_is_wrong_with_an_agent_is_said(tmp_path: Path) -> None:
    """400 for what cannot be, 403 for what is more than there is; flat fields make the same agents."""
    with serve(tmp_path / "state") as server:
        wrong = created(server, spec={"targetPort": [{"port": 0}]})
        assert wrong.status_code == 400
        assert "targetPort" in wrong.text
        source = spec("one") | {"wakegate": {"source": "/etc"}}
        assert created(server, spec=source).status_code == 400
        assert created(server, name="UPPER").status_code == 400
        assert created(server, tenant="x").status_code == 400
        flat = {"name": "flat", "image": "x", "command": ["python3", "-c", PROGRAM], "env": {"SAYS": "flat"}}
        large = server.client.post("/api/v1/agents", json={**flat, "memory_limit": 1 << 28})
        assert (large.status_code, large.json()["limit"]) == (403, "memory")
        gpu = server.client.post("/api/v1/agents", json={**flat, "gpu_count": 8})
        assert (gpu.status_code, gpu.json()["limit"]) == (403, "gpus")
        made = server.client.post("/api/v1/agents", json={**flat, "cpu_limit": 500, "memory_limit": 256})
        assert made.status_code == 201, made.text
        assert ask(server, "flat").text == "flat"
        assert server.client.get("/api/v1/agents/flat").json()["env"] == {"SAYS": "flat"}


def _moves(server: Server) -> list[str]:
    reply = server.client.post("/v1/agents/greeter/rollout", json={"action": "move"})
    assert reply.status_code == 200, reply.text
    moved: list[str] = reply.json()["moved"]
    return moved


KEEPER = """
import http.server, os, time
class Agent(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path.endswith("/go"):
            open("go", "w").close()
        with open("note", "a+") as note:
            if self.path.endswith(("/add", "/hold")):
                note.write("x")
            note.flush()
            while self.path.endswith("/hold") and not os.path.exists("go"):
                time.sleep(0.02)
            note.seek(0)
            data = (os.environ["SAYS"] + ":" + note.read()).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
http.server.ThreadingHTTPServer(("127.0.0.1", 8080), Agent).serve_forever()
"""


def test_sessions_of_an_old_revision_are_moved_with_their_files(tmp_path: Path) -> None:
    """On request only; one that is in use stays, and the reason is told. In the next request the new code has the
    files."""
    with serve(tmp_path / "state") as server:
        created(server, spec=spec("one", KEEPER))
        path = "/v1/namespaces/default/agent-runtimes/greeter/invocations/"
        first = server.client.get(path + "add")
        assert first.text == "one:x"
        session = first.headers["x-session-id"]
        server.client.patch("/v1/agents/greeter", json={"spec": spec("two", KEEPER)})
        wait_until(lambda: status(server)["stable"] == 2, "the second revision serves")
        assert ask(server, session=session).text == "one:x"
        newer = ask(server)
        assert newer.text == "two:"
        with socket.create_connection(("127.0.0.1", httpx.URL(server.url).port or 0)) as busy:
            busy.sendall(f"GET {path}hold HTTP/1.1\r\nhost: localhost\r\nx-session-id: {session}\r\n\r\n".encode())
            wait_until(lambda: ask(server, session=session).text == "one:xx", "the agent has the request")
            kept = server.client.post("/v1/agents/greeter/rollout", json={"action": "move"}).json()
            assert (kept["moved"], [each["session"] for each in kept["kept"]]) == ([], [session])
            assert "under way" in kept["kept"][0]["reason"]
            assert server.client.get(path + "go", headers={"x-session-id": session}).status_code == 200
            assert busy.recv(1 << 16).startswith(b"HTTP/1.1 200")
        wait_until(lambda: _moves(server) == [session], "it is moved once nothing is under way")
        assert server.state(session)["revision"] == 2
        assert ask(server, session=session).text == "two:xx"
        assert ask(server, session=newer.headers["x-session-id"]).text == "two:"
        again = server.client.post("/v1/agents/greeter/rollout", json={"action": "move"}).json()
        assert again["moved"] == [], "there is nothing left to move"
        assert server.client.post("/v1/agents/greeter/rollout", json={"action": "move", "to": 1}).status_code == 400
