"""AgentRuntimes on the local engine: the manifest's command in a sandbox, its ports by path, its end and its faults."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import yaml
from agentcube import AgentRuntimeClient
from websockets.sync.client import connect

from gateway.cli.banner import banner, banner_of, first_key
from gateway.core.model import Kind, Runtime, RuntimeKey
from gateway.core.settings import Settings
from gateway.runtimes.catalog import StaticCatalog
from tests.support.serve import Server, serve
from tests.support.waiting import wait_until

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "agent_runtime" / "agent.yaml"
# Says what it was asked, on two ports, and hello to WebSockets.
ECHO = """
import base64, hashlib, http.server, json, os, sys, threading

class Agent(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self):
        if self.headers.get("upgrade"):
            key = self.headers["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
            accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
            self.send_response(101)
            for name, value in (("upgrade", "websocket"), ("connection", "upgrade"), ("sec-websocket-accept", accept)):
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(b"\\x81\\x05hello")
            self.rfile.read(1)
            return
        if self.path == "/crash":
            print("no more of this", file=sys.stderr, flush=True)
            os._exit(3)
        body = self.rfile.read(int(self.headers.get("content-length") or 0)).decode()
        said = {"port": self.server.server_address[1], "path": self.path, "body": body, "cwd": os.getcwd(),
                "argv": sys.argv[1:], "authorized": "authorization" in self.headers,
                "session": self.headers.get("x-agentcube-session-id")}
        data = json.dumps(said).encode()
        self.send_response(404 if self.path == "/missing" else 200)
        self.send_header("content-length", str(len(data)))
        self.send_header("location", "/elsewhere")
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_DELETE = answer

tools = http.server.ThreadingHTTPServer(("127.0.0.1", 3000), Agent)
threading.Thread(target=tools.serve_forever, daemon=True).start()
http.server.ThreadingHTTPServer(("127.0.0.1", 8080), Agent).serve_forever()
"""


def manifest(folder: Path, **container: Any) -> str:
    """A manifest with the echo agent; `container` replaces fields."""
    (folder / "echo.py").write_text(ECHO)
    spec = {
        "targetPort": [{"pathPrefix": "/", "port": 8080}, {"pathPrefix": "/tools", "port": 3000}],
        "podTemplate": {
            "spec": {
                "containers": [
                    {"name": "agent", "image": "echo:1", "command": ["python3"], "args": ["echo.py", "$(WHO)", "$$x"],
                     "env": [{"name": "WHO", "value": "Ada"}], **container}
                ]
            }
        },
        "warmPoolSize": 1,
        "wakegate": {"source": "."},
    }  # fmt: skip
    document = {
        "apiVersion": "runtime.agentcube.volcano.sh/v1alpha1",
        "kind": "AgentRuntime",
        "metadata": {"name": "echo"},
        "spec": spec,
    }
    path = folder / "echo.yaml"
    path.write_text(yaml.safe_dump(document))
    return str(path)


def test_banner_shows_a_command_that_an_agent_can_answer() -> None:
    """It runs no commands; where a code interpreter is served, too, that one is shown."""
    agent = RuntimeKey("default", "greeter", Kind.AGENT_RUNTIME)
    said = banner("http://h", Settings(), [], [], agent)
    assert "curl -s -i http://h/v1/namespaces/default/agent-runtimes/greeter/invocations/\n" in said + "\n"
    assert "execute" not in said
    interpreter = RuntimeKey("default", "zz")
    assert first_key(StaticCatalog([Runtime(agent), Runtime(interpreter)])) == interpreter


def test_banner_is_a_line_of_json_where_logs_are() -> None:
    """Whoever collects the output of a pod parses each line of it."""
    served = StaticCatalog([Runtime(RuntimeKey("default", "one"))])
    gateway: Any = SimpleNamespace(catalog=served, engine=SimpleNamespace(summary=lambda: "engine: kubernetes"))
    (line,) = banner_of(gateway, "http://h", Settings(log_format="json")).splitlines()
    said = json.loads(line)
    assert said["event"].endswith("listens on http://h")
    assert (said["url"], said["level"], said["runtimes"]) == ("http://h", "info", ["code-interpreters/default/one"])


def pool(server: Server) -> dict[str, Any]:
    """The agent's pool as the API shows it."""
    (found,) = server.client.get("/v1/runtimes").json()["runtimes"]
    pool: dict[str, Any] = found["pool"]
    return pool


def call(server: Server, path: str, session: str = "", method: str = "GET", **more: Any) -> httpx.Response:
    """A request to the agent in AgentCube's form."""
    headers = {"x-agentcube-session-id": session} if session else {}
    url = f"/v1/namespaces/default/agent-runtimes/echo/invocations{path}"
    return server.client.request(method, url, headers=headers, **more)


def test_example_agent_holds_a_conversation_with_the_published_client(tmp_path: Path) -> None:
    """Three turns on a warm sandbox; another session sees none of them."""
    with serve(tmp_path / "state", "--runtime", str(EXAMPLE)) as server:
        wait_until(lambda: pool(server)["ready"] == 1, "an agent is warm")
        ada, other = (AgentRuntimeClient("greeter", router_url=server.url) for _ in range(2))
        assert server.state(str(ada.session_id))["start"] == "warm"
        assert ada.invoke({"message": "Who am I?"})["reply"] == "You have not told me."
        assert ada.invoke({"message": "I am Ada"})["reply"] == "Welcome, Ada!"
        last = ada.invoke({"message": "Who am I?"})
        assert last == {"reply": "You are Ada.", "turns": 3, "session": ada.session_id}
        assert other.invoke({"message": "Who am I?"})["turns"] == 1


@pytest.mark.parametrize("isolation", ["bubblewrap", "process"])
def test_agent_gets_requests_as_they_came_on_the_port_of_their_path(tmp_path: Path, isolation: str) -> None:
    """Also those that picod has a meaning for; without our token, with its arguments, in its folder."""
    with serve(tmp_path / "state", "--runtime", manifest(tmp_path), "--isolation", isolation) as server:
        first = call(server, "/")
        session = first.headers["x-agentcube-session-id"]
        said = first.json()
        assert (said["argv"], said["authorized"], said["session"]) == (["Ada", "$x"], False, session)
        assert said["cwd"] == ("/app" if isolation == "bubblewrap" else str(tmp_path))
        for path, port in (("/tools", 3000), ("/tools/a?b=c%20d", 3000), ("/toolshed", 8080), ("/x/tools", 8080)):
            assert (call(server, path, session).json()["port"], call(server, path, session).json()["path"]) == (
                port,
                path,
            )
        for path in ("/health", "/api/execute", "/api/ports/22/", "/a//b"):
            reply = call(server, path, session, "POST", content=b"hello")
            assert (reply.status_code, reply.json()["path"], reply.json()["body"]) == (200, path, "hello")
        missing = call(server, "/missing", session, "DELETE")
        assert (missing.status_code, missing.headers["location"]) == (404, "/elsewhere")


def test_agent_speaks_websockets_and_ends_with_its_session(tmp_path: Path) -> None:
    """An upgrade is bytes both ways; after DELETE the session is not found."""
    with serve(tmp_path / "state", "--runtime", manifest(tmp_path)) as server:
        session = call(server, "/").headers["x-agentcube-session-id"]
        url = f"ws://{server.url.removeprefix('http://')}/v1/namespaces/default/agent-runtimes/echo/invocations/tools"
        with connect(url, additional_headers={"x-agentcube-session-id": session}) as socket:
            assert socket.recv() == "hello"
        assert server.client.delete(f"/v1/agent-runtime/sessions/{session}").status_code == 200
        assert call(server, "/", session).status_code == 404


def test_agent_that_is_asked_for_tools_has_none(tmp_path: Path) -> None:
    """Over MCP at the first word, and with the first call; no session is left by it."""
    params = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "bare", "version": "1"}}
    message = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params}
    with serve(tmp_path / "state", "--runtime", manifest(tmp_path)) as server:
        reply = server.client.post("/mcp?runtime=default/echo", json=message)
        told = "runtime: no code interpreter default/echo is served; there are none"
        assert (reply.status_code, reply.json()["error"]["message"]) == (400, told)
        calls = [{"id": "a", "type": "function", "function": {"name": "run_shell", "arguments": '{"command": "id"}'}}]
        runtime = {"name": "echo", "kind": "AgentRuntime"}
        reply = server.client.post("/v1/tool_calls", json={"tool_calls": calls, "runtime": runtime})
        assert (reply.status_code, reply.json()["error"]["message"]) == (400, told)
        assert server.client.get("/v1/sessions").json()["sessions"] == []


