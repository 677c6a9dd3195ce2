"""A small agent as an AgentRuntime: an HTTP server whose conversation lasts as long as its session.

    scripts/run --runtime examples/agent_runtime/agent.yaml
    python -c 'from agentcube import AgentRuntimeClient
    agent = AgentRuntimeClient("greeter", router_url="http://127.0.0.1:8080")
    print(agent.invoke({"message": "I am Ada"}), agent.invoke({"message": "Who am I?"}))'

GET / answers 200 (AgentCube's client requests it first), POST / expects {"message": "..."}. A real agent would ask a
model where this one looks for a name; the rest stays the same. It uses the standard library only.
"""

import json
import os
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

said: list[str] = []


def answer(message: str) -> str:
    """The agent's reply, which depends on all messages so far."""
    said.append(message)
    names = [found[1] for each in said if (found := re.search(r"I am (\w+)", each))]
    if message.rstrip("?").lower() == "who am i":
        return f"You are {names[-1]}." if names else "You have not told me."
    return f"{os.environ.get('GREETING', 'Hello')}, {names[-1]}!" if names else "Hello! Who are you?"


class Agent(BaseHTTPRequestHandler):
    """The HTTP handler; the server creates one for each request."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer that the agent is ready, with the number of messages so far."""
        self._send_json({"turns": len(said)})

    def do_POST(self) -> None:
        """Answer one message of the conversation."""
        body = json.loads(self.rfile.read(int(self.headers.get("content-length") or 0)) or b"{}")
        reply = answer(str(body.get("message", "")))
        self._send_json({"reply": reply, "turns": len(said), "session": self.headers.get("x-agentcube-session-id")})

    def _send_json(self, value: dict[str, object]) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(os.environ.get("PORT", "8080"))), Agent).serve_forever()
