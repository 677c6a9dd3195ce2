"""AgentRuntimes: images of anybody's, several ports by path prefix, and a warm pool."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from agentcube import AgentRuntimeClient

from tests.support.kube.served import in_cluster
from tests.support.waiting import wait_until

# An agent as its author would write it: answers each request with the port it came to and the path it had.
AGENT = """
import http.server, json, os, sys

class Agent(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self):
        length = int(self.headers.get("content-length") or 0)
        said = {"port": self.server.server_address[1], "path": self.path, "body": self.rfile.read(length).decode(),
                "authorized": "authorization" in self.headers}
        data = json.dumps(said).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = answer

http.server.ThreadingHTTPServer((os.environ["POD_IP"], int(sys.argv[1])), Agent).serve_forever()
"""
ADDRESS = {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
SPEC: dict[str, Any] = {
    "targetPort": [
        {"pathPrefix": "/", "port": 8080, "protocol": "HTTP"},
        {"pathPrefix": "/tools", "port": 3000, "protocol": "HTTP"},
    ],
    "podTemplate": {
        "labels": {"app": "agent"},
        "spec": {
            "containers": [
                {"name": name, "image": "registry.example/agent:1", "env": [ADDRESS],
                 "command": ["python3", "-c", AGENT, port]}
                for name, port in (("agent", "8080"), ("tools", "3000"))
            ]
        },
    },
    "warmPoolSize": 1,
}  # fmt: skip


def test_agent_runtime_serves_its_ports_by_path_from_a_warm_pool(tmp_path: Path) -> None:
    """The published SDK gets a session on a warm pod; paths go to the port of the longest prefix at a segment's end,
    unchanged; the agent sees no token of ours."""
    with in_cluster(tmp_path) as (server, cluster):
        cluster.call(lambda: cluster.create("agentruntimes", "agent", namespace="default", spec=SPEC))

        def warm() -> bool:
            pools = {each["name"]: each["pool"] for each in server.client.get("/v1/runtimes").json()["runtimes"]}
            return "agent" in pools and pools["agent"]["ready"] == 1

        wait_until(warm, "the agent's pool is full")
        agent = AgentRuntimeClient("agent", router_url=server.url)
        said = agent.invoke({"question": 42})
        assert (said["port"], said["path"], said["authorized"]) == (8080, "/", False)
        assert "42" in said["body"]
        (pod,) = cluster.call(lambda: cluster.pods(**{"wakegate.io/pool": "claimed", "app": "agent"}))
        assert pod["metadata"]["annotations"]["wakegate.io/start"] == "warm"
        base = f"{server.url}/v1/namespaces/default/agent-runtimes/agent/invocations"
        headers = {"x-agentcube-session-id": str(agent.session_id)}
        # Both containers have started; that the second listens nobody has been told.
        wait_until(lambda: server.client.get(base + "/tools", headers=headers).status_code == 200, "the tools listen")
        for path, port in (("/tools", 3000), ("/tools/a?b=c", 3000), ("/toolshed", 8080), ("/x/tools", 8080)):
            for _ in range(2):  # on a new connection, and on one that is kept
                reply = server.client.get(base + path, headers=headers)
                assert (reply.json()["port"], reply.json()["path"]) == (port, path)
        agent.close()