def test_crashed_agent_is_restarted_for_its_session(tmp_path: Path) -> None:
    """The request is told, the next one has a fresh agent, and the log has the last words."""
    with serve(tmp_path / "state", "--runtime", manifest(tmp_path)) as server:
        session = call(server, "/").headers["x-agentcube-session-id"]
        assert call(server, "/crash", session).status_code == 502
        wait_until(lambda: "lost its sandbox" in server.log.read_text(), "the gateway knows of its end")
        reason = server.state(session)["reason"]
        assert "exited with status 3" in reason
        assert "no more of this" in reason
        again = call(server, "/", session)
        assert again.status_code == 200
        assert "x-wakegate-restored" in again.headers


@pytest.mark.parametrize(
    ("container", "why"),
    [
        ({"command": ["/no/such/program"], "args": []}, "no such file"),
        ({"command": ["python3", "-c", "raise SystemExit('wrong key')"], "args": []}, "wrong key"),
        ({"workingDir": "/nowhere"}, "working directory /nowhere"),
    ],
)
def test_agent_that_cannot_start_is_reported_with_the_reason(
    tmp_path: Path, container: dict[str, Any], why: str
) -> None:
    """In the answer to who asked for a session, and at /v1/runtimes."""
    with serve(tmp_path / "state", "--runtime", manifest(tmp_path, **container)) as server:
        reply = call(server, "/")
        assert reply.status_code == 503
        assert why in reply.json()["error"]
        assert why in pool(server)["lastError"]


@pytest.mark.parametrize(
    "probe",
    [
        {"httpGet": {"path": "/tools", "port": "tools"}},
        {"tcpSocket": {"port": 3000}},
        {"exec": {"command": ["python3", "-c", "import socket; socket.create_connection(('127.0.0.1', 3000))"]}},
    ],
    ids=["httpGet", "tcpSocket", "exec"],
)
def test_agent_counts_as_ready_when_its_probe_succeeds(tmp_path: Path, probe: dict[str, Any]) -> None:
    """Its first port listens at once, the probed one half a second later: no request comes before that."""
    first = 'threading.Thread(target=http.server.ThreadingHTTPServer(("127.0.0.1", 8080), Agent).serve_forever).start()'
    late = ECHO.replace("tools = ", f"{first}\nimport time\ntime.sleep(0.5)\ntools = ")
    late = late.replace('\nhttp.server.ThreadingHTTPServer(("127.0.0.1", 8080), Agent).serve_forever()', "")
    ports = [{"name": "tools", "containerPort": 3000}]
    path = manifest(tmp_path, readinessProbe={**probe, "timeoutSeconds": 5}, ports=ports)
    (tmp_path / "echo.py").write_text(late)
    with serve(tmp_path / "state", "--runtime", path) as server:
        assert call(server, "/tools").json()["port"] == 3000
